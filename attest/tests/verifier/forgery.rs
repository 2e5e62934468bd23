//! Each test performs one attack, and asserts the exact refusal.

use iofs_attest::{base64_bytes::Base64Bytes, enrolment::Counters, verify::MIN_NONCE};
use iofs_policy::{
    digest::Sha256Digest,
    manifest::RollbackIndex,
    measurement::Measurement,
    pcr::{PcrBank, PcrDigest},
};

use crate::support::*;

/// An honest machine, its verifier, and what it would quote.
fn honest(banks: &[PcrBank]) -> (Machine, Verifier, Quoted) {
    let release = reference("13.2-4", |_| {});
    (Machine::booted(banks, &release), Verifier::new(banks, vec![release]), Quoted::new(banks))
}

#[test]
fn an_honest_machine_is_attested() {
    for banks in [SHA256, BOTH, &PcrBank::ALL] {
        let (machine, verifier, quoted) = honest(banks);
        let attested = verifier.verify(&machine.evidence(&quoted)).unwrap();
        assert_eq!(attested.release(), "org.example.gateway 13.2-4");
        assert_eq!(attested.device(), "gateway-1");
        assert_eq!(attested.command_line(), LINE);
        assert_eq!(attested.counters(), Counters { reset_count: 5, restart_count: 0, clock: 1000 });
        assert_eq!(attested.ignored_pcrs(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14]);
        assert_eq!(
            attested.notes()[0],
            "PCRs 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14 are ignored: nothing is proven about firmware by them"
        );
    }
}

#[test]
fn attestation_forgery_a_fixed_or_replayed_nonce() {
    let (machine, verifier, quoted) = honest(SHA256);
    let old = Quoted { nonce: vec![0; 32], ..quoted };
    let [expected, found] = [NONCE, &[0; 32]].map(iofs_policy::hex::encode);
    verifier.refuses(&machine.evidence(&old), &format!("nonce: expected {expected}, found {found}"));
}

#[test]
fn attestation_forgery_a_nonce_that_could_come_twice() {
    let (machine, mut verifier, quoted) = honest(SHA256);
    verifier.nonce.truncate(MIN_NONCE - 1);
    let quoted = Quoted { nonce: verifier.nonce.clone(), ..quoted };
    verifier.refuses(&machine.evidence(&quoted), "nonce: expected at least 16 bytes, found 15");
}

#[test]
fn attestation_forgery_bytes_that_no_tpm_made() {
    let (machine, verifier, quoted) = honest(SHA256);
    let forged = Quoted { magic: 0xff54_4348, ..quoted };
    verifier.refuses(&machine.evidence(&forged), "quote: magic: expected ff544347 (TPM_GENERATED), found ff544348");
}

#[test]
fn attestation_forgery_another_kind_of_attestation() {
    let (machine, verifier, quoted) = honest(SHA256);
    let forged = Quoted { kind: 0x8017, ..quoted };
    verifier.refuses(&machine.evidence(&forged), "quote: type: expected 8018 (TPM_ST_ATTEST_QUOTE), found 8017");
}

#[test]
fn attestation_forgery_bytes_behind_the_quote() {
    let (machine, verifier, quoted) = honest(SHA256);
    let forged = Quoted { trailing: vec![0], ..quoted };
    verifier.refuses(&machine.evidence(&forged), "quote: pcrDigest: expected nothing behind it, found 1 bytes");
}

#[test]
fn attestation_forgery_an_attestation_key_of_another_tpm() {
    let (machine, verifier, quoted) = honest(SHA256);
    let evidence = machine.evidence_by(&quoted, &key(2));
    verifier.refuses(
        &evidence,
        "attestation key: expected the enrolled one, \
         000bc812901a2ec55389977c68601a29281db927f692829793bfabee9f598653ec36, found \
         000b4a3ab0a8e30f1dad7d0c9b1802c9dabf4b9751d0191ed9df48ff5379c1453e59",
    );
}

#[test]
fn attestation_forgery_the_enrolled_key_shown_and_another_used() {
    let (machine, verifier, quoted) = honest(SHA256);
    let mut evidence = machine.evidence_by(&quoted, &key(2));
    evidence.ak_public = verifier.device.ak_public.clone();
    verifier.refuses(&evidence, "signature: it is not the attestation key's over this quote");
}

