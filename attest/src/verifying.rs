//! Signatures by the keys of TPMs and of certificates.

use iofs_policy::pcr::PcrDigest;
use p256::ecdsa::signature::hazmat::PrehashVerifier;

use crate::{
    public::{Curve, Key, SignatureAlgorithm, padded},
    rsa::RsaKey,
};

/// A public key that is one: its point is on its curve, its modulus of a size that holds.
#[derive(Debug, Clone)]
pub(crate) enum VerifyingKey {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    Rsa(RsaKey),
}

/// What a signature is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Numbers {
    Rsa(Vec<u8>),
    EcDsa { r: Vec<u8>, s: Vec<u8> },
}

impl VerifyingKey {
    pub(crate) fn new(key: &Key) -> Option<Self> {
        match key {
            Key::Rsa { modulus, exponent } => RsaKey::new(modulus, *exponent).ok().map(Self::Rsa),
            Key::Ecc { curve: Curve::P256, point } => {
                p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok().map(Self::P256)
            }
            Key::Ecc { curve: Curve::P384, point } => {
                p384::ecdsa::VerifyingKey::from_sec1_bytes(point).ok().map(Self::P384)
            }
        }
    }

    /// Whether the signature is by this key and algorithm over this digest.
    pub(crate) fn verifies(&self, algorithm: SignatureAlgorithm, digest: &PcrDigest, numbers: &Numbers) -> bool {
        use SignatureAlgorithm::{EcDsa, RsaPss, RsaSsa};
        match (self, algorithm, numbers) {
            (Self::P256(key), EcDsa, Numbers::EcDsa { r, s }) => joined(r, s, Curve::P256)
                .and_then(|numbers| p256::ecdsa::Signature::from_slice(&numbers).ok())
                .is_some_and(|signature| key.verify_prehash(digest.as_bytes(), &signature).is_ok()),
            (Self::P384(key), EcDsa, Numbers::EcDsa { r, s }) => joined(r, s, Curve::P384)
                .and_then(|numbers| p384::ecdsa::Signature::from_slice(&numbers).ok())
                .is_some_and(|signature| key.verify_prehash(digest.as_bytes(), &signature).is_ok()),
            (Self::Rsa(key), RsaSsa, Numbers::Rsa(number)) => key.verify_pkcs1(digest, number).is_ok(),
            (Self::Rsa(key), RsaPss, Numbers::Rsa(number)) => key.verify_pss(digest, number).is_ok(),
            _ => false,
        }
    }
}

fn joined(r: &[u8], s: &[u8], curve: Curve) -> Option<Vec<u8>> {
    Some([padded(r, curve.size())?, padded(s, curve.size())?].concat())
}
