//! What `iofs-sign enroll` says.

use std::{collections::BTreeMap, io::Write};

use iofs_policy::{hex, manifest::RollbackRule};
use iofs_sign::{
    enroll::{
        recovery::RecoveryKey,
        steps::Done,
        tpm::{Proof, TpmPlan},
        volume::{Kind, Way},
    },
    report::Failure,
};
use serde::Serialize;
use zeroize::Zeroizing;

/// What `--dry-run` prints.
#[derive(Debug, Serialize)]
pub(super) struct DryRun {
    pub(super) uuid: String,
    pub(super) clear: Vec<u8>,
    pub(super) add_recovery_key: bool,
    pub(super) add_tpm: Option<PlannedTpm>,
    pub(super) remove: Vec<u8>,
}

/// What a key would be sealed to.
#[derive(Debug, Serialize)]
pub(super) struct PlannedTpm {
    bank: &'static str,
    pcrs: BTreeMap<u8, String>,
    signed_pcrs: Vec<u8>,
    handle: Option<String>,
}

impl PlannedTpm {
    pub(super) fn of(plan: &TpmPlan) -> Self {
        let pcrs = plan.values.iter().map(|(pcr, value)| (pcr.get(), hex::encode(value.as_bytes())));
        let signed = plan.signed.iter().flat_map(|signed| &signed.pcrs);
        Self {
            bank: plan.bank.name(),
            pcrs: pcrs.collect(),
            signed_pcrs: signed.map(|pcr| pcr.get()).collect(),
            handle: plan.persistent.map(|handle| format!("{handle:#010x}")),
        }
    }
}

impl DryRun {
    pub(super) fn to_text(&self) -> String {
        let mut text = format!("volume: {}; nothing was written\n", self.uuid);
        for token in &self.clear {
            text += &format!("clear away: token {token}, left by an enrolment that was interrupted\n");
        }
        if self.add_recovery_key {
            text += "add:    a recovery key\n";
        }
        if let Some(tpm) = &self.add_tpm {
            text += "add:    a key that the TPM gives out where\n";
            for (pcr, value) in &tpm.pcrs {
                text += &format!("        PCR {pcr:2} ({}) is {value}\n", tpm.bank);
            }
            for pcr in &tpm.signed_pcrs {
                text += &format!("        PCR {pcr:2} ({}) is what the key signed\n", tpm.bank);
            }
            text += &tpm
                .handle
                .as_ref()
                .map(|handle| format!("        the TPM keeps it at {handle}\n"))
                .unwrap_or_default();
        }
        self.remove.iter().for_each(|slot| text += &format!("remove: keyslot {slot}\n"));
        text
    }
}

/// What was done, and what opens the volume now.
pub(super) fn text(done: &Done, left: &[Way]) -> String {
    let mut text = format!("volume:    {}\n", done.uuid);
    for token in &done.cleared {
        text += &format!("cleared:   token {token}, left by an enrolment that was interrupted\n");
    }
    if let Some(id) = &done.volume_key {
        text += &format!("key:       {id}\n");
    }
    if let Some(token) = done.unchanged {
        text += &format!("unchanged: token {token} does this already\n");
    }
    for added in &done.added {
        let (kind, slot, token) = (added.kind.name(), added.keyslot, added.token);
        text += &format!("added:     {kind}, keyslot {slot}, token {token}: {}\n", proven(added.proof));
        if let Some(RollbackRule { counter, value, index }) = added.rollback {
            text += &format!(
                "           at {value} the counter stands for index {index}; in iofs.toml, below [tpm] with this machine's srk:\n           \
                 rollback = {{ counter = {counter:#010x}, value = {value}, index = {index} }}\n"
            );
        }
    }
    for removed in &done.removed {
        let slot = removed.keyslot.map(|slot| slot.to_string()).unwrap_or_default();
        text += &format!("removed:   {}, keyslot {slot}\n", removed.kind.name());
    }
    text += &format!("opens by:  {}\n", left.iter().map(|way| way.kind.name()).collect::<Vec<_>>().join(", "));
    if !left.iter().any(|way| matches!(way.kind, Kind::RecoveryKey)) {
        text += "next: keep a way in for when the TPM is gone: --recovery-key\n";
    }
    text
}

fn proven(proof: Proof) -> &'static str {
    match proof {
        Proof::Opened => "it opened the keyslot",
        Proof::Unsealed => "the TPM gave it out, and it opened the keyslot",
        Proof::Loaded => "the TPM took it; it is given out once the registers hold these values",
    }
}

/// Prints a recovery key, for people with its QR code.
pub(super) fn show_key(key: &RecoveryKey, for_people: bool) -> Result<(), Failure> {
    let text = Zeroizing::new(if for_people {
        format!(
            "\nThe recovery key. It is shown once; keep it where this machine is not.\n\n    {}\n\n{}\n",
            key.as_str(),
            key.qr().as_str()
        )
    } else {
        format!("{}\n", key.as_str())
    });
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| Failure::io("print the recovery key", &error))
}
