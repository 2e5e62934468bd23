//! The record of tries: what became of each slot, and of the last boots.

use serde::{Deserialize, Serialize};

use super::{Candidate, ConfirmedKeys, FloorKeeper, SlotName, SlotRules};
use crate::{
    digest::Sha256Digest,
    failure::Stage,
    manifest::{ImageVersion, RollbackIndex},
};

/// The size of one copy of the record in bytes.
pub const RECORD_SIZE: usize = 4096;
/// It lies at the start of its partition, and again behind that.
pub const RECORD_COPIES: usize = 2;
/// So many boots are remembered.
pub const MAX_BOOTS: usize = 8;
const MAGIC: &[u8; 8] = b"IOFSTATE";
const VERSION: u32 = 1;
/// Magic, length, digest.
const HEADER: usize = 8 + 4 + 32;

/// How much a release in a slot is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trial {
    /// Nobody has confirmed it yet: it is started so many times more.
    Trying(u8),
    /// It was confirmed.
    Good,
    /// Blocks of it did not verify: it is not started any more.
    Corrupt,
}

impl Trial {
    /// Whether it may be started.
    pub fn may_start(self) -> bool {
        matches!(self, Self::Good | Self::Trying(1..))
    }
}

/// What is remembered of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotState {
    /// The manifest that this is about: a slot that holds another one is as new.
    pub manifest: Sha256Digest,
    /// What it is worth.
    pub trial: Trial,
}

/// How a boot went, as far as anybody said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// verify-init chose it. Nobody confirmed it: it crashed, or lost its power, or hangs, or is still on its way.
    Started,
    /// verify-init refused it before this stage.
    Refused(Stage),
    /// It was confirmed. If it is not the running one it ended abruptly.
    Good,
    /// It was confirmed, and shut down in order.
    Ended,
    /// It ended abruptly, and the next boot found blocks that do not verify.
    Corrupt,
}

/// One boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootEntry {
    /// Counted from 1.
    pub number: u64,
    /// From which slot.
    pub slot: SlotName,
    /// Which version.
    pub version: ImageVersion,
    /// Its rollback index.
    pub rollback_index: RollbackIndex,
    /// Its manifest.
    pub manifest: Sha256Digest,
    /// How it went.
    pub outcome: Outcome,
}

/// The record. Each copy is, at the start of [`RECORD_SIZE`] bytes of which the rest is zero:
///
/// | bytes | what |
/// | --- | --- |
/// | 0 to 7 | `IOFSTATE` |
/// | 8 to 11 | length of the JSON in bytes, little endian |
/// | 12 to 43 | SHA-256 of the JSON |
/// | from 44 | this structure as JSON |
///
/// Whoever changes it raises `sequence` and writes the copy that is damaged or older first, then the other one, each
/// synchronised: at any moment one of them is whole, and the intact one with the higher sequence counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotRecord {
    /// The version of this structure: 1.
    pub version: u32,
    /// Higher with every change.
    pub sequence: u64,
    /// The oldest rollback index that may boot, as far as nobody changes this.
    pub floor: RollbackIndex,
    /// What is known of slot a.
    pub a: Option<SlotState>,
    /// What is known of slot b.
    pub b: Option<SlotState>,
    /// The last boots, the newest last.
    pub boots: Vec<BootEntry>,
    /// The keys that the last confirmed release brought, where one moved them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<ConfirmedKeys>,
}

impl Default for SlotRecord {
    fn default() -> Self {
        Self { version: VERSION, sequence: 0, floor: RollbackIndex(0), a: None, b: None, boots: Vec::new(), keys: None }
    }
}

/// Why a copy was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Nothing, or something else, was written here.
    #[error("slot state: expected {:?}, found something else: nobody wrote it yet", "IOFSTATE")]
    Empty,
    /// Somebody was interrupted, or changed it.
    #[error("slot state: its digest is wrong: it is damaged")]
    Damaged,
    /// It is not the JSON of a record.
    #[error("slot state: {0}")]
    Json(String),
    /// Another version wrote it.
    #[error("slot state: version: expected {VERSION}, found {0}")]
    Version(u32),
}

