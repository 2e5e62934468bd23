//! What whoever has the disk can put back, once the floor was raised.

use std::fs;

use anyhow::{Result, ensure};
use iofs_policy::{
    manifest::{RollbackRule, TpmUse},
    slots::{FloorKeeper, SlotName},
};
use iofs_sign::seal::SealRequest;
use swtpm_tests::{Ending, ScratchDisk, TpmState, chain::Chain};

use super::support::{BOOT, Device, as_is, reached, release};

/// Floor 2 is kept by the TPM; the rule says what its counter means.
struct Kept {
    tpm: TpmState,
    srk: tempfile::NamedTempFile,
    rule: RollbackRule,
}

impl Kept {
    fn new() -> Result<Self> {
        let tpm = TpmState::new()?;
        let srk = tempfile::NamedTempFile::new()?;
        fs::write(srk.path(), tpm.storage_root_key()?)?;
        let rule = tpm.rollback_counter(1)?;
        Ok(Self { tpm, srk, rule })
    }

    fn ask(&self, request: &mut SealRequest) {
        request.config.slots.as_mut().expect("it has slots").floor = FloorKeeper::Tpm;
        request.config.tpm.usage = TpmUse::Required;
        request.config.tpm.srk = Some(self.srk.path().to_owned());
        request.config.tpm.rollback = Some(self.rule);
    }

    fn release(&self, version: &str, index: u64) -> Result<Chain> {
        release(version, index, "", |request| self.ask(request))
    }
}

fn refused(device: &Device<'_>, found: &str) -> Result<()> {
    let mut vm = device.start()?;
    vm.says_why("chosen", ["neither slot can be booted", "a slot with a release", found], BOOT)?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff && reached(&vm).is_none());
    Ok(())
}

#[test]
fn rollback_an_old_release_a_restored_disk_and_a_restored_record_boot_no_more_once_the_tpm_counts() -> Result<()> {
    let kept = Kept::new()?;
    let (old, new) = (kept.release("1", 1)?, kept.release("2", 2)?);
    let device = Device::new("slots_rollback", kept.release("1", 1)?)?.with_tpm(&kept.tpm);
    ensure!(device.boot()?.0.as_deref() == Some("1"));
    device.confirm()?;
    let (before, record_before) = (ScratchDisk::copy_of(device.disk.path())?, device.state()?);
    device.put(SlotName::B, &new)?;
    ensure!(device.boot()?.0.as_deref() == Some("2"));
    device.confirm()?;
    kept.tpm.count_up()?;

    // The restored record alone: the newest release boots all the same.
    device.set_state(&record_before)?;
    ensure!(device.boot()?.0.as_deref() == Some("2"));
    // The old release in both slots, below the new record.
    let record_now = device.state()?;
    device.put(SlotName::B, &old)?;
    refused(&device, "slot a: the image is older than this machine accepts")?;
    device.set_state(&record_now)?;
    refused(&device, "slot a: the image is older")?;
    // The whole disk, as it was.
    let size = usize::try_from(before.size()?)?;
    device.disk.write(0, &before.read(0, size)?)?;
    refused(&device, "slot b: slot footer: expected")?;
    Ok(())
}

#[test]
fn rollback_an_old_release_is_refused_by_the_floor_in_the_record() -> Result<()> {
    let device = Device::new("slots_rollback_state", release("1", 1, "", as_is)?)?;
    device.put(SlotName::B, &release("2", 2, "", as_is)?)?;
    ensure!(device.boot()?.0.as_deref() == Some("2"));
    device.confirm()?;
    device.clear(SlotName::B)?;
    refused(&device, "slot a: rollback index: expected at least 2, found 1")
}
