//! The keys that a machine has confirmed, behind its record of tries.

use serde::{Deserialize, Serialize};

use super::{RECORD_COPIES, RECORD_SIZE};
use crate::{
    digest::Sha256Digest,
    keys::{HistoryError, KeyHistory, KeySequence, MAX_HISTORY_SIZE},
};

/// One of two areas behind both copies of the record, each as large as any key history. The one that the record does not name is
/// written, and then the record: so that at any moment the one that it names is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryArea {
    /// Right behind the record.
    First,
    /// Behind that.
    Second,
}

impl HistoryArea {
    /// Its first byte on the partition.
    pub fn offset(self) -> u64 {
        let before = match self {
            Self::First => 0,
            Self::Second => MAX_HISTORY_SIZE,
        };
        (RECORD_COPIES * RECORD_SIZE + before) as u64
    }

    /// The byte behind it: a partition that ends before it has no room for confirmed keys.
    pub fn end(self) -> u64 {
        self.offset() + MAX_HISTORY_SIZE as u64
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// The key history of the last release that moved the keys and was confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfirmedKeys {
    /// Where it leads to.
    pub sequence: KeySequence,
    /// Where it is.
    pub area: HistoryArea,
    /// Its length in bytes.
    pub length: u32,
    /// Its digest.
    pub digest: Sha256Digest,
}

/// Why a confirmed history counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfirmedKeysError {
    /// It is not what was confirmed.
    #[error("confirmed keys: expected the {length} bytes with SHA-256 {digest}, found others: they are damaged")]
    Damaged {
        /// How many bytes were confirmed.
        length: u32,
        /// Their digest.
        digest: Sha256Digest,
    },
    /// It is none.
    #[error("confirmed keys: {0}")]
    History(#[from] HistoryError),
}

impl ConfirmedKeys {
    /// Of a history that lies in that area.
    pub fn new(history: &KeyHistory, bytes: &[u8], area: HistoryArea) -> Self {
        Self { sequence: history.last(), area, length: bytes.len() as u32, digest: Sha256Digest::of(bytes) }
    }

    /// How many bytes to read: never more than an area has.
    pub fn size(&self) -> usize {
        (self.length as usize).min(MAX_HISTORY_SIZE)
    }

    /// Parses what was read.
    ///
    /// # Errors
    /// [`ConfirmedKeysError`].
    pub fn history(&self, bytes: &[u8]) -> Result<KeyHistory, ConfirmedKeysError> {
        if Sha256Digest::of(bytes) != self.digest {
            return Err(ConfirmedKeysError::Damaged { length: self.length, digest: self.digest });
        }
        Ok(KeyHistory::parse(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_areas_lie_behind_the_record_and_beside_each_other() {
        let [first, second] = [HistoryArea::First, HistoryArea::Second];
        assert_eq!([first.offset(), first.end(), second.offset(), second.end()], [8192, 139_264, 139_264, 270_336]);
        assert_eq!([first.other(), second.other()], [second, first]);
    }

    #[test]
    fn a_length_that_nothing_has_reads_no_more_than_an_area() {
        let digest = Sha256Digest::of(b"");
        let keys = ConfirmedKeys { sequence: KeySequence(1), area: HistoryArea::First, length: u32::MAX, digest };
        assert_eq!(keys.size(), MAX_HISTORY_SIZE);
        let other = keys.history(b"x").unwrap_err().to_string();
        assert!(other.contains("expected the 4294967295 bytes with SHA-256 e3b0c442"), "{other}");
        assert!(matches!(keys.history(b""), Err(ConfirmedKeysError::History(_))));
    }
}
