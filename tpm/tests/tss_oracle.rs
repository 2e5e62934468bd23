//! libtss2, by tss-esapi, as the second opinion on what the lean client does within sessions: what one of the two puts
//! into a software TPM comes out of it by the other.

mod host_common;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use host_common::SoftwareTpm;
use iofs_policy::pcr::{self, PcrBank, PcrDigest, PcrIndex};
use iofs_tpm::{
    PinnedSrk, Protected, Tpm,
    host::{Authorizations, Host, Selection},
    pcr::Judgement,
    policy::{PolicyDigest, Registers},
    response::ResponseCode,
    sealed::Sealed,
    srk::{SRK_HANDLE, read_public, standard_srk},
    transport::Socket,
    unlock::{Parent, UnsealError, UnsealPolicy, UnsealRequest, unseal as lean_unseal},
};
use tss_esapi::{
    Context,
    attributes::{NvIndexAttributesBuilder, SessionAttributesBuilder},
    constants::SessionType,
    handles::{KeyHandle, NvIndexTpmHandle, ObjectHandle, PersistentTpmHandle, SessionHandle},
    interface_types::{
        algorithm::HashingAlgorithm,
        dynamic_handles::Persistent,
        resource_handles::{Hierarchy, NvAuth, Provision},
        session_handles::{AuthSession, PolicySession},
    },
    structures::{
        Auth, Digest, MaxNvBuffer, NvPublicBuilder, PcrSelectionList, PcrSlot, Private, Public, SensitiveData,
        SymmetricDefinition,
    },
    tcti_ldr::TctiNameConf,
    traits::{Marshall, UnMarshall},
};

/// What the storage root key is made from: ECC, SHA-256; fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA,
/// restricted, decrypt; no policy; AES, 128 bits, CFB; no scheme, P-256, no KDF, no point.
const SRK_TEMPLATE: [u8; 26] =
    [0, 0x23, 0, 0x0b, 0, 3, 0x04, 0x72, 0, 0, 0, 6, 0, 128, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10, 0, 0, 0, 0];
/// What sealed data begins with: KEYEDHASH, SHA-256; fixedTPM, fixedParent, noDA.
const SEALED_HEAD: [u8; 8] = [0, 8, 0, 0x0b, 0, 0, 0x04, 0x12];
/// An index of the owner's.
const INDEX: u32 = 0x0150_0030;

fn open(software: &SoftwareTpm) -> Context {
    Context::new(software.tcti().parse::<TctiNameConf>().unwrap()).unwrap()
}

fn lean(software: &SoftwareTpm) -> Tpm<Socket> {
    let address = SocketAddr::from(([127, 0, 0, 1], software.port()));
    Tpm::new(Socket::tcp(address, Duration::from_secs(60)).unwrap())
}