#[test]
fn attestation_forgery_a_key_that_signs_anything() {
    let (machine, mut verifier, quoted) = honest(SHA256);
    let mut evidence = machine.evidence(&quoted);
    for (attributes, expected) in [
        (
            AK_ATTRIBUTES & !(1 << 16),
            "attestation key: objectAttributes: expected restricted to be set, found 00040072",
        ),
        (AK_ATTRIBUTES & !(1 << 1), "attestation key: objectAttributes: expected fixedTPM to be set, found 00050070"),
        (
            AK_ATTRIBUTES & !(1 << 4),
            "attestation key: objectAttributes: expected fixedParent to be set, found 00050062",
        ),
        (
            AK_ATTRIBUTES & !(1 << 5),
            "attestation key: objectAttributes: expected sensitiveDataOrigin to be set, found 00050052",
        ),
        (AK_ATTRIBUTES & !(1 << 18), "attestation key: objectAttributes: expected sign to be set, found 00010072"),
        (AK_ATTRIBUTES | 1 << 17, "attestation key: objectAttributes: expected decrypt to be clear, found 00070072"),
    ] {
        evidence.ak_public = Base64Bytes(public(&key(1), attributes));
        verifier.device.ak_public = evidence.ak_public.clone();
        verifier.refuses(&evidence, expected);
    }
}

#[test]
fn attestation_forgery_a_signature_of_another_scheme() {
    let (machine, verifier, quoted) = honest(SHA256);
    let mut evidence = machine.evidence(&quoted);
    evidence.signature.0[3] = 0x0c;
    verifier.refuses(
        &evidence,
        "signature: expected ecdsa with sha256, the attestation key's scheme, found ecdsa with sha384",
    );
    evidence.signature.0[3] = 0x04;
    verifier.refuses(&evidence, "signature: hash: expected SHA-256, SHA-384 or SHA-512, found 0004");
    evidence.signature.0[..4].copy_from_slice(b"\x00\x05\x00\x0b");
    verifier.refuses(&evidence, "signature: sigAlg: expected 0014 (RSASSA), 0016 (RSAPSS) or 0018 (ECDSA), found 0005");
}

#[test]
fn attestation_forgery_registers_left_out() {
    let (machine, verifier, mut quoted) = honest(SHA256);
    quoted.selection[0].1.retain(|pcr| *pcr != 13);
    verifier.refuses(&machine.evidence(&quoted), "quote: sha256 registers: expected 13 too, found them left out");
    quoted.selection[0].1.clear();
    verifier.refuses(
        &machine.evidence(&quoted),
        "quote: sha256 registers: expected 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14 too, found them left out",
    );
}

#[test]
fn attestation_forgery_registers_too_many() {
    let (machine, verifier, mut quoted) = honest(SHA256);
    quoted.selection[0].1.push(16);
    verifier.refuses(
        &machine.evidence(&quoted),
        "quote: sha256 registers: expected no others than those demanded, found 16",
    );
    quoted.selection[0].1.retain(|pcr| *pcr != 11);
    verifier.refuses(&machine.evidence(&quoted), "quote: sha256 registers: expected 11 and not 16, found the contrary");
}

#[test]
fn attestation_forgery_a_bank_not_quoted() {
    let (machine, verifier, mut quoted) = honest(BOTH);
    quoted.selection.remove(1);
    verifier.refuses(&machine.evidence(&quoted), "quote: expected registers of the sha256 bank, found none");
}

#[test]
fn attestation_forgery_a_bank_nobody_asked_for() {
    let (machine, verifier, mut quoted) = honest(SHA256);
    quoted.selection.push((0x0012, vec![0]));
    verifier.refuses(&machine.evidence(&quoted), "quote: expected no registers of bank 0012, found some");
}

#[test]
fn attestation_forgery_sha1_alone() {
    let (machine, verifier, quoted) = honest(&[PcrBank::Sha1]);
    verifier
        .refuses(&machine.evidence(&quoted), "device record: banks: expected one stronger than sha1, found [\"sha1\"]");
}

