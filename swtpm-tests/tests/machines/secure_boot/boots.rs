//! Boots that firmware lets through.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iofs_policy::{
    measurement::{Measurement, predict},
    pcr::PcrBank,
};
use iofs_sign::{authenticode, erofs::ImageCompression, pe::Headers, uki};
use swtpm_tests::{
    Disk, Ending, Line, Machine, SecureBoot, TpmState, cache,
    chain::{Chain, ROOT_REACHED},
};

use super::support::{FIRMWARE, Sealed, TINY, register};

/// A whole Debian boot under emulation, on a busy host.
const BOOT: Duration = Duration::from_secs(300);

fn boots_to_multi_user(suite: &str) -> Result<()> {
    let chain = Chain::seal(suite, &cache::root(suite)?, |request| {
        request.config.filesystem.compression = Some(ImageCompression::Lz4);
    })?;
    let (keys, tpm) = (SecureBoot::new()?, TpmState::new()?);
    let uki = chain.uki(&cache::stub(suite)?, "iofs.test=poweroff", None)?;
    let (disk, _) = chain.disk_that_starts(&keys.image_signer().sign(&uki)?)?;
    let machine = Machine::named(&format!("secure_boot_{suite}")).disk(Disk::raw(disk.path())).memory_mib(1024);
    let mut vm = machine.secure_boot(&keys).tpm(&tpm).start()?;
    vm.wait_for_line(&Line::containing("secureboot: Secure boot enabled"), FIRMWARE)?;
    vm.wait_for_line(&Line::containing("verify-init: verified manifest"), FIRMWARE)?;
    let state = vm.wait_for_line(&Line::containing("IOFS-REPORT state "), BOOT)?;
    let (_, state) = state.text.split_once("IOFS-REPORT state ").context("the line holds it")?;
    ensure!(state == "running", "state {state}");
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn debian_13_boots_to_multi_user_from_a_signed_image_under_secure_boot() -> Result<()> {
    boots_to_multi_user("trixie")
}

#[test]
fn debian_12_boots_to_multi_user_from_a_signed_image_under_secure_boot() -> Result<()> {
    boots_to_multi_user("bookworm")
}

#[test]
fn an_unsigned_image_whose_digest_firmware_trusts_is_started() -> Result<()> {
    let (sealed, keys, tpm) = (Sealed::shared()?, SecureBoot::new()?, TpmState::new()?);
    let uki = sealed.unsigned_uki()?;
    keys.trust(&authenticode::digest(&uki)?)?;
    let disk = sealed.disk(&uki)?;
    let mut vm = sealed.machine("trusted_by_its_digest", &disk, &tpm).secure_boot(&keys).start()?;
    vm.wait_for_line(&Line::containing(ROOT_REACHED), TINY)?;
    ensure!(vm.wait_for_end(TINY)? == Ending::PoweredOff);
    Ok(())
}

/// The stub measures the parts of the image into register 11, and verify-init that it has come and gone; the command line of
/// the image goes into register 12 by verify-init alone.
fn measured_as_predicted(name: &str, sealed: &Sealed) -> Result<()> {
    let (uki, tpm) = (sealed.signed_uki()?, TpmState::new()?);
    let disk = sealed.disk(&uki)?;
    let mut vm = sealed.machine(name, &disk, &tpm).start()?;
    for (index, predicted) in [(11, predicted_phase(&uki)?), (12, predicted_command_line(&uki)?)] {
        let found = register(&vm, index)?;
        ensure!(predicted == found, "register {index}: predicted {predicted}, found {found}");
    }
    ensure!(vm.wait_for_end(TINY)? == Ending::PoweredOff);
    Ok(())
}

fn predicted_phase(image: &[u8]) -> Result<String> {
    let predicted = uki::predict(&Headers::parse(image)?, image, PcrBank::Sha256)?;
    let left = predicted.into_iter().find(|value| value.phase == "enter-initrd:leave-initrd").context("no phase")?;
    let value = left.value.strip_prefix("sha256:").map(str::to_owned);
    Ok(value.unwrap_or(left.value))
}

fn predicted_command_line(image: &[u8]) -> Result<String> {
    let headers = Headers::parse(image)?;
    let line = headers.find(".cmdline").context("no command line")?.contents(image);
    let predicted = predict(&[Measurement::CommandLine(line.into())], PcrBank::Sha256)?;
    Ok(predicted.into_iter().next().context("one measurement")?.value)
}

#[test]
fn registers_hold_what_the_image_predicts_by_the_stub_of_systemd_257() -> Result<()> {
    measured_as_predicted("registers_by_257", &*Sealed::shared()?)
}

#[test]
fn registers_hold_what_the_image_predicts_by_the_stub_of_systemd_252() -> Result<()> {
    measured_as_predicted("registers_by_252", &Sealed::tiny("bookworm")?)
}
