//! What a device sends to a verifier: everything in it may be an attacker's.

use std::{collections::BTreeSet, sync::LazyLock};

use iofs_attest::{
    base64_bytes::Base64Bytes,
    certificate::Certificate,
    enrolment::{Device, ENROLMENT_VERSION},
    evidence::Evidence,
    explain::explain,
    learn::learn,
    policy_file::Policy,
    quote::{AttestationKey, Name, Quote, Signature},
    tcg::{self, EventLog},
    verify::{Reference, Verification, verify},
};
use iofs_policy::{
    dsse::{Envelope, PayloadType},
    measurement_log::{self, Record},
    pcr::{PcrBank, PcrDigest, PcrIndex},
};

use crate::sealed;

/// An honest machine's evidence: a software TPM's quote, a real firmware's log.
const EVIDENCE: &[u8] = include_bytes!("../../corpus/evidence/ecdsa");

/// A firmware log that parses accounts for all its bytes: no shorter one parses to the same events; each event that
/// extends a register names one that exists, by at most one digest of the right size a bank; and what is said of it is one
/// short line.
pub fn tcg_log(data: &[u8]) -> bool {
    let Ok(log) = EventLog::parse(data) else { return false };
    assert!(log.events.len() <= tcg::MAX_EVENTS && !log.algorithms.is_empty());
    let known: BTreeSet<PcrBank> = log.algorithms.iter().filter_map(tcg::Algorithm::bank).collect();
    for event in &log.events {
        let banks: BTreeSet<PcrBank> = event.digests.iter().map(PcrDigest::bank).collect();
        assert!(banks.len() == event.digests.len() && banks.is_subset(&known));
        assert_eq!(event.extends().is_none(), event.kind == tcg::EventType::NO_ACTION || event.raw_pcr() > 23);
        let description = event.description();
        assert!(description.chars().count() <= 161 && !description.contains(char::is_control));
        event.data_check();
    }
    let shorter = data.split_last().and_then(|(_, shorter)| EventLog::parse(shorter).ok());
    assert!(shorter.is_none_or(|shorter| shorter.events.len() < log.events.len()));
    for (bank, pcr) in known.iter().flat_map(|bank| PcrIndex::all().map(move |pcr| (*bank, pcr))) {
        assert_eq!(log.initial_value(bank, pcr).as_bytes().len(), bank.digest_size());
    }
    true
}

/// A measurement log that parses is written so that it parses to the same; each record names a register that exists, and
/// has at most one digest of the right size a bank.
pub fn measurement_log(data: &[u8]) -> bool {
    let Ok(records) = measurement_log::parse(data) else { return false };
    assert!(records.len() <= measurement_log::MAX_RECORDS);
    let written: Vec<u8> = records.iter().flat_map(Record::to_bytes).collect();
    if written.len() <= measurement_log::MAX_SIZE {
        assert_eq!(measurement_log::parse(&written).as_ref(), Ok(&records));
    }
    for record in &records {
        assert!(record.index().is_some());
        for (number, logged) in record.digests.iter().enumerate() {
            assert!(!record.digests[..number].iter().any(|other| other.algorithm == logged.algorithm));
            let bank = logged.algorithm.parse::<PcrBank>();
            assert!(bank.is_err() || bank.is_ok_and(|bank| record.digest(bank).is_some()), "{logged:?}");
        }
    }
    true
}

/// Quote, signature and key, each behind its size in two bytes. A quote that parses accounts for all its bytes; a key that
/// parses has the name of its own bytes; and nobody's signature by the honest key holds but over the honest quote.
pub fn quote(data: &[u8]) -> bool {
    let Some(([quote, signature, key], [])) = split(data) else { return false };
    let quoted = Quote::parse(quote);
    if quoted.is_ok() {
        assert!(Quote::parse(&[quote, &[0]].concat()).is_err());
        assert!(quote.split_last().is_none_or(|(_, shorter)| Quote::parse(shorter).is_err()));
    }
    let Ok(signature) = Signature::parse(signature) else { return false };
    let Ok(key) = AttestationKey::parse(key) else { return false };
    let honest = &HONEST.device.ak_public;
    let holds = signature.verify(&key, quote).is_ok();
    if holds && Name::of_tpm2b(honest).as_ref() == Ok(key.name()) {
        assert!(quote == &*HONEST.evidence.quote, "nobody signed this");
    }
    quoted.is_ok() && holds
}

