//! What a volume can be opened by, for people and for programs.

use iofs_luks::{Token, TokenId, Tpm2Token};
use iofs_policy::{hex, manifest::RollbackRule};
use serde::Serialize;

use super::volume::{Kind, Volume};
use crate::inspect::luks_text::rollback_text;

/// What `enroll --list` prints.
#[derive(Debug, Serialize)]
pub struct Listing {
    /// The volume's UUID.
    pub uuid: String,
    /// Its label.
    pub label: String,
    /// Its keyslots.
    pub keyslots: Vec<ListedSlot>,
    /// Its tokens.
    pub tokens: Vec<ListedToken>,
    /// What is odd about its header.
    pub notes: Vec<String>,
}

/// A keyslot.
#[derive(Debug, Serialize)]
pub struct ListedSlot {
    /// Its number.
    pub slot: u8,
    /// What opens it.
    pub kind: Kind,
    /// The token that does.
    pub token: Option<u8>,
    /// How its key is derived.
    pub kdf: String,
}

/// A token.
#[derive(Debug, Serialize)]
pub struct ListedToken {
    /// Its number.
    pub token: u8,
    /// Its type.
    pub r#type: String,
    /// The keyslots that it opens.
    pub keyslots: Vec<u8>,
    /// What binds a TPM's token.
    pub tpm2: Option<ListedTpm2>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// What binds a TPM's token.
#[derive(Debug, Serialize)]
pub struct ListedTpm2 {
    /// Registers whose values were sealed.
    pub pcrs: Vec<u8>,
    /// The bank of all registers.
    pub bank: Option<String>,
    /// Registers whose values a key signs.
    pub signed_pcrs: Vec<u8>,
    /// Whether a PIN is asked for.
    pub pin: bool,
    /// Whether the PIN is salted.
    pub salted: bool,
    /// The Name of the storage root key that it is bound to.
    pub srk: Option<String>,
    /// Where the sealed object is kept in the TPM.
    pub handle: Option<String>,
    /// Where the rollback counter ends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackRule>,
    /// The policy's digests.
    pub policy_hashes: Vec<String>,
}

impl Listing {
    /// Lists what a volume has.
    pub fn of(volume: &Volume) -> Self {
        let header = &volume.header;
        let keyslots = volume.ways().into_iter().map(|way| ListedSlot {
            slot: way.slot.get(),
            kind: way.kind,
            token: way.token.map(TokenId::get),
            kdf: header.keyslot(way.slot).map(|keyslot| keyslot.kdf.to_string()).unwrap_or_default(),
        });
        let tokens = header.tokens().map(|(id, token)| ListedToken {
            token: id.get(),
            r#type: token.kind().to_owned(),
            keyslots: token.keyslots().iter().map(|slot| slot.get()).collect(),
            tpm2: if let Token::SystemdTpm2(token) = token { Some(ListedTpm2::of(token)) } else { None },
            problem: problem(token),
        });
        Self {
            uuid: header.uuid.to_string(),
            label: header.label.clone(),
            keyslots: keyslots.collect(),
            tokens: tokens.collect(),
            notes: header.notes.clone(),
        }
    }

    /// The text for people.
    pub fn to_text(&self) -> String {
        let mut text = format!("volume: {}{}\n", self.uuid, labelled(&self.label));
        for slot in &self.keyslots {
            let token = slot.token.map(|token| format!(", token {token}")).unwrap_or_default();
            text += &format!("keyslot {:2}  {}{token}; {}\n", slot.slot, slot.kind.name(), slot.kdf);
        }
        for token in &self.tokens {
            text += &format!("token {:4}  {}", token.token, token.r#type);
            text += &token.tpm2.as_ref().map(|tpm2| format!(": {}", tpm2.to_text())).unwrap_or_default();
            text += &token.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
            text.push('\n');
        }
        self.notes.iter().for_each(|note| text += &format!("note: {note}\n"));
        text
    }
}

fn labelled(label: &str) -> String {
    if label.is_empty() { String::new() } else { format!(" {label:?}") }
}

fn problem(token: &Token) -> Option<String> {
    match token {
        Token::Broken { why, .. } => Some(why.to_string()),
        Token::SystemdTpm2(token) if token.pcrlock => {
            Some("bound by systemd-pcrlock, which verify-init cannot do".into())
        }
        Token::Other { kind, .. } if kind == super::pending::TYPE => {
            Some("left by an enrolment that was interrupted; the next one clears it away".into())
        }
        _ => None,
    }
}

impl ListedTpm2 {
    fn of(token: &Tpm2Token) -> Self {
        let numbers =
            |pcrs: &std::collections::BTreeSet<iofs_policy::pcr::PcrIndex>| pcrs.iter().map(|pcr| pcr.get()).collect();
        Self {
            pcrs: numbers(&token.pcrs),
            bank: token.bank.map(|bank| bank.name().to_owned()),
            signed_pcrs: token.signed.as_ref().map(|signed| numbers(&signed.pcrs)).unwrap_or_default(),
            pin: token.pin,
            salted: token.salt.is_some(),
            srk: token.srk.as_ref().map(|srk| hex::encode(&srk.name)),
            handle: token.persistent.map(|handle| format!("{handle:#010x}")),
            rollback: token.rollback,
            policy_hashes: token.policy_hashes.iter().map(|hash| hex::encode(hash)).collect(),
        }
    }

    fn to_text(&self) -> String {
        let joined = |pcrs: &[u8]| pcrs.iter().map(u8::to_string).collect::<Vec<_>>().join("+");
        let bank = self.bank.as_deref().map(|bank| format!(" ({bank})")).unwrap_or_default();
        let mut parts = Vec::new();
        if !self.pcrs.is_empty() {
            parts.push(format!("PCRs {}{bank}", joined(&self.pcrs)));
        }
        if !self.signed_pcrs.is_empty() {
            parts.push(format!("signed PCRs {}{bank}", joined(&self.signed_pcrs)));
        }
        if self.pin {
            parts.push(if self.salted { "PIN" } else { "PIN without salt" }.to_owned());
        }
        if parts.is_empty() {
            parts.push("no PCRs: opens for whoever has disk and machine".to_owned());
        }
        match &self.srk {
            None => parts.push("no storage root key pinned".to_owned()),
            Some(name) => parts.push(format!("storage root key {}…", name.get(..16).unwrap_or(name))),
        }
        let rollback = self.rollback.map(|rule| rollback_text(rule, !self.signed_pcrs.is_empty()));
        parts.extend(rollback.map(|text| format!("rollback index {text}")));
        parts.extend(self.handle.as_ref().map(|handle| format!("kept in the TPM at {handle}")));
        parts.join(", ")
    }
}
