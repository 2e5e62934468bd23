//! Which slot is written, and what runs meanwhile.

use std::path::{Path, PathBuf};

use iofs_policy::{
    boot_record::{BootRecord, BootedSlot},
    manifest::{FilePlace, Place, ValueError},
    slots::{Candidate, SlotName, SlotRules},
};

use crate::report::{ExitStatus, Failure};

/// The slot to write.
#[derive(Debug, Clone)]
pub struct Target {
    /// Which.
    pub slot: SlotName,
    /// Its device.
    pub device: PathBuf,
    /// The partition with the record of tries.
    pub state: PathBuf,
    /// What runs, if this is the machine that is updated.
    pub running: Option<RunningSlot>,
}

/// What runs.
#[derive(Debug, Clone)]
pub struct RunningSlot {
    /// Its release.
    pub candidate: Candidate,
    /// Its slot's device.
    pub device: Option<PathBuf>,
}

impl RunningSlot {
    /// As the boot left it. What runs from a file is read beside the file that is written, where that is mounted.
    ///
    /// # Errors
    /// The boot was from no slot.
    pub fn of_boot(record: &BootRecord, rules: &SlotRules, written: &Path) -> Result<Self, Failure> {
        let booted = booted(record)?;
        let version = record.image_version.parse().map_err(|error: ValueError| {
            Failure::new(ExitStatus::BadInput, format!("boot record: {error}"))
                .next("give the record that verify-init left of this boot")
        })?;
        let (manifest, rollback_index) = (record.manifest_digest, record.rollback_index);
        let candidate = Candidate { slot: booted.name, manifest, version, rollback_index };
        let device = match (rules.place(booted.name), rules.place(booted.name.other())) {
            (Place::File(runs), Place::File(other)) if runs.on == other.on => {
                beside(written, other, runs).filter(|path| path.exists())
            }
            // Its device is the one that the file system is on.
            (Place::File(_), _) => None,
            _ => device(booted, booted.name).map(Path::to_owned),
        };
        Ok(Self { candidate, device })
    }
}

/// The path of one file, by the path that another one of the same file system has where that is mounted.
fn beside(written: &Path, other: &FilePlace, wanted: &FilePlace) -> Option<PathBuf> {
    let within = |file: &FilePlace| PathBuf::from(file.path.as_str().trim_start_matches('/'));
    let other = within(other);
    let mounted = written.ancestors().nth(other.components().count()).filter(|_| written.ends_with(&other))?;
    Some(mounted.join(within(wanted)))
}

fn booted(record: &BootRecord) -> Result<&BootedSlot, Failure> {
    record.slot.as_ref().ok_or_else(|| {
        Failure::new(ExitStatus::BadInput, "boot record: slot: expected the slot that was booted, found none")
            .next("this system does not run from a slot: name the device to write with --slot, --device and --state")
    })
}

fn device(booted: &BootedSlot, slot: SlotName) -> Option<&Path> {
    slot.of(&booted.devices).as_deref().map(Path::new)
}

impl Target {
    /// The slot that did not boot.
    ///
    /// # Errors
    /// The boot was from no slot, the other one is not there, or is a file, whose path only the sealed place tells.
    pub fn of_boot(record: &BootRecord, rules: &SlotRules) -> Result<Self, Failure> {
        let booted = booted(record)?;
        let slot = booted.name.other();
        let place = rules.place(slot);
        if let Place::File(file) = place {
            let fact = format!("slot {slot} is the file {} of {place}: expected its path here", file.path);
            return Err(Failure::new(ExitStatus::Usage, fact)
                .next("name it with --slot, --device and --state, and give --boot-record for what runs"));
        }
        let device = device(booted, slot).ok_or_else(|| {
            let fact = format!("slot {slot}: expected its partition ({place}), found none at this boot");
            Failure::new(ExitStatus::Missing, fact).next("make the partition again, then boot, then update")
        })?;
        let running = RunningSlot::of_boot(record, rules, device)?;
        Ok(Self { slot, device: device.to_owned(), state: PathBuf::from(&booted.state_device), running: Some(running) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_beside_the_other_one_where_their_file_system_is_mounted() {
        let place = |text: &str| match text.parse() {
            Ok(Place::File(file)) => file,
            other => panic!("{text}: {other:?}"),
        };
        let (a, b) = (place("vfat:PARTLABEL=boot:/iofs/a"), place("vfat:PARTLABEL=boot:/deep/er/b"));
        let found = |written: &str| beside(Path::new(written), &b, &a);
        assert_eq!(found("/mnt/deep/er/b").as_deref(), Some(Path::new("/mnt/iofs/a")));
        assert_eq!(found("/deep/er/b").as_deref(), Some(Path::new("/iofs/a")));
        for other in ["/mnt/er/b", "/mnt/deep/er/c", "b", ""] {
            assert_eq!(found(other), None, "{other}");
        }
    }
}
