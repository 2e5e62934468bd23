//! The enrolled machine, on which somebody changed one thing. All that firmware starts here is signed by a key in its db: what is
//! not never gets as far as a quote.

use std::fs;

use anyhow::{Context, Result, ensure};
use iofs_policy::pcr::{PcrBank, PcrDigest};
use iofs_sign::{authenticode, uki::Part};
use swtpm_tests::{
    Newc, Signer,
    image::{rebuilt, section},
};

use super::support::{Enrolled, PASSPHRASE, PCRS, Told, attester, volume_section};

/// The enrolled image with one section exchanged or added, or as it is, by some suite's stub.
fn with(before: &[u8], stub: &str, exchanged: Option<(Part, &[u8])>) -> Result<Vec<u8>> {
    rebuilt(before, stub, |part, contents| match exchanged {
        Some((of, other)) if of == part => Some(other.to_vec()),
        _ => contents,
    })
}

/// Boots an image that the right key signed, which must be refused for this reason.
fn refused(enrolled: &Enrolled, name: &str, unsigned: &[u8], reason: &str) -> Result<Told> {
    let signed = enrolled.keys.image_signer().sign(unsigned)?;
    let quoted = enrolled.quote(name, &enrolled.keys, &signed, PCRS)?;
    let told = enrolled.refused(&quoted, &enrolled.policy, &[&enrolled.chain])?;
    ensure!(told.reason == reason, "{name}: {}: {}", told.reason, told.message);
    another_program(enrolled, &told)?;
    Ok(told)
}

/// Register 4 tells any other image, whatever the difference is.
fn another_program(enrolled: &Enrolled, told: &Told) -> Result<()> {
    let expected = authenticode::digest(&enrolled.chain.firmware_image()?)?;
    let expected = format!("BOOTX64.EFI: expected the release's uki.efi, sha256:{expected}");
    told.explains(&["PCR 4, firmware log, event ", &expected, "; found sha256:"])
}

/// The digest of these bytes in the bank that the explanation is about.
fn digest(told: &Told, bytes: &[u8]) -> Result<String> {
    let all = PcrBank::ALL.map(|bank| PcrDigest::of(bank, &[bytes]).to_string());
    all.into_iter().find(|digest| told.explained.contains(digest)).context("the explanation has the digest")
}

/// A section was exchanged.
fn section_is_told(part: Part, name: &str, change: impl FnOnce(Vec<u8>) -> Result<Vec<u8>>) -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let whole = enrolled.chain.firmware_image()?;
    let before = section(&whole, part)?;
    let after = change(before.clone())?;
    ensure!(before != after, "nothing was changed");
    let told = refused(&enrolled, name, &with(&whole, "trixie", Some((part, &after)))?, "uki")?;
    let because =
        format!("in PCR 11: expected {part} contents of org.example.attester 7's unified kernel image, found sha");
    ensure!(told.message.contains(&because), "{}", told.message);
    let predicted = format!("predicted: {part} contents, {}", digest(&told, &before)?);
    told.explains(&["PCR 11, firmware log, event ", &predicted, &format!("found {}", digest(&told, &after)?)])
}

#[test]
fn another_kernel_is_told() -> Result<()> {
    section_is_told(Part::Linux, "another_kernel", |mut kernel| {
        // Who built it stands in its banner, which nothing reads while it boots.
        let banner = b"(debian-kernel@";
        let at = kernel.windows(banner.len()).position(|bytes| bytes == banner).context("Debian's banner")?;
        kernel[at + 1] = b'D';
        Ok(kernel)
    })
}

#[test]
fn another_initramfs_is_told() -> Result<()> {
    section_is_told(Part::Initrd, "another_initramfs", |mut initramfs| {
        initramfs.resize(initramfs.len().next_multiple_of(4), 0);
        initramfs.extend(Newc::new().file("added", b"by somebody").finish());
        Ok(initramfs)
    })
}

#[test]
fn another_os_release_is_told() -> Result<()> {
    section_is_told(Part::OsRelease, "another_os_release", |_| Ok(b"ID=other\n".to_vec()))
}

#[test]
fn a_section_that_was_added_is_told() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let added = Newc::new().file("added", b"by somebody").finish();
    let image = with(&enrolled.chain.firmware_image()?, "trixie", Some((Part::Microcode, &added)))?;
    let told = refused(&enrolled, "an_added_section", &image, "uki")?;
    told.explains(&[
        "PCR 11, firmware log, event ",
        ": .ucode: predicted: no such section; found ",
        &digest(&told, b".ucode\0")?,
    ])
}

