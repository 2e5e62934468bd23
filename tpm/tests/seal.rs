//! What enrolment seals by libtss2 is unsealed by the lean client and by tpm2-tools, and by how many commands.

mod host_common;
mod unlock_common;

use host_common::SoftwareTpm;
use iofs_policy::{
    pcr::{PcrBank, PcrDigest},
    pcr_signature::PcrSignatures,
};
use iofs_tpm::{
    PinnedSrk,
    command::CommandCode::{
        CreatePrimary, FlushContext, Load, LoadExternal, PolicyAuthValue, PolicyAuthorize, PolicyPcr, ReadPublic,
        StartAuthSession, Unseal, VerifySignature,
    },
    host::{Authorizations, Host, HostError, SEALED_HANDLES, SealedAt, StorageRootKey},
    name::Public,
    policy::PolicyDigest,
    sealed::Sealed,
    srk::{SRK_HANDLE, SrkError},
    unlock::{Parent, SignedPolicy, UnsealError, UnsealPolicy, UnsealRequest},
};
use unlock_common::{ECDSA, RSA, Signer, codes, counted, index, indices, sha256};

const SECRET: &[u8] = b"32 bytes that open a disk's slot";

fn open(software: &SoftwareTpm) -> Host {
    Host::open(&software.tcti(), &Authorizations::default()).unwrap()
}

fn pinned(srk: &StorageRootKey) -> PinnedSrk {
    PinnedSrk::new(Public::parse_sized(&srk.public).unwrap()).unwrap()
}

/// Register 7 as it is after the TPM started.
fn register_7() -> PolicyDigest {
    let key = (PcrBank::Sha256, index(7));
    PolicyDigest::ZERO.registers(&[(key, PcrDigest::zero(PcrBank::Sha256))].into())
}

/// A TPM with an object for register 7, and its key.
fn sealed(auth_value: Option<&[u8]>) -> (SoftwareTpm, PinnedSrk, Sealed) {
    let software = SoftwareTpm::started();
    let policy = if auth_value.is_some() { register_7().auth_value() } else { register_7() };
    let mut host = open(&software);
    let srk = host.provide_srk().unwrap();
    let blob = host.seal(&srk, SECRET, &policy, auth_value).unwrap();
    drop(host);
    assert_eq!(software.leftovers(), "");
    (software, pinned(&srk), Sealed::parse(&blob).unwrap())
}

fn request<'a>(pin: &'a PinnedSrk, sealed: &'a Sealed, auth_value: Option<&'a [u8]>) -> UnsealRequest<'a> {
    let policy = UnsealPolicy { registers: sha256(&[7]), auth_value, ..UnsealPolicy::default() };
    UnsealRequest { parent: Parent::Pinned { handle: SRK_HANDLE, pin }, sealed, persistent: None, policy }
}

#[test]
fn a_loaded_object_takes_five_commands_and_with_a_pin_six() {
    let (software, pin, object) = sealed(None);
    let (secret, commands) = counted(&software, &request(&pin, &object, None));
    assert_eq!(secret.unwrap().as_slice(), SECRET);
    assert_eq!(commands, codes(&[Load, StartAuthSession, PolicyPcr, Unseal, FlushContext]));

    let (software, pin, object) = sealed(Some(b"a PIN's value"));
    let start = [Load, StartAuthSession, PolicyPcr, PolicyAuthValue];
    // Before an object that counts towards the lockout is used for the first time, the TPM writes that down, and asks for
    // the command again (TPM_RC_RETRY).
    for end in [&[Unseal, Unseal, FlushContext][..], &[Unseal, FlushContext]] {
        let (secret, commands) = counted(&software, &request(&pin, &object, Some(b"a PIN's value")));
        assert_eq!(secret.unwrap().as_slice(), SECRET);
        assert_eq!(commands, codes(&[&start, end].concat()));
    }
    let (error, _) = counted(&software, &request(&pin, &object, Some(b"another value")));
    assert!(matches!(error.unwrap_err(), UnsealError::WrongAuth { counted: true }));
    let (error, _) = counted(&software, &request(&pin, &object, None));
    assert!(matches!(error.unwrap_err(), UnsealError::RegistersChanged { .. }), "the policy asks for a value");
}

#[test]
fn a_persistent_object_takes_three_commands() {
    let (software, pin, object) = sealed(None);
    let handle = keep(&software, &object.to_blob());
    let request = UnsealRequest { persistent: Some(handle), ..request(&pin, &object, None) };
    for _ in 0..5 {
        let (secret, commands) = counted(&software, &request);
        assert_eq!(secret.unwrap().as_slice(), SECRET);
        assert_eq!(commands, codes(&[StartAuthSession, PolicyPcr, Unseal]));
    }
    software.extend(7, &[7; 32]);
    let error = counted(&software, &request).0.unwrap_err();
    assert!(matches!(error, UnsealError::RegistersChanged { .. }), "{error}");
}

