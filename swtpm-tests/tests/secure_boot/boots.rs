//! Boots that firmware lets through.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iofs_policy::pcr::PcrBank;
use iofs_sign::{erofs::ImageCompression, pe::Headers, uki};
use swtpm_tests::{Disk, Ending, Line, Machine, SecureBoot, TpmState, cache, chain::Chain};

use crate::support::{FIRMWARE, Sealed, TINY, register};

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

/// The stub measures the parts of the image, and verify-init that it has come and gone.
fn register_11_is_as_predicted(name: &str, sealed: &Sealed) -> Result<()> {
    let (uki, tpm) = (sealed.signed_uki()?, TpmState::new()?);
    let predicted = uki::predict(&Headers::parse(&uki)?, &uki, PcrBank::Sha256)?;
    let left = predicted.iter().find(|value| value.phase == "enter-initrd:leave-initrd").context("a phase")?;
    let disk = sealed.disk(&uki)?;
    let mut vm = sealed.machine(name, &disk, &tpm).start()?;
    let found = format!("{}:{}", PcrBank::Sha256, register(&vm, 11)?);
    ensure!(found == left.value, "predicted {}, found {found}", left.value);
    ensure!(vm.wait_for_end(TINY)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn register_11_holds_what_the_image_predicts_by_the_stub_of_systemd_257() -> Result<()> {
    register_11_is_as_predicted("register_11_by_257", &*Sealed::shared()?)
}

#[test]
fn register_11_holds_what_the_image_predicts_by_the_stub_of_systemd_252() -> Result<()> {
    register_11_is_as_predicted("register_11_by_252", &Sealed::tiny("bookworm")?)
}
