//! Whose signatures count on a machine with slots: the keys of its trust policy, moved by the releases that it has confirmed.

use std::{io::ErrorKind, path::Path};

use iofs_policy::{
    keys::{KeyHistory, KeyRing, KeySequence, MAX_HISTORY_SIZE},
    slots::ConfirmedKeysError,
    trust::{KeyId, TrustPolicy},
};
use serde::Serialize;

use super::record::RecordFile;
use crate::{
    attest,
    report::{ExitStatus, Failure},
    sealed::bad_input,
};

/// What a machine has confirmed.
#[derive(Debug, Clone)]
pub struct MachineKeys {
    /// Who may sign.
    pub ring: KeyRing,
    /// The moves that led there from the trust policy, if there were any.
    pub history: Option<KeyHistory>,
    /// Why what was confirmed cannot be told any more: the keys are those of the trust policy then, as at a boot.
    pub problem: Option<String>,
}

impl MachineKeys {
    /// Reads what the record of tries names, as verify-init does.
    pub fn of(trust: &TrustPolicy, record: &RecordFile) -> Self {
        let ring = KeyRing::of(trust);
        match confirmed(&ring, record) {
            Ok((ring, history)) => Self { ring, history, problem: None },
            Err(problem) => Self { ring, history: None, problem: Some(problem) },
        }
    }

    /// The history with what another one goes on with.
    ///
    /// # Errors
    /// The other one does not go on from here, or there are too many moves.
    pub fn extended_by(&self, other: &KeyHistory) -> Result<KeyHistory, Failure> {
        let history = self.history.as_ref().map_or_else(|| Ok(other.clone()), |known| known.extended_by(other));
        history.map_err(|error| {
            Failure::new(ExitStatus::BadInput, error.to_string())
                .next("give the device a new mini-initramfs, sealed with the keys of today")
        })
    }
}

fn confirmed(sealed: &KeyRing, record: &RecordFile) -> Result<(KeyRing, Option<KeyHistory>), String> {
    let history = record.key_history().map_err(|error: ConfirmedKeysError| error.to_string())?;
    let Some(history) = history else { return Ok((sealed.clone(), None)) };
    let ring = sealed.clone().follow(&history).map_err(|error| format!("confirmed keys: {error}"))?;
    Ok((ring, Some(history)))
}

/// The key history that verify-init left of the running release, if that has one.
///
/// # Errors
/// It cannot be read, or is none.
pub fn of_boot(path: &Path) -> Result<Option<KeyHistory>, Failure> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    let bytes = attest::read(path, MAX_HISTORY_SIZE)?;
    KeyHistory::parse(&bytes).map(Some).map_err(|error| bad_input(path, &error))
}

/// Keys, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeysView {
    /// How often they were moved.
    pub sequence: KeySequence,
    /// How many must sign.
    pub threshold: u8,
    /// Who may.
    pub trusted: Vec<KeyId>,
    /// Who may never again.
    pub revoked: Vec<KeyId>,
}

impl From<&KeyRing> for KeysView {
    fn from(ring: &KeyRing) -> Self {
        let keys = ring.keys();
        let (trusted, revoked) = (keys.ids().collect(), ring.revoked().to_vec());
        Self { sequence: ring.sequence(), threshold: keys.threshold(), trusted, revoked }
    }
}

impl KeysView {
    /// Line by line.
    pub fn text(&self) -> String {
        let moved = match self.sequence.0 {
            0 => "as sealed".to_owned(),
            1 => "moved once".to_owned(),
            times => format!("moved {times} times"),
        };
        let mut text = format!("keys:      {moved}; {} must sign\n", self.threshold);
        self.trusted.iter().for_each(|key| text.push_str(&format!("  trusted  {key}\n")));
        self.revoked.iter().for_each(|key| text.push_str(&format!("  revoked  {key}\n")));
        text
    }
}