fn keep(software: &SoftwareTpm, blob: &[u8]) -> u32 {
    let mut host = open(software);
    let srk = host.provide_srk().unwrap();
    let handle = host.free_handle().unwrap();
    host.persist(&srk, blob, handle).unwrap();
    drop(host);
    assert_eq!(software.leftovers(), "");
    handle
}

#[test]
fn an_object_that_is_not_at_its_handle_is_loaded() {
    let (software, pin, object) = sealed(Some(b"value"));
    let request = UnsealRequest { persistent: Some(0x8100_4945), ..request(&pin, &object, Some(b"value")) };
    // Nothing is there.
    assert_eq!(counted(&software, &request).0.unwrap().as_slice(), SECRET);
    // Another object is there, with another value: the wrong one is not tried on it more than once.
    let mut host = open(&software);
    let srk = host.provide_srk().unwrap();
    let other = host.seal(&srk, b"another", &register_7(), None).unwrap();
    host.persist(&srk, &other, 0x8100_4945).unwrap();
    drop(host);
    assert_eq!(counted(&software, &request).0.unwrap().as_slice(), SECRET);
}

#[test]
fn a_storage_root_key_that_is_gone_is_made_again() {
    let (software, pin, object) = sealed(None);
    let handle = keep(&software, &object.to_blob());
    software.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "0x81000001"]);
    let (secret, commands) = counted(&software, &request(&pin, &object, None));
    assert_eq!(secret.unwrap().as_slice(), SECRET);
    let again =
        [Load, ReadPublic, CreatePrimary, Load, StartAuthSession, PolicyPcr, Unseal, FlushContext, FlushContext];
    assert_eq!(commands, codes(&again));
    let request = UnsealRequest { persistent: Some(handle), ..request(&pin, &object, None) };
    assert_eq!(counted(&software, &request).0.unwrap().as_slice(), SECRET);
}

#[test]
fn another_tpm_is_told_from_a_changed_object() {
    let (software, pin, object) = sealed(None);
    let (other, other_pin, other_object) = sealed(None);
    let error = counted(&other, &request(&pin, &object, None)).0.unwrap_err();
    assert!(matches!(error, UnsealError::Srk(SrkError::Other { .. })), "{error}");
    let error = counted(&other, &request(&other_pin, &object, None)).0.unwrap_err();
    assert!(matches!(error, UnsealError::Broken { .. }), "{error}");
    // Persistent at both, at the same handle: the salt does not fit.
    let handle = keep(&other, &other_object.to_blob());
    let error = counted(&other, &UnsealRequest { persistent: Some(handle), ..request(&pin, &object, None) }).0;
    let error = error.unwrap_err();
    assert!(matches!(error, UnsealError::Srk(SrkError::Other { .. })), "{error}");
    // Each byte of the private part.
    let blob = object.to_blob();
    for at in [2, 40, 100] {
        let mut changed = blob.clone();
        changed[at] ^= 1;
        let changed = Sealed::parse(&changed).unwrap();
        let error = counted(&software, &request(&pin, &changed, None)).0.unwrap_err();
        assert!(matches!(error, UnsealError::Broken { .. }), "{at}: {error}");
    }
}

#[test]
fn tpm2_tools_unseal_what_is_sealed_here() {
    let (software, _, object) = sealed(Some(b"value"));
    let blob = object.to_blob();
    let private = 2 + usize::from(u16::from_be_bytes([blob[0], blob[1]]));
    software.write("seal.priv", &blob[..private]);
    software.write("seal.pub", &blob[private..]);
    software.tool("tpm2_load", &["-Q", "-C", "0x81000001", "-u", "seal.pub", "-r", "seal.priv", "-c", "seal.ctx"]);
    software.tool("tpm2_startauthsession", &["-Q", "--policy-session", "-S", "session.ctx"]);
    software.tool("tpm2_policypcr", &["-Q", "-S", "session.ctx", "-l", "sha256:7"]);
    software.tool("tpm2_policyauthvalue", &["-Q", "-S", "session.ctx"]);
    let auth = "session:session.ctx+str:value";
    assert_eq!(software.tool("tpm2_unseal", &["-c", "seal.ctx", "-p", auth]).as_bytes(), SECRET);
    let shown = software.tool("tpm2_readpublic", &["-c", "seal.ctx"]);
    assert!(shown.contains("value: fixedtpm|fixedparent\n"), "{shown}");
    let (software, _, object) = sealed(None);
    let handle = format!("{:#x}", keep(&software, &object.to_blob()));
    let shown = software.tool("tpm2_readpublic", &["-c", &handle]);
    assert!(shown.contains("value: fixedtpm|fixedparent|noda\n"), "{shown}");
}