impl SlotRecord {
    /// Reads one copy.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, StateError> {
        let Some((header, rest)) = bytes.split_at_checked(HEADER).filter(|(header, _)| header.starts_with(MAGIC))
        else {
            return Err(StateError::Empty);
        };
        let length = u32::from_le_bytes(header[8..12].try_into().expect("four bytes")) as usize;
        let json = rest.get(..length).filter(|json| Sha256Digest::of(json).as_bytes() == &header[12..HEADER]);
        let json = json.ok_or(StateError::Damaged)?;
        let record: Self = serde_json::from_slice(json).map_err(|error| StateError::Json(error.to_string()))?;
        if record.version != VERSION {
            return Err(StateError::Version(record.version));
        }
        Ok(record)
    }

    /// Reads both copies: the one that counts, if any does, and which of them is to be written first.
    pub fn newest(bytes: &[u8]) -> (Result<Self, StateError>, usize) {
        let copy = |index: usize| Self::parse(bytes.chunks(RECORD_SIZE).nth(index).unwrap_or_default());
        match (copy(0), copy(1)) {
            (Ok(first), Ok(second)) if second.sequence > first.sequence => (Ok(second), 0),
            (Ok(first), _) => (Ok(first), 1),
            (Err(_), Ok(second)) => (Ok(second), 0),
            (Err(error), Err(_)) => (Err(error), 0),
        }
    }

    /// Both copies, for a partition that has none.
    pub fn encode_both(&self) -> Vec<u8> {
        [self.encode(); RECORD_COPIES].concat()
    }

    /// The bytes of one copy.
    pub fn encode(&self) -> [u8; RECORD_SIZE] {
        let mut boots = self.boots.iter().rev().take(MAX_BOOTS).cloned().collect::<Vec<_>>();
        boots.reverse();
        let json = serde_json::to_vec(&Self { boots, ..self.clone() }).expect("a record always serialises");
        let mut bytes = [0; RECORD_SIZE];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&(json.len() as u32).to_le_bytes());
        bytes[12..HEADER].copy_from_slice(Sha256Digest::of(&json).as_bytes());
        bytes[HEADER..HEADER + json.len()].copy_from_slice(&json);
        bytes
    }

    /// What is known of a slot.
    pub fn state(&self, slot: SlotName) -> Option<SlotState> {
        *slot.of(&[self.a, self.b])
    }

    fn set(&mut self, slot: SlotName, state: Option<SlotState>) {
        match slot {
            SlotName::A => self.a = state,
            SlotName::B => self.b = state,
        }
    }

    /// What that manifest in that slot is worth: as many tries as are sealed, where nothing is known of it.
    pub fn trial(&self, slot: SlotName, manifest: Sha256Digest, tries: u8) -> Trial {
        let known = self.state(slot).filter(|state| state.manifest == manifest);
        known.map_or(Trial::Trying(tries), |state| state.trial)
    }

    /// Notes that a boot begins, which costs what nobody has confirmed a try.
    pub fn begin(&mut self, candidate: &Candidate, tries: u8) {
        let Candidate { slot, manifest, .. } = *candidate;
        let trial = match self.trial(slot, manifest, tries) {
            Trial::Trying(left) => Trial::Trying(left.saturating_sub(1)),
            other => other,
        };
        self.set(slot, Some(SlotState { manifest, trial }));
        let number = self.boots.last().map_or(1, |last| last.number.saturating_add(1));
        let (version, rollback_index) = (candidate.version.clone(), candidate.rollback_index);
        self.boots.push(BootEntry { number, slot, version, rollback_index, manifest, outcome: Outcome::Started });
        if self.boots.len() > MAX_BOOTS {
            self.boots.remove(0);
        }
    }

    /// The last boot, if it was of that manifest in that slot.
    fn last_of(&mut self, slot: SlotName, manifest: Sha256Digest) -> Option<&mut BootEntry> {
        self.boots.last_mut().filter(|last| last.slot == slot && last.manifest == manifest)
    }

    /// Notes that the boot that began was refused. What was confirmed once has to be confirmed again.
    pub fn refused(&mut self, stage: Stage, tries: u8) {
        let Some(last) = self.boots.last_mut() else { return };
        last.outcome = Outcome::Refused(stage);
        let (slot, manifest) = (last.slot, last.manifest);
        if self.trial(slot, manifest, tries) == Trial::Good {
            let trial = Trial::Trying(tries.saturating_sub(1));
            self.set(slot, Some(SlotState { manifest, trial }));
        }
    }

    /// How many boots of that manifest in a row, up to the last one, were refused.
    pub fn refused_in_a_row(&self, manifest: Sha256Digest) -> usize {
        let refused = |boot: &&BootEntry| {
            boot.manifest == manifest && matches!(boot.outcome, Outcome::Refused(_) | Outcome::Corrupt)
        };
        self.boots.iter().rev().take_while(refused).count()
    }

    /// Whether all blocks of that slot are to be read before it is started again: its last boot ended abruptly, as it does
    /// where the kernel finds a corrupt block.
    pub fn ended_abruptly(&self, slot: SlotName, manifest: Sha256Digest) -> bool {
        let last = self.boots.last().filter(|last| last.slot == slot && last.manifest == manifest);
        last.is_some_and(|last| matches!(last.outcome, Outcome::Started | Outcome::Good))
    }

    /// Notes that blocks of a slot do not verify.
    pub fn corrupt(&mut self, slot: SlotName, manifest: Sha256Digest) {
        if let Some(last) = self.last_of(slot, manifest) {
            last.outcome = Outcome::Corrupt;
        }
        self.set(slot, Some(SlotState { manifest, trial: Trial::Corrupt }));
    }

    /// Gives what used up its tries one more, for the next time that somebody starts the machine.
    pub fn one_more_try(&mut self) {
        for state in [&mut self.a, &mut self.b].into_iter().flatten() {
            if state.trial == Trial::Trying(0) {
                state.trial = Trial::Trying(1);
            }
        }
    }

    /// Ends the trial of what runs: false where the last boot was another one.
    pub fn confirm(&mut self, slot: SlotName, manifest: Sha256Digest, rules: &SlotRules) -> bool {
        let Some(last) = self.last_of(slot, manifest) else { return false };
        if !matches!(last.outcome, Outcome::Started | Outcome::Good) {
            return false;
        }
        last.outcome = Outcome::Good;
        let index = last.rollback_index;
        self.set(slot, Some(SlotState { manifest, trial: Trial::Good }));
        if rules.floor == FloorKeeper::State {
            self.floor = self.floor.max(index);
        }
        true
    }

    /// Notes that what was confirmed is shut down in order.
    pub fn ended(&mut self, slot: SlotName, manifest: Sha256Digest) -> bool {
        match self.last_of(slot, manifest) {
            Some(last) if last.outcome == Outcome::Good => {
                last.outcome = Outcome::Ended;
                true
            }
            _ => false,
        }
    }

    /// Before a slot is written: nothing is known of it any more.
    pub fn forget(&mut self, slot: SlotName) {
        self.set(slot, None);
    }

    /// After a slot was written: it is to be tried.
    pub fn install(&mut self, slot: SlotName, manifest: Sha256Digest, tries: u8) {
        self.set(slot, Some(SlotState { manifest, trial: Trial::Trying(tries) }));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        keys::KeySequence,
        slots::{
            HistoryArea,
            choice::tests::{candidate, rules},
        },
    };

    fn copies(first: &[u8], second: &[u8]) -> Vec<u8> {
        [first, second].concat()
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_any_change_is_noticed() {
        let mut record = SlotRecord { sequence: 7, floor: RollbackIndex(2), ..SlotRecord::default() };
        record.begin(&candidate(SlotName::A, "1.0", 3), 3);
        let bytes = record.encode();
        assert_eq!(SlotRecord::parse(&bytes).unwrap(), record);
        let end = HEADER + u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
        for at in 0..end {
            let mut changed = bytes;
            changed[at] ^= 1;
            assert!(SlotRecord::parse(&changed).is_err(), "byte {at}");
        }
        assert_eq!(SlotRecord::parse(&[]), Err(StateError::Empty));
        let other = SlotRecord { version: 2, ..record };
        assert_eq!(SlotRecord::parse(&other.encode()), Err(StateError::Version(2)));
    }

    #[test]
    fn the_longest_record_has_room() {
        let mut record = SlotRecord { sequence: u64::MAX, floor: RollbackIndex(u64::MAX), ..SlotRecord::default() };
        for slot in SlotName::ALL.into_iter().cycle().take(20) {
            record.begin(&candidate(slot, &"v".repeat(64), u64::MAX), 15);
            record.boots.iter_mut().for_each(|boot| boot.number = u64::MAX - 1);
            record.refused(Stage::Unlocked, 15);
        }
        let digest = Sha256Digest::of(b"");
        let (sequence, length) = (KeySequence(u64::MAX), u32::MAX);
        record.keys = Some(ConfirmedKeys { sequence, area: HistoryArea::Second, length, digest });
        assert_eq!(record.boots.len(), MAX_BOOTS);
        assert_eq!(SlotRecord::parse(&record.encode()).unwrap(), record);
    }

    #[test]
    fn the_intact_copy_with_the_higher_sequence_counts_and_the_other_one_is_written_first() {
        let record = |sequence| SlotRecord { sequence, ..SlotRecord::default() };
        let (old, new, torn) = (record(1).encode(), record(2).encode(), [0; RECORD_SIZE]);
        for (first, second, counts, order) in [
            (&old, &new, Some(2), 0),
            (&new, &old, Some(2), 1),
            (&new, &new, Some(2), 1),
            (&torn, &old, Some(1), 0),
            (&old, &torn, Some(1), 1),
            (&torn, &torn, None, 0),
        ] {
            let (found, write_first) = SlotRecord::newest(&copies(first, second));
            assert_eq!((found.ok().map(|record| record.sequence), write_first), (counts, order));
        }
        assert!(SlotRecord::newest(&[]).0.is_err());
    }

    proptest! {
        #[test]
        fn power_cut_at_any_byte_of_a_change_leaves_the_old_or_the_new_record(
            cut in 0..=2 * RECORD_SIZE, sequence in 0..u64::MAX, second_is_older: bool,
        ) {
            let old = SlotRecord { sequence, ..SlotRecord::default() };
            let mut new = SlotRecord { sequence: sequence + 1, ..SlotRecord::default() };
            new.begin(&candidate(SlotName::B, "2", 5), 3);
            let stale = SlotRecord { sequence: sequence.saturating_sub(1), ..SlotRecord::default() };
            let mut disk = if second_is_older { copies(&old.encode(), &stale.encode()) } else { copies(&stale.encode(), &old.encode()) };
            let (_, first) = SlotRecord::newest(&disk);
            let bytes = new.encode();
            for (index, copy) in [first, 1 - first].into_iter().enumerate() {
                let written = cut.saturating_sub(index * RECORD_SIZE).min(RECORD_SIZE);
                disk[copy * RECORD_SIZE..][..written].copy_from_slice(&bytes[..written]);
            }
            let found = SlotRecord::newest(&disk).0.unwrap();
            prop_assert!(found == old || found == new || (sequence == 0 && found == stale));
            prop_assert!(cut < 2 * RECORD_SIZE || found == new);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(SlotRecord::newest(&bytes).0.is_err());
        }
    }

    #[test]
    fn refusals_are_counted_until_another_release_or_a_boot_that_was_let_through() {
        let (a, b) = (candidate(SlotName::A, "1", 1), candidate(SlotName::B, "2", 1));
        let mut record = SlotRecord::default();
        for (begun, refused, expected) in [(&a, true, 1), (&a, true, 2), (&b, true, 1), (&a, false, 0), (&a, true, 1)] {
            record.begin(begun, 3);
            if refused {
                record.refused(Stage::Mapped, 3);
            }
            assert_eq!(record.refused_in_a_row(begun.manifest), expected);
        }
        record.corrupt(SlotName::A, a.manifest);
        assert_eq!(record.refused_in_a_row(a.manifest), 1);
    }

    #[test]
    fn a_release_is_confirmed_only_while_it_runs_and_raises_the_floor() {
        let (rules, new) = (rules(), candidate(SlotName::B, "2", 5));
        let mut record = SlotRecord::default();
        record.begin(&new, 3);
        assert!(!record.confirm(SlotName::A, new.manifest, &rules));
        assert!(!record.ended(SlotName::B, new.manifest), "nobody confirmed it yet");
        assert!(record.confirm(SlotName::B, new.manifest, &rules));
        assert_eq!((record.floor, record.trial(SlotName::B, new.manifest, 3)), (RollbackIndex(5), Trial::Good));
        assert!(record.ended_abruptly(SlotName::B, new.manifest));
        assert!(record.ended(SlotName::B, new.manifest));
        assert!(!record.ended_abruptly(SlotName::B, new.manifest));
        assert!(!record.confirm(SlotName::B, new.manifest, &rules), "it does not run any more");

        let mut tpm = SlotRecord::default();
        tpm.begin(&new, 3);
        assert!(tpm.confirm(SlotName::B, new.manifest, &SlotRules { floor: FloorKeeper::Tpm, ..rules }));
        assert_eq!(tpm.floor, RollbackIndex(0), "the TPM counts");
    }
}
