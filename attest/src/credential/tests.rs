use super::*;

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
        check_attestation_key(&Public::parse(ek).unwrap()).unwrap_err();
    }
    for ak in [AK_RSA, AK_ECC] {
        check_attestation_key(&Public::parse(ak).unwrap()).unwrap();
        check_endorsement_key(&Public::parse(ak).unwrap()).unwrap_err();
    }
}

/// Each missing attribute is a way to forge: a key that leaves its TPM, was loaded from outside, or signs anything.
#[test]
fn a_key_that_lacks_an_attribute_is_refused_by_its_name() {
    for (bytes, given, check) in [
        (EK_ECC, 0x0003_00b2_u32, check_endorsement_key as fn(&Public) -> _),
        (AK_ECC, 0x0005_0072, check_attestation_key),
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
    let sha1 = changed(AK_ECC, 4, &[0, 4]);
    assert!(check_attestation_key(&sha1).unwrap_err().to_string().contains("as its nameAlg, found SHA-1"));
    let sha1 = changed(AK_ECC, 16, &[0, 4]);
    assert!(check_attestation_key(&sha1).unwrap_err().to_string().contains("with SHA-256 or longer"));
}

/// A point off the curve would give the ephemeral key away, bit by bit.
#[test]
fn an_endorsement_key_off_its_curve_is_refused() {
    let key = changed(EK_ECC, EK_ECC.len() - 1, &[0]);
    assert_eq!(make_credential(&key, b"name", &[1; 32]), Err(CredentialError::Point));
}

#[test]
fn a_secret_that_the_tpm_would_refuse_is_refused() {
    for ek in [EK_RSA, EK_ECC] {
        let ek = Public::parse(ek).unwrap();
        let error = make_credential(&ek, b"name", &[1; 33]).unwrap_err();
        assert_eq!(error, CredentialError::TooLong { most: 32, found: 33 });
    }
}

#[test]
fn two_credentials_for_one_secret_have_nothing_in_common() {
    for ek in [EK_RSA, EK_ECC] {
        let ek = Public::parse(ek).unwrap();
        let [one, other] = [0; 2].map(|_| make_credential(&ek, b"name", &[1; 32]).unwrap());
        assert_ne!(one.secret, other.secret);
        assert_ne!(one.id_object, other.id_object);
        assert_eq!(one.id_object.len(), 2 + 2 + 32 + 2 + 32);
    }
}