#[test]
fn the_storage_root_key_is_made_once_as_tpm2_createprimary_makes_it() {
    let software = SoftwareTpm::started();
    let first = open(&software).provide_srk().unwrap();
    let again = open(&software).provide_srk().unwrap();
    assert_eq!((first.handle, &first.public, &first.name), (SRK_HANDLE, &again.public, &again.name));
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";
    let arguments = ["-Q", "-C", "o", "-G", "ecc", "-a", attributes, "-c", "srk.ctx"];
    software.tool("tpm2_createprimary", &arguments);
    software.tool("tpm2_readpublic", &["-Q", "-c", "srk.ctx", "-f", "tss", "-o", "public"]);
    assert_eq!(first.public, software.read("public"));
    assert_eq!(software.leftovers(), "");
}

#[test]
fn another_kind_of_key_in_the_place_of_the_storage_root_key_is_left_alone() {
    let software = SoftwareTpm::started();
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";
    software.tool("tpm2_createprimary", &["-Q", "-C", "o", "-G", "rsa2048", "-a", attributes, "-c", "rsa.ctx"]);
    software.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "rsa.ctx", "0x81000001"]);
    let error = open(&software).provide_srk().unwrap_err();
    assert!(matches!(error, HostError::NoStorageKey { handle: SRK_HANDLE, .. }), "{error}");
    assert!(error.to_string().contains("found another kind of key"), "{error}");
}

#[test]
fn persistent_objects_are_listed_and_only_the_one_that_is_named_is_removed() {
    let (software, _, object) = sealed(None);
    let mut host = open(&software);
    let srk = host.provide_srk().unwrap();
    assert_eq!(host.sealed_objects().unwrap(), []);
    let first = host.free_handle().unwrap();
    assert_eq!(first, *SEALED_HANDLES.start());
    host.persist(&srk, &object.to_blob(), first).unwrap();
    let error = host.persist(&srk, &object.to_blob(), first).unwrap_err();
    assert!(matches!(error, HostError::Occupied { handle } if handle == first), "{error}");
    let second = host.free_handle().unwrap();
    let other = host.seal(&srk, b"another", &register_7(), None).unwrap();
    host.persist(&srk, &other, second).unwrap();
    let other = Sealed::parse(&other).unwrap();
    let (here, there) = (SealedAt::of(&object, first), SealedAt::of(&other, second));
    assert_eq!(host.sealed_objects().unwrap(), [here.clone(), there.clone()]);
    let error = host.evict(&SealedAt::of(&object, second)).unwrap_err();
    assert!(matches!(error, HostError::OtherObject { .. }), "{error}");
    host.evict(&here).unwrap();
    host.evict(&here).unwrap();
    assert_eq!(host.sealed_objects().unwrap(), [there]);
    assert_eq!(host.free_handle().unwrap(), first);
    for handle in [0x8000_0000, 0x8180_0000, 0x0150_0000] {
        let error = host.persist(&srk, &object.to_blob(), handle).unwrap_err();
        assert!(matches!(error, HostError::Handle(found) if found == handle), "{error}");
    }
    drop(host);
    assert_eq!(software.leftovers(), "");
}

#[test]
fn policies_signed_by_rsa_and_ecdsa_open_by_either_of_the_keys_names() {
    for options in [RSA, ECDSA] {
        let software = SoftwareTpm::started();
        let signer = Signer::new(&software, options);
        let key = signer.key();
        let mut signatures = PcrSignatures::default();
        signatures.insert(PcrBank::Sha256, signer.sign(&[7], &register_7()));
        let mut host = open(&software);
        let srk = host.provide_srk().unwrap();
        let blobs: Vec<_> = key
            .names()
            .iter()
            .map(|name| host.seal(&srk, SECRET, &PolicyDigest::authorized_by(name), None).unwrap())
            .collect();
        drop(host);
        let pin = pinned(&srk);
        for blob in blobs {
            let object = Sealed::parse(&blob).unwrap();
            let (bank, registers) = (PcrBank::Sha256, indices(&[7]));
            let signed = Some(SignedPolicy { bank, registers, key: &key, signatures: &signatures });
            let policy = UnsealPolicy { signed, ..UnsealPolicy::default() };
            let request = UnsealRequest { policy, ..request(&pin, &object, None) };
            let (secret, commands) = counted(&software, &request);
            assert_eq!(secret.unwrap().as_slice(), SECRET, "{options:?}");
            // Which Name it is shows in the object: none is tried in vain.
            let signed = [PolicyPcr, LoadExternal, VerifySignature, FlushContext, PolicyAuthorize];
            let expected = [&[Load, StartAuthSession][..], &signed, &[Unseal, FlushContext]].concat();
            assert_eq!(commands, codes(&expected));
        }
    }
}

