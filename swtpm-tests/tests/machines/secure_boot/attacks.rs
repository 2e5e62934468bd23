//! What firmware, or verify-init behind it, refuses. Each test tampers with one thing.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use iofs_sign::{authenticode, pe::Headers};
use swtpm_tests::{
    Ending, Line, Machine, SecureBoot, Signer, TpmState, cache,
    chain::{Chain, ROOT_REACHED, example_key},
    tools,
};

use super::support::{FIRMWARE, Sealed, TINY, kernel_has_started, register};

/// Boots this image, and waits until firmware says that it does not start it.
fn firmware_refuses(name: &str, sealed: &Sealed, uki: &[u8]) -> Result<()> {
    let (disk, tpm) = (sealed.disk(uki)?, TpmState::new()?);
    is_refused(&sealed.machine(name, &disk, &tpm))
}

fn is_refused(machine: &Machine) -> Result<()> {
    let vm = machine.start()?;
    // As edk2's boot manager says it. The disk is its first option; its shell is none under Secure Boot.
    let refused = Line::matching("the refusal of the disk's image", |line| {
        line.text.contains("failed to load Boot0001") && line.text.ends_with(": Access Denied")
    });
    vm.wait_for_line(&refused, FIRMWARE)?;
    vm.wait_for_line(&Line::containing("No bootable option or device was found"), FIRMWARE)?;
    ensure!(!kernel_has_started(&vm), "a kernel ran nevertheless");
    Ok(())
}

/// The signed image with one bit of a section flipped.
fn flipped_in(sealed: &Sealed, section: &str) -> Result<Vec<u8>> {
    let mut uki = sealed.signed_uki()?;
    let headers = Headers::parse(&uki)?;
    let section = headers.find(section).context("the section is there")?;
    let middle = section.raw.start + section.size as usize / 2;
    uki[middle] ^= 1;
    Ok(uki)
}

#[test]
fn foreign_image_without_a_signature_is_not_started() -> Result<()> {
    let sealed = Sealed::shared()?;
    firmware_refuses("an_unsigned_image", &sealed, &sealed.unsigned_uki()?)
}

#[test]
fn foreign_image_signed_by_another_key_is_not_started() -> Result<()> {
    let sealed = Sealed::shared()?;
    let uki = Signer::new("somebody else")?.sign(&sealed.unsigned_uki()?)?;
    firmware_refuses("an_image_by_another_key", &sealed, &uki)
}

#[test]
fn foreign_image_with_a_flipped_bit_in_its_kernel_is_not_started() -> Result<()> {
    let sealed = Sealed::shared()?;
    firmware_refuses("a_flipped_bit_in_the_kernel", &sealed, &flipped_in(&sealed, ".linux")?)
}

#[test]
fn foreign_image_with_a_flipped_bit_in_its_command_line_is_not_started() -> Result<()> {
    let sealed = Sealed::shared()?;
    firmware_refuses("a_flipped_bit_in_the_command_line", &sealed, &flipped_in(&sealed, ".cmdline")?)
}

#[test]
fn foreign_image_with_a_flipped_bit_in_its_initramfs_is_not_started() -> Result<()> {
    let sealed = Sealed::shared()?;
    firmware_refuses("a_flipped_bit_in_the_initramfs", &sealed, &flipped_in(&sealed, ".initrd")?)
}

#[test]
fn foreign_image_a_signed_one_whose_digest_is_revoked_is_not_started() -> Result<()> {
    let (sealed, keys, tpm) = (Sealed::shared()?, SecureBoot::new()?, TpmState::new()?);
    let uki = keys.image_signer().sign(&sealed.unsigned_uki()?)?;
    keys.revoke(&authenticode::digest(&uki)?)?;
    let disk = sealed.disk(&uki)?;
    is_refused(&sealed.machine("a_revoked_image", &disk, &tpm).secure_boot(&keys))
}

#[test]
fn foreign_image_a_signed_one_with_a_manifest_by_another_key_is_started_and_refused_by_verify_init() -> Result<()> {
    let sealed = Sealed::shared()?;
    let manifest = sealed.chain.signed_manifest(&[example_key(2)?], |_| ())?;
    let initramfs = sealed.chain.initramfs_with_manifest(Some(&manifest))?;
    let uki = sealed.chain.uki(&cache::stub("trixie")?, "quiet", Some(&initramfs))?;
    verify_init_refuses("a_manifest_by_another_key", &sealed, &uki, "verified")
}

