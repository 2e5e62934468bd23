//! Which releases open it with nobody present, and which do not.

use anyhow::{Result, ensure};
use iofs_policy::pcr_signature::PcrSignatures;
use iofs_sign::authenticode;
use serde_json::json;
use swtpm_tests::{Line, PcrKey, ScratchDisk, chain::example_key};

use super::support::*;

#[test]
fn a_volume_that_was_enrolled_once_opens_after_each_update_with_nobody_present() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let (tpm, volumes) = (enrolled.tpm.copied()?, ScratchDisk::copy_of(enrolled.volumes.path())?);
    let hardware = Hardware { keys: &enrolled.keys, tpm: &tpm, volumes: volumes.path() };
    // Nobody can be asked: only the TPM opens it.
    let of = |stub, words| Release { stub, ..enrolled.release(words, json!({})) };
    for (name, suite, release) in [
        ("another_image", "trixie", of("trixie", "first=1")),
        ("another_command_line", "trixie", of("trixie", "second=1")),
        ("another_stub", "trixie", of("bookworm", "second=1")),
        ("another_kernel", "bookworm", of("bookworm", "second=1")),
    ] {
        let chain = release.tiny(suite, |_| ())?;
        hardware.opens(name, &chain, &chain.firmware_image()?)?;
    }
    Ok(())
}

/// The new release key comes with the initramfs that trusts it. The new PCR key is in the image, whose values the old one
/// signs once more.
#[test]
fn a_volume_that_was_enrolled_once_opens_after_all_signing_keys_were_replaced_if_the_old_pcr_key_signs_too()
-> Result<()> {
    let enrolled = Enrolled::shared()?;
    let (tpm, volumes) = (enrolled.tpm.copied()?, ScratchDisk::copy_of(enrolled.volumes.path())?);
    let hardware = Hardware { keys: &enrolled.keys, tpm: &tpm, volumes: volumes.path() };
    let (pcr, release_key) = (PcrKey::p256()?, example_key(2)?);
    let old = enrolled.pcr.signer()?;
    let release = Release { pcr: &pcr, ..enrolled.release("third=1", json!({})) };
    let chain = release.tiny("trixie", |request| {
        request.keys.release = vec![release_key];
        request.keys.pcr.push(old);
    })?;
    let both = chain.firmware_image()?;
    hardware.opens("replaced_keys", &chain, &both)?;
    // By the new key alone the volume stays shut: this is why the old one has to sign.
    let alone = enrolled.keys.resigned(&both, "trixie", Some(&pcr.sign(&both, &["enter-initrd"])?))?;
    let found = "found 0 for other values";
    hardware.stays_shut("replaced_keys_alone", &chain, &alone, &["expected a signature by key", found])
}

#[test]
fn a_volume_that_was_enrolled_once_stays_shut_for_images_that_the_pcr_key_did_not_sign_for_the_initramfs() -> Result<()>
{
    let enrolled = Enrolled::shared()?;
    let (tpm, volumes) = (enrolled.tpm.copied()?, ScratchDisk::copy_of(enrolled.volumes.path())?);
    let hardware = Hardware { keys: &enrolled.keys, tpm: &tpm, volumes: volumes.path() };
    let chain = enrolled.release("first=1", json!({})).tiny("trixie", |_| ())?;
    let sealed = chain.firmware_image()?;
    let with = |signatures: Option<&PcrSignatures>| enrolled.keys.resigned(&sealed, "trixie", signatures);
    // What is exchanged below is all that differs from the image that opens the volume.
    let same = with(Some(&signatures_of(&sealed)?))?;
    ensure!(authenticode::digest(&same)? == authenticode::digest(&sealed)?);
    let other = PcrKey::p256()?.sign(&sealed, &["enter-initrd"])?;
    let later = enrolled.pcr.sign(&sealed, &["enter-initrd:leave-initrd"])?;
    let none = "its policy is signed: expected signatures in /.extra/tpm2-pcr-signature.json or \
                /etc/iofs/tpm2-pcr-signature.json, found neither";
    let key = enrolled.pcr.signer()?.public().fingerprint();
    let unsigned = |found| {
        format!("expected a signature by key {key} for what registers sha256:11 hold, found {found} for other values")
    };
    for (name, signatures, told) in [
        ("unsigned_registers", None, none.to_owned()),
        ("registers_by_another_key", Some(&other), unsigned(0)),
        ("registers_of_another_phase", Some(&later), unsigned(1)),
    ] {
        hardware.stays_shut(name, &chain, &with(signatures)?, &[&told])?;
    }
    Ok(())
}

#[test]
fn a_volume_that_was_enrolled_once_needs_its_owner_where_secure_boot_is_off() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let (tpm, volumes) = (enrolled.tpm.copied()?, ScratchDisk::copy_of(enrolled.volumes.path())?);
    let off = enrolled.keys.switched_off()?;
    let hardware = Hardware { keys: &off, tpm: &tpm, volumes: volumes.path() };
    let chain = enrolled.release("first=1", json!({ "passphrase": true })).tiny("trixie", |_| ())?;
    let (mut vm, _disk) = hardware.boot("secure_boot_is_off", &chain, &chain.firmware_image()?)?;
    vm.wait_for_line(&Line::containing("secureboot: Secure boot disabled"), BOOT)?;
    vm.wait_for_line(&Line::containing("expected the values of enrolment in registers sha256:7, found others"), BOOT)?;
    vm.console().wait_for_prompt(ASKS, BOOT)?;
    vm.type_line(PASSPHRASE)?;
    reaches_the_root(&mut vm)
}