#[test]
fn a_signed_policy_with_registers_beside_it_opens_by_either_of_the_keys_names() {
    let software = SoftwareTpm::started();
    let signer = Signer::new(&software, RSA);
    let key = signer.key();
    assert_eq!(key.names().len(), 2);
    let mut signatures = PcrSignatures::default();
    signatures.insert(PcrBank::Sha256, signer.sign(&[7], &register_7()));
    let mut host = open(&software);
    let srk = host.provide_srk().unwrap();
    let eight = [((PcrBank::Sha256, index(8)), PcrDigest::zero(PcrBank::Sha256))].into();
    let blobs: Vec<_> = key
        .names()
        .iter()
        .map(|name| host.seal(&srk, SECRET, &PolicyDigest::authorized_by(name).registers(&eight), None).unwrap())
        .collect();
    drop(host);
    let pin = pinned(&srk);
    for blob in blobs {
        let object = Sealed::parse(&blob).unwrap();
        let signed = |key| {
            let (bank, registers) = (PcrBank::Sha256, indices(&[7]));
            Some(SignedPolicy { bank, registers, key, signatures: &signatures })
        };
        let policy = UnsealPolicy { signed: signed(&key), registers: sha256(&[8]), ..UnsealPolicy::default() };
        let request = UnsealRequest { policy, ..request(&pin, &object, None) };
        assert_eq!(counted(&software, &request).0.unwrap().as_slice(), SECRET);
        // Without the registers beside, it is another policy.
        let policy = UnsealPolicy { signed: signed(&key), ..UnsealPolicy::default() };
        let error = counted(&software, &UnsealRequest { policy, ..request }).0.unwrap_err();
        assert!(matches!(error, UnsealError::OtherPolicy), "{error}");
    }
}

#[test]
fn a_form_of_the_key_that_the_tpm_does_not_take_hides_no_answer() {
    let software = SoftwareTpm::started();
    let signer = Signer::with_short_coordinate(&software);
    let key = signer.key();
    let mut signatures = PcrSignatures::default();
    signatures.insert(PcrBank::Sha256, signer.sign(&[7], &register_7()));
    let mut host = open(&software);
    let srk = host.provide_srk().unwrap();
    let pin = pinned(&srk);
    let mut answer = |name: usize, value| {
        let eight = [((PcrBank::Sha256, index(8)), value)].into();
        let policy = PolicyDigest::authorized_by(&key.names()[name]).registers(&eight);
        let object = Sealed::parse(&host.seal(&srk, SECRET, &policy, None).unwrap()).unwrap();
        let (bank, registers) = (PcrBank::Sha256, indices(&[7]));
        let signed = Some(SignedPolicy { bank, registers, key: &key, signatures: &signatures });
        let policy = UnsealPolicy { signed, registers: sha256(&[8]), ..UnsealPolicy::default() };
        counted(&software, &UnsealRequest { policy, ..request(&pin, &object, None) }).0
    };
    let (now, other) = (PcrDigest::zero(PcrBank::Sha256), PcrDigest::of(PcrBank::Sha256, &[b"other"]));
    assert_eq!(answer(0, now).unwrap().as_slice(), SECRET);
    for (name, value) in [(0, other), (1, now)] {
        let error = answer(name, value).unwrap_err().to_string();
        assert!(error.contains("expected the values of enrolment in registers sha256:8"), "{error}");
    }
}

/// The digests that this crate computes are those of the TPM: tpm2-tools ask it in a trial session.
#[test]
fn a_signed_policys_digest_is_the_trial_sessions() {
    let software = SoftwareTpm::started();
    for options in [RSA, ECDSA] {
        let signer = Signer::new(&software, options);
        // A loaded key's Name by the tool is that of its own template; the first of ours is given to it.
        for name in signer.key().names() {
            software.write("name", name.as_bytes());
            software.tool("tpm2_startauthsession", &["-Q", "-S", "trial.ctx"]);
            software.tool("tpm2_policyauthorize", &["-Q", "-S", "trial.ctx", "-n", "name", "-L", "digest"]);
            let signed = PolicyDigest::authorized_by(&name);
            assert_eq!(software.read("digest"), signed.as_bytes());
            software.tool("tpm2_policypcr", &["-Q", "-S", "trial.ctx", "-l", "sha256:7", "-L", "digest"]);
            let zero = PcrDigest::zero(PcrBank::Sha256);
            let whole = signed.registers(&[((PcrBank::Sha256, index(7)), zero)].into());
            assert_eq!(software.read("digest"), whole.as_bytes());
            software.tool("tpm2_policyauthvalue", &["-Q", "-S", "trial.ctx", "-L", "digest"]);
            assert_eq!(software.read("digest"), whole.auth_value().as_bytes());
            software.tool("tpm2_flushcontext", &["trial.ctx"]);
        }
    }
}
