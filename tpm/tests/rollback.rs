//! The rollback counter on a software TPM: made by libtss2, read by the lean client, held against tpm2-tools.

mod host_common;
mod unlock_common;

use host_common::SoftwareTpm;
use iofs_policy::{
    hex,
    pcr::{PcrBank, PcrDigest},
};
use iofs_tpm::{
    PinnedSrk, Protected,
    command::CommandCode::{FlushContext, Load, PolicyNv, PolicyPcr, StartAuthSession, Unseal},
    host::{Authorizations, Host},
    name::Public,
    policy::PolicyDigest,
    rollback::{self, CounterError, CounterLimit, DEFAULT_INDEX},
    sealed::Sealed,
    srk::SRK_HANDLE,
    unlock::{Parent, UnsealError, UnsealPolicy, UnsealRequest},
};
use unlock_common::{codes, counted, index, lean, sha256};

const SECRET: &[u8] = b"32 bytes that open a disk's slot";
/// [`DEFAULT_INDEX`], as tpm2-tools take it.
const INDEX: &str = "0x180494f";

fn open(software: &SoftwareTpm) -> Host {
    Host::open(&software.tcti(), &Authorizations::default()).unwrap()
}

fn pinned(software: &SoftwareTpm) -> PinnedSrk {
    let srk = open(software).provide_srk().unwrap();
    PinnedSrk::new(Public::parse_sized(&srk.public).unwrap()).unwrap()
}

fn value(software: &SoftwareTpm, pin: &PinnedSrk) -> Result<u64, CounterError> {
    let mut tpm = lean(software);
    let mut protected = Protected::start(&mut tpm, pin).unwrap();
    let value = protected.rollback_counter(DEFAULT_INDEX);
    protected.close().unwrap();
    value
}

fn provide(software: &SoftwareTpm) {
    open(software).provide_counter(DEFAULT_INDEX).unwrap();
}

fn count_up(software: &SoftwareTpm) {
    open(software).count_up(DEFAULT_INDEX).unwrap();
}

#[test]
fn a_counter_is_made_once_and_read_as_tpm2_tools_read_it() {
    let software = SoftwareTpm::started();
    let pin = pinned(&software);
    assert!(matches!(value(&software, &pin).unwrap_err(), CounterError::Absent { index: DEFAULT_INDEX }));
    provide(&software);
    let first = value(&software, &pin).unwrap();
    provide(&software);
    assert_eq!(value(&software, &pin).unwrap(), first, "a second run changes nothing");
    count_up(&software);
    assert_eq!(value(&software, &pin).unwrap(), first + 1);
    software.tool("tpm2_nvread", &["-Q", "-C", INDEX, "-s", "8", "-o", "counter", INDEX]);
    assert_eq!(software.read("counter"), (first + 1).to_be_bytes());
    let shown = software.tool("tpm2_nvreadpublic", &[INDEX]);
    assert!(shown.contains(&rollback::name(DEFAULT_INDEX).to_string()), "{shown}");
    assert!(shown.contains("ownerwrite|nt=0x1|ownerread|authread|no_da|written"), "{shown}");
    assert_eq!(software.leftovers(), "");
}

#[test]
fn a_counter_that_was_never_counted_up_gets_its_first_value() {
    let software = SoftwareTpm::started();
    let pin = pinned(&software);
    software.tool("tpm2_nvdefine", &["-Q", "-C", "o", "-a", "ownerwrite|nt=counter|ownerread|authread|no_da", INDEX]);
    assert!(matches!(value(&software, &pin).unwrap_err(), CounterError::Absent { .. }), "power was lost before");
    provide(&software);
    value(&software, &pin).unwrap();
}

