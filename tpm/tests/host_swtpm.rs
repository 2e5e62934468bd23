//! The host's side against a real software TPM, with tpm2-tools and the lean client as second opinions.

mod host_common;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use host_common::SoftwareTpm;
use iofs_attest::{
    credential::make_credential,
    key::{AttestationKey, check_endorsement_key},
    public::{Key, Name, Public, SignatureAlgorithm},
};
use iofs_policy::pcr::{PcrBank, PcrDigest, PcrIndex};
use iofs_tpm::{
    Tpm,
    host::{AK_HANDLE, Authorizations, Host, HostError, KeyKind, Selection},
    pcr,
    transport::Socket,
};

const KINDS: [(KeyKind, &str); 2] = [(KeyKind::Rsa2048, "rsa"), (KeyKind::EccP256, "ecc")];

fn open(software: &SoftwareTpm) -> Host {
    Host::open(&software.tcti(), &Authorizations::default()).unwrap()
}

fn lean(software: &SoftwareTpm) -> Tpm<Socket> {
    let address = SocketAddr::from(([127, 0, 0, 1], software.port()));
    Tpm::new(Socket::tcp(address, Duration::from_secs(60)).unwrap())
}

fn index(index: u8) -> PcrIndex {
    PcrIndex::new(index).unwrap()
}

fn registers(banks: &[PcrBank], indices: &[u8]) -> Selection {
    let set: BTreeSet<PcrIndex> = indices.iter().map(|number| index(*number)).collect();
    banks.iter().map(|bank| (*bank, set.clone())).collect()
}

fn name_of(key: &iofs_tpm::host::AttestationKey) -> Name {
    Name::of_tpm2b(&key.public).unwrap()
}

#[test]
fn keys_are_those_of_the_profile_and_pass_the_verifiers_checks() {
    let software = SoftwareTpm::started();
    for (kind, name) in KINDS {
        let mut host = open(&software);
        let ek = host.endorsement_key(kind).unwrap();
        let ak = host.provide_attestation_key(&ek, kind, AK_HANDLE + kind as u32).unwrap();
        drop(host);
        software.tool("tpm2_createek", &["-G", name, "-c", "ek.ctx", "-u", "ek.public"]);
        assert_eq!(ek.public, software.read("ek.public"), "{name}");

        let public = Public::parse(&ek.public).unwrap();
        check_endorsement_key(&public).unwrap();
        assert_eq!(public.name().as_bytes(), ek.name);
        let public = Public::parse(&ak.public).unwrap();
        let key = AttestationKey::new(&public).unwrap();
        assert_eq!(key.name().as_bytes(), ak.name);
        assert_eq!(key.scheme().digest, PcrBank::Sha256);
        match kind {
            KeyKind::Rsa2048 => assert_eq!(key.scheme().algorithm, SignatureAlgorithm::RsaSsa),
            KeyKind::EccP256 => assert!(matches!(public.key, Key::Ecc { .. })),
        }
    }
    assert_eq!(software.leftovers(), "");
}

#[test]
fn an_attestation_key_is_made_once_and_found_again() {
    let software = SoftwareTpm::started();
    let names = [0; 2].map(|_| {
        let mut host = open(&software);
        let ek = host.endorsement_key(KeyKind::EccP256).unwrap();
        let provided = host.provide_attestation_key(&ek, KeyKind::EccP256, AK_HANDLE).unwrap();
        assert_eq!(host.attestation_key(AK_HANDLE).unwrap().name, provided.name);
        provided.name
    });
    assert_eq!(names[0], names[1]);
    assert_eq!(software.tool("tpm2_getcap", &["handles-persistent"]), "- 0x8101494F\n");
    assert_eq!(software.leftovers(), "");
}

#[test]
fn an_object_of_somebody_else_at_the_handle_is_left_alone() {
    let software = SoftwareTpm::started();
    software.tool("tpm2_createprimary", &["-C", "o", "-c", "other.ctx"]);
    software.tool("tpm2_evictcontrol", &["-c", "other.ctx", "0x8101494f"]);
    let before = software.tool("tpm2_readpublic", &["-c", "0x8101494f"]);
    let mut host = open(&software);
    let ek = host.endorsement_key(KeyKind::EccP256).unwrap();
    let error = host.provide_attestation_key(&ek, KeyKind::EccP256, AK_HANDLE).unwrap_err();
    assert!(matches!(error, HostError::Foreign { handle: AK_HANDLE, .. }), "{error}");
    assert!(error.to_string().contains("found an object of another kind, with the name 000b"), "{error}");
    assert!(matches!(host.attestation_key(AK_HANDLE).unwrap_err(), HostError::Foreign { .. }));
    drop(host);
    assert_eq!(software.tool("tpm2_readpublic", &["-c", "0x8101494f"]), before);

    // One of ours, under the other endorsement key.
    let mut host = open(&software);
    let rsa = host.endorsement_key(KeyKind::Rsa2048).unwrap();
    host.provide_attestation_key(&rsa, KeyKind::EccP256, AK_HANDLE + 1).unwrap();
    let ecc = host.endorsement_key(KeyKind::EccP256).unwrap();
    let error = host.provide_attestation_key(&ecc, KeyKind::EccP256, AK_HANDLE + 1).unwrap_err().to_string();
    assert!(error.contains("found one under another key"), "{error}");
    drop(host);
    assert_eq!(software.leftovers(), "");
}