/// Signatures for register 11 are no part of it: who pins no program does not see that they are gone.
#[test]
fn signatures_that_are_not_measured_do_not_matter_but_to_who_pins_the_program() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let without = |part, contents| if part == Part::PcrSignature { None } else { contents };
    let image = rebuilt(&enrolled.chain.firmware_image()?, "trixie", without)?;
    let signed = enrolled.keys.image_signer().sign(&image)?;
    let quoted = enrolled.quote("without_signatures", &enrolled.keys, &signed, PCRS)?;
    let told = enrolled.refused(&quoted, &enrolled.policy, &[&enrolled.chain])?;
    ensure!(told.reason == "unknown-event", "{}: {}", told.reason, told.message);
    another_program(&enrolled, &told)?;
    ensure!(!told.explained.contains("PCR 11, firmware log"), "{}", told.explained);

    let pinning = fs::read_to_string(&enrolled.policy)?;
    let (before, rest) = pinning.split_once("\n[firmware.pcr.4]").context("the program is pinned")?;
    let (_, after) = rest.split_once("\n[firmware.pcr.7]").context("its signer is pinned")?;
    let before = before.replace("ignore = []", "ignore = [4]");
    let ignoring = enrolled.verifier.file("ignoring-the-program.toml");
    fs::write(&ignoring, format!("{before}\n[firmware.pcr.7]{after}"))?;
    let options = ["--policy", ignoring.to_str().context("UTF-8")?];
    enrolled.verifier.decide(&enrolled.record, &quoted, &[&enrolled.chain], &options)?.attested().map(drop)
}

/// systemd 252's measures fewer sections, and hands on the same.
#[test]
fn another_stub_is_told() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let whole = enrolled.chain.firmware_image()?;
    let told = refused(&enrolled, "another_stub", &with(&whole, "bookworm", None)?, "uki")?;
    let predicted = format!("predicted: .uname contents, {}", digest(&told, &section(&whole, Part::Uname)?)?);
    told.explains(&["PCR 11, firmware log: ", &predicted, "; found the end of what the stub measured"])
}

#[test]
fn secure_boot_that_is_switched_off_is_told() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let off = enrolled.keys.switched_off()?;
    let quoted = enrolled.quote("secure_boot_off", &off, &enrolled.chain.firmware_image()?, PCRS)?;
    let told = enrolled.refused(&quoted, &enrolled.policy, &[&enrolled.chain])?;
    ensure!(told.reason == "unknown-event", "{}: {}", told.reason, told.message);
    ensure!(told.message.contains("in PCR 7: variable SecureBoot, off ("), "{}", told.message);
    told.explains(&[
        "first difference: PCR 7, firmware log, event ",
        "variable SecureBoot, off: expected sha",
        "of the policy; found sha",
    ])
}

/// The same image: only who signed it is another.
#[test]
fn a_signer_that_the_owner_of_the_machine_added_is_told() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let signer = Signer::new("the owner's")?;
    let keys = enrolled.keys.trusting_also(&signer)?;
    let sealed = enrolled.chain.firmware_image()?;
    let signed = signer.sign(&with(&sealed, "trixie", None)?)?;
    ensure!(authenticode::digest(&signed)? == authenticode::digest(&sealed)?);
    let quoted = enrolled.quote("another_signer", &keys, &signed, PCRS)?;
    let told = enrolled.refused(&quoted, &enrolled.policy, &[&enrolled.chain])?;
    ensure!(told.reason == "unknown-event", "{}: {}", told.reason, told.message);
    ensure!(told.message.contains("in PCR 7: variable db ("), "{}", told.message);
    // What firmware trusts, and by which of it the image was started.
    let lines = told.explained.lines().filter(|line| {
        line.contains("PCR 7, firmware log, event ")
            && line.contains("variable db: expected sha")
            && line.contains("; found sha")
    });
    ensure!(lines.count() == 2 && !told.explained.contains("PCR 4, firmware log"), "{}", told.explained);
    Ok(())
}

#[test]
fn a_debug_image_is_told_whether_it_is_known_or_not() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let debug = attester(&enrolled.keys, "quiet", |request| {
        request.config.image.debug = true;
        request.config.volumes = vec![volume_section().expect("valid")];
    })?;
    let tpm = enrolled.tpm.copied()?;
    let mut running = enrolled.hardware(&tpm).boot("a_debug_image", &debug, &debug.firmware_image()?, PASSPHRASE)?;
    let quoted = enrolled.verifier.ask(&mut running.shell, &format!("--pcrs {PCRS}"))?;
    let told = enrolled.refused(&quoted, &enrolled.policy, &[&debug])?;
    ensure!(told.reason == "debug", "{}: {}", told.reason, told.message);
    told.explains(&["PCR 13: release org.example.attester 7: expected a production image; found a debug image"])?;
    let told = enrolled.refused(&quoted, &enrolled.policy, &[&enrolled.chain])?;
    ensure!(told.reason == "unknown-image", "{}: {}", told.reason, told.message);
    let [expected, found] = [&enrolled.chain, &debug].map(|chain| chain.release().map(|it| it.manifest_digest));
    let expected = format!("PCR 13 event 1: predicted manifest:{}", expected?);
    told.explains(&[&expected, &format!("the log has debug-manifest:{}", found?)])
}
