//! Two slots, of which one is booted and the other one is updated: the sealed rules, what stands at the end of a slot,
//! the record of tries, and which slot a boot takes.
//!
//! Nothing of what lies on the disk is believed. The end of a slot only says where its manifest is, which keys must have
//! signed; the record only chooses among slots whose manifests verified and are not below the floor.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::manifest::Place;

mod choice;
mod confirmed;
mod footer;
mod state;
mod version;

pub use choice::Candidate;
pub use confirmed::{ConfirmedKeys, ConfirmedKeysError, HistoryArea};
pub use footer::{FOOTER_SIZE, Footer, FooterError, Part, SlotEnd};
pub use state::{BootEntry, MAX_BOOTS, Outcome, RECORD_COPIES, RECORD_SIZE, SlotRecord, SlotState, StateError, Trial};
pub use version::compare as compare_versions;

/// The most tries that may be sealed.
pub const MAX_SLOT_TRIES: u8 = 15;

/// A slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotName {
    /// The first one.
    A,
    /// The second one.
    B,
}

impl SlotName {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// This one's of a pair: `a`, then `b`.
    pub fn of<T>(self, [a, b]: &[T; 2]) -> &T {
        match self {
            Self::A => a,
            Self::B => b,
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

/// Who decides which release is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Chooser {
    /// verify-init: the newest verified release that has tries left.
    #[default]
    VerifyInit,
    /// The boot loader, which counts tries in the names of its files: only the slot that holds the release whose manifest
    /// is in the initramfs is taken.
    BootLoader,
}

/// Where the rollback floor is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloorKeeper {
    /// In the record of tries. Whoever can write to the disk can lower it again.
    #[default]
    State,
    /// In a counter of the TPM, besides: manifests without `tpm.rollback` are refused.
    Tpm,
}

/// The slots, as sealed in the trust policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotRules {
    /// Where the slots are: `a`, then `b`.
    pub places: [Place; 2],
    /// Where the record of tries is.
    pub state: Place,
    /// How often a release is started that nobody has confirmed.
    pub tries: u8,
    /// Who chooses.
    #[serde(default)]
    pub chooser: Chooser,
    /// Where the floor is kept.
    #[serde(default)]
    pub floor: FloorKeeper,
}

/// Why rules were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("slots: {field}: expected {expected}, found {found}")]
pub struct SlotRulesError {
    /// The field.
    pub field: &'static str,
    /// What would do.
    pub expected: &'static str,
    /// What is there.
    pub found: String,
}

impl SlotRules {
    /// The place of a slot.
    pub fn place(&self, slot: SlotName) -> &Place {
        slot.of(&self.places)
    }

    /// Refuses what no field's own type can refuse.
    ///
    /// # Errors
    /// Places that hold no slots or no record, places that are the same, and tries out of bounds.
    pub fn check(&self) -> Result<(), SlotRulesError> {
        let refuse = |field, expected, found: &dyn fmt::Display| {
            Err(SlotRulesError { field, expected, found: found.to_string() })
        };
        for place in &self.places {
            if !matches!(place, Place::PartUuid(_) | Place::PartLabel(_) | Place::File(_)) {
                return refuse("places", "partitions by PARTLABEL or PARTUUID, or files", place);
            }
        }
        if !matches!(self.state, Place::PartUuid(_) | Place::PartLabel(_)) {
            return refuse("state", "a partition by PARTLABEL or PARTUUID", &self.state);
        }
        let [a, b] = &self.places;
        if a == b || self.places.contains(&self.state) {
            return refuse("places", "three different places for both slots and the state", a);
        }
        // What a loader starts more often than that is stopped, and the record must remember it.
        let (most, expected) = match self.chooser {
            Chooser::VerifyInit => (MAX_SLOT_TRIES, "1 to 15"),
            Chooser::BootLoader => (MAX_BOOTS as u8 - 1, "1 to 7, where the boot loader chooses"),
        };
        if !(1..=most).contains(&self.tries) {
            return refuse("tries", expected, &self.tries);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use choice::tests::rules;

    #[test]
    fn rules_that_cannot_work_are_refused() {
        assert_eq!(rules().check(), Ok(()));
        let mut changed: Vec<(SlotRules, &str)> = vec![(rules(), "tries"); 2];
        (changed[0].0.tries, changed[1].0.tries) = (0, 16);
        for (index, text) in
            ["/dev/vda", "memory", "volume:a", "PARTLABEL=system_b", "PARTLABEL=iofs_state"].into_iter().enumerate()
        {
            let mut rules = rules();
            rules.places[usize::from(index == 4)] = text.parse().unwrap();
            changed.push((rules, "places"));
        }
        let mut file = rules();
        file.state = "ext4:PARTLABEL=boot:/state".parse().unwrap();
        changed.push((file, "state"));
        let loader = SlotRules { chooser: Chooser::BootLoader, tries: 7, ..rules() };
        assert_eq!(loader.check(), Ok(()));
        changed.push((SlotRules { tries: 8, ..loader }, "tries"));
        for (rules, field) in changed {
            assert_eq!(rules.check().unwrap_err().field, field, "{rules:?}");
        }
    }

    #[test]
    fn rules_are_read_as_they_are_written() {
        let json = serde_json::to_string(&rules()).unwrap();
        assert_eq!(serde_json::from_str::<SlotRules>(&json).unwrap(), rules());
        assert!(json.contains(r#""chooser":"verify-init","floor":"state""#), "{json}");
    }
}