#[test]
fn attestation_forgery_one_bank_extended_and_the_other_not() {
    let (mut machine, verifier, quoted) = honest(BOTH);
    machine.measure_text(11, "sysinit");
    let record = machine.records.last_mut().unwrap();
    record.digests.remove(0);
    verifier.refuses(
        &machine.evidence(&quoted),
        "measurement log: event 4 in PCR 11: expected a sha1 digest, found none: the banks were not extended alike",
    );
}

#[test]
fn attestation_forgery_a_log_cut() {
    let (mut machine, verifier, quoted) = honest(SHA256);
    machine.measure_text(13, "something bad");
    let mut evidence = machine.evidence(&quoted);
    machine.records.pop();
    evidence.measurement_log = Some(Base64Bytes(machine.log()));
    evidence.pcrs = machine.registers();
    let refusal = verifier.verify(&evidence).unwrap_err().to_string();
    assert!(refusal.starts_with("PCR 13 (sha256): expected "), "{refusal}");
    assert!(refusal.contains(", which was quoted, found ") && refusal.ends_with(" by replaying the logs"), "{refusal}");
    evidence.pcrs.clear();
    let refusal = verifier.verify(&evidence).unwrap_err().to_string();
    assert!(refusal.starts_with("registers: expected "), "{refusal}");
}

#[test]
fn attestation_forgery_a_log_reordered() {
    let (mut machine, verifier, quoted) = honest(SHA256);
    let mut evidence = machine.evidence(&quoted);
    evidence.pcrs = machine.registers();
    machine.records.swap(0, 3);
    evidence.measurement_log = Some(Base64Bytes(machine.log()));
    let refusal = verifier.verify(&evidence).unwrap_err();
    assert_eq!(refusal.reason(), "replay");
    assert!(refusal.to_string().starts_with("PCR 11 (sha256): expected 75df9c8b"), "{refusal}");
}

#[test]
fn attestation_forgery_a_record_added() {
    let (mut machine, verifier, quoted) = honest(SHA256);
    let mut evidence = machine.evidence(&quoted);
    evidence.pcrs = machine.registers();
    machine.measure_text(12, "more");
    evidence.measurement_log = Some(Base64Bytes(machine.log()));
    let refusal = verifier.verify(&evidence).unwrap_err().to_string();
    assert!(refusal.starts_with("PCR 12 (sha256): expected "), "{refusal}");
}

#[test]
fn attestation_forgery_values_beside_the_quote_do_not_help() {
    let (machine, verifier, quoted) = honest(SHA256);
    let mut evil = Machine::new(SHA256);
    evil.boot(&reference("6.6.6", |_| {}), LINE);
    let mut evidence = evil.evidence(&quoted);
    evidence.pcrs = machine.registers();
    evidence.measurement_log = Some(Base64Bytes(machine.log()));
    evidence.firmware_log = Some(Base64Bytes(machine.firmware.clone()));
    assert_eq!(verifier.verify(&evidence).unwrap_err().reason(), "replay");
}

#[test]
fn attestation_forgery_a_relabelled_event() {
    let (mut machine, verifier, quoted) = honest(SHA256);
    let evil = reference("6.6.6", |_| {});
    let mut other = Machine::new(SHA256);
    other.boot(&evil, LINE);
    // The record says what the verifier wants to hear; the register knows better.
    let honest_label = machine.records[2].content.clone();
    let text = honest_label.string.clone().unwrap();
    other.records[2].content = honest_label;
    verifier.refuses(
        &other.evidence(&quoted),
        &format!("measurement log: event 2 in PCR 13: it says {text:?}, which is not what was measured"),
    );
    // Another event type neither helps nor harms.
    machine.records[2].content.event_type = Some("phase".to_owned());
    assert!(verifier.verify(&machine.evidence(&quoted)).is_ok());
    // Without any label, the digest decides.
    other.records[2].content.string = None;
    let digest = other.records[2].digest(PcrBank::Sha256).unwrap();
    verifier.refuses(
        &other.evidence(&quoted),
        &format!("image: expected the manifest of a reference release, found {digest}"),
    );
}

