//! The rollback counter on a software TPM: made by libtss2, read by the lean client, held against tpm2-tools.

mod host_common;
mod unlock_common;

use host_common::SoftwareTpm;
use iofs_policy::{
    hex,
    manifest::{RollbackIndex, RollbackRule},
    pcr::{PcrBank, PcrDigest},
    pcr_signature::{PcrSignature, PcrSignatures, policy_ref},
};
use iofs_tpm::{
    PinnedSrk, Protected,
    command::CommandCode::{
        FlushContext, Load, LoadExternal, PolicyAuthorize, PolicyNv, PolicyOr, PolicyPcr, StartAuthSession, Unseal,
        VerifySignature,
    },
    host::{Authorizations, Host},
    ladder::{Ladder, RUNGS},
    name::Public,
    policy::PolicyDigest,
    policy_key::PolicyKey,
    rollback::{self, CounterError, CounterLimit, DEFAULT_INDEX},
    sealed::Sealed,
    srk::SRK_HANDLE,
    unlock::{Parent, SignedPolicy, UnsealError, UnsealPolicy, UnsealRequest},
};
use unlock_common::{ECDSA, RSA, Signer, codes, counted, index, indices, lean, sha256};

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
    let rollback =
        counter.map(|limit| RollbackRule { counter: limit.index, value: limit.value, index: RollbackIndex(0) });
    let policy = UnsealPolicy { registers: sha256(&[7]), rollback, ..UnsealPolicy::default() };
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

/// What register 7 holds.
fn register_7() -> PolicyDigest {
    PolicyDigest::ZERO.registers(&[((PcrBank::Sha256, index(7)), PcrDigest::zero(PcrBank::Sha256))].into())
}

/// An object for whatever a key signs of register 7, on a TPM whose counter stands for index 20.
struct Signed {
    pin: PinnedSrk,
    rule: RollbackRule,
    key: PolicyKey,
    object: Sealed,
}

impl Signed {
    fn new(software: &SoftwareTpm, key: PolicyKey) -> Self {
        let pin = pinned(software);
        provide(software);
        let value = value(software, &pin).unwrap();
        let rule = RollbackRule { counter: DEFAULT_INDEX, value, index: RollbackIndex(20) };
        let policy = PolicyDigest::whole(Some(&key.names()[0]), &[].into(), Some(rule), false);
        let mut host = open(software);
        let srk = host.provide_srk().unwrap();
        let object = Sealed::parse(&host.seal(&srk, SECRET, &policy, None).unwrap()).unwrap();
        Self { pin, rule, key, object }
    }

    /// What comes of asking with one signature, and by which commands.
    fn asked(&self, software: &SoftwareTpm, signature: PcrSignature) -> (Result<(), UnsealError>, Vec<u32>) {
        let mut signatures = PcrSignatures::default();
        signatures.insert(PcrBank::Sha256, signature);
        let signed =
            SignedPolicy { bank: PcrBank::Sha256, registers: indices(&[7]), key: &self.key, signatures: &signatures };
        let policy = UnsealPolicy { signed: Some(signed), rollback: Some(self.rule), ..UnsealPolicy::default() };
        let (secret, commands) = counted(software, &UnsealRequest { policy, ..request(&self.pin, &self.object, None) });
        (secret.map(|secret| assert_eq!(secret.as_slice(), SECRET)), commands)
    }
}

#[test]
fn a_signed_policy_opens_for_each_index_until_the_counter_is_above_its_value() {
    for options in [RSA, ECDSA] {
        let software = SoftwareTpm::started();
        let signer = Signer::new(&software, options);
        let signed = Signed::new(&software, signer.key());
        let ask = |index| signed.asked(&software, signer.sign_for(index, &[7], &register_7()));
        let (opened, commands) = ask(20);
        opened.unwrap();
        let policy = [PolicyPcr, LoadExternal, VerifySignature, FlushContext, PolicyAuthorize];
        let ladder = [PolicyNv, PolicyOr, PolicyOr];
        let expected = [&[Load, StartAuthSession][..], &policy, &ladder, &[Unseal, FlushContext]].concat();
        assert_eq!(commands, codes(&expected));
        for index in [21, 27, 28, 83] {
            ask(index).0.unwrap_or_else(|error| panic!("{index}: {error}"));
        }
        for index in [19, 84] {
            let error = ask(index).0.unwrap_err();
            assert!(matches!(error, UnsealError::OtherRollbackIndex { .. }), "{index}: {error}");
            assert!(error.to_string().contains("expected a release of rollback index 20 to 83"), "{error}");
        }
        (0..2).for_each(|_| count_up(&software));
        for index in [20, 21] {
            let error = ask(index).0.unwrap_err();
            let found = signed.rule.value + 2;
            assert!(matches!(error, UnsealError::Superseded { found: Some(value), .. } if value == found), "{error}");
        }
        ask(22).0.unwrap();
        assert_eq!(software.leftovers(), "");
    }
}

