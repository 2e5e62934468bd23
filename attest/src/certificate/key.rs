//! Keys of certificates, and signatures by them.

use iofs_policy::pcr::PcrBank;
use x509_cert::{der::asn1::ObjectIdentifier, spki::SubjectPublicKeyInfoOwned};

use super::{CertificateError, der};
use crate::{
    public::{Curve, Key, SignatureAlgorithm},
    verifying::{Numbers, VerifyingKey},
};

const RSA: &str = "1.2.840.113549.1.1.1";
/// Some makers say of an endorsement key that it decrypts by OAEP alone. The key has the same form.
const RSA_OAEP: &str = "1.2.840.113549.1.1.7";
const EC: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";

/// The public key of a SubjectPublicKeyInfo.
pub(super) fn public_key(subject: &str, info: &SubjectPublicKeyInfoOwned) -> Result<Key, CertificateError> {
    let bytes = info.subject_public_key.as_bytes().unwrap_or_default();
    let algorithm = info.algorithm.oid.to_string();
    let key = match algorithm.as_str() {
        RSA | RSA_OAEP => rsa_key(bytes),
        EC => ecc_key(info, bytes),
        _ => None,
    };
    key.ok_or_else(|| CertificateError::Algorithm {
        subject: subject.to_owned(),
        what: "subjectPublicKeyInfo",
        expected: "a key of RSA, or of ECC on P-256 or P-384",
        found: algorithm,
    })
}

fn rsa_key(bytes: &[u8]) -> Option<Key> {
    let (modulus, exponent) = der::two_integers(bytes)?;
    let exponent = exponent.iter().try_fold(0_u32, |value, byte| Some(value.checked_mul(256)? | u32::from(*byte)))?;
    Some(Key::Rsa { modulus: modulus.to_vec(), exponent })
}

fn ecc_key(info: &SubjectPublicKeyInfoOwned, point: &[u8]) -> Option<Key> {
    let curve = info.algorithm.parameters.as_ref()?.decode_as::<ObjectIdentifier>().ok()?;
    let curve = match curve.to_string().as_str() {
        P256 => Curve::P256,
        P384 => Curve::P384,
        _ => return None,
    };
    // Not compressed: 4, x, y.
    (point.first() == Some(&4) && point.len() == 1 + 2 * curve.size())
        .then(|| Key::Ecc { curve, point: point.to_vec() })
}

/// Whether a signature verifies: `None` where the algorithm is not known, or is not the key's.
pub(super) fn verify(key: &Key, algorithm: ObjectIdentifier, signed: &[u8], signature: &[u8]) -> Option<bool> {
    use SignatureAlgorithm::{EcDsa, RsaSsa};
    let (algorithm, bank) = match algorithm.to_string().as_str() {
        "1.2.840.113549.1.1.11" => (RsaSsa, PcrBank::Sha256),
        "1.2.840.113549.1.1.12" => (RsaSsa, PcrBank::Sha384),
        "1.2.840.113549.1.1.13" => (RsaSsa, PcrBank::Sha512),
        "1.2.840.10045.4.3.2" => (EcDsa, PcrBank::Sha256),
        "1.2.840.10045.4.3.3" => (EcDsa, PcrBank::Sha384),
        "1.2.840.10045.4.3.4" => (EcDsa, PcrBank::Sha512),
        _ => return None,
    };
    let numbers = match (key, algorithm) {
        (Key::Rsa { .. }, RsaSsa) => Some(Numbers::Rsa(signature.to_vec())),
        (Key::Ecc { .. }, EcDsa) => {
            der::two_integers(signature).map(|(r, s)| Numbers::EcDsa { r: r.to_vec(), s: s.to_vec() })
        }
        _ => return None,
    };
    let verifying = VerifyingKey::new(key).zip(numbers);
    Some(verifying.is_some_and(|(key, numbers)| key.verifies(algorithm, bank, signed, &numbers)))
}
