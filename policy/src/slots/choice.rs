//! Which slot a boot takes.

use std::cmp::Reverse;

use super::{SlotName, SlotRecord, version};
use crate::{
    digest::Sha256Digest,
    manifest::{ImageVersion, RollbackIndex, VerifiedManifest},
};

/// A slot whose manifest verified, and is not below the floor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The slot.
    pub slot: SlotName,
    /// Its manifest.
    pub manifest: Sha256Digest,
    /// Its version.
    pub version: ImageVersion,
    /// Its rollback index.
    pub rollback_index: RollbackIndex,
}

impl Candidate {
    /// What a slot's manifest says.
    pub fn new(slot: SlotName, manifest: &VerifiedManifest) -> Self {
        let image = &manifest.manifest().image;
        let (version, rollback_index) = (image.version.clone(), image.rollback_index);
        Self { slot, manifest: manifest.digest(), version, rollback_index }
    }

    /// Whether this is the newer release: by rollback index, then by version.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let by_index = self.rollback_index.cmp(&other.rollback_index);
        by_index.then_with(|| version::compare(self.version.as_str(), other.version.as_str())).is_gt()
    }
}

impl SlotRecord {
    /// The slots that may be started, in the order in which they are: the newest release first. Of equal ones the one that was
    /// confirmed, then slot a.
    pub fn order(&self, candidates: &[Candidate], tries: u8) -> Vec<Candidate> {
        let trial = |one: &Candidate| self.trial(one.slot, one.manifest, tries);
        let mut order: Vec<_> = candidates.iter().filter(|one| trial(one).may_start()).cloned().collect();
        order.sort_by_key(|one| (Reverse(trial(one) == super::Trial::Good), one.slot));
        order.sort_by(|left, right| match (left.is_newer_than(right), right.is_newer_than(left)) {
            (true, _) => std::cmp::Ordering::Less,
            (_, true) => std::cmp::Ordering::Greater,
            _ => std::cmp::Ordering::Equal,
        });
        order
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{
        SlotName::{A, B},
        *,
    };
    use crate::{
        failure::Stage,
        slots::{Chooser, FloorKeeper, SlotRules, Trial},
    };

    pub(in crate::slots) fn candidate(slot: SlotName, version: &str, index: u64) -> Candidate {
        let manifest = Sha256Digest::of(format!("{version} {index}").as_bytes());
        Candidate { slot, manifest, version: version.parse().unwrap(), rollback_index: RollbackIndex(index) }
    }

    pub(in crate::slots) fn rules() -> SlotRules {
        SlotRules {
            places: ["PARTLABEL=system_a", "PARTLABEL=system_b"].map(|text| text.parse().unwrap()),
            state: "PARTLABEL=iofs_state".parse().unwrap(),
            tries: 3,
            chooser: Chooser::VerifyInit,
            floor: FloorKeeper::State,
        }
    }

    fn slots(order: &[Candidate]) -> Vec<SlotName> {
        order.iter().map(|one| one.slot).collect()
    }

    #[test]
    fn the_newest_release_comes_first_by_rollback_index_and_then_by_version() {
        for (a, b, first) in [
            (("1", 1), ("2", 1), B),
            (("1", 2), ("2", 1), A),
            (("10", 1), ("9", 1), A),
            (("1~rc1", 1), ("1", 1), B),
            (("1", 1), ("1", 1), A),
        ] {
            let candidates = [candidate(A, a.0, a.1), candidate(B, b.0, b.1)];
            assert_eq!(slots(&SlotRecord::default().order(&candidates, 3))[0], first, "{a:?} {b:?}");
        }
    }

    #[test]
    fn a_release_that_nobody_confirms_falls_back_after_its_tries() {
        let candidates = [candidate(A, "1", 1), candidate(B, "2", 1)];
        let mut record = SlotRecord::default();
        record.begin(&candidates[0], 3);
        assert!(record.confirm(A, candidates[0].manifest, &rules()));
        let mut started = Vec::new();
        for _ in 0..6 {
            let chosen = record.order(&candidates, 3).remove(0);
            record.begin(&chosen, 3);
            started.push(chosen.slot);
        }
        assert_eq!(started, [B, B, B, A, A, A]);
    }

    #[test]
    fn a_confirmed_release_that_is_refused_again_and_again_gives_way_and_in_the_end_nothing_is_left() {
        let candidates = [candidate(A, "1", 1), candidate(B, "2", 1)];
        let mut record = SlotRecord::default();
        for one in &candidates {
            record.begin(one, 3);
            assert!(record.confirm(one.slot, one.manifest, &rules()));
        }
        let mut started = Vec::new();
        while let Some(chosen) = record.order(&candidates, 3).first().cloned() {
            record.begin(&chosen, 3);
            record.refused(Stage::Mapped, 3);
            started.push(chosen.slot);
            assert!(started.len() < 20, "a loop");
        }
        assert_eq!(started, [B, B, B, A, A, A]);
        record.one_more_try();
        assert_eq!(record.order(&candidates, 3).len(), 2);
    }

    #[test]
    fn corruption_mode_a_corrupt_slot_is_out_until_it_is_written_again() {
        let candidates = [candidate(A, "1", 1), candidate(B, "2", 1)];
        let mut record = SlotRecord::default();
        record.begin(&candidates[1], 3);
        assert!(record.ended_abruptly(B, candidates[1].manifest));
        record.corrupt(B, candidates[1].manifest);
        assert!(!record.ended_abruptly(B, candidates[1].manifest));
        assert_eq!(slots(&record.order(&candidates, 3)), [A]);
        record.one_more_try();
        assert_eq!(slots(&record.order(&candidates, 3)), [A]);
        record.install(B, candidates[1].manifest, 3);
        assert_eq!(record.trial(B, candidates[1].manifest, 3), Trial::Trying(3));
    }
}