fn index(number: u8) -> PcrIndex {
    PcrIndex::new(number).unwrap()
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// Makes the storage root key by libtss2, and keeps it at its usual handle.
fn make_srk(context: &mut Context) {
    let template = Public::unmarshall(&SRK_TEMPLATE).unwrap();
    context
        .execute_with_session(Some(AuthSession::Password), |context| {
            let made = context.create_primary(Hierarchy::Owner, template, None, None, None, None)?;
            let handle = Persistent::Persistent(PersistentTpmHandle::new(SRK_HANDLE)?);
            context.evict_control(Provision::Owner, made.key_handle.into(), handle)?;
            context.execute_without_session(|context| context.flush_context(made.key_handle.into()))
        })
        .unwrap();
}

/// The storage root key and its public area (TPMT_PUBLIC) and Name, as libtss2 reads them.
fn srk(context: &mut Context) -> (KeyHandle, Vec<u8>, Vec<u8>) {
    let handle = PersistentTpmHandle::new(SRK_HANDLE).unwrap();
    context
        .execute_without_session(|context| {
            let key = KeyHandle::from(context.tr_from_tpm_public(handle.into())?);
            let (public, name, _) = context.read_public(key)?;
            Ok::<_, tss_esapi::Error>((key, public.marshall()?, name.value().to_vec()))
        })
        .unwrap()
}

fn pin(software: &SoftwareTpm) -> PinnedSrk {
    PinnedSrk::parse(&srk(&mut open(software)).1).unwrap()
}

/// A session salted to the storage root key, with AES-128-CFB.
fn session(context: &mut Context, kind: SessionType, decrypt: bool, encrypt: bool) -> AuthSession {
    let (key, ..) = srk(context);
    let session = context
        .execute_without_session(|context| {
            let symmetric = SymmetricDefinition::AES_128_CFB;
            context.start_auth_session(Some(key), None, None, kind, symmetric, HashingAlgorithm::Sha256)
        })
        .unwrap()
        .unwrap();
    let attributes = SessionAttributesBuilder::new().with_continue_session(true);
    let (attributes, mask) = attributes.with_decrypt(decrypt).with_encrypt(encrypt).build();
    context.tr_sess_set_attributes(session, attributes, mask).unwrap();
    session
}

fn flush(context: &mut Context, session: AuthSession) {
    let handle = ObjectHandle::from(SessionHandle::from(session));
    context.execute_without_session(|context| context.flush_context(handle)).unwrap();
}

/// Registers 7 and 11 of the SHA-256 bank, and the same for the lean client.
fn registers() -> PcrSelectionList {
    let slots = [PcrSlot::Slot7, PcrSlot::Slot11];
    PcrSelectionList::builder().with_selection(HashingAlgorithm::Sha256, &slots).build().unwrap()
}

fn lean_registers() -> Registers {
    BTreeSet::from([7, 11].map(|number| (PcrBank::Sha256, index(number))))
}

/// The digest that the lean client computes from what the registers hold.
fn lean_digest(tpm: &mut Tpm<Socket>) -> PolicyDigest {
    let values = iofs_tpm::pcr::read(tpm, &lean_registers()).unwrap();
    PolicyDigest::ZERO.registers(&values.iter().map(|(index, value)| ((value.bank(), index), value)).collect())
}

fn apply_policy(context: &mut Context, session: AuthSession) {
    let policy = PolicySession::try_from(session).unwrap();
    context.execute_without_session(|context| context.policy_pcr(policy, Digest::default(), registers())).unwrap();
}

/// The digest of the policy, by a trial session.
fn policy_digest(context: &mut Context) -> Vec<u8> {
    let trial = session(context, SessionType::Trial, false, false);
    apply_policy(context, trial);
    let policy = PolicySession::try_from(trial).unwrap();
    let digest = context.execute_without_session(|context| context.policy_get_digest(policy)).unwrap();
    flush(context, trial);
    digest.value().to_vec()
}

/// Seals by that policy; the secret goes to the TPM encrypted.
fn seal(context: &mut Context, secret: &[u8], policy: &[u8]) -> (Private, Public) {
    let area = [&SEALED_HEAD[..], &sized(policy), &[0, 0x10, 0, 0]].concat();
    let (area, secret) = (Public::unmarshall(&area).unwrap(), SensitiveData::try_from(secret).unwrap());
    let (parent, ..) = srk(context);
    let hidden = session(context, SessionType::Hmac, true, true);
    let made = context
        .execute_with_session(Some(hidden), |context| context.create(parent, area, None, Some(secret), None, None));
    flush(context, hidden);
    let made = made.unwrap();
    (made.out_private, made.out_public)
}

/// What libtss2 unseals: `None` where the policy does not hold.
fn unseal(context: &mut Context, (private, public): (Private, Public)) -> Option<Vec<u8>> {
    let (parent, ..) = srk(context);
    let object = context
        .execute_with_session(Some(AuthSession::Password), |context| context.load(parent, private, public))
        .unwrap();
    let policy = session(context, SessionType::Policy, false, true);
    apply_policy(context, policy);
    let secret = context.execute_with_session(Some(policy), |context| context.unseal(object.into()));
    flush(context, policy);
    context.execute_without_session(|context| context.flush_context(object.into())).unwrap();
    secret.ok().map(|secret| secret.value().to_vec())
}

#[test]
fn the_lean_client_pins_a_storage_root_key_that_libtss2_made() {
    let software = SoftwareTpm::started();
    let mut context = open(&software);
    make_srk(&mut context);
    let (_, area, name) = srk(&mut context);
    drop(context);
    let mut tpm = lean(&software);
    let public = read_public(&mut tpm, SRK_HANDLE).unwrap();
    assert_eq!((public.as_bytes(), public.name().as_bytes().to_vec()), (&area[..], name));
    assert_eq!(standard_srk(&mut tpm).unwrap(), public, "by the same template");
    let pin = PinnedSrk::parse(&area).unwrap();
    Protected::start(&mut tpm, &pin).unwrap().close().unwrap();
    drop(tpm);
    assert_eq!(software.leftovers(), "");
}

#[test]
fn a_storage_root_key_that_tpm2_createprimary_made_is_the_same_to_libtss2_and_the_lean_client() {
    let software = SoftwareTpm::started();
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";
    software.tool("tpm2_createprimary", &["-Q", "-C", "o", "-G", "ecc", "-a", attributes, "-c", "srk.ctx"]);
    software.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "srk.ctx", "0x81000001"]);
    let (_, area, name) = srk(&mut open(&software));
    let mut tpm = lean(&software);
    let public = read_public(&mut tpm, SRK_HANDLE).unwrap();
    assert_eq!((public.as_bytes(), public.name().as_bytes().to_vec()), (&area[..], name));
    Protected::start(&mut tpm, &PinnedSrk::new(public).unwrap()).unwrap().close().unwrap();
}

