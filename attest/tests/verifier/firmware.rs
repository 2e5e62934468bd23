//! Firmware's events and the policy about them.

use iofs_attest::{base64_bytes::Base64Bytes, learn::learn, policy_file::Policy};
use iofs_policy::{
    digest::Sha256Digest,
    pcr::{PcrBank, PcrDigest},
};

use crate::support::*;

/// A machine whose firmware started the release's kernel and initramfs.
fn machine(banks: &[PcrBank]) -> (Machine, Verifier, Quoted) {
    let release = reference("13.2-4", |release| release.kernel_authenticode = Some(Sha256Digest::of(b"kernel")));
    let initramfs = release.release().artifacts.iter().find(|file| file.name == "initramfs.img").unwrap().sha256;
    let mut machine = Machine::new(banks);
    machine.firmware(0, EFI_ACTION, b"version 1", b"version 1");
    machine.firmware(7, SEPARATOR, &[0; 4], &[0; 4]);
    machine.firmware_digest(4, APPLICATION, Sha256Digest::of(b"kernel"), b"");
    machine.firmware_digest(9, EVENT_TAG, initramfs, &tagged("Linux initrd"));
    machine.boot(&release, LINE);
    (machine, Verifier::new(banks, vec![release]), Quoted::new(banks))
}

const PINNED: &str = r#"
[firmware]
ignore = [0, 7]
[firmware.pcr.4]
release = true
[firmware.pcr.9]
release = true
"#;

#[test]
fn the_release_s_kernel_and_initramfs_are_noted_where_firmware_is_ignored() {
    let (machine, verifier, quoted) = machine(SHA256);
    let attested = verifier.verify(&machine.evidence(&quoted)).unwrap();
    assert_eq!(
        attested.notes()[1..],
        ["PCR 4: event 3 is the release's kernel", "PCR 9: event 4 is the release's initramfs.img"]
    );
}

#[test]
fn attestation_forgery_another_kernel_under_a_policy_that_wants_the_release_s() {
    let (honest, verifier, quoted) = machine(SHA256);
    let verifier = verifier.policy(PINNED);
    assert_eq!(verifier.verify(&honest.evidence(&quoted)).unwrap().ignored_pcrs(), [0, 7]);
    let mut other = honest.clone();
    other.firmware_digest(4, APPLICATION, Sha256Digest::of(b"another"), b"");
    let digest = Sha256Digest::of(b"another");
    verifier.refuses(
        &other.evidence(&quoted),
        &format!(
            "firmware log: event 5 in PCR 4: 0 bytes (EV_EFI_BOOT_SERVICES_APPLICATION, sha256:{digest}): \
             nothing in the policy accounts for it"
        ),
    );
    let release = &verifier.references[0];
    let mut without = Machine::new(SHA256);
    without.boot(release, LINE);
    verifier.refuses(
        &without.evidence(&quoted),
        "PCR 4: expected an event of a file of release org.example.gateway 13.2-4, found none",
    );
}

#[test]
fn attestation_forgery_a_register_that_no_rule_covers() {
    let (honest, verifier, quoted) = machine(SHA256);
    let verifier = verifier.policy("[firmware]\nignore = [0, 4, 7]");
    let refusal = verifier.verify(&honest.evidence(&quoted)).unwrap_err().to_string();
    assert!(refusal.starts_with("firmware log: event 4 in PCR 9: Linux initrd (EV_EVENT_TAG, sha256:"), "{refusal}");
}

#[test]
fn attestation_forgery_other_firmware_under_pinned_values() {
    let (honest, verifier, quoted) = machine(SHA256);
    let value = honest.values[&(PcrBank::Sha256, 0)];
    let policy = format!("[firmware]\nignore = [4, 7, 9]\n[firmware.pcr.0]\nvalues = [\"{value}\"]");
    let verifier = verifier.policy(&policy);
    assert!(verifier.verify(&honest.evidence(&quoted)).is_ok());
    let mut other = honest.clone();
    other.firmware(0, EFI_ACTION, b"implant", b"version 1");
    let found = other.values[&(PcrBank::Sha256, 0)];
    verifier.refuses(&other.evidence(&quoted), &format!("PCR 0: expected one of the policy's values, found {found}"));
    // Values need no log, if the quoted ones come beside the quote.
    let mut evidence = honest.evidence(&quoted);
    evidence.firmware_log = None;
    assert_eq!(verifier.verify(&evidence).unwrap_err().reason(), "replay");
    evidence.pcrs = honest.registers();
    assert!(verifier.verify(&evidence).is_ok());
    evidence.pcrs.get_mut("sha256").unwrap().insert(0, "00".repeat(32));
    assert_eq!(verifier.verify(&evidence).unwrap_err().reason(), "replay");
}

#[test]
fn ignored_registers_that_no_log_explains_are_noted() {
    let (mut machine, verifier, quoted) = machine(SHA256);
    machine.extend(2, &PcrDigest::of(PcrBank::Sha256, &[b"not noted"]));
    let mut evidence = machine.evidence(&quoted);
    assert_eq!(verifier.verify(&evidence).unwrap_err().reason(), "replay");
    evidence.pcrs = machine.registers();
    let attested = verifier.verify(&evidence).unwrap();
    assert_eq!(attested.notes()[1], "PCR 2: firmware's log does not lead to its value");
}

