//! What an update needs before it writes: the keys, the slot that it claims, and what runs meanwhile.

use iofs_policy::{
    keys::KeyRing,
    manifest::Architecture,
    slots::{SlotRecord, SlotRules},
};

use super::UpdateJob;
use crate::{
    report::{ExitStatus, Failure},
    slots::{held, incoming::Incoming, keys::MachineKeys, record::RecordFile, storage::SlotDevice, target::Target},
    verity::Tree,
};

/// The keys that the machine has confirmed.
pub(super) fn machine_keys(job: &UpdateJob<'_>) -> Result<KeyRing, Failure> {
    let state = &job.target.state;
    let keys = MachineKeys::of(job.trust, &RecordFile::open(state, false)?);
    keys.problem.iter().for_each(|why| {
        job.output.warn(format_args!("{}: {why}: the keys of the trust policy count", state.display()));
    });
    Ok(keys.ring)
}

/// The slot, for nobody else, and the record; unless the next boot would refuse the release.
pub(super) fn claim(
    job: &UpdateJob<'_>,
    rules: &SlotRules,
    incoming: &Incoming,
) -> Result<(SlotDevice, SlotRecord), Failure> {
    // Not kept locked: the running system may have to confirm itself meanwhile, or to shut down.
    let record = RecordFile::open(&job.target.state, false)?;
    incoming.check_floor(rules, &record.record)?;
    if incoming.history.is_some() {
        record.check_room()?;
    }
    if let Some(running) = &job.target.running {
        incoming.check_newer(rules, &running.candidate)?;
    }
    Ok((open_slot(job, incoming, &record)?, record.record))
}

fn open_slot(job: &UpdateJob<'_>, incoming: &Incoming, record: &RecordFile) -> Result<SlotDevice, Failure> {
    let Target { slot: name, device, .. } = job.target;
    let refuse = |status, expected: &str, found: &str| {
        let fact = format!("slot {name} on {}: expected {expected}, found {found}", device.display());
        Failure::new(status, fact)
    };
    // Before it is claimed, since those are in use, too.
    let slot = SlotDevice::open_to_read(device)?;
    if slot.is(record.file()) {
        return Err(refuse(ExitStatus::Usage, "a slot", "the record of tries").next("check --device and --state"));
    }
    if let Some(running) = job.target.running.as_ref().and_then(|running| running.device.as_ref()) {
        let running = SlotDevice::open_to_read(running)?;
        if slot.is(running.file()) {
            return Err(refuse(ExitStatus::Usage, "the slot that does not run", "the running one"));
        }
    }
    let slot = SlotDevice::open_unused(device, !job.dry_run)?;
    let least = incoming.layout.least_size;
    if slot.size() < least {
        let found = format!("{}", slot.size());
        let failure = refuse(ExitStatus::BadInput, &format!("at least {least} bytes for this release"), &found);
        return Err(failure.next("nothing was written: seal a smaller release, or enlarge both slots"));
    }
    Ok(slot)
}

/// The running slot, if it can supply blocks.
pub(super) fn running(job: &UpdateJob<'_>, keys: &KeyRing) -> Option<(SlotDevice, Tree)> {
    let device = job.target.running.as_ref()?.device.as_ref()?;
    let open = || {
        let slot = SlotDevice::open_to_read(device).map_err(|failure| failure.fact)?;
        let manifest =
            held::manifest(&slot, job.trust, keys, Architecture::CURRENT).map_err(|error| error.to_string())?;
        let tree = held::tree(&slot, &manifest).map_err(|error| error.to_string())?;
        Ok((slot, tree))
    };
    let found: Result<_, String> = open();
    let why = |why: String| job.output.warn(format_args!("running slot: {why}: nothing of it is reused"));
    found.map_err(why).ok()
}
