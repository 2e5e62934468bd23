//! Against responses that are put together here.

use std::{collections::VecDeque, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{client::Retry, transport::TransportError};

/// Gives these responses in a row, whatever it is asked.
struct Scripted(VecDeque<Vec<u8>>);

impl Transport for Scripted {
    fn exchange(&mut self, _command: &[u8]) -> Result<Vec<u8>, TransportError> {
        self.0.pop_front().ok_or(TransportError::OutOfStep)
    }
}

fn tpm(responses: impl IntoIterator<Item = Vec<u8>>) -> Tpm<Scripted> {
    let retry = Retry { attempts: 2, first_pause: Duration::ZERO, longest_pause: Duration::ZERO };
    Tpm::with_retry(Scripted(responses.into_iter().collect()), retry)
}

fn index(index: u8) -> PcrIndex {
    PcrIndex::new(index).unwrap()
}

fn response(tag: u16, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(10 + body.len()).unwrap();
    [&tag.to_be_bytes()[..], &size.to_be_bytes(), &[0; 4], body].concat()
}

/// To TPM2_GetCapability.
fn banks(more: u8, capability: u32, banks: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![more];
    body.extend(capability.to_be_bytes());
    body.extend(u32::try_from(banks.len()).unwrap().to_be_bytes());
    for (algorithm, map) in banks {
        body.extend(algorithm.to_be_bytes());
        body.push(u8::try_from(map.len()).unwrap());
        body.extend(*map);
    }
    response(0x8001, &body)
}

/// To TPM2_PCR_Read: each value repeats its register's number.
fn values(counter: u32, algorithm: u16, map: [u8; 3], sizes: &[(u8, usize)]) -> Vec<u8> {
    let mut body = counter.to_be_bytes().to_vec();
    body.extend([0, 0, 0, 1]);
    body.extend(algorithm.to_be_bytes());
    body.push(3);
    body.extend(map);
    body.extend(u32::try_from(sizes.len()).unwrap().to_be_bytes());
    for (value, size) in sizes {
        body.extend(u16::try_from(*size).unwrap().to_be_bytes());
        body.extend(vec![*value; *size]);
    }
    response(0x8001, &body)
}

/// To TPM2_PCR_Extend.
fn extended() -> Vec<u8> {
    response(0x8002, &[0, 0, 0, 0, 0, 0, 1, 0, 0])
}

const ALL: &[u8] = &[0xff; 3];
const NONE: &[u8] = &[0; 3];

fn active(list: &[(u16, &[u8])]) -> Result<ActiveBanks, BanksError> {
    active_banks(&mut tpm([banks(0, 5, list)]))
}

fn two_banks() -> ActiveBanks {
    active(&[(0x4, ALL), (0xb, ALL)]).unwrap()
}

fn wanted(indices: impl IntoIterator<Item = u8>) -> BTreeSet<(PcrBank, PcrIndex)> {
    indices.into_iter().map(|number| (PcrBank::Sha256, index(number))).collect()
}

#[test]
fn banks_without_registers_are_not_active() {
    let found = active(&[(0xb, ALL), (0x4, NONE), (0xc, &[1, 0, 0x80]), (0x12, ALL), (0x27, NONE)]).unwrap();
    assert_eq!(found.banks().collect::<Vec<_>>(), [PcrBank::Sha256, PcrBank::Sha384]);
    assert!(found.registers(PcrBank::Sha256).eq(PcrIndex::all()));
    assert!(found.registers(PcrBank::Sha384).eq([index(0), index(23)]));
    assert_eq!(found.registers(PcrBank::Sha1).count(), 0);
    assert_eq!(found.unknown(), [0x12]);
}

#[test]
fn a_tpm_without_a_bank_that_is_known_is_an_error() {
    for list in [&[][..], &[(0xb, NONE)], &[(0x12, ALL)]] {
        assert!(matches!(active(list), Err(BanksError::None)));
    }
}

#[test]
fn banks_that_make_no_sense_are_errors() {
    for (response, expected) in [
        (banks(1, 5, &[(0xb, ALL)]), "moreData: expected 0"),
        (banks(0, 6, &[(0xb, ALL)]), "capability: expected TPM_CAP_PCRS (5), found 6"),
        (banks(0, 5, &[(0xb, ALL), (0xb, NONE)]), "assignedPCR: expected each bank once, found 11"),
        (banks(0, 5, &[(0xb, &[0, 0, 0, 1])]), "pcrSelect: expected registers 0 to 23, found 24"),
        (banks(0, 5, &[(0xb, &[0; 33])]), "sizeofSelect: expected at most 32 bytes, found 33"),
        (banks(0, 5, &[(0xb, ALL); 65]), "assignedPCR: expected at most 64 elements, found 65"),
    ] {
        let error = active_banks(&mut tpm([response])).unwrap_err().to_string();
        assert!(error.starts_with("TPM2_GetCapability: malformed response: "), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn reading_goes_on_until_it_is_complete() {
    let mut tpm = tpm([values(7, 0xb, [0x03, 0, 0], &[(0, 32), (1, 32)]), values(7, 0xb, [0, 0, 0x80], &[(23, 32)])]);
    let read = read(&mut tpm, &wanted([0, 1, 23])).unwrap();
    assert_eq!(read.update_counter(), 7);
    let expected = [0, 1, 23].map(|n| (index(n), PcrDigest::new(PcrBank::Sha256, &[n; 32]).unwrap()));
    assert_eq!(read.iter().collect::<Vec<_>>(), expected);
    assert_eq!(read.get(PcrBank::Sha256, index(23)), Some(expected[2].1));
    assert_eq!(read.get(PcrBank::Sha256, index(2)), None);
}

#[test]
fn reading_starts_over_where_registers_change() {
    let first = |counter| values(counter, 0xb, [1, 0, 0], &[(u8::try_from(counter).unwrap(), 32)]);
    let second = |counter| values(counter, 0xb, [2, 0, 0], &[(u8::try_from(counter).unwrap(), 32)]);
    let read_both = |responses: Vec<Vec<u8>>| read(&mut tpm(responses), &wanted([0, 1]));
    let read = read_both(vec![first(1), second(2), first(3), second(3)]).unwrap();
    assert_eq!(read.update_counter(), 3);
    assert!(read.iter().all(|(_, digest)| digest.as_bytes() == [3; 32]));
    let error = read_both((0..8).flat_map(|_| [first(1), second(2)]).collect()).unwrap_err();
    assert!(matches!(error, ReadError::Changing { attempts: 8 }), "{error}");
}

#[test]
fn a_register_that_is_not_there_is_named() {
    let responses = [values(7, 0xb, [1, 0, 0], &[(0, 32)]), values(7, 0xb, [0; 3], &[])];
    let error = read(&mut tpm(responses), &wanted([0, 9])).unwrap_err();
    assert!(matches!(&error, ReadError::Absent { bank: PcrBank::Sha256, index } if index.get() == 9), "{error}");
}

#[test]
fn values_that_make_no_sense_are_errors() {
    for (response, expected) in [
        (values(7, 0xb, [2, 0, 0], &[(1, 32)]), "pcrSelectionOut: expected what was asked for, once, found 1"),
        (values(7, 0xc, [1, 0, 0], &[(0, 48)]), "pcrSelectionOut: expected what was asked for, once, found 0"),
        (values(7, 0x12, [1, 0, 0], &[(0, 32)]), "pcrSelectionOut: expected banks that were asked for, found 18"),
        (values(7, 0xb, [1, 0, 0], &[(0, 20)]), "pcrValues: expected the size of the bank's digests, found 20"),
        (values(7, 0xb, [1, 0, 0], &[]), "pcrValues: expected as many values as pcrSelectionOut says, found 0"),
        (values(7, 0xb, [0xff, 1, 0], &[(0, 32); 9]), "pcrValues: expected at most 8 elements, found 9"),
    ] {
        let error = read(&mut tpm([response]), &wanted([0])).unwrap_err().to_string();
        assert!(error.starts_with("TPM2_PCR_Read: malformed response: "), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn reading_nothing_asks_once_and_returns_nothing() {
    let read = read(&mut tpm([response(0x8001, &[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0])]), &wanted([])).unwrap();
    assert_eq!((read.update_counter(), read.iter().count()), (7, 0));
}

#[test]
fn each_active_bank_is_extended_at_once() {
    let digests = [PcrBank::Sha256, PcrBank::Sha1].map(PcrDigest::zero);
    let command = extend_command(&two_banks(), index(13), &digests).unwrap();
    let mut expected = vec![0x80, 0x02, 0, 0, 0, 87, 0, 0, 0x01, 0x82, 0, 0, 0, 13];
    expected.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    expected.extend([&[0, 4][..], &[0; 20], &[0, 0xb], &[0; 32]].concat());
    assert_eq!(command.encode(&[0x40, 0, 0, 9, 0, 0, 0, 0, 0], command.parameters()), expected);
    extend(&mut tpm([extended()]), &two_banks(), index(13), &digests).unwrap();
}

#[test]
fn nothing_is_sent_unless_each_active_bank_has_one_digest() {
    let [sha1, sha256, sha384] = [PcrBank::Sha1, PcrBank::Sha256, PcrBank::Sha384].map(PcrDigest::zero);
    let refused = |active: &ActiveBanks, digests: &[PcrDigest]| {
        let error = extend(&mut tpm([]), active, index(13), digests).unwrap_err();
        assert!(!matches!(error, ExtendError::Command { .. }), "{error}");
        error.to_string()
    };
    let banks = two_banks();
    assert!(refused(&banks, &[sha256]).ends_with("expected a digest for each active bank, found none for sha1"));
    assert!(refused(&banks, &[]).contains("found none for sha1"));
    assert!(refused(&banks, &[sha1, sha256, sha384]).contains("found sha384:000"));
    assert!(refused(&banks, &[sha1, sha1, sha256]).contains("found sha1:000"));
    let partial = active(&[(0xb, &[0xff, 0, 0])]).unwrap();
    assert!(refused(&partial, &[sha256]).ends_with("expected it in each active bank, found none in sha256"));
}

#[test]
fn an_extend_that_the_tpm_refuses_is_an_error() {
    let locality = vec![0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x09, 0x07];
    let digests = [PcrBank::Sha256, PcrBank::Sha1].map(PcrDigest::zero);
    let error = extend(&mut tpm([locality]), &two_banks(), index(17), &digests).unwrap_err().to_string();
    assert!(error.starts_with("extend register 17: TPM2_PCR_Extend: the TPM answers 0x907 "), "{error}");
}

/// What happens to a response on its way.
#[derive(Debug, Clone)]
enum Tampering {
    Cut(prop::sample::Index),
    Lengthened(Vec<u8>),
    Garbled(prop::sample::Index, u8),
}

impl Tampering {
    fn apply(&self, response: &mut Vec<u8>) {
        match self {
            Self::Cut(at) => response.truncate(at.index(response.len())),
            Self::Lengthened(by) => response.extend(by),
            Self::Garbled(at, by) => {
                let at = at.index(response.len());
                response[at] ^= by;
            }
        }
    }
}

fn tampering() -> impl Strategy<Value = Tampering> {
    prop_oneof![
        any::<prop::sample::Index>().prop_map(Tampering::Cut),
        prop::collection::vec(any::<u8>(), 1..64).prop_map(Tampering::Lengthened),
        (any::<prop::sample::Index>(), 1_u8..).prop_map(|(at, by)| Tampering::Garbled(at, by)),
    ]
}

proptest! {
    #[test]
    fn a_tampered_response_is_an_error_or_at_least_in_form(tampering in tampering(), twice in any::<bool>()) {
        let resized = !matches!(tampering, Tampering::Garbled(..));
        let on_the_way = |mut response: Vec<u8>| {
            tampering.apply(&mut response);
            // The second one is there for an answer that was garbled into one that asks for it.
            if twice { vec![response.clone(), response] } else { vec![response] }
        };
        let found = active_banks(&mut tpm(on_the_way(banks(0, 5, &[(0x4, ALL), (0xb, ALL)]))));
        prop_assert!(found.is_err() || !resized);
        if let Ok(found) = found {
            prop_assert!(found.banks().all(|bank| found.registers(bank).count() > 0) && found.banks().count() > 0);
        }
        let asked = wanted([0, 9]);
        let found = read(&mut tpm(on_the_way(values(7, 0xb, [1, 2, 0], &[(0, 32), (9, 32)]))), &asked);
        prop_assert!(found.is_err() || !resized);
        if let Ok(found) = found {
            let registers: BTreeSet<_> = found.iter().map(|(index, digest)| (digest.bank(), index)).collect();
            prop_assert_eq!(registers, asked);
        }
        let digests = [PcrBank::Sha256, PcrBank::Sha1].map(PcrDigest::zero);
        let found = extend(&mut tpm(on_the_way(extended())), &two_banks(), index(13), &digests);
        // Session attributes mean nothing for a password.
        let attributes = matches!(&tampering, Tampering::Garbled(at, _) if at.index(19) == 16);
        prop_assert_eq!(found.is_ok(), attributes);
    }

    #[test]
    fn any_parameters_at_all_are_read_or_refused(
        bytes in prop::collection::vec(prop_oneof![Just(0), Just(1), 0_u8..16, any::<u8>()], 0..128),
    ) {
        let _ = parse_banks(&bytes);
        let _ = parse_values(&bytes, &wanted([0, 9]));
    }
}

/// To TPM2_PCR_Event.
fn event_response(digests: &[(u16, &[u8])]) -> Vec<u8> {
    let mut parameters = u32::try_from(digests.len()).unwrap().to_be_bytes().to_vec();
    for (algorithm, digest) in digests {
        parameters.extend(algorithm.to_be_bytes());
        parameters.extend(*digest);
    }
    let size = u32::try_from(parameters.len()).unwrap().to_be_bytes();
    response(0x8002, &[&size[..], &parameters, &[0, 0, 1, 0, 0]].concat())
}

#[test]
fn an_event_extends_banks_of_unknown_algorithms_too() {
    let sm3 = active(&[(0xb, ALL), (0x12, ALL)]).unwrap();
    let digest = PcrDigest::of(PcrBank::Sha256, &[b"event"]);
    let run = |answer: Vec<u8>| event(&mut tpm([answer]), &sm3, index(13), b"event", &[digest]);
    run(event_response(&[(0x12, &[7; 32]), (0xb, digest.as_bytes())])).unwrap();
    let error = run(event_response(&[(0x12, &[7; 32]), (0xb, &[7; 32])])).unwrap_err();
    assert!(matches!(error, ExtendError::Digest { expected, .. } if expected == digest), "{error}");
    let error = run(event_response(&[(0x12, &[7; 32])])).unwrap_err();
    assert!(matches!(error, ExtendError::Digest { .. }), "{error}");
    let error = run(event_response(&[(0x77, &[7; 32])])).unwrap_err().to_string();
    assert!(error.contains("hashAlg: expected an algorithm whose digests have a known size, found 119"), "{error}");
    let unknown = active(&[(0xb, ALL), (0x77, ALL)]).unwrap();
    let error = event(&mut tpm([]), &unknown, index(13), b"event", &[digest]).unwrap_err();
    assert!(matches!(error, ExtendError::Unknown { algorithm: 0x77, .. }), "{error}");
}

#[test]
fn what_became_of_an_extend_is_told_from_values() {
    fn values(list: &[(PcrBank, u8)]) -> PcrValues {
        let of = |bank: PcrBank, byte| PcrDigest::new(bank, &vec![byte; bank.digest_size()]).unwrap();
        let values = list.iter().map(|(bank, byte)| ((*bank, index(13)), of(*bank, *byte))).collect();
        PcrValues { update_counter: 0, values }
    }
    let both = |sha256: &PcrDigest, sha384: &PcrDigest| PcrValues {
        update_counter: 1,
        values: [((PcrBank::Sha256, index(13)), *sha256), ((PcrBank::Sha384, index(13)), *sha384)].into(),
    };
    let before = values(&[(PcrBank::Sha256, 1), (PcrBank::Sha384, 2)]);
    let digests = [PcrBank::Sha256, PcrBank::Sha384].map(PcrDigest::zero);
    let old = digests.map(|digest| before.get(digest.bank(), index(13)).unwrap());
    let new = [0, 1].map(|at| pcr::extend(&old[at], &digests[at]).unwrap());
    let judge = |after: &PcrValues| judge(&before, after, index(13), &digests);
    assert_eq!(judge(&before), Judgement::NotExtended);
    assert_eq!(judge(&both(&new[0], &new[1])), Judgement::Extended);
    assert_eq!(judge(&both(&new[0], &old[1])), Judgement::Other, "one bank of two");
    assert_eq!(judge(&both(&old[0], &new[1])), Judgement::Other);
    assert_eq!(judge(&values(&[(PcrBank::Sha256, 3), (PcrBank::Sha384, 4)])), Judgement::Other);
    assert_eq!(judge(&values(&[(PcrBank::Sha256, 1)])), Judgement::Other, "a bank that was not read");
    assert_eq!(super::judge(&before, &before, index(13), &[]), Judgement::Other);
}