#[test]
fn foreign_image_a_signed_one_that_trusts_another_key_refuses_the_manifest_of_the_first() -> Result<()> {
    let sealed = Sealed::shared()?;
    let other = Chain::tiny("trixie", "", |request| {
        request.keys.release = vec![example_key(2).expect("the example keys are there")];
    })?;
    let directory = (sealed.chain.directory(), other.directory());
    let manifest = directory.0.read(iofs_sign::sealed::MANIFEST, 1 << 20)?;
    let trust = directory.1.read(iofs_sign::sealed::TRUST, 1 << 20)?;
    let files = [(iofs_policy::paths::TRUST, trust), (iofs_policy::paths::MANIFEST, manifest)];
    let initramfs = sealed.chain.initramfs_with(&files)?;
    let uki = sealed.chain.uki(&cache::stub("trixie")?, "quiet", Some(&initramfs))?;
    verify_init_refuses("trust_in_another_key", &sealed, &uki, "verified")
}

/// Signs the image with the right key, boots it, and waits for the refusal before `stage`.
fn verify_init_refuses(name: &str, sealed: &Sealed, uki: &[u8], stage: &str) -> Result<()> {
    let disk = sealed.disk(&sealed.keys.image_signer().sign(uki)?)?;
    let tpm = TpmState::new()?;
    let mut vm = sealed.machine(name, &disk, &tpm).start()?;
    vm.wait_for_line(&Line::containing(&format!("BOOT REFUSED before stage \"{stage}\"")), FIRMWARE)?;
    ensure!(vm.wait_for_end(TINY)? == Ending::PoweredOff);
    ensure!(vm.console().find(&Line::containing(ROOT_REACHED)).is_none(), "the root was reached");
    Ok(())
}

#[test]
fn stub_inputs_words_that_a_host_adds_by_smbios_are_judged_as_any_other() -> Result<()> {
    let sealed = Sealed::shared()?;
    let (disk, tpm) = (sealed.disk(&sealed.signed_uki()?)?, TpmState::new()?);
    // systemd's stub takes these since 254, under Secure Boot too.
    let words = "type=11,value=io.systemd.stub.kernel-cmdline-extra=init=/bin/sh";
    let machine = sealed.machine("words_by_smbios", &disk, &tpm).argument("-smbios").argument(words);
    let mut vm = machine.start()?;
    vm.wait_for_line(&Line::containing("BOOT REFUSED before stage \"verified\""), FIRMWARE)?;
    vm.wait_for_line(&Line::containing("init="), FIRMWARE)?;
    ensure!(vm.wait_for_end(TINY)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn stub_inputs_a_credential_beside_the_image_shows_in_register_12_and_reaches_no_system() -> Result<()> {
    let sealed = Sealed::shared()?;
    let (disk, tpm) = (sealed.disk(&sealed.signed_uki()?)?, TpmState::new()?);
    let machine = sealed.machine("a_planted_credential", &disk, &tpm);
    let before = boots_with_register_12(&machine)?;
    put_beside_the_image(disk.path(), "planted.cred")?;
    let after = boots_with_register_12(&machine)?;
    ensure!(before != after, "the stub did not take the credential, so this test shows nothing");
    Ok(())
}

fn boots_with_register_12(machine: &Machine) -> Result<String> {
    let mut vm = machine.start()?;
    vm.wait_for_line(&Line::containing(ROOT_REACHED), TINY)?;
    let value = register(&vm, 12)?;
    ensure!(vm.wait_for_end(TINY)? == Ending::PoweredOff);
    ensure!(vm.console().find(&Line::containing("planted.cred")).is_none(), "the root sees the credential");
    Ok(value)
}

/// Writes a file where systemd's stub looks for what an administrator adds.
fn put_beside_the_image(disk: &Path, name: &str) -> Result<()> {
    let folder = "::/EFI/BOOT/BOOTX64.EFI.extra.d";
    // The system partition begins at 1 MiB.
    let image = format!("{}@@1M", disk.display());
    let file = tempfile_with(b"planted")?;
    let run = |program: &str, arguments: &[&str]| -> Result<()> {
        let program = tools::require(program, "apt-get install mtools")?;
        let output = Command::new(program).args(["-i", &image]).args(arguments).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    run("mmd", &[folder])?;
    run("mcopy", &[&file.path().to_string_lossy(), &format!("{folder}/{name}")])
}

fn tempfile_with(bytes: &[u8]) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), bytes)?;
    Ok(file)
}
