//! tpm2-tools as the second opinion: what they write is read here, digest for digest.

mod common;

use common::{SoftwareTpm, digests, index, seal, write_nv};
use iofs_policy::{
    hex,
    pcr::{PcrBank, PcrIndex},
};
use iofs_tpm::{
    PinnedSrk, Protected, Tpm,
    name::Public,
    pcr::{active_banks, extend, read},
    policy::{PolicyDigest, Registers},
    response::ResponseCode,
    sealed::Sealed,
    srk::{SRK_HANDLE, SrkError, read_public, standard_srk},
    transport::Socket,
    unlock::{Parent, UnsealError, UnsealPolicy, UnsealRequest, unseal},
};

fn sha256(indices: &[u8]) -> Registers {
    indices.iter().map(|number| (PcrBank::Sha256, index(*number))).collect()
}

/// A request for an object under the pinned key, with this policy.
fn request<'a>(
    pin: &'a PinnedSrk,
    sealed: &'a Sealed,
    registers: &[u8],
    auth_value: Option<&'a [u8]>,
) -> UnsealRequest<'a> {
    let policy = UnsealPolicy { registers: sha256(registers), auth_value, ..UnsealPolicy::default() };
    UnsealRequest { parent: Parent::Pinned { handle: SRK_HANDLE, pin }, sealed, persistent: None, policy }
}

fn foreign_pin(mut other: SoftwareTpm) -> PinnedSrk {
    pin(&mut other.connect())
}

fn pin(tpm: &mut Tpm<Socket>) -> PinnedSrk {
    PinnedSrk::new(read_public(tpm, SRK_HANDLE).unwrap()).unwrap()
}

#[test]
fn the_storage_root_key_has_the_same_public_area_and_name() {
    let mut software = SoftwareTpm::started();
    software.make_srk();
    software.tool("tpm2_readpublic", &["-Q", "-c", "0x81000001", "-n", "name", "-o", "public", "-f", "tss"]);
    let mut tpm = software.connect();
    let public = read_public(&mut tpm, SRK_HANDLE).unwrap();
    assert_eq!(public.name().as_bytes(), software.file("name"));
    assert_eq!(public.as_bytes(), &software.file("public")[2..]);
    assert_eq!(standard_srk(&mut tpm).unwrap(), public, "by the same template");
}

#[test]
fn a_key_by_the_other_usual_template_is_made_again_too() {
    let mut software = SoftwareTpm::started();
    // TPMS_ECC_POINT as the tool has it in memory: two times a size, little-endian, and room for 128 bytes. Where `unique`
    // is 32 zeros, as the Provisioning Guidance has it and the kernel does, the key is another one.
    let coordinate = [&[32, 0][..], &[0; 128]].concat();
    software.write("unique", &[&coordinate[..], &coordinate].concat());
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";
    let template = ["-Q", "-C", "o", "-G", "ecc", "-a", attributes, "-u", "unique", "-c", "srk.ctx"];
    software.tool("tpm2_createprimary", &template);
    software.tool("tpm2_readpublic", &["-Q", "-c", "srk.ctx", "-o", "public", "-f", "tss"]);
    software.tool("tpm2_flushcontext", &["-Q", "-t"]);
    let mut tpm = software.connect();
    let public = Public::parse_sized(&software.file("public")).unwrap();
    assert_ne!(public, standard_srk(&mut tpm).unwrap());
    let pin = PinnedSrk::new(public).unwrap();
    for _ in 0..5 {
        Protected::start(&mut tpm, &pin).unwrap().close().unwrap();
    }
}

#[test]
fn a_policy_has_the_same_digest() {
    let mut software = SoftwareTpm::started();
    software.make_srk();
    let (registers, _) = seal(&software, b"secret", "7,11,13", None);
    let (with_pin, _) = seal(&software, b"secret", "0", Some("1234"));
    let mut tpm = software.connect();
    let values = read(&mut tpm, &sha256(&[0, 7, 11, 13])).unwrap();
    let of = |indices: &[u8]| {
        let values = indices
            .iter()
            .map(|number| ((PcrBank::Sha256, index(*number)), values.get(PcrBank::Sha256, index(*number)).unwrap()));
        values.collect()
    };
    assert_eq!(PolicyDigest::ZERO.registers(&of(&[13, 7, 11])).as_bytes(), &registers[..]);
    assert_eq!(PolicyDigest::ZERO.registers(&of(&[0])).auth_value().as_bytes(), &with_pin[..]);
    assert_ne!(PolicyDigest::ZERO.auth_value().registers(&of(&[0])).as_bytes(), &with_pin[..]);
}