#[test]
fn what_libtss2_seals_in_an_encrypted_session_is_unsealed_by_the_lean_client_while_the_policy_holds() {
    let software = SoftwareTpm::started();
    let mut context = open(&software);
    make_srk(&mut context);
    let policy = policy_digest(&mut context);
    let secret: Vec<u8> = (0..=127).collect();
    let object = seal(&mut context, &secret, &policy);
    assert_eq!(unseal(&mut context, object.clone()).as_ref(), Some(&secret));
    drop(context);

    let pin = pin(&software);
    let blob = [sized(object.0.value()), sized(&object.1.marshall().unwrap())].concat();
    let sealed = Sealed::parse(&blob).unwrap();
    let mut tpm = lean(&software);
    let policy_now = UnsealPolicy { registers: lean_registers(), ..UnsealPolicy::default() };
    let parent = Parent::Pinned { handle: SRK_HANDLE, pin: &pin };
    let request = UnsealRequest { parent, sealed: &sealed, persistent: None, policy: policy_now };
    assert_eq!(lean_digest(&mut tpm).as_bytes(), &policy[..]);
    assert_eq!(*lean_unseal(&mut tpm, &request).unwrap(), secret);
    let active = iofs_tpm::pcr::active_banks(&mut tpm).unwrap();
    let digests = PcrBank::ALL.map(|bank| PcrDigest::of(bank, &[b"another boot"]));
    iofs_tpm::pcr::extend(&mut tpm, &active, index(11), &digests).unwrap();
    let error = lean_unseal(&mut tpm, &request).unwrap_err();
    assert!(matches!(error, UnsealError::RegistersChanged { .. }), "{error}");
    let changed = lean_digest(&mut tpm).as_bytes().to_vec();
    drop(tpm);

    let mut context = open(&software);
    assert_ne!(policy_digest(&mut context), policy);
    assert_eq!(policy_digest(&mut context), changed);
    assert_eq!(unseal(&mut context, object), None);
    drop(context);
    assert_eq!(software.leftovers(), "");
}