#[test]
fn attestation_forgery_an_event_relabelled_as_none() {
    let (machine, verifier, quoted) = honest(SHA256);
    let verifier = verifier.policy("[firmware]\nignore = [0, 1, 2, 3, 4, 6, 7]\n[firmware.pcr.5]\nevents = [\"sha256:df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119\"]\n");
    let mut evidence = machine.evidence(&quoted);
    let log = evidence.firmware_log.as_mut().unwrap();
    let action = EFI_ACTION.to_le_bytes();
    let at = log.0.windows(4).rposition(|window| window == action).unwrap();
    log.0[at..at + 4].copy_from_slice(&NO_ACTION.to_le_bytes());
    evidence.pcrs = machine.registers();
    let refusal = verifier.verify(&evidence).unwrap_err().to_string();
    assert!(refusal.starts_with("PCR 5 (sha256): expected "), "{refusal}");
}

#[test]
fn attestation_forgery_a_torn_log() {
    let (machine, verifier, quoted) = honest(SHA256);
    let mut evidence = machine.evidence(&quoted);
    evidence.measurement_log_torn = true;
    verifier
        .refuses(&evidence, "measurement log: the device says that it is torn: a register was extended and not noted");
    evidence.measurement_log_torn = false;
    evidence.measurement_log.as_mut().unwrap().0.pop();
    verifier.refuses(
        &evidence,
        "measurement log: record 3: expected a line feed at its end, found the log's end: the log is torn",
    );
}

#[test]
fn attestation_forgery_steps_not_measured() {
    let release = reference("13.2-4", |_| {});
    let verifier = Verifier::new(SHA256, vec![release.clone()]);
    let quoted = Quoted::new(SHA256);
    for (left_out, expected) in [
        (0, "measurement log: expected enter-initrd in PCR 11, found event 0 in PCR 12: command-line:quiet panic=-1"),
        (1, "measurement log: expected the command line in PCR 12, found event 1 in PCR 13: "),
        (2, "measurement log: expected the manifest in PCR 13, found event 2 in PCR 11: leave-initrd"),
        (3, "measurement log: expected leave-initrd in PCR 11, found the end of the log"),
    ] {
        let mut machine = Machine::new(SHA256);
        let steps = release.release().measurements(LINE);
        for (_, step) in steps.iter().enumerate().filter(|(number, _)| *number != left_out) {
            machine.measure(step);
        }
        let refusal = verifier.verify(&machine.evidence(&quoted)).unwrap_err().to_string();
        assert!(refusal.starts_with(expected), "{refusal}");
    }
    let mut evidence = Machine::new(SHA256).evidence(&quoted);
    evidence.measurement_log = None;
    verifier.refuses(&evidence, "measurement log: expected enter-initrd in PCR 11, found the end of the log");
}

#[test]
fn attestation_forgery_the_same_steps_in_another_order() {
    let release = reference("13.2-4", |_| {});
    let verifier = Verifier::new(SHA256, vec![release.clone()]);
    let mut machine = Machine::new(SHA256);
    let [enter, line, manifest, leave] = release.release().measurements(LINE);
    [enter, leave, line, manifest].iter().for_each(|step| machine.measure(step));
    verifier.refuses(
        &machine.evidence(&Quoted::new(SHA256)),
        "measurement log: expected the command line in PCR 12, found event 1 in PCR 11: leave-initrd",
    );
}

#[test]
fn attestation_forgery_another_image() {
    let (_, verifier, quoted) = honest(SHA256);
    let evil = reference("6.6.6", |_| {});
    let machine = Machine::booted(SHA256, &evil);
    verifier.refuses(
        &machine.evidence(&quoted),
        &format!("image: expected the manifest of a reference release, found manifest:{}", Sha256Digest::of(b"6.6.6")),
    );
}

#[test]
fn attestation_forgery_a_second_image_after_the_first() {
    let (mut machine, verifier, quoted) = honest(SHA256);
    let digest = Sha256Digest::of(b"6.6.6");
    machine.measure(&Measurement::Manifest { digest, debug: false });
    verifier.refuses(
        &machine.evidence(&quoted),
        &format!("measurement log: event 4 in PCR 13: manifest:{digest}: nothing in the policy accounts for it"),
    );
}