#[test]
fn what_tpm2_create_seals_is_unsealed_until_a_register_changes() {
    let mut software = SoftwareTpm::started();
    software.make_srk();
    let secret: Vec<u8> = (0..=127).collect();
    for size in [1, 32, 128] {
        let (_, blob) = seal(&software, &secret[..size], "7,11", None);
        let sealed = Sealed::parse(&blob).unwrap();
        let mut tpm = software.connect();
        let pin = pin(&mut tpm);
        for _ in 0..5 {
            assert_eq!(*unseal(&mut tpm, &request(&pin, &sealed, &[7, 11], None)).unwrap(), secret[..size]);
        }
        // There is room for three objects and three sessions: what a failure left behind would be in the way.
        for _ in 0..5 {
            let error = unseal(&mut tpm, &request(&pin, &sealed, &[7], None)).unwrap_err();
            assert!(matches!(error, UnsealError::RegistersChanged { .. }), "{error}");
        }
        let active = active_banks(&mut tpm).unwrap();
        extend(&mut tpm, &active, index(11), &digests(7)).unwrap();
        let error = unseal(&mut tpm, &request(&pin, &sealed, &[7, 11], None)).unwrap_err();
        let UnsealError::RegistersChanged { current: Some(current), .. } = &error else { panic!("{error}") };
        let expected = read(&mut tpm, &sha256(&[7, 11])).unwrap();
        assert!(current.iter().eq(expected.iter()), "what they hold now");
        let text = "the TPM does not unseal: expected the values of enrolment in registers sha256:7+11, found others";
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn a_pin_opens_and_a_wrong_one_does_not() {
    let mut software = SoftwareTpm::started();
    software.make_srk();
    let (_, blob) = seal(&software, b"secret", "7", Some("1234"));
    let sealed = Sealed::parse(&blob).unwrap();
    let mut tpm = software.connect();
    let pin = pin(&mut tpm);
    let mut by = |auth: &[u8]| unseal(&mut tpm, &request(&pin, &sealed, &[7], Some(auth)));
    assert_eq!(by(b"1234").unwrap().as_slice(), b"secret");
    assert_eq!(by(b"1234\0\0").unwrap().as_slice(), b"secret");
    for wrong in [&b"1235"[..], b"", b"12345"] {
        let error = by(wrong).unwrap_err();
        assert!(matches!(error, UnsealError::WrongAuth { counted: false }), "{error}");
    }
    assert_eq!(by(b"1234").unwrap().as_slice(), b"secret");
}

#[test]
fn an_object_of_another_tpm_is_refused() {
    let other = SoftwareTpm::started();
    other.make_srk();
    let (_, blob) = seal(&other, b"secret", "7", None);
    let mut software = SoftwareTpm::started();
    software.make_srk();
    let mut tpm = software.connect();
    let pin = pin(&mut tpm);
    let sealed = Sealed::parse(&blob).unwrap();
    let error = unseal(&mut tpm, &request(&pin, &sealed, &[7], None)).unwrap_err();
    let UnsealError::Broken { source } = &error else { panic!("{error}") };
    assert!(matches!(source.code(), Some(ResponseCode::Integrity(_))), "{error}");
    // With the other TPM's key: it is said that this is another TPM.
    let foreign = foreign_pin(other);
    let error = unseal(&mut tpm, &request(&foreign, &sealed, &[7], None)).unwrap_err();
    assert!(matches!(error, UnsealError::Srk(SrkError::Other { .. })), "{error}");
}

#[test]
fn an_index_is_read_as_tpm2_nvwrite_wrote_it() {
    let data: Vec<u8> = (0..700_u32).map(|number| number.to_be_bytes()[3]).collect();
    let mut software = SoftwareTpm::started();
    software.make_srk();
    write_nv(&software, "0x01500010", &data, Some("1234"));
    write_nv(&software, "0x01500011", b"open", None);
    let shown = software.tool("tpm2_nvreadpublic", &["0x01500010"]);
    let mut tpm = software.connect();
    let pin = pin(&mut tpm);
    let mut protected = Protected::start(&mut tpm, &pin).unwrap();
    let public = protected.nv_public(0x0150_0010).unwrap();
    assert_eq!((public.index(), public.size()), (0x0150_0010, 700));
    assert!(shown.contains(&format!("name: {}", public.name())), "{shown}");
    assert!(shown.to_lowercase().contains(&format!("value: {:#010x}", public.attributes())[9..]), "{shown}");
    assert_eq!(*protected.nv_read(&public, b"1234").unwrap(), data);
    let error = protected.nv_read(&public, b"1235").unwrap_err();
    assert!(matches!(error.code(), Some(ResponseCode::BadAuth(_))), "{error}");
    let open = protected.nv_public(0x0150_0011).unwrap();
    assert_eq!(protected.nv_read(&open, &[]).unwrap().as_slice(), b"open");
    let error = protected.nv_public(0x0150_0012).unwrap_err();
    assert!(matches!(error.code(), Some(ResponseCode::Handle(_))), "{error}");
}

#[test]
fn a_counter_counts_and_says_that_it_was_never_written() {
    let mut software = SoftwareTpm::started();
    software.make_srk();
    software.tool("tpm2_nvdefine", &["-Q", "-C", "o", "-a", "authread|authwrite|no_da|nt=counter", "0x01500020"]);
    let mut tpm = software.connect();
    let pin = pin(&mut tpm);
    let mut protected = Protected::start(&mut tpm, &pin).unwrap();
    let unwritten = protected.nv_public(0x0150_0020).unwrap();
    let error = protected.nv_read(&unwritten, &[]).unwrap_err();
    assert_eq!(error.code(), Some(ResponseCode::NvUninitialized), "{error}");
    protected.nv_increment(&unwritten, &[]).unwrap();
    let counter = protected.nv_public(0x0150_0020).unwrap();
    assert_ne!(counter.name(), unwritten.name(), "it says now that it is written");
    let first = protected.nv_read(&counter, &[]).unwrap();
    protected.nv_increment(&counter, &[]).unwrap();
    let second = protected.nv_read(&counter, &[]).unwrap();
    let value = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    assert_eq!(value(&second), value(&first) + 1);
    protected.close().unwrap();
    drop(tpm);
    software.tool("tpm2_nvread", &["-Q", "-C", "0x01500020", "-s", "8", "-o", "counter", "0x01500020"]);
    assert_eq!(software.file("counter"), *second);
}

#[test]
fn registers_read_and_extended_within_a_session_are_those_that_tpm2_pcrread_shows() {
    let mut software = SoftwareTpm::started();
    software.make_srk();
    let mut tpm = software.connect();
    let pin = pin(&mut tpm);
    let active = active_banks(&mut tpm).unwrap();
    let mut protected = Protected::start(&mut tpm, &pin).unwrap();
    protected.extend(&active, index(13), &digests(9)).unwrap();
    let values = protected.read(&common::registers(&[13])).unwrap();
    protected.close().unwrap();
    drop(tpm);
    for bank in PcrBank::ALL {
        let shown = software.tool("tpm2_pcrread", &[&format!("{bank}:13")]).to_lowercase();
        let thirteen: PcrIndex = index(13);
        assert!(shown.contains(&hex::encode(values.get(bank, thirteen).unwrap().as_bytes())), "{shown}");
    }
}

#[test]
fn random_bytes_come_from_the_tpm() {
    let mut software = SoftwareTpm::started();
    software.make_srk();
    let mut tpm = software.connect();
    let pin = pin(&mut tpm);
    let mut protected = Protected::start(&mut tpm, &pin).unwrap();
    let (first, second) = (protected.random().unwrap(), protected.random().unwrap());
    assert_eq!((first.len(), second.len()), (32, 32));
    assert_ne!(first, second);
}

#[test]
fn a_pin_that_is_tried_too_often_locks_and_the_answer_says_so() {
    let mut software = SoftwareTpm::started();
    software.make_srk();
    seal(&software, b"secret", "7", Some("1234"));
    // The same without noDA.
    software.tool("tpm2_dictionarylockout", &["-Q", "-s", "-n", "1", "-t", "1000", "-l", "1000"]);
    let arguments = ["-Q", "-C", "0x81000001", "-i", "secret", "-L", "policy", "-u", "da.pub", "-r", "da.priv"];
    software.tool("tpm2_create", &[&arguments[..], &["-a", "fixedtpm|fixedparent", "-p", "1234"]].concat());
    let sealed = Sealed::parse(&[software.file("da.priv"), software.file("da.pub")].concat()).unwrap();
    let mut tpm = software.connect();
    let pin = pin(&mut tpm);
    let error = unseal(&mut tpm, &request(&pin, &sealed, &[7], Some(b"1235"))).unwrap_err();
    assert!(matches!(error, UnsealError::WrongAuth { counted: true }), "{error}");
    let error = unseal(&mut tpm, &request(&pin, &sealed, &[7], Some(b"1234"))).unwrap_err();
    assert!(matches!(error, UnsealError::Lockout), "{error}");
    assert!(error.to_string().contains("wait until it forgets them, or reset the lockout"), "{error}");
}