#[test]
fn an_index_that_libtss2_wrote_is_read_by_the_lean_client_in_its_session() {
    let software = SoftwareTpm::started();
    let mut context = open(&software);
    make_srk(&mut context);
    let data: Vec<u8> = (0..700_u32).map(|number| number.to_be_bytes()[3]).collect();
    let attributes = NvIndexAttributesBuilder::new().with_auth_read(true).with_auth_write(true).with_no_da(true);
    let area = NvPublicBuilder::new()
        .with_nv_index(NvIndexTpmHandle::new(INDEX).unwrap())
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(attributes.build().unwrap())
        .with_data_area_size(data.len())
        .build()
        .unwrap();
    let auth = Some(Auth::try_from(&b"1234"[..]).unwrap());
    let defined = context
        .execute_with_session(Some(AuthSession::Password), |context| {
            context.nv_define_space(Provision::Owner, auth, area)
        })
        .unwrap();
    let hidden = session(&mut context, SessionType::Hmac, true, false);
    let buffer = MaxNvBuffer::try_from(&data[..]).unwrap();
    let written = context
        .execute_with_session(Some(hidden), |context| context.nv_write(NvAuth::NvIndex(defined), defined, buffer, 0));
    flush(&mut context, hidden);
    written.unwrap();
    let (area, name) = context.execute_without_session(|context| context.nv_read_public(defined)).unwrap();
    drop(context);

    let pin = pin(&software);
    let mut tpm = lean(&software);
    let mut protected = Protected::start(&mut tpm, &pin).unwrap();
    let public = protected.nv_public(INDEX).unwrap();
    assert_eq!(public.name().as_bytes(), name.value());
    assert_eq!(usize::from(public.size()), area.data_size());
    assert_eq!(public.attributes(), u32::try_from(area.attributes()).unwrap());
    assert_eq!(*protected.nv_read(&public, b"1234").unwrap(), data);
    let error = protected.nv_read(&public, b"1235").unwrap_err();
    assert!(matches!(error.code(), Some(ResponseCode::BadAuth(_))), "{error}");
    protected.close().unwrap();
    drop(tpm);
    assert_eq!(software.leftovers(), "");
}

#[test]
fn registers_that_the_lean_client_extends_in_its_session_are_read_the_same_by_libtss2() {
    let software = SoftwareTpm::started();
    make_srk(&mut open(&software));
    let pin = pin(&software);
    let digests = PcrBank::ALL.map(|bank| PcrDigest::of(bank, &[b"event"]));
    let all: BTreeSet<(PcrBank, PcrIndex)> =
        PcrBank::ALL.into_iter().flat_map(|bank| PcrIndex::all().map(move |index| (bank, index))).collect();
    let mut tpm = lean(&software);
    let mut protected = Protected::start(&mut tpm, &pin).unwrap();
    let active = protected.active_banks().unwrap();
    let before = protected.read(&all).unwrap();
    protected.extend(&active, index(13), &digests).unwrap();
    let after = protected.read(&all).unwrap();
    assert_eq!(iofs_tpm::pcr::judge(&before, &after, index(13), &digests), Judgement::Extended);
    protected.close().unwrap();
    drop(tpm);

    let mut host = Host::open(&software.tcti(), &Authorizations::default()).unwrap();
    let selection: Selection = PcrBank::ALL.into_iter().map(|bank| (bank, PcrIndex::all().collect())).collect();
    let by_libtss2 = host.read_registers(&selection).unwrap();
    assert_eq!(by_libtss2.len(), all.len());
    for ((bank, index), value) in by_libtss2 {
        assert_eq!(after.get(bank, index), Some(value), "register {index} of {bank}");
    }
    for digest in digests {
        let expected = pcr::extend(&PcrDigest::zero(digest.bank()), &digest);
        assert_eq!(after.get(digest.bank(), index(13)), expected.ok(), "{}", digest.bank());
    }
    drop(host);
    assert_eq!(software.leftovers(), "");
}
