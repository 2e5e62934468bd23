//! Boots that firmware lets through.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iofs_sign::erofs::ImageCompression;
use swtpm_tests::{Disk, Ending, Line, Machine, SecureBoot, TpmState, cache, chain::Chain};

use crate::support::FIRMWARE;

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
