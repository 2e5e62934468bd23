use super::*;
use crate::public::Public;

/// Made by swtpm_setup 0.7.1 with swtpm_localca: `swtpm_setup --tpm2 --create-ek-cert --tpm-state DIR --config CONF
/// --write-ek-cert-files DIR`. They are valid from 2026-11-22T05:55:09Z to the end of 9999.
const EK_RSA: &[u8] = include_bytes!("../testdata/ek-rsa.der");
const EK_P384: &[u8] = include_bytes!("../testdata/ek-p384.der");
const ISSUER: &[u8] = include_bytes!("../testdata/ek-issuer.pem");
const ROOT: &[u8] = include_bytes!("../testdata/ek-root.pem");
const NOW: &str = "2026-12-01T00:00:00Z";

fn file(bytes: &[u8]) -> Vec<Certificate> {
    Certificate::from_file(bytes).unwrap()
}

/// An endorsement key with the certificate's key.
fn endorsement_key(certificate: &Certificate) -> Public {
    let mut ek = Public::parse(include_bytes!("../testdata/ek-rsa.public")).unwrap();
    ek.key = certificate.key().unwrap();
    ek
}

fn verify_at(
    leaf: &Certificate,
    intermediates: &[Certificate],
    roots: &[Certificate],
    at: &str,
) -> Result<String, CertificateError> {
    verify_chain(leaf, &endorsement_key(leaf), intermediates, roots, parse_time(at).unwrap())
}

#[test]
fn certificates_of_software_tpms_lead_to_their_root() {
    for leaf in [EK_RSA, EK_P384] {
        let leaf = &file(leaf)[0];
        assert_eq!(verify_at(leaf, &file(ISSUER), &file(ROOT), NOW).unwrap(), "CN=swtpm-localca-rootca");
        // Whoever trusts the intermediate needs no root above it.
        assert_eq!(verify_at(leaf, &[], &file(ISSUER), NOW).unwrap(), "CN=swtpm-localca");
        assert_eq!(verify_at(leaf, &file(ISSUER), &file(ROOT), "9999-12-31T23:59:59Z").unwrap().len(), 23);
    }
}

#[test]
fn a_chain_without_its_parts_names_what_is_missing() {
    let leaf = &file(EK_RSA)[0];
    let error = verify_at(leaf, &[], &file(ROOT), NOW).unwrap_err().to_string();
    assert!(error.contains("expected its issuer CN=swtpm-localca among the given roots"), "{error}");
    let error = verify_at(leaf, &file(ISSUER), &[], NOW).unwrap_err().to_string();
    assert!(error.contains("expected its issuer CN=swtpm-localca-rootca among"), "{error}");
}

#[test]
fn time_counts_for_every_certificate() {
    let leaf = &file(EK_RSA)[0];
    let error = verify_at(leaf, &file(ISSUER), &file(ROOT), "2026-11-22T05:55:08Z").unwrap_err();
    assert!(matches!(error, CertificateError::NotValid { .. }), "{error}");
    assert!(error.to_string().contains("valid at 2026-11-22T05:55:08Z, found that it is from 2026-11-22T05:55:09Z"));
}

#[test]
fn another_key_than_the_certificates_is_refused() {
    let (leaf, other) = (&file(EK_RSA)[0], &file(EK_P384)[0]);
    let at = parse_time(NOW).unwrap();
    let error = verify_chain(leaf, &endorsement_key(other), &file(ISSUER), &file(ROOT), at).unwrap_err();
    assert_eq!(error, CertificateError::OtherKey);
}

#[test]
fn an_endorsement_key_cannot_be_an_issuer_nor_an_issuer_an_endorsement_key() {
    let issuer = &file(ISSUER)[0];
    let error = verify_at(issuer, &[], &file(ROOT), NOW).unwrap_err();
    assert_eq!(error, CertificateError::Usage("one of a certificate authority"));
    let error = file(EK_RSA)[0].check_issuer(0).unwrap_err().to_string();
    assert!(error.contains("found cA false in its basic constraints"), "{error}");
}

/// Each bit of what is signed, and of the signature.
#[test]
fn a_changed_bit_anywhere_is_refused() {
    let key = endorsement_key(&file(EK_RSA)[0]);
    let (issuers, roots, at) = (file(ISSUER), file(ROOT), parse_time(NOW).unwrap());
    for position in 0..EK_RSA.len() {
        let mut bytes = EK_RSA.to_vec();
        bytes[position] ^= 1 << (position % 8);
        let Ok(leaf) = Certificate::from_der(&bytes) else { continue };
        let result = verify_chain(&leaf, &key, &issuers, &roots, at);
        assert!(result.is_err(), "the bit at byte {position} does not count");
    }
}

#[test]
fn files_that_hold_no_certificates_are_refused() {
    let cut = &EK_RSA[..EK_RSA.len() - 1];
    let begin = PEM_BEGIN.as_bytes();
    for bytes in [&b""[..], b"text", cut, begin, &[begin, b"AAAA", PEM_END.as_bytes()].concat()] {
        let error = Certificate::from_file(bytes).unwrap_err();
        assert!(matches!(error, CertificateError::Malformed(_)), "{error}");
    }
    let error = Certificate::from_file(&begin.repeat(MAX_COUNT + 1)).unwrap_err();
    assert_eq!(error, CertificateError::TooLarge);
    assert_eq!(Certificate::from_file(&vec![0; MAX_SIZE + 1]).unwrap_err(), CertificateError::TooLarge);
    assert_eq!(file(&[ISSUER, ROOT].concat()).len(), 2);
}