#[test]
fn quotes_pass_tpm2_checkquote() {
    let software = SoftwareTpm::started();
    for (kind, name) in KINDS {
        let mut host = open(&software);
        let banks: Vec<PcrBank> = host.banks().unwrap().into_keys().collect();
        assert_eq!(banks, PcrBank::ALL);
        let selection = registers(&banks, &[0, 1, 2, 3, 4, 7, 9, 11, 12, 13, 15, 23]);
        let ek = host.endorsement_key(kind).unwrap();
        let handle = AK_HANDLE + kind as u32;
        let ak = host.provide_attestation_key(&ek, kind, handle).unwrap();
        let quote = host.quote(&ak, b"a nonce of the verifier", &selection).unwrap();
        drop(host);
        assert_eq!(quote.values.len(), 48);

        software.write("message", &quote.attest);
        software.write("signature", &quote.signature);
        let public = software.write(&format!("{name}.public"), &ak.public);
        let nonce = iofs_policy::hex::encode(b"a nonce of the verifier");
        let arguments = ["-u", &public, "-m", "message", "-s", "signature", "-g", "sha256", "-q", &nonce];
        software.tool("tpm2_checkquote", &arguments);
        // The tool does check: another nonce, another bit.
        let other = ["-u", &public, "-m", "message", "-s", "signature", "-g", "sha256", "-q", "00"];
        assert!(!software.try_tool("tpm2_checkquote", &other).status.success());
        let mut forged = quote.attest.clone();
        *forged.last_mut().unwrap() ^= 1;
        software.write("message", &forged);
        assert!(!software.try_tool("tpm2_checkquote", &arguments).status.success());
    }
}

#[test]
fn a_quote_is_exactly_what_was_asked_for() {
    let software = SoftwareTpm::started();
    let mut host = open(&software);
    let ek = host.endorsement_key(KeyKind::EccP256).unwrap();
    let ak = host.provide_attestation_key(&ek, KeyKind::EccP256, AK_HANDLE).unwrap();
    for indices in [&[0][..], &[23], &[0, 8, 16], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]] {
        let selection = registers(&[PcrBank::Sha256, PcrBank::Sha384], indices);
        let quote = host.quote(&ak, &[7; 32], &selection).unwrap();
        let mut found = Selection::new();
        for (bank, index) in quote.values.keys() {
            found.entry(*bank).or_default().insert(*index);
        }
        assert_eq!(found, selection);
    }
}

#[test]
fn a_bank_that_is_not_active_cannot_be_quoted() {
    let software = SoftwareTpm::started();
    // Takes effect at the next start.
    software.tool("tpm2_pcrallocate", &["sha1:none+sha256:all+sha384:none+sha512:none"]);
    software.tool("tpm2_shutdown", &["--clear"]);
    let software = {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(software.path("tpm2-00.permall"), folder.path().join("tpm2-00.permall")).unwrap();
        drop(software);
        SoftwareTpm::on(folder)
    };
    let mut host = open(&software);
    assert_eq!(host.banks().unwrap().into_keys().collect::<Vec<_>>(), [PcrBank::Sha256]);
    let ek = host.endorsement_key(KeyKind::EccP256).unwrap();
    let ak = host.provide_attestation_key(&ek, KeyKind::EccP256, AK_HANDLE).unwrap();
    host.quote(&ak, b"n", &registers(&[PcrBank::Sha256], &[0])).unwrap();
    let error = host.quote(&ak, b"n", &registers(&[PcrBank::Sha256, PcrBank::Sha384], &[0])).unwrap_err();
    assert!(matches!(error, HostError::Selection), "{error}");
}