#[test]
fn something_else_at_the_index_is_left_alone_and_named() {
    let software = SoftwareTpm::started();
    let pin = pinned(&software);
    software.tool("tpm2_nvdefine", &["-Q", "-C", "o", "-s", "8", "-a", "ownerwrite|ownerread|authread|no_da", INDEX]);
    software.write("ones", &1_u64.to_be_bytes());
    software.tool("tpm2_nvwrite", &["-Q", "-C", "o", "-i", "ones", INDEX]);
    provide(&software);
    let error = value(&software, &pin).unwrap_err();
    let expected = "rollback counter 0x0180494f: expected attributes 0x22060012 and 8 bytes, found 0x22060002 and 8";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn the_policys_digest_is_that_of_tpm2_policynv() {
    let software = SoftwareTpm::started();
    let pin = pinned(&software);
    provide(&software);
    let limit = CounterLimit { index: DEFAULT_INDEX, value: value(&software, &pin).unwrap() };
    software.write("operand", &limit.value.to_be_bytes());
    software.tool("tpm2_startauthsession", &["-Q", "-S", "session"]);
    software
        .tool("tpm2_policynv", &["-Q", "-S", "session", "-C", INDEX, "-i", "operand", "-L", "digest", INDEX, "ule"]);
    software.flush_sessions();
    assert_eq!(hex::encode(&software.read("digest")), hex::encode(PolicyDigest::ZERO.counter(limit).as_bytes()));
}

/// A TPM whose counter is at its first value, and an object for register 7 that opens up to one above that.
fn sealed() -> (SoftwareTpm, PinnedSrk, CounterLimit, Sealed) {
    let software = SoftwareTpm::started();
    let pin = pinned(&software);
    provide(&software);
    let limit = CounterLimit { index: DEFAULT_INDEX, value: value(&software, &pin).unwrap() + 1 };
    let register = ((PcrBank::Sha256, index(7)), PcrDigest::zero(PcrBank::Sha256));
    let policy = PolicyDigest::ZERO.registers(&[register].into()).counter(limit);
    let mut host = open(&software);
    let srk = host.provide_srk().unwrap();
    let blob = host.seal(&srk, SECRET, &policy, None).unwrap();
    drop(host);
    (software, pin, limit, Sealed::parse(&blob).unwrap())
}

fn request<'a>(pin: &'a PinnedSrk, sealed: &'a Sealed, counter: Option<CounterLimit>) -> UnsealRequest<'a> {
    let policy = UnsealPolicy { registers: sha256(&[7]), counter, ..UnsealPolicy::default() };
    UnsealRequest { parent: Parent::Pinned { handle: SRK_HANDLE, pin }, sealed, persistent: None, policy }
}

#[test]
fn an_object_opens_until_the_counter_is_above_its_limit() {
    let (software, pin, limit, object) = sealed();
    let request = request(&pin, &object, Some(limit));
    for _ in 0..2 {
        let (secret, commands) = counted(&software, &request);
        assert_eq!(secret.unwrap().as_slice(), SECRET);
        assert_eq!(commands, codes(&[Load, StartAuthSession, PolicyPcr, PolicyNv, Unseal, FlushContext]));
        count_up(&software);
    }
    let (error, _) = counted(&software, &request);
    let error = error.unwrap_err();
    assert!(
        matches!(error, UnsealError::Superseded { limit: of, found: Some(found) } if of == limit && found == limit.value + 1),
        "{error}"
    );
    assert!(error.to_string().contains("a newer release was confirmed"), "{error}");
}

#[test]
fn another_limit_than_the_sealed_one_opens_nothing() {
    let (software, pin, limit, object) = sealed();
    for changed in [Some(CounterLimit { value: u64::MAX, ..limit }), None] {
        let error = counted(&software, &request(&pin, &object, changed)).0.unwrap_err();
        assert!(matches!(error, UnsealError::RegistersChanged { .. }), "{error}");
    }
}

#[test]
fn removing_the_counter_takes_nothing_back() {
    let (software, pin, limit, object) = sealed();
    count_up(&software);
    let highest = value(&software, &pin).unwrap();
    assert!(counted(&software, &request(&pin, &object, Some(limit))).0.is_ok());
    software.tool("tpm2_nvundefine", &["-C", "o", INDEX]);
    let error = counted(&software, &request(&pin, &object, Some(limit))).0.unwrap_err();
    assert!(matches!(error, UnsealError::NoCounter { .. }), "{error}");
    software.tool("tpm2_nvdefine", &["-Q", "-C", "o", "-a", "ownerwrite|nt=counter|ownerread|authread|no_da", INDEX]);
    let error = counted(&software, &request(&pin, &object, Some(limit))).0.unwrap_err();
    assert!(matches!(error, UnsealError::NoCounter { .. }), "never counted up: {error}");
    provide(&software);
    assert!(value(&software, &pin).unwrap() > highest);
    let error = counted(&software, &request(&pin, &object, Some(limit))).0.unwrap_err();
    assert!(matches!(error, UnsealError::Superseded { .. }), "{error}");
}
