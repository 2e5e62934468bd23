//! What the running system says of its boot: that it is good, whereby the keys move that it brought; and later that it ends in
//! order.

use std::path::Path;

use iofs_policy::{
    boot_record::{BootRecord, BootedSlot},
    keys::{KeyHistory, KeySequence},
    manifest::RollbackIndex,
    slots::SlotName,
    trust::TrustPolicy,
};
use serde::Serialize;

use super::{
    keys::{self, KeysView, MachineKeys},
    loader::LoaderFiles,
    record::RecordFile,
    rules,
    storage::{Disk, Storage},
};
use crate::report::{ExitStatus, Failure};

/// What was confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Confirmed {
    /// The slot.
    pub slot: SlotName,
    /// The floor in the record, afterwards.
    pub floor: RollbackIndex,
    /// The keys that count from now on, where the release moved them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeysView>,
}

/// What verify-init left of the boot.
#[derive(Debug, Clone, Copy)]
pub struct BootFiles<'a> {
    /// The trust policy.
    pub trust: &'a TrustPolicy,
    /// The key history of the release, which may not be there.
    pub history: &'a Path,
    /// What the boot loader starts, where that chooses.
    pub loader: Option<&'a LoaderFiles>,
}

/// Ends the trial of the running release, for the boot loader and in the record, raises the floor where the record keeps it, and moves
/// the keys.
///
/// # Errors
/// The record cannot be read or written, has no room for moved keys, or its last boot is another one than what runs.
pub fn confirm(
    boot: &BootRecord,
    slot: &BootedSlot,
    files: BootFiles<'_>,
    dry_run: bool,
) -> Result<Confirmed, Failure> {
    confirm_through(&Disk, boot, slot, files, dry_run)
}

/// The same, in whichever way is given.
///
/// # Errors
/// As [`confirm`].
pub fn confirm_through(
    storage: &dyn Storage,
    boot: &BootRecord,
    slot: &BootedSlot,
    files: BootFiles<'_>,
    dry_run: bool,
) -> Result<Confirmed, Failure> {
    let rules = rules::of(files.trust)?;
    let mut file = RecordFile::open(Path::new(&slot.state_device), !dry_run)?;
    if !file.record.confirm(slot.name, boot.manifest_digest, rules) {
        return Err(other_boot(boot, slot, &file));
    }
    let moved = moved(files.trust, slot, files.history, &file)?;
    let keys = moved.as_ref().map(|(_, view)| view.clone());
    if !dry_run {
        // Before the floor rises: of a release that the loader calls bad, nothing older may be ruled out.
        files.loader.map_or(Ok(()), |loader| loader.confirm(slot.name))?;
        // Both with one save, so that a power cut leaves the trial as it was, or keys and floor of what was confirmed.
        moved.iter().try_for_each(|(history, _)| file.write_key_history(storage, history))?;
        file.save_through(storage)?;
    }
    Ok(Confirmed { slot: slot.name, floor: file.record.floor, keys })
}

/// The history to keep, and the keys at its end, where the running release moves them.
fn moved(
    trust: &TrustPolicy,
    slot: &BootedSlot,
    history: &Path,
    file: &RecordFile,
) -> Result<Option<(KeyHistory, KeysView)>, Failure> {
    let confirmed = MachineKeys::of(trust, file);
    if slot.key_sequence <= confirmed.ring.sequence() {
        return Ok(None);
    }
    let refuse = |found: &str| {
        let expected = slot.key_sequence;
        let fact =
            format!("{}: expected key moves up to {expected}, as this boot had, found {found}", history.display());
        Failure::new(ExitStatus::NotVerified, fact).next("start the machine again, and see 'iofs-sign status'")
    };
    let theirs = keys::of_boot(history)?.ok_or_else(|| refuse("none"))?;
    let whole = confirmed.extended_by(&theirs)?;
    let ring = confirmed.ring.follow(&whole).map_err(|error| refuse(&error.to_string()))?;
    match ring.sequence() {
        KeySequence(found) if found != slot.key_sequence.0 => Err(refuse(&format!("those up to {found}"))),
        _ => Ok(Some((whole, KeysView::from(&ring)))),
    }
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
