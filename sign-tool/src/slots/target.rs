//! Which slot is written, and what runs meanwhile.

use std::path::{Path, PathBuf};

use iofs_policy::{
    boot_record::{BootRecord, BootedSlot},
    manifest::{Place, ValueError},
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
    /// As the boot left it.
    ///
    /// # Errors
    /// The boot was from no slot.
    pub fn of_boot(record: &BootRecord) -> Result<Self, Failure> {
        let booted = booted(record)?;
        let version = record.image_version.parse().map_err(|error: ValueError| {
            Failure::new(ExitStatus::BadInput, format!("boot record: {error}"))
                .next("give the record that verify-init left of this boot")
        })?;
        let (manifest, rollback_index) = (record.manifest_digest, record.rollback_index);
        let candidate = Candidate { slot: booted.name, manifest, version, rollback_index };
        Ok(Self { candidate, device: device(booted, booted.name).map(Path::to_owned) })
    }
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
        let (booted, running) = (booted(record)?, RunningSlot::of_boot(record)?);
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
        let state = PathBuf::from(&booted.state_device);
        Ok(Self { slot, device: device.to_owned(), state, running: Some(running) })
    }
}
