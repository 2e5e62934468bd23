//! Releases that do not come up, each in its own way, and what the device does by itself.

use anyhow::{Result, ensure};
use iofs_policy::slots::{Outcome, SlotName, Trial};
use swtpm_tests::{Ending, Line};

use super::support::{BOOT, Device, as_is, reached, release};

/// A device that runs release 1, confirmed, with another release in slot b.
fn device(name: &str, script: &str) -> Result<Device<'static>> {
    let device = Device::new(name, release("1", 1, "", as_is)?)?;
    ensure!(device.boot()? == (Some("1".to_owned()), Ending::PoweredOff));
    device.confirm()?;
    device.put(SlotName::B, &release("2", 1, script, as_is)?)?;
    Ok(device)
}

fn versions(device: &Device<'_>, boots: usize) -> Result<Vec<(Option<String>, bool)>> {
    let boot = |_| {
        let (version, ending) = device.boot()?;
        Ok((version, matches!(ending, Ending::PoweredOff)))
    };
    (0..boots).map(boot).collect()
}

fn went(version: &str, to_its_end: bool) -> (Option<String>, bool) {
    (Some(version.to_owned()), to_its_end)
}

#[test]
fn a_release_whose_init_crashes_falls_back_after_its_tries() -> Result<()> {
    let device = device("slots_init_crashes", "exit 1")?;
    ensure!(versions(&device, 3)? == [went("2", false), went("2", false), went("1", true)]);
    let record = device.record()?;
    let outcomes: Vec<_> = record.boots.iter().map(|boot| (boot.slot, boot.outcome)).collect();
    use {Outcome::*, SlotName::*};
    ensure!(outcomes == [(A, Ended), (B, Started), (B, Started), (A, Started)], "{outcomes:?}");
    ensure!(record.b.map(|state| state.trial) == Some(Trial::Trying(0)), "{record:?}");
    Ok(())
}

#[test]
fn a_release_that_nobody_confirms_falls_back_after_its_tries() -> Result<()> {
    let device = device("slots_never_complete", "")?;
    ensure!(versions(&device, 3)? == [went("2", true), went("2", true), went("1", true)]);
    Ok(())
}

#[test]
fn corruption_mode_a_release_that_is_corrupt_in_the_middle_restarts_once_and_the_other_slot_takes_over() -> Result<()> {
    let device = device("slots_corrupt", "cat /ballast >/dev/null && echo 'BALLAST READ'")?;
    let slot = device.slot(SlotName::B)?;
    let middle = slot.offset + 3 * 1024 * 1024;
    device.disk.flip_bit(middle, 0)?;
    let (version, ending) = device.boot()?;
    ensure!((version.as_deref(), &ending) == (Some("2"), &Ending::Reset), "{version:?} {ending:?}");

    let mut vm = device.start()?;
    vm.wait_for_line(&Line::containing("slot b is corrupt and out until it is written again"), BOOT)?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff && reached(&vm).as_deref() == Some("1"));
    let record = device.record()?;
    ensure!(record.b.map(|state| state.trial) == Some(Trial::Corrupt), "{record:?}");

    // The other one too: it restarts once more, and then stops.
    let first = device.slot(SlotName::A)?.offset;
    device.disk.flip_bit(first + 3 * 1024 * 1024, 0)?;
    let mut vm = device.start()?;
    vm.says_why("chosen", ["neither slot can be booted", "a slot with a release", "slot b"], BOOT)
        .or_else(|_| vm.says_why("chosen", ["neither slot can be booted", "a slot with a release", "slot a"], BOOT))?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff && reached(&vm).is_none());
    Ok(())
}

#[test]
fn two_empty_slots_end_in_the_sealed_action_with_a_way_out() -> Result<()> {
    let device = Device::new("slots_empty", release("1", 1, "", as_is)?)?;
    device.clear(SlotName::A)?;
    let mut vm = device.start()?;
    let why = ["neither slot can be booted", "a slot with a release", "slot a: slot footer: expected \"IOFSSLOT\""];
    vm.says_why("chosen", why, BOOT)?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    ensure!(vm.console().find(&Line::containing("iofs-sign update --slot")).is_some());
    Ok(())
}

#[test]
fn power_cut_both_copies_of_the_record_lost_the_newest_release_boots() -> Result<()> {
    let device = device("slots_state_lost", "")?;
    device.set_state(&[0xff; 8192])?;
    ensure!(versions(&device, 1)? == [went("2", true)]);
    Ok(())
}