#[test]
fn our_credentials_are_activated_by_tpm2_activatecredential() {
    let software = SoftwareTpm::started();
    for (kind, name) in KINDS {
        let mut host = open(&software);
        let ek = host.endorsement_key(kind).unwrap();
        let ak = host.provide_attestation_key(&ek, kind, AK_HANDLE + kind as u32).unwrap();
        drop(host);
        let secret = [kind as u8 + 1; 32];
        let made = make_credential(&Public::parse(&ek.public).unwrap(), &name_of(&ak), &secret).unwrap();
        // The tool's file has a magic number and a version before the two structures.
        let file = [&[0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1][..], &made.id_object, &made.secret].concat();
        software.write("credential", &file);
        software.tool("tpm2_createek", &["-G", name, "-c", "ek.ctx"]);
        software.tool("tpm2_startauthsession", &["--policy-session", "-S", "session"]);
        software.tool("tpm2_policysecret", &["-S", "session", "-c", "e"]);
        let handle = format!("{:#x}", AK_HANDLE + kind as u32);
        let arguments = ["-c", &handle, "-C", "ek.ctx", "-i", "credential", "-o", "secret", "-P", "session:session"];
        software.tool("tpm2_activatecredential", &arguments);
        software.tool("tpm2_flushcontext", &["session"]);
        assert_eq!(software.read("secret"), secret, "{name}");
    }
}

#[test]
fn we_activate_credentials_by_tpm2_makecredential() {
    let software = SoftwareTpm::started();
    for (kind, _) in KINDS {
        let mut host = open(&software);
        let ek = host.endorsement_key(kind).unwrap();
        let ak = host.provide_attestation_key(&ek, kind, AK_HANDLE + kind as u32).unwrap();
        drop(host);
        software.write("ek.public", &ek.public);
        software.write("secret", b"from the tools");
        let name = iofs_policy::hex::encode(&ak.name);
        software.tool("tpm2_makecredential", &["-u", "ek.public", "-s", "secret", "-n", &name, "-o", "credential"]);
        let file = software.read("credential");
        let size = usize::from(u16::from_be_bytes([file[8], file[9]])) + 2;
        let (id_object, secret) = file[8..].split_at(size);
        let mut host = open(&software);
        let ek = host.endorsement_key(kind).unwrap();
        let ak = host.attestation_key(AK_HANDLE + kind as u32).unwrap();
        assert_eq!(host.activate_credential(&ek, &ak, id_object, secret).unwrap()[..], *b"from the tools");
    }
    assert_eq!(software.leftovers(), "");
}

#[test]
fn a_credential_for_another_key_or_another_tpm_is_not_given_out() {
    let (software, other) = (SoftwareTpm::started(), SoftwareTpm::started());
    for (kind, _) in KINDS {
        let mut host = open(&software);
        let ek = host.endorsement_key(kind).unwrap();
        let ak = host.provide_attestation_key(&ek, kind, AK_HANDLE + kind as u32).unwrap();
        let mut foreign = open(&other);
        let foreign_ek = foreign.endorsement_key(kind).unwrap();
        let foreign_ak = foreign.provide_attestation_key(&foreign_ek, kind, AK_HANDLE + kind as u32).unwrap();

        let public = Public::parse(&ek.public).unwrap();
        let mine = make_credential(&public, &name_of(&ak), &[1; 32]).unwrap();
        assert_eq!(host.activate_credential(&ek, &ak, &mine.id_object, &mine.secret).unwrap()[..], [1; 32]);
        // Another TPM with all that was sent over the wire.
        let error = foreign.activate_credential(&foreign_ek, &foreign_ak, &mine.id_object, &mine.secret).unwrap_err();
        assert!(error.is_credential_of_another(), "{error}");
        // The right TPM, an attestation key of another one.
        let swapped = make_credential(&public, &name_of(&foreign_ak), &[1; 32]).unwrap();
        let error = host.activate_credential(&ek, &ak, &swapped.id_object, &swapped.secret).unwrap_err();
        assert!(error.is_credential_of_another(), "{error}");
        // A bit of the credential.
        let mut bent = mine.clone();
        *bent.id_object.last_mut().unwrap() ^= 1;
        let error = host.activate_credential(&ek, &ak, &bent.id_object, &bent.secret).unwrap_err();
        assert!(error.is_credential_of_another(), "{error}");
        // No structure at all.
        let error = host.activate_credential(&ek, &ak, b"?", &mine.secret).unwrap_err();
        assert!(!error.is_credential_of_another(), "{error}");
    }
    assert_eq!(software.leftovers() + &other.leftovers(), "");
}

