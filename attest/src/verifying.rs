//! Signatures by the keys of TPMs and of certificates.

use iofs_policy::pcr::{PcrBank, PcrDigest};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

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

    /// Whether the signature is by this key and algorithm over this message, hashed as a bank's digests are.
    pub(crate) fn verifies(
        &self,
        algorithm: SignatureAlgorithm,
        hash: PcrBank,
        message: &[u8],
        numbers: &Numbers,
    ) -> bool {
        use SignatureAlgorithm::{EcDsa, RsaPss, RsaSsa};
        if let (Self::P256(key), EcDsa, PcrBank::Sha256, Numbers::EcDsa { r, s }) = (self, algorithm, hash, numbers) {
            return joined(r, s, Curve::P256).is_some_and(|numbers| verifies_fast(key, message, &numbers));
        }
        let digest = &PcrDigest::of(hash, &[message]);
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

/// What nearly all TPMs sign with, and most of what a verifier computes: several times as fast as by `p256`, whose keys have any hash.
fn verifies_fast(key: &p256::ecdsa::VerifyingKey, message: &[u8], numbers: &[u8]) -> bool {
    let point = key.to_sec1_point(false);
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point.as_bytes()).verify(message, numbers).is_ok()
}

fn joined(r: &[u8], s: &[u8], curve: Curve) -> Option<Vec<u8>> {
    Some([padded(r, curve.size())?, padded(s, curve.size())?].concat())
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::{Signature, SigningKey, signature::Signer};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn both_ways_of_p256_take_the_same_signatures_and_refuse_the_same(
            // 32 bytes of 255 are beyond the curve's order: no key.
            seed in 1_u8..255,
            message in proptest::collection::vec(any::<u8>(), 0..200),
            flipped in proptest::option::of(0_usize..512),
        ) {
            let key = SigningKey::from_slice(&[seed; 32]).unwrap();
            let signature: Signature = key.sign(&message);
            let mut numbers = signature.to_bytes().to_vec();
            if let Some(bit) = flipped {
                numbers[bit / 8] ^= 1 << (bit % 8);
            }
            let (r, s) = numbers.split_at(32);
            let verifying = key.verifying_key();
            let digest = PcrDigest::of(PcrBank::Sha256, &[&message]);
            let slow = Signature::from_slice(&numbers)
                .is_ok_and(|signature| verifying.verify_prehash(digest.as_bytes(), &signature).is_ok());
            prop_assert_eq!(slow, flipped.is_none());
            let numbers = Numbers::EcDsa { r: r.to_vec(), s: s.to_vec() };
            let fast = VerifyingKey::P256(*verifying);
            prop_assert_eq!(fast.verifies(SignatureAlgorithm::EcDsa, PcrBank::Sha256, &message, &numbers), slow);
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused_both_ways() {
        let key = SigningKey::from_slice(&[1; 32]).unwrap();
        let order =
            iofs_policy::hex::decode("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551").unwrap();
        let fast = VerifyingKey::P256(*key.verifying_key());
        for number in [vec![0; 32], order, vec![0xff; 32]] {
            for (r, s) in [(number.clone(), vec![1; 32]), (vec![1; 32], number)] {
                assert!(Signature::from_slice(&[&r[..], &s[..]].concat()).is_err());
                let numbers = Numbers::EcDsa { r, s };
                assert!(!fast.verifies(SignatureAlgorithm::EcDsa, PcrBank::Sha256, b"message", &numbers));
            }
        }
    }
}
