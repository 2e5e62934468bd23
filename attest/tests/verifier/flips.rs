//! No change of any bit, and no cut, makes another verdict of an honest one.

use iofs_attest::{base64_bytes::Base64Bytes, evidence::Evidence, verify::Attested};
use iofs_policy::{
    measurement::{Measurement, VolumeKeyEvent},
    measurement_log,
    pcr::{PcrBank, PcrDigest},
};

use crate::support::*;

/// A part of the evidence.
type Part = fn(&mut Evidence) -> &mut Vec<u8>;

const PARTS: [(&str, Part); 5] = [
    ("quote", |evidence| &mut evidence.quote.0),
    ("signature", |evidence| &mut evidence.signature.0),
    ("ak_public", |evidence| &mut evidence.ak_public.0),
    ("firmware_log", |evidence| &mut evidence.firmware_log.as_mut().unwrap().0),
    ("measurement_log", |evidence| &mut evidence.measurement_log.as_mut().unwrap().0),
];

/// All that a verdict means: the notes are for people, and take labels into account.
fn meaning(attested: &Attested) -> serde_json::Value {
    let mut value = serde_json::to_value(attested).unwrap();
    value.as_object_mut().unwrap().remove("notes");
    value
}

/// A machine, and a verifier that pins every event of its firmware and its identity.
fn pinned() -> (Evidence, Verifier) {
    let release = reference("13.2-4", |_| {});
    let mut machine = Machine::new(BOTH);
    machine.firmware(0, EFI_ACTION, b"version 1", b"version 1");
    machine.firmware(7, SEPARATOR, &[0; 4], &[0; 4]);
    machine.boot(&release, LINE);
    machine.measure_text(11, "sysinit");
    machine.measure_text(15, "machine-id:0");
    let (name, uuid) = ("state".parse().unwrap(), uuid::Uuid::from_u128(7));
    let key = VolumeKeyEvent::new(&name, &uuid, |bank| PcrDigest::of(bank, &[b"stands for an HMAC"]));
    machine.measure(&Measurement::VolumeKey(key));
    let verifier = Verifier::new(BOTH, vec![release]).policy("pcrs = [0, 7, 11, 12, 13, 15]");
    let selection = BOTH.iter().map(|bank| (bank.algorithm_id(), vec![0, 7, 11, 12, 13, 15])).collect();
    let evidence = machine.evidence(&Quoted { selection, ..Quoted::new(BOTH) });
    let policy = iofs_attest::learn::learn(&verifier.request(), &evidence).unwrap();
    (evidence, verifier.policy(&policy))
}

#[test]
fn every_flipped_bit_is_refused_or_was_a_label() {
    let (evidence, verifier) = pinned();
    let expected = meaning(&verifier.verify(&evidence).unwrap());
    for (name, part) in PARTS {
        let mut changed = evidence.clone();
        let mut accepted = Vec::new();
        for bit in 0..part(&mut changed).len() * 8 {
            part(&mut changed)[bit / 8] ^= 1 << (bit % 8);
            if let Ok(attested) = verifier.verify(&changed) {
                assert_eq!(meaning(&attested), expected, "{name}: bit {bit}");
                accepted.push(bit / 8);
            }
            part(&mut changed)[bit / 8] ^= 1 << (bit % 8);
        }
        let original = part(&mut changed).clone();
        let allowed = match name {
            "firmware_log" => labels_of_firmware(&original),
            "measurement_log" => labels_of_user_space(&original),
            _ => Vec::new(),
        };
        accepted.dedup();
        let wrong: Vec<_> = accepted.iter().filter(|byte| !allowed.contains(byte)).collect();
        assert!(wrong.is_empty(), "{name}: bytes {wrong:?} do not count, though they are no labels");
    }
}

/// What no digest covers in firmware's log: fields of the header that nothing depends on, types, data.
fn labels_of_firmware(log: &[u8]) -> Vec<usize> {
    // Digest of the header's event; platformClass to uintnSize.
    let mut labels: Vec<usize> = (8..28).chain(48..56).collect();
    let mut at = 32 + u32::from_le_bytes(log[28..32].try_into().unwrap()) as usize;
    while at < log.len() {
        labels.extend(at + 4..at + 8);
        // Two digests of two banks, each behind its algorithm.
        let size = at + 12 + (2 + PcrBank::Sha1.digest_size()) + (2 + PcrBank::Sha256.digest_size());
        let data = u32::from_le_bytes(log[size..size + 4].try_into().unwrap()) as usize;
        labels.extend(size + 4..size + 4 + data);
        at = size + 4 + data;
    }
    labels
}

/// What no digest covers in user space's log: everything but registers, digests and texts. The name of the text is a label,
/// too, since a record may have none: what is read under another name is not read at all. Of a volume key's text, only the word
/// counts that says what it is.
fn labels_of_user_space(log: &[u8]) -> Vec<usize> {
    let text = std::str::from_utf8(log).unwrap();
    let mut covered = Vec::new();
    for (name, named) in [
        ("\"pcr\":", true),
        ("\"digests\":", true),
        ("\"hashAlg\":\"", true),
        ("\"digest\":\"", true),
        ("\"string\":\"", false),
    ] {
        for (at, _) in text.match_indices(name) {
            let value = at + name.len();
            let end = value + text[value..].find(['"', ',']).unwrap();
            let end = if text[value..].starts_with("cryptsetup:") { value + "cryptsetup:".len() } else { end };
            covered.push(if named { at } else { value }..end);
        }
    }
    assert!(!measurement_log::parse(log).unwrap().is_empty());
    (0..log.len()).filter(|byte| !covered.iter().any(|range| range.contains(byte))).collect()
}

#[test]
fn every_cut_is_refused() {
    let (evidence, verifier) = pinned();
    for (name, part) in PARTS {
        let mut cut = evidence.clone();
        while !part(&mut cut).is_empty() {
            part(&mut cut).pop();
            let verdict = verifier.verify(&cut);
            assert!(verdict.is_err(), "{name}: cut to {} bytes", part(&mut cut).len());
        }
    }
}

#[test]
fn every_cut_of_the_document_is_refused() {
    let (evidence, _) = pinned();
    let json = evidence.to_json();
    assert_eq!(Evidence::from_json(&json).unwrap(), evidence);
    // Only the newline at the end may be missing.
    for end in 0..json.len() - 1 {
        assert!(Evidence::from_json(&json[..end]).is_err(), "{end}");
    }
}

/// With firmware ignored, bits of its log may even lead elsewhere: but then the registers beside the quote are needed, and
/// the image is the same.
#[test]
fn no_bit_of_an_ignored_firmware_log_changes_the_image() {
    let (evidence, verifier) = pinned();
    let verifier = verifier.policy("pcrs = [0, 7, 11, 12, 13, 15]");
    let text = iofs_attest::learn::learn(&verifier.request(), &evidence).unwrap();
    let (_, identity) = text.split_once("[identity]").unwrap();
    let ignoring = format!("pcrs = [0, 7, 11, 12, 13, 15]\n[firmware]\nignore = [0, 7]\n[identity]{identity}");
    let verifier = verifier.policy(&ignoring);
    let honest = verifier.verify(&evidence).unwrap();
    let log = evidence.firmware_log.clone().unwrap().0;
    for bit in 0..log.len() * 8 {
        let mut changed = log.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let evidence = Evidence { firmware_log: Some(Base64Bytes(changed)), ..evidence.clone() };
        if let Ok(attested) = verifier.verify(&evidence) {
            assert_eq!(attested.image(), honest.image());
            assert_eq!(attested.command_line(), honest.command_line());
        }
    }
}