#[test]
fn attestation_forgery_an_older_image() {
    let (machine, verifier, quoted) = honest(SHA256);
    let verifier = verifier.policy("minimum_rollback_index = 8");
    verifier.refuses(
        &machine.evidence(&quoted),
        "image org.example.gateway 13.2-4: rollback index: expected 8 or more, found 3",
    );
    let new = reference("13.2-4", |release| release.image.rollback_index = RollbackIndex(8));
    let machine = Machine::booted(SHA256, &new);
    let verifier = Verifier::new(SHA256, vec![new]).policy("minimum_rollback_index = 8");
    assert!(verifier.verify(&machine.evidence(&quoted)).is_ok());
}

#[test]
fn attestation_forgery_a_debug_image() {
    let debug = reference("13.2-4", |release| release.image.debug = true);
    let machine = Machine::booted(SHA256, &debug);
    let quoted = Quoted::new(SHA256);
    let verifier = Verifier::new(SHA256, vec![debug]);
    verifier.refuses(
        &machine.evidence(&quoted),
        "image org.example.gateway 13.2-4: expected a production image, found a debug image",
    );
    assert!(verifier.policy("allow_debug = true").verify(&machine.evidence(&quoted)).unwrap().image().debug);
    // The same manifest, measured as that of a debug image, is no production image either.
    let production = Verifier::new(SHA256, vec![reference("13.2-4", |_| {})]);
    assert_eq!(production.verify(&machine.evidence(&quoted)).unwrap_err().reason(), "unknown-image");
}

#[test]
fn attestation_forgery_a_changed_command_line() {
    let release = reference("13.2-4", |_| {});
    let mut machine = Machine::new(SHA256);
    machine.boot(&release, "quiet panic=-1 init=/bin/sh");
    let quoted = Quoted::new(SHA256);
    let verifier = Verifier::new(SHA256, vec![release]);
    verifier.refuses(
        &machine.evidence(&quoted),
        "command line: expected one that the release or the policy names, found command-line:quiet panic=-1 init=/bin/sh",
    );
    let verifier = verifier.policy("command_lines = [\"quiet panic=-1 init=/bin/sh\"]");
    assert_eq!(verifier.verify(&machine.evidence(&quoted)).unwrap().command_line(), "quiet panic=-1 init=/bin/sh");
}

#[test]
fn attestation_forgery_no_command_line_to_compare_with() {
    let release = reference("13.2-4", |release| release.command_lines.clear());
    let machine = Machine::booted(SHA256, &release);
    Verifier::new(SHA256, vec![release]).refuses(
        &machine.evidence(&Quoted::new(SHA256)),
        "image org.example.gateway 13.2-4: command lines: expected one in the release statement or the policy, found none",
    );
}

#[test]
fn attestation_forgery_an_unknown_event() {
    let (mut machine, verifier, quoted) = honest(SHA256);
    machine.measure_text(12, "credential");
    verifier.refuses(
        &machine.evidence(&quoted),
        "measurement log: event 4 in PCR 12: credential: nothing in the policy accounts for it",
    );
    let verifier = verifier.policy("[[events]]\npcr = 12\ntext = \"credential\"");
    assert_eq!(verifier.verify(&machine.evidence(&quoted)).unwrap().phases(), ["credential"]);
}

#[test]
fn attestation_forgery_the_initrd_entered_again() {
    let (mut machine, verifier, quoted) = honest(SHA256);
    machine.measure(&Measurement::EnterInitrd);
    verifier.refuses(
        &machine.evidence(&quoted),
        "measurement log: event 4 in PCR 11: enter-initrd: nothing in the policy accounts for it",
    );
}

#[test]
fn phases_of_systemd_are_accepted_in_their_order_only() {
    let (mut machine, verifier, quoted) = honest(SHA256);
    machine.measure_text(11, "sysinit");
    machine.measure_text(11, "ready");
    // Not quoted, and no matter of the phases.
    machine.measure_text(15, "machine-id:0");
    assert_eq!(verifier.verify(&machine.evidence(&quoted)).unwrap().phases(), ["sysinit", "ready"]);
    let mut strict = Verifier::new(SHA256, verifier.references.clone()).policy("allow_systemd_phases = false");
    strict.refuses(
        &machine.evidence(&quoted),
        "measurement log: event 4 in PCR 11: sysinit: nothing in the policy accounts for it",
    );
    strict = strict.policy("");
    machine.measure_text(11, "sysinit");
    strict.refuses(
        &machine.evidence(&quoted),
        "measurement log: event 7 in PCR 11: sysinit: nothing in the policy accounts for it",
    );
}