#[test]
fn what_was_signed_for_one_index_or_for_none_opens_by_no_other() {
    let software = SoftwareTpm::started();
    let signer = Signer::new(&software, ECDSA);
    let signed = Signed::new(&software, signer.key());
    let ask = |signature| signed.asked(&software, signature).0.unwrap_err();
    let good = || signer.sign_for(20, &[7], &register_7());
    let plain = signer.sign(&[7], &register_7());
    assert!(matches!(ask(plain.clone()), UnsealError::NoRollbackIndex { .. }));
    let mut other = good();
    other.rollback.as_mut().unwrap().index = RollbackIndex(21);
    assert!(matches!(ask(other), UnsealError::BadSignature { .. }), "of 20, said to be of 21");
    let mut other = good();
    other.rollback.as_mut().unwrap().signature = plain.signature;
    assert!(matches!(ask(other), UnsealError::BadSignature { .. }), "of no index, said to be of 20");
    let other = signer.sign_for(20, &[7], &PolicyDigest::from_bytes([7; 32]));
    assert!(matches!(ask(other), UnsealError::NoSignature { found: 1, .. }), "of other values");
    // A token that was changed: the lowest index, or the value of the counter.
    for rule in [
        RollbackRule { index: RollbackIndex(19), ..signed.rule },
        RollbackRule { value: signed.rule.value + 1, ..signed.rule },
    ] {
        let changed = Signed { rule, ..Signed::new(&software, signer.key()) };
        let error = changed.asked(&software, good()).0.unwrap_err();
        assert!(matches!(error, UnsealError::OtherPolicy), "{error}");
    }
}

#[test]
fn the_ladders_digest_is_that_of_tpm2_tools() {
    let software = SoftwareTpm::started();
    let signer = Signer::new(&software, RSA);
    let signed = Signed::new(&software, signer.key());
    software.tool("tpm2_loadexternal", &["-Q", "-G", "rsa", "-C", "o", "-u", "key.pub", "-c", "key.ctx", "-n", "name"]);
    let loaded = software.read("name");
    let name = signed.key.names().into_iter().find(|name| name.as_bytes() == loaded).expect("one of its Names");
    let mut groups = Vec::new();
    for group in 0..RUNGS / 8 {
        let rungs: Vec<String> = (0..8).map(|rung| rung_by_tools(&software, &signed, group * 8 + rung)).collect();
        groups.push(one_of_by_tools(&software, &format!("group-{group}"), &rungs));
    }
    let whole = one_of_by_tools(&software, "whole", &groups);
    assert_eq!(hex::encode(&software.read(&whole)), hex::encode(Ladder::new(signed.rule).policy(&name).as_bytes()));
}

/// The digest of one rung, in a file: what a trial session makes of TPM2_PolicyAuthorize and TPM2_PolicyNV.
fn rung_by_tools(software: &SoftwareTpm, signed: &Signed, rung: usize) -> String {
    let rung = rung as u64;
    software.write("ref", &policy_ref(RollbackIndex(signed.rule.index.0 + rung)));
    software.write("operand", &(signed.rule.value + rung).to_be_bytes());
    let file = format!("rung-{rung}");
    software.tool("tpm2_startauthsession", &["-Q", "-S", "session"]);
    let authorize = ["-Q", "-S", "session", "-i", "policy", "-q", "ref", "-n", "name", "-L", &file];
    software.write("policy", register_7().as_bytes());
    software.tool("tpm2_policyauthorize", &authorize);
    let compare = ["-Q", "-S", "session", "-C", INDEX, "-i", "operand", "-L", &file, INDEX, "ule"];
    software.tool("tpm2_policynv", &compare);
    software.tool("tpm2_flushcontext", &["-Q", "session"]);
    file
}

fn one_of_by_tools(software: &SoftwareTpm, file: &str, branches: &[String]) -> String {
    let list = format!("sha256:{}", branches.join(","));
    software.tool("tpm2_startauthsession", &["-Q", "-S", "session"]);
    software.tool("tpm2_policyor", &["-Q", "-S", "session", "-L", file, "-l", &list]);
    software.tool("tpm2_flushcontext", &["-Q", "session"]);
    file.to_owned()
}
