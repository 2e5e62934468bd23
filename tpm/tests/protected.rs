//! Protected sessions against a real software TPM.

mod common;

use common::{SoftwareTpm, digests, index, registers};
use iofs_policy::pcr::{PcrBank, PcrDigest};
use iofs_tpm::{
    PinnedSrk, ProtectError, Protected, Tpm,
    pcr::{Judgement, active_banks, judge, read},
    srk::{SRK_HANDLE, SrkError, read_public, standard_srk},
    transport::Socket,
};

fn pin(tpm: &mut Tpm<Socket>) -> PinnedSrk {
    PinnedSrk::new(read_public(tpm, SRK_HANDLE).unwrap()).unwrap()
}

#[test]
fn a_register_is_extended_and_read_within_a_salted_session() {
    let mut software = SoftwareTpm::started();
    software.make_srk();
    let mut tpm = software.connect();
    let pin = pin(&mut tpm);
    let mut protected = Protected::start(&mut tpm, &pin).unwrap();
    let active = protected.active_banks().unwrap();
    assert!(active.banks().eq(PcrBank::ALL));
    let before = protected.read(&registers(&[13])).unwrap();
    protected.extend(&active, index(13), &digests(1)).unwrap();
    let after = protected.read(&registers(&[13])).unwrap();
    assert_eq!(judge(&before, &after, index(13), &digests(1)), Judgement::Extended);
    assert_eq!(judge(&before, &before, index(13), &digests(1)), Judgement::NotExtended);
    assert_eq!(judge(&before, &after, index(13), &digests(2)), Judgement::Other);
    let of = |bank| PcrDigest::of(bank, &[b"event"]);
    let known: Vec<PcrDigest> = PcrBank::ALL.into_iter().map(of).collect();
    protected.event(&active, index(14), b"event", &known).unwrap();
    // The event counts, too, though in another register.
    let last = protected.read(&registers(&[13])).unwrap();
    assert!(last.iter().eq(after.iter()) && last.update_counter() != after.update_counter());
    protected.close().unwrap();
    assert_eq!(read(&mut tpm, &registers(&[13])).unwrap(), last);
    assert_eq!(active_banks(&mut tpm).unwrap(), active);
}

#[test]
fn a_key_that_is_kept_nowhere_is_made_again() {
    let mut software = SoftwareTpm::started();
    let mut tpm = software.connect();
    let pin = PinnedSrk::new(standard_srk(&mut tpm).unwrap()).unwrap();
    // A TPM has room for three objects and some sessions: what is left behind would be in the way.
    for _ in 0..20 {
        Protected::start(&mut tpm, &pin).unwrap().close().unwrap();
        drop(Protected::start(&mut tpm, &pin).unwrap());
    }
}

#[test]
fn another_tpm_is_refused() {
    let mut software = SoftwareTpm::started();
    let pin = PinnedSrk::new(standard_srk(&mut software.connect()).unwrap()).unwrap();
    let mut other = SoftwareTpm::started();
    other.make_srk();
    let mut tpm = other.connect();
    for _ in 0..20 {
        let error = Protected::start(&mut tpm, &pin).unwrap_err();
        assert!(matches!(&error, ProtectError::Srk(SrkError::Other { .. })), "{error}");
        assert!(error.to_string().starts_with("this TPM's storage root key is not the pinned one"), "{error}");
    }
}
