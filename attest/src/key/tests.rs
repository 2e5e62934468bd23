use iofs_policy::hex;

use super::*;
use crate::bytes::sized;

const EK_RSA: &[u8] = include_bytes!("../testdata/ek-rsa.public");
const EK_ECC: &[u8] = include_bytes!("../testdata/ek-ecc.public");
const AK_RSA: &[u8] = include_bytes!("../testdata/ak-rsa.public");
const AK_ECC: &[u8] = include_bytes!("../testdata/ak-ecc.public");

/// Where objectAttributes begin in a TPM2B_PUBLIC.
const ATTRIBUTES: usize = 6;

fn changed(public: &[u8], position: usize, bytes: &[u8]) -> Public {
    let mut public = public.to_vec();
    public[position..position + bytes.len()].copy_from_slice(bytes);
    Public::parse(&public).unwrap()
}

#[test]
fn keys_as_the_tools_make_them_pass() {
    for ek in [EK_RSA, EK_ECC] {
        check_endorsement_key(&Public::parse(ek).unwrap()).unwrap();
        AttestationKey::new(&Public::parse(ek).unwrap()).unwrap_err();
    }
    for ak in [AK_RSA, AK_ECC] {
        AttestationKey::new(&Public::parse(ak).unwrap()).unwrap();
        check_endorsement_key(&Public::parse(ak).unwrap()).unwrap_err();
    }
}

/// Each missing attribute is a way to forge: a key that leaves its TPM, was loaded from outside, or signs anything.
#[test]
fn a_key_that_lacks_an_attribute_is_refused_by_its_name() {
    for (bytes, given, check) in [
        (EK_ECC, 0x0003_00b2_u32, check_endorsement_key as fn(&Public) -> _),
        (AK_ECC, 0x0005_0072, |ak| AttestationKey::new(ak).map(drop)),
    ] {
        let role = if given == 0x0005_0072 { "sign" } else { "decrypt" };
        let other = if role == "sign" { "decrypt" } else { "sign" };
        for (bit, name) in [(1, "fixedTPM"), (4, "fixedParent"), (5, "sensitiveDataOrigin"), (16, "restricted")] {
            let key = changed(bytes, ATTRIBUTES, &(given & !(1 << bit)).to_be_bytes());
            let error = check(&key).unwrap_err().to_string();
            assert!(error.contains(&format!("expected {name} to be set")), "{error}");
        }
        let neither = changed(bytes, ATTRIBUTES, &(given & !0x0006_0000).to_be_bytes());
        let error = check(&neither).unwrap_err().to_string();
        assert!(error.contains(&format!("expected {role} to be set")), "{error}");
        let both = changed(bytes, ATTRIBUTES, &(given | 0x0006_0000).to_be_bytes());
        let error = check(&both).unwrap_err().to_string();
        assert!(error.contains(&format!("expected {other} to be clear")), "{error}");
    }
}

#[test]
fn weak_algorithms_are_refused() {
    for (position, field) in [(4, "nameAlg"), (16, "scheme.hashAlg")] {
        let mut sha1 = AK_ECC.to_vec();
        sha1[position..position + 2].copy_from_slice(&[0, 4]);
        let error = AttestationKey::parse(&sha1).unwrap_err().to_string();
        assert_eq!(error, format!("attestation key: {field}: expected SHA-256, SHA-384 or SHA-512, found 0004"));
    }
    let aes_192 = changed(EK_ECC, 46, &[0, 192]);
    assert_eq!(check_endorsement_key(&aes_192), Err(KeyError::Symmetric));
}

#[test]
fn keys_that_sign_certificates_do_not_attest() {
    let error = AttestationKey::new(&changed(AK_ECC, ATTRIBUTES, &0x000d_0072_u32.to_be_bytes())).unwrap_err();
    assert_eq!(error.to_string(), "attestation key: objectAttributes: expected x509sign to be clear, found 000d0072");
}

/// Type, nameAlg, attributes of an attestation key and no policy; then the parameters and the key itself.
fn area(kind: u16, rest: &[&[u8]]) -> Vec<u8> {
    let start = [&kind.to_be_bytes()[..], b"\x00\x0b\x00\x05\x00\x72\x00\x00"].concat();
    sized(&[&start[..], &rest.concat()].concat())
}

