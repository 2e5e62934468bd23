//! An old release, an old image and old signatures, each alone, after a unit of the running system has confirmed a newer release.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use iofs_policy::manifest::{RollbackIndex, TpmUse};
use iofs_sign::seal::SealRequest;
use serde_json::{Value, json};
use swtpm_tests::{
    Ending, Line, ScratchDisk, attester,
    chain::{Chain, ROOT_REACHED},
    workshop::Workshop,
};

use super::support::*;

/// A whole Debian takes its time, and the units behind it.
const COMPLETE: Duration = Duration::from_secs(600);
const CONFIRMED: u64 = 8;

/// Changes a request to one of this rollback index.
fn of(index: u64) -> impl FnOnce(&mut SealRequest) {
    move |request| request.config.image.rollback_index = RollbackIndex(index)
}

/// A Debian 13 whose unit confirms the boot once it is complete, as `packaging/` has it.
fn confirming(release: &Release<'_>) -> Result<Chain> {
    let added = tempfile::tempdir()?;
    attester::add_mark_good(added.path(), "VOLUMES=/dev/vdb1")?;
    let root = attester::root_with(added.path())?;
    let ask = release.request()?;
    Chain::seal("trixie", &root, |request| {
        ask(request);
        of(CONFIRMED)(request);
    })
}

/// Boots it until its unit is done, and returns what that said.
fn confirm(hardware: &Hardware<'_>, chain: &Chain) -> Result<String> {
    let (vm, disk) = hardware.boot("confirmed_by_its_unit", chain, &chain.firmware_image()?)?;
    vm.wait_for_line(&Line::containing("verify-init: unlocked volume state by the TPM"), BOOT)?;
    let mut device = Workshop::of(vm, disk)?;
    device.run_for(attester::MARKED_GOOD, COMPLETE)?;
    let shown =
        device.run("systemctl is-active boot-complete.target; iofs-sign mark-good /dev/vdb1 --dry-run --json")?;
    device.close()?;
    Ok(shown)
}

#[test]
fn rollback_old_releases_images_and_signatures_open_nothing_once_a_unit_confirmed_a_newer_release() -> Result<()> {
    let enrolled = Enrolled::by("enrolled_with_a_counter", "--rollback-counter")?;
    let hardware = enrolled.as_is();
    let release = |words| enrolled.release(words, json!({}));
    let (old, new) = (release("old=1").tiny("trixie", of(7))?, release("new=1").tiny("trixie", of(CONFIRMED))?);
    let (old_image, new_image) = (old.firmware_image()?, new.firmware_image()?);
    hardware.opens("old_before_it_is_confirmed", &old, &old_image)?;
    // As the disk is now, header and all: it is what each boot below gets.
    let volumes = ScratchDisk::copy_of(enrolled.volumes.path())?;

    let shown = confirm(&hardware, &confirming(&release("confirming=1"))?)?;
    let (state, marked) = shown.split_once('\n').context("two answers")?;
    ensure!(state == "active", "boot-complete.target: {state}");
    let marked: Value = serde_json::from_str(marked)?;
    ensure!(marked["rollback_index"] == CONFIRMED && marked["before"] == marked["after"], "the unit did it: {marked}");

    let hardware = Hardware { volumes: volumes.path(), ..hardware };
    hardware.opens("new_once_it_is_confirmed", &new, &new_image)?;
    let newer = "a newer release was confirmed on this machine";
    hardware.stays_shut("rollback_old_release", &old, &old_image, &[newer, "rollback counter 0x0180494f at"])?;
    // Old signatures in the new image are for other values; new ones in the old image are too.
    let other = "expected a signature by key";
    for (name, chain, image, signatures) in [
        ("rollback_old_policy", &new, &new_image, signatures_of(&old_image)?),
        ("rollback_new_policy_for_an_old_release", &old, &old_image, signatures_of(&new_image)?),
    ] {
        let image = enrolled.keys.resigned(image, "trixie", Some(&signatures))?;
        hardware.stays_shut(name, chain, &image, &[other, "found 1 for other values"])?;
    }
    // The old root below the new kernel image, which names it by its hash.
    let (mut vm, _disk) = hardware.boot("rollback_old_image", &old, &new_image)?;
    vm.wait_for_line(&Line::containing("BOOT REFUSED before stage \"found\""), BOOT)?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    ensure!(vm.console().find(&Line::containing(ROOT_REACHED)).is_none(), "the old root was reached");
    Ok(())
}

#[test]
fn rollback_an_image_that_asks_the_counter_itself_is_refused_without_any_volume() -> Result<()> {
    let tpm = swtpm_tests::TpmState::new()?;
    let srk = tempfile::NamedTempFile::new()?;
    fs::write(srk.path(), tpm.storage_root_key()?)?;
    let rule = tpm.rollback_counter(7)?;
    let image = |index| {
        Chain::tiny("trixie", "", |request| {
            of(index)(request);
            request.config.tpm.usage = TpmUse::Required;
            request.config.tpm.srk = Some(srk.path().to_owned());
            request.config.tpm.rollback = Some(rule);
        })
    };
    let (old, new) = (image(7)?, image(8)?);
    // Whether the root is reached shows in the end; what must be said on the way is waited for.
    let boots = |name: &str, chain: &Chain, told: &str| {
        let (disk, _) = chain.disk()?;
        let mut vm = chain.machine(name, &disk).tpm(&tpm).start()?;
        vm.wait_for_line(&Line::containing(told), BOOT)?;
        ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
        Ok(vm.console().find(&Line::containing(ROOT_REACHED)).is_some())
    };
    ensure!(boots("rule_at_its_floor", &old, ROOT_REACHED)?);

    tpm.count_up()?;
    let expected = format!("rollback index 8 or higher, as the TPM's counter says ({})", rule.value + 1);
    ensure!(!boots("rollback_below_the_counter", &old, &expected)?, "the old root was reached");
    ensure!(boots("rule_at_the_counter", &new, ROOT_REACHED)?);

    let powered = tpm.powered()?;
    powered.tool("tpm2_nvundefine", "-Q -C o 0x180494f")?;
    powered.off()?;
    let expected = "rollback counter 0x0180494f: expected a counter, found nothing";
    ensure!(!boots("rollback_counter_removed", &new, expected)?, "the root was reached without a counter");
    Ok(())
}
