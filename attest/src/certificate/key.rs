//! Keys of certificates, and signatures by them.

use iofs_policy::pcr::{PcrBank, PcrDigest};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use x509_cert::{der::asn1::ObjectIdentifier, spki::SubjectPublicKeyInfoOwned};

use super::{CertificateError, der};
use crate::{
    public::{Curve, Key},
    rsa::RsaKey,
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
    let (is_rsa, bank) = match algorithm.to_string().as_str() {
        "1.2.840.113549.1.1.11" => (true, PcrBank::Sha256),
        "1.2.840.113549.1.1.12" => (true, PcrBank::Sha384),
        "1.2.840.113549.1.1.13" => (true, PcrBank::Sha512),
        "1.2.840.10045.4.3.2" => (false, PcrBank::Sha256),
        "1.2.840.10045.4.3.3" => (false, PcrBank::Sha384),
        "1.2.840.10045.4.3.4" => (false, PcrBank::Sha512),
        _ => return None,
    };
    let digest = PcrDigest::of(bank, &[signed]);
    match key {
        Key::Rsa { modulus, exponent } if is_rsa => {
            Some(RsaKey::new(modulus, *exponent).is_ok_and(|key| key.verify(&digest, signature).is_ok()))
        }
        Key::Ecc { curve, point } if !is_rsa => Some(ecdsa(*curve, point, &digest, signature).unwrap_or(false)),
        _ => None,
    }
}

fn ecdsa(curve: Curve, point: &[u8], digest: &PcrDigest, signature: &[u8]) -> Option<bool> {
    let (r, s) = der::two_integers(signature)?;
    let fixed = |number: &[u8]| {
        let missing = curve.size().checked_sub(number.len())?;
        Some([&vec![0; missing], number].concat())
    };
    let signature = [fixed(r)?, fixed(s)?].concat();
    match curve {
        Curve::P256 => {
            let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
            let signature = p256::ecdsa::Signature::from_slice(&signature).ok()?;
            Some(key.verify_prehash(digest.as_bytes(), &signature).is_ok())
        }
        Curve::P384 => {
            let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
            let signature = p384::ecdsa::Signature::from_slice(&signature).ok()?;
            Some(key.verify_prehash(digest.as_bytes(), &signature).is_ok())
        }
    }
}