fn rsa(parameters: &[u8], modulus: &[u8]) -> Result<AttestationKey, KeyError> {
    AttestationKey::parse(&area(1, &[parameters, &sized(modulus)]))
}

fn ecc(parameters: &[u8], x: &[u8], y: &[u8]) -> Result<AttestationKey, KeyError> {
    AttestationKey::parse(&area(0x23, &[parameters, &sized(x), &sized(y)]))
}

/// The base point of P-256 (FIPS 186-5, SP 800-186 section 3.2.1.3).
const X: &str = "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296";
const Y: &str = "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";

const RSASSA: &[u8] = b"\x00\x10\x00\x14\x00\x0b\x08\x00\0\0\0\0";
const ECDSA: &[u8] = b"\x00\x10\x00\x18\x00\x0b\x00\x03\x00\x10";

#[test]
fn sound_keys_are_read() {
    let (x, y) = (hex::decode(X).unwrap(), hex::decode(Y).unwrap());
    assert_eq!(ecc(ECDSA, &x, &y).unwrap().scheme().to_string(), "ecdsa with sha256");
    assert_eq!(rsa(RSASSA, &[0xff; 256]).unwrap().scheme().to_string(), "rsassa with sha256");
}

#[test]
fn keys_that_must_not_attest_are_named() {
    let (x, y) = (hex::decode(X).unwrap(), hex::decode(Y).unwrap());
    let odd = [0xff; 256];
    let even = [&odd[..255], &[0xfe]].concat();
    let small = [&[0x7f], &odd[..255]].concat();
    for (parsed, expected) in [
        (
            rsa(b"\x00\x06\x00\x80\x00\x43\x00\x10\x08\x00\0\0\0\0", &odd),
            "symmetric: expected 0010 (TPM_ALG_NULL), found 0006",
        ),
        (rsa(b"\x00\x10\x00\x10\x08\x00\0\0\0\0", &odd), "scheme: expected 0014 (RSASSA) or 0016 (RSAPSS), found 0010"),
        (
            rsa(b"\x00\x10\x00\x18\x00\x0b\x08\x00\0\0\0\0", &odd),
            "scheme: expected 0014 (RSASSA) or 0016 (RSAPSS), found 0018",
        ),
        (rsa(b"\x00\x10\x00\x14\x00\x04", &odd), "scheme.hashAlg: expected SHA-256, SHA-384 or SHA-512, found 0004"),
        (rsa(b"\x00\x10\x00\x14\x00\x0b\x04\x00", &odd), "keyBits: expected 2048, 3072 or 4096, found 1024"),
        (rsa(b"\x00\x10\x00\x14\x00\x0b\x08\x00\0\0\0\x03", &odd), "exponent: expected 0 or 65537, found 3"),
        (rsa(RSASSA, &odd[..255]), "unique: not an RSA modulus of keyBits"),
        (rsa(RSASSA, &even), "unique: not an RSA modulus of keyBits"),
        (rsa(RSASSA, &small), "unique: not an RSA modulus of keyBits"),
        (ecc(b"\x00\x10\x00\x1a\x00\x0b\x00\x01\x00\x03\x00\x10", &x, &y), "scheme: expected 0018 (ECDSA), found 001a"),
        (
            ecc(b"\x00\x10\x00\x18\x00\x0b\x00\x01\x00\x10", &x, &y),
            "curveID: expected 0003 (P-256) or 0004 (P-384), found 0001",
        ),
        (ecc(b"\x00\x10\x00\x18\x00\x0b\x00\x03\x00\x20", &x, &y), "kdf: expected 0010 (TPM_ALG_NULL), found 0020"),
        (ecc(ECDSA, &y, &x), "unique: not a point on the curve"),
        (ecc(ECDSA, &[0; 33], &y), "unique: a coordinate has another size than the curve's"),
        (ecc(ECDSA, &[], &[]), "unique: not a point on the curve"),
        (AttestationKey::parse(&area(8, &[b"\x00\x10"])), "type: expected 0001 (RSA) or 0023 (ECC), found 0008"),
        (AttestationKey::parse(b"\0\x01\0\0"), "publicArea: expected nothing behind it, found 1 bytes"),
    ] {
        assert_eq!(parsed.unwrap_err().to_string(), format!("attestation key: {expected}"));
    }
}