#[test]
fn the_lean_client_and_libtss2_read_and_extend_the_same() {
    let software = SoftwareTpm::started();
    let banks = PcrBank::ALL;
    let all: Vec<u8> = (0..24).collect();
    // Extend by one, read by the other.
    let mut tpm = lean(&software);
    let active = pcr::active_banks(&mut tpm).unwrap();
    pcr::extend(&mut tpm, &active, index(13), &banks.map(|bank| PcrDigest::of(bank, &[b"lean"]))).unwrap();
    drop(tpm);
    let mut host = open(&software);
    assert!(host.banks().unwrap().into_keys().eq(active.banks()));
    let by_libtss2 = host.read_registers(&registers(&banks, &all)).unwrap();
    drop(host);
    software.tool("tpm2_pcrextend", &[&format!("12:sha256={}", "ab".repeat(32))]);
    let mut tpm = lean(&software);
    let wanted = banks.iter().flat_map(|bank| PcrIndex::all().map(|index| (*bank, index))).collect();
    let by_lean = pcr::read(&mut tpm, &wanted).unwrap();
    drop(tpm);
    let mut host = open(&software);
    let again = host.read_registers(&registers(&banks, &all)).unwrap();
    for ((bank, index), value) in &again {
        assert_eq!(by_lean.get(*bank, *index), Some(*value));
        let changed = (*bank, index.get()) == (PcrBank::Sha256, 12);
        assert_eq!(by_libtss2[&(*bank, *index)] != *value, changed, "register {index} of {bank}");
    }
    for bank in banks {
        let expected = iofs_policy::pcr::extend(&PcrDigest::zero(bank), &PcrDigest::of(bank, &[b"lean"])).unwrap();
        assert_eq!(again[&(bank, index(13))], expected);
    }
}

/// Whoever guesses a password of some other object can lock the TPM: a machine must still be able to prove what it is.
#[test]
fn a_locked_tpm_quotes_and_says_that_it_is_locked() {
    let software = SoftwareTpm::started();
    let mut host = open(&software);
    let ek = host.endorsement_key(KeyKind::EccP256).unwrap();
    host.provide_attestation_key(&ek, KeyKind::EccP256, AK_HANDLE).unwrap();
    assert!(!host.lockout().unwrap().locked);
    drop(host);
    software.tool("tpm2_createprimary", &["-C", "o", "-c", "guess.ctx", "-p", "right"]);
    software.tool("tpm2_dictionarylockout", &["--setup-parameters", "-n", "2", "-t", "1000", "-l", "1000"]);
    for _ in 0..3 {
        let output = software.try_tool("tpm2_create", &["-C", "guess.ctx", "-P", "wrong", "-u", "u", "-r", "r"]);
        assert!(!output.status.success());
        software.try_tool("tpm2_flushcontext", &["--transient-object"]);
    }
    let mut host = open(&software);
    let state = host.lockout().unwrap();
    assert!(state.locked && state.failures == 2 && state.limit == 2, "{state:?}");
    assert_eq!(state.to_string(), "locked, 2 of 2 failed attempts, one is forgotten every 1000 s");
    let ek = host.endorsement_key(KeyKind::EccP256).unwrap();
    let ak = host.provide_attestation_key(&ek, KeyKind::EccP256, AK_HANDLE).unwrap();
    host.quote(&ak, b"n", &registers(&[PcrBank::Sha256], &[0])).unwrap();
    let made = make_credential(&Public::parse(&ek.public).unwrap(), &name_of(&ak), &[1; 32]).unwrap();
    assert_eq!(host.activate_credential(&ek, &ak, &made.id_object, &made.secret).unwrap()[..], [1; 32]);
}

#[test]
fn passwords_of_hierarchies_are_used_and_wrong_ones_are_named() {
    let software = SoftwareTpm::started();
    software.tool("tpm2_changeauth", &["-c", "o", "owner's"]);
    software.tool("tpm2_changeauth", &["-c", "e", "endorsement's"]);
    let error = open(&software).endorsement_key(KeyKind::EccP256).unwrap_err().to_string();
    assert_eq!(error, "TPM2_CreatePrimary: the TPM refuses the password of the hierarchy or key");
    let with = |owner: &str| {
        let owner = owner.as_bytes().to_vec().into();
        let endorsement = b"endorsement's".to_vec().into();
        let mut host = Host::open(&software.tcti(), &Authorizations { owner, endorsement }).unwrap();
        let ek = host.endorsement_key(KeyKind::EccP256).unwrap();
        host.provide_attestation_key(&ek, KeyKind::EccP256, AK_HANDLE)
    };
    let error = with("").unwrap_err().to_string();
    assert_eq!(error, "TPM2_EvictControl: the TPM refuses the password of the hierarchy or key");
    with("owner's").unwrap();
    assert_eq!(software.leftovers(), "");
}

#[test]
fn places_without_a_tpm_are_named() {
    let open = |tcti: &str| Host::open(tcti, &Authorizations::default()).unwrap_err().to_string();
    assert!(open("/dev/tpm0").starts_with("TCTI \"/dev/tpm0\": expected device:PATH, swtpm:"));
    assert!(open("device:/dev/no-such-tpm").starts_with("open the TPM at device:/dev/no-such-tpm: "));
    assert!(open("swtpm:host=127.0.0.1,port=1").starts_with("open the TPM at swtpm:host=127.0.0.1,port=1: "));
}
