//! What an enrolment says about itself before it writes anything else, so that a power cut leaves nothing that nobody knows.
//!
//! A marker token names the keyslot that is going to be made, and the object that is going to be kept in the TPM. The
//! finished token takes its place in one write of the header. Where the marker is still there, whatever it names is half
//! done and opens nothing: the next run clears it away, the marker last.

use iofs_luks::{Hash, Kdf, SlotId, Token, TokenId};
use iofs_policy::hex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    header::{LEAST_ITERATIONS, WriteError, Writer},
    volume::Volume,
};

/// The type of marker tokens. Programs that do not know it pass it over.
pub const TYPE: &str = "iofs-pending";

/// An object that is kept in the TPM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its persistent handle.
    #[serde(rename = "iofs-handle")]
    pub handle: u32,
    /// Its Name, in hexadecimal: what is at the handle may be somebody else's.
    #[serde(rename = "iofs-name")]
    pub name: String,
}

impl Kept {
    /// An object at a handle.
    pub fn new(handle: u32, name: &[u8]) -> Self {
        Self { handle, name: hex::encode(name) }
    }
}

/// The marker of an enrolment that makes `slot`.
pub fn marker(slot: SlotId, kept: Option<&Kept>) -> Value {
    let mut marker = json!({ "type": TYPE, "keyslots": [], "iofs-slot": slot.get() });
    if let Some(kept) = kept {
        marker["iofs-handle"] = kept.handle.into();
        marker["iofs-name"] = kept.name.clone().into();
    }
    marker
}

/// What an interrupted run left.
#[derive(Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its token, which goes last.
    pub token: TokenId,
    /// The keyslot that no token owns yet.
    pub slot: Option<SlotId>,
    /// What the TPM may keep for it.
    pub kept: Option<Kept>,
}

/// Finds what interrupted runs left: markers, and tokens of ours whose keyslots are gone, which open nothing.
///
/// # Errors
/// The tokens cannot be read.
pub fn leftovers(volume: &Volume, writer: &mut Writer) -> Result<Vec<Leftover>, WriteError> {
    let mut found = Vec::new();
    for (id, token) in volume.header.tokens() {
        if !is_leftover(token) {
            continue;
        }
        let json = writer.token(id)?;
        if json["keyslots"] != json!([]) {
            continue;
        }
        let slot = json["iofs-slot"].as_u64().and_then(|slot| u8::try_from(slot).ok()).and_then(SlotId::new);
        let slot = slot.filter(|slot| is_ownerless(volume, *slot));
        found.push(Leftover { token: id, slot, kept: serde_json::from_value(json).ok() });
    }
    Ok(found)
}

/// Whether there may be something to clear away: a marker, or a token without keyslots.
pub fn is_leftover(token: &Token) -> bool {
    token.keyslots().is_empty()
        && (token.kind() == TYPE || token.kind() == "systemd-tpm2" || token.kind() == "systemd-recovery")
}

/// Whether a keyslot is one that this program made and did not finish. Somebody may have taken the number since: no
/// passphrase's keyslot has so little between it and a guess.
fn is_ownerless(volume: &Volume, slot: SlotId) -> bool {
    let owned = volume.header.tokens().any(|(_, token)| token.keyslots().contains(&slot));
    let ours = volume.header.keyslot(slot).is_some_and(|keyslot| {
        matches!(&keyslot.kdf, Kdf::Pbkdf2 { hash: Hash::Sha512, iterations: LEAST_ITERATIONS, .. })
    });
    ours && !owned
}
