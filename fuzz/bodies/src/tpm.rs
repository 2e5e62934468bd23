//! What a TPM answers, or whoever sits between.

use std::{collections::BTreeSet, time::Duration};

use iofs_policy::{
    pcr::{PcrBank, PcrDigest, PcrIndex},
    pcr_signature::PcrSignatures,
};
use iofs_tpm::{
    Retry, Tpm,
    command::Tag,
    pcr::{ActiveBanks, active_banks, extend, read},
    policy_key::PolicyKey,
    response::Response,
    sealed::Sealed,
    transport::{HEADER_SIZE, MAX_SIZE, Transport, TransportError},
};

/// Of a TPM with a SHA-256 bank and no other.
const ONE_BANK: &[u8] = b"\x80\x01\0\0\0\x19\0\0\0\0\0\0\0\0\x05\0\0\0\x01\0\x0b\x03\xff\xff\xff";

/// A response is refused, or all of its bytes are accounted for. Read as the answer to each command: banks are active by
/// a register at least; values are those that were asked for, of their bank's size; an extend succeeds by one form of
/// response only. Nothing is asked more often than allowed.
pub fn tpm_response(data: &[u8]) -> bool {
    for tag in [Tag::NoSessions, Tag::Sessions] {
        check_parts(data, tag);
    }
    let banks = active_banks(&mut answering(data));
    if let Ok(active) = &banks {
        check_banks(active);
    }
    let values = read(&mut answering(data), &wanted());
    if let Ok(values) = &values {
        let found: BTreeSet<_> = values.iter().map(|(index, digest)| (digest.bank(), index)).collect();
        assert_eq!(found, wanted());
        assert!(values.iter().all(|(_, digest)| digest.as_bytes().len() == digest.bank().digest_size()));
    }
    let one_bank = active_banks(&mut answering(ONE_BANK)).expect("one bank is active");
    let index = PcrIndex::new(13).expect("below 24");
    let extended = extend(&mut answering(data), &one_bank, index, &[PcrDigest::zero(PcrBank::Sha256)]);
    if extended.is_ok() {
        // Header, no parameters, no nonce, any session attributes, no HMAC.
        assert!(data.len() == 19 && data.starts_with(b"\x80\x02\0\0\0\x13\0\0\0\0\0\0\0\0\0\0"));
        assert!(data.ends_with(&[0, 0]));
    }
    banks.is_ok() || values.is_ok() || extended.is_ok()
}

/// Anything that PID 1 reads of a TPM beside those: sessions, public areas, sealed objects, NV indices.
pub fn tpm_structure(data: &[u8]) -> bool {
    iofs_tpm::read_as_anything(data)
}

/// A sealed object that is taken is the same bytes again, and small.
pub fn sealed_object(data: &[u8]) -> bool {
    let Ok(sealed) = Sealed::parse(data) else { return false };
    assert_eq!(sealed.to_blob(), data);
    assert!(data.len() <= iofs_tpm::sealed::MAX_BLOB);
    true
}

/// Signatures that are taken are the same once they were written, name registers, and are found by what they name.
pub fn pcr_signatures(data: &[u8]) -> bool {
    let Ok(signatures) = PcrSignatures::parse(data) else { return false };
    let again = PcrSignatures::parse(&signatures.to_json());
    assert_eq!(again.as_ref(), Ok(&signatures));
    for (bank, signature) in signatures.iter() {
        assert!(!signature.registers.is_empty() && (1..=512).contains(&signature.signature.len()));
        assert!(signatures.find(bank, &signature.registers, signature.key).any(|found| found == signature));
    }
    true
}

/// A key that is taken has one fingerprint, and one Name or two that differ.
pub fn policy_key(data: &[u8]) -> bool {
    let Ok(key) = PolicyKey::from_pem(data) else { return false };
    let names = key.names();
    assert!(matches!(names[..], [_]) || matches!(&names[..], [first, second] if first != second));
    true
}

fn check_parts(data: &[u8], tag: Tag) {
    let Ok(response) = Response::parse(data, tag) else { return };
    assert!((HEADER_SIZE..=MAX_SIZE).contains(&data.len()));
    assert_eq!(data[2..6], (data.len() as u32).to_be_bytes());
    match (response, tag) {
        (Response::Done(parameters), Tag::NoSessions) => assert_eq!(parameters, &data[10..]),
        (Response::Done(parameters), Tag::Sessions) => assert_eq!(parameters, &data[14..data.len() - 5]),
        (Response::Refused(code), _) => assert_eq!(data[6..], code.value().to_be_bytes()),
    }
}

fn check_banks(active: &ActiveBanks) {
    assert!(active.banks().count() > 0, "what is measured would be lost");
    assert!(active.banks().all(|bank| active.registers(bank).count() > 0));
    assert!(active.unknown().iter().all(|id| PcrBank::from_algorithm_id(*id).is_none()));
}

/// What the seed `values` holds.
fn wanted() -> BTreeSet<(PcrBank, PcrIndex)> {
    let registers = [(PcrBank::Sha1, 11), (PcrBank::Sha256, 11), (PcrBank::Sha256, 13), (PcrBank::Sha256, 15)];
    registers.map(|(bank, index)| (bank, PcrIndex::new(index).expect("below 24"))).into()
}

/// How often a command is sent.
const ATTEMPTS: u32 = 3;
/// Reading goes on for one value at least, and starts over eight times at most.
const MOST_COMMANDS: u32 = ATTEMPTS * 4 * 8;

/// Gives the same answer to everything.
struct Answering<'a> {
    answer: &'a [u8],
    asked: u32,
}

impl Transport for Answering<'_> {
    fn exchange(&mut self, _command: &[u8]) -> Result<Vec<u8>, TransportError> {
        self.asked += 1;
        assert!(self.asked <= MOST_COMMANDS, "it does not end");
        Ok(self.answer.to_vec())
    }
}

fn answering(answer: &[u8]) -> Tpm<Answering<'_>> {
    let retry = Retry { attempts: ATTEMPTS, first_pause: Duration::ZERO, longest_pause: Duration::ZERO };
    Tpm::with_retry(Answering { answer, asked: 0 }, retry)
}