#[test]
fn attestation_forgery_a_quote_from_before_a_reset() {
    let (machine, mut verifier, quoted) = honest(SHA256);
    verifier.device.last_seen = Some(Counters { reset_count: 6, restart_count: 0, clock: 0 });
    verifier.refuses(
        &machine.evidence(&quoted),
        "quote: resets: expected 6.0 or more, found 5.0: it was made before a reset that was already seen",
    );
    verifier.device.last_seen = Some(Counters { reset_count: 5, restart_count: 1, clock: 0 });
    verifier.refuses(
        &machine.evidence(&quoted),
        "quote: resets: expected 5.1 or more, found 5.0: it was made before a reset that was already seen",
    );
    // A sum that wraps (Part 1, section 36.7) is no step back.
    verifier.device.last_seen = Some(Counters { reset_count: u32::MAX, restart_count: 9, clock: 9999 });
    assert!(verifier.verify(&machine.evidence(&quoted)).is_ok());
}

#[test]
fn attestation_forgery_a_clock_that_went_back() {
    let (machine, mut verifier, quoted) = honest(SHA256);
    verifier.device.last_seen = Some(Counters { reset_count: 5, restart_count: 0, clock: 1001 });
    verifier.refuses(
        &machine.evidence(&quoted),
        "quote: clock: expected 1001 ms or more since no reset came between, found 1000 ms",
    );
    verifier.device.last_seen = Some(Counters { reset_count: 5, restart_count: 0, clock: 1000 });
    assert!(verifier.verify(&machine.evidence(&quoted)).is_ok());
}

#[test]
fn a_clock_after_a_power_cut_is_a_note() {
    let (machine, verifier, quoted) = honest(SHA256);
    let cut = Quoted { safe: 0, ..quoted.clone() };
    let attested = verifier.verify(&machine.evidence(&cut)).unwrap();
    assert!(attested.notes().contains(&"the TPM's clock is catching up after a power cut".to_owned()));
    let odd = Quoted { safe: 2, ..quoted };
    verifier.refuses(&machine.evidence(&odd), "quote: clockInfo.safe: expected 0 or 1, found 2");
}

#[test]
fn attestation_forgery_nothing_to_compare_with() {
    let (machine, mut verifier, quoted) = honest(SHA256);
    verifier.references.clear();
    verifier.refuses(&machine.evidence(&quoted), "references: expected at least one release statement, found none");
}

#[test]
fn attestation_forgery_documents_of_another_version() {
    let (machine, mut verifier, quoted) = honest(SHA256);
    let mut evidence = machine.evidence(&quoted);
    evidence.evidence_version = 2;
    verifier.refuses(&evidence, "evidence: version: expected 1, found 2");
    verifier.device.enrolment_version = 0;
    verifier.refuses(&evidence, "device record: version: expected 1, found 0");
}

#[test]
fn attestation_forgery_a_bank_that_cannot_be_replayed() {
    let (machine, mut verifier, quoted) = honest(SHA256);
    verifier.device.banks.push("sm3_256".to_owned());
    verifier.refuses(
        &machine.evidence(&quoted),
        "device record: banks: expected sha1, sha256, sha384 or sha512, found \"sm3_256\"",
    );
}

#[test]
fn digests_of_other_lengths_are_no_registers() {
    let (machine, verifier, quoted) = honest(SHA256);
    let mut evidence = machine.evidence(&quoted);
    evidence.pcrs = machine.registers();
    evidence.pcrs.get_mut("sha256").unwrap().insert(0, "zz".to_owned());
    assert!(verifier.verify(&evidence).is_ok(), "values beside the quote only ever help");
    assert_eq!(PcrDigest::zero(PcrBank::Sha256).as_bytes().len(), 32);
}