#[test]
fn labels_that_contradict_their_digests_are_noted() {
    let (mut machine, verifier, quoted) = machine(SHA256);
    machine.firmware(5, EFI_ACTION, b"evil", b"Exit Boot Services Invocation");
    let attested = verifier.verify(&machine.evidence(&quoted)).unwrap();
    assert_eq!(
        attested.notes().last().unwrap(),
        "firmware log: event 5: Exit Boot Services Invocation, but it measured something else"
    );
}

#[test]
fn attestation_forgery_boot_loader_events_in_the_registers_of_the_image() {
    let (mut machine, verifier, quoted) = machine(SHA256);
    machine.firmware(11, IPL, b".linux", b".\0l\0i\0n\0u\0x\0\0\0");
    let digest = PcrDigest::of(PcrBank::Sha256, &[b".linux"]);
    let mut stub = Machine::new(SHA256);
    stub.firmware(11, IPL, b".linux", b".\0l\0i\0n\0u\0x\0\0\0");
    stub.boot(&verifier.references[0], LINE);
    verifier.refuses(
        &stub.evidence(&quoted),
        &format!("firmware log: event 1 in PCR 11: .linux (EV_IPL, {digest}): nothing in the policy accounts for it"),
    );
    let verifier = verifier.policy(&format!("[firmware]\n[firmware.pcr.11]\nevents = [\"{digest}\"]"));
    assert!(verifier.verify(&stub.evidence(&quoted)).is_ok());
}

#[test]
fn attestation_forgery_an_unreadable_firmware_log() {
    let (machine, verifier, quoted) = machine(SHA256);
    let mut evidence = machine.evidence(&quoted);
    evidence.firmware_log.as_mut().unwrap().0.pop();
    let refusal = verifier.verify(&evidence).unwrap_err().to_string();
    assert_eq!(refusal, "firmware log: event 4: Event: expected 21 bytes, found 20");
}

#[test]
fn attestation_forgery_a_firmware_log_cut_or_reordered() {
    let (mut machine, verifier, quoted) = machine(SHA256);
    let header = firmware_header(SHA256);
    let before = machine.firmware.clone();
    machine.firmware(7, EFI_ACTION, b"one", b"one");
    let one = machine.firmware[before.len()..].to_vec();
    machine.firmware(7, EFI_ACTION, b"two", b"two");
    let two = machine.firmware[before.len() + one.len()..].to_vec();
    let mut evidence = machine.evidence(&quoted);
    evidence.pcrs = machine.registers();
    let policy = learn(&verifier.request(), &evidence).unwrap();
    let verifier = verifier.policy(&policy);
    assert!(verifier.verify(&evidence).is_ok());
    for log in [
        [&before[..], &two, &one].concat(),
        [&before[..], &one].concat(),
        [&before[..], &one, &two, &two].concat(),
        header,
    ] {
        evidence.firmware_log = Some(Base64Bytes(log));
        let refusal = verifier.verify(&evidence).unwrap_err();
        assert_eq!(refusal.reason(), "replay", "{refusal}");
    }
}

#[test]
fn what_was_learnt_accepts_the_same_machine_and_no_other() {
    for banks in [SHA256, BOTH] {
        let (machine, verifier, quoted) = machine(banks);
        let text = learn(&verifier.request(), &machine.evidence(&quoted)).unwrap();
        assert!(text.contains("# EV_EFI_ACTION: version 1\n"), "{text}");
        assert!(text.contains(
            "[firmware.pcr.9]\nrelease = true\nevents = [\n    # the release's: EV_EVENT_TAG: Linux initrd\n]\n"
        ));
        assert!(Policy::parse(text.as_bytes()).unwrap().ignored().is_empty());
        let verifier = verifier.policy(&text);
        let attested = verifier.verify(&machine.evidence(&quoted)).unwrap();
        assert!(attested.ignored_pcrs().is_empty());
        let mut other = machine.clone();
        other.firmware(7, EFI_ACTION, b"Secure Boot off", b"Secure Boot off");
        assert_eq!(verifier.verify(&other.evidence(&quoted)).unwrap_err().reason(), "unknown-event");
    }
}

#[test]
fn nothing_is_learnt_from_what_proves_nothing() {
    let (machine, verifier, quoted) = machine(SHA256);
    let evidence = machine.evidence(&Quoted { nonce: vec![0; 32], ..quoted });
    assert_eq!(learn(&verifier.request(), &evidence).unwrap_err().reason(), "nonce");
}

#[test]
fn values_that_no_log_leads_to_are_learnt_as_values() {
    let (mut machine, verifier, quoted) = machine(SHA256);
    machine.extend(2, &PcrDigest::of(PcrBank::Sha256, &[b"not noted"]));
    let mut evidence = machine.evidence(&quoted);
    evidence.pcrs = machine.registers();
    let text = learn(&verifier.request(), &evidence).unwrap();
    let value = machine.values[&(PcrBank::Sha256, 2)];
    assert!(text.contains(&format!("[firmware.pcr.2]\nvalues = [\"{value}\"]")), "{text}");
    assert!(verifier.policy(&text).verify(&evidence).is_ok());
}