/// Three byte strings behind their sizes, and what follows.
fn split(mut data: &[u8]) -> Option<([&[u8]; 3], &[u8])> {
    let mut parts = [&[][..]; 3];
    for part in &mut parts {
        let (size, rest) = data.split_first_chunk()?;
        (*part, data) = rest.split_at_checked(u16::from_be_bytes(*size).into())?;
    }
    Some((parts, data))
}

struct Honest {
    evidence: Evidence,
    device: Device,
    nonce: Vec<u8>,
    references: Vec<Reference>,
    policy: Policy,
}

/// The honest machine as its verifier knows it.
static HONEST: LazyLock<Honest> = LazyLock::new(|| {
    let evidence = Evidence::from_json(EVIDENCE).expect("the corpus holds what this version writes");
    let quote = Quote::parse(&evidence.quote).expect("a TPM made it");
    let banks = quote.selection.iter().filter_map(iofs_attest::quote::BankSelection::bank);
    let device = Device {
        enrolment_version: ENROLMENT_VERSION,
        name: "fuzz".to_owned(),
        ak_public: evidence.ak_public.clone(),
        ek_public: Base64Bytes::default(),
        ek_root: None,
        banks: banks.map(|bank| bank.name().to_owned()).collect(),
        last_seen: None,
    };
    let policy = Policy::parse(b"command_lines = [\"quiet panic=-1\"]").expect("it is sound");
    Honest { evidence, device, nonce: quote.extra_data, references: vec![reference()], policy }
});

/// The sealed release.
fn reference() -> Reference {
    let envelope = include_bytes!("../../corpus/dsse_envelope/release.json");
    let envelope = Envelope::parse(envelope, PayloadType::Release).expect("the corpus holds what this version seals");
    let payload = sealed::trust().keys.verify(&envelope).expect("the example key signed it");
    Reference::new(&payload).expect("it is a release statement")
}

/// Evidence that parses is written so that it parses to the same. If it is attested, its quote is the honest machine's and
/// so is the verdict; anything else is refused with a reason. Explaining and learning end, whatever it is.
pub fn evidence(data: &[u8]) -> bool {
    let Ok(evidence) = Evidence::from_json(data) else { return false };
    assert_eq!(Evidence::from_json(&evidence.to_json()).as_ref(), Ok(&evidence));
    let Honest { device, nonce, references, policy, evidence: honest } = &*HONEST;
    let request = Verification { device, nonce, references, policy };
    let text = explain(&request, &evidence).to_string();
    assert!(!text.contains(|character: char| character.is_control() && character != '\n'));
    let verdict = verify(&request, &evidence);
    match &verdict {
        Ok(attested) => {
            assert_eq!(evidence.quote, honest.quote);
            assert_eq!(attested.manifest_digest(), references[0].release().manifest_digest);
            let learnt = learn(&request, &evidence).expect("what is attested can be learnt from");
            Policy::parse(learnt.as_bytes()).expect("what is learnt is a policy");
        }
        Err(refusal) => assert!(!matches!(refusal.reason(), "internal" | ""), "{refusal}"),
    }
    verdict.is_ok()
}

/// Certificates of endorsement keys, which a device sends before anybody knows it. One that was read has a name.
pub fn certificate(data: &[u8]) -> bool {
    let Ok(certificate) = Certificate::from_der(data) else {
        return false;
    };
    assert!(!certificate.issuer().is_empty());
    // The subject may be empty: the name of a TPM is in an extension.
    let _ = (certificate.subject(), certificate.key());
    true
}
