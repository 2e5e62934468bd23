//! What the running system says of its boot: that it is good, and later that it ends in order.

use std::path::Path;

use iofs_policy::{
    boot_record::{BootRecord, BootedSlot},
    manifest::RollbackIndex,
    slots::SlotName,
    trust::TrustPolicy,
};
use serde::Serialize;

use super::{loader::LoaderFiles, record::RecordFile, rules};
use crate::report::{ExitStatus, Failure};

/// What was confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Confirmed {
    /// The slot.
    pub slot: SlotName,
    /// The floor in the record, afterwards.
    pub floor: RollbackIndex,
}

/// Ends the trial of the running release, for the boot loader and in the record, and raises the floor where the record keeps it.
///
/// # Errors
/// The record cannot be read or written, or its last boot is another one than what runs.
pub fn confirm(
    boot: &BootRecord,
    slot: &BootedSlot,
    trust: &TrustPolicy,
    loader: Option<&LoaderFiles>,
    dry_run: bool,
) -> Result<Confirmed, Failure> {
    let rules = rules::of(trust)?;
    let mut file = RecordFile::open(Path::new(&slot.state_device), !dry_run)?;
    if !file.record.confirm(slot.name, boot.manifest_digest, rules) {
        return Err(other_boot(boot, slot, &file));
    }
    if !dry_run {
        // Before the floor rises: of a release that the loader calls bad, nothing older may be ruled out.
        loader.map_or(Ok(()), |files| files.confirm(slot.name))?;
        file.save()?;
    }
    Ok(Confirmed { slot: slot.name, floor: file.record.floor })
}

/// Notes that what was confirmed is shut down in order, so that the next boot need not look for corrupt blocks. Nothing is
/// noted of what nobody confirmed.
///
/// # Errors
/// The record cannot be read or written.
pub fn end(boot: &BootRecord, slot: &BootedSlot) -> Result<bool, Failure> {
    let mut file = RecordFile::open(Path::new(&slot.state_device), true)?;
    let noted = file.record.ended(slot.name, boot.manifest_digest);
    if noted {
        file.save()?;
    }
    Ok(noted)
}

fn other_boot(boot: &BootRecord, slot: &BootedSlot, file: &RecordFile) -> Failure {
    let (name, version) = (slot.name, &boot.image_version);
    let found = match (&file.damaged, file.record.boots.last()) {
        (Some(why), _) => why.to_string(),
        (None, Some(last)) => format!("release {} from slot {} ({:?})", last.version, last.slot, last.outcome),
        (None, None) => "no boot".to_owned(),
    };
    let fact = format!("{}: last boot: expected release {version} from slot {name}, found {found}", slot.state_device);
    Failure::new(ExitStatus::NotVerified, fact)
        .next("the record was changed since this boot: start the machine again, and see 'iofs-sign status'")
}
