use super::*;

const EK_RSA: &[u8] = include_bytes!("../testdata/ek-rsa.public");
const EK_ECC: &[u8] = include_bytes!("../testdata/ek-ecc.public");

/// Of an attestation key.
fn name() -> Name {
    Name::of_tpm2b(include_bytes!("../testdata/ak-ecc.public")).unwrap()
}

fn changed(public: &[u8], position: usize, bytes: &[u8]) -> Public {
    let mut public = public.to_vec();
    public[position..position + bytes.len()].copy_from_slice(bytes);
    Public::parse(&public).unwrap()
}

/// A point off the curve would give the ephemeral key away, bit by bit.
#[test]
fn an_endorsement_key_off_its_curve_is_refused() {
    let key = changed(EK_ECC, EK_ECC.len() - 1, &[0]);
    assert_eq!(make_credential(&key, &name(), &[1; 32]), Err(CredentialError::Point));
}

#[test]
fn a_secret_that_the_tpm_would_refuse_is_refused() {
    for ek in [EK_RSA, EK_ECC] {
        let ek = Public::parse(ek).unwrap();
        let error = make_credential(&ek, &name(), &[1; 33]).unwrap_err();
        assert_eq!(error, CredentialError::TooLong { most: 32, found: 33 });
    }
}

#[test]
fn two_credentials_for_one_secret_have_nothing_in_common() {
    for ek in [EK_RSA, EK_ECC] {
        let ek = Public::parse(ek).unwrap();
        let [one, other] = [0; 2].map(|_| make_credential(&ek, &name(), &[1; 32]).unwrap());
        assert_ne!(one.secret, other.secret);
        assert_ne!(one.id_object, other.id_object);
        assert_eq!(one.id_object.len(), 2 + 2 + 32 + 2 + 32);
    }
}
