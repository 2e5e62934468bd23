//! What sessions compute (Part 1, sections 11.4, 19.6 and 21, annex C), with SHA-256, AES-128 and P-256 only.

use aes::{
    Aes128Enc, Block,
    cipher::{BlockCipherEncrypt, KeyInit},
};
use hmac::{Hmac, Mac};
use p256::{
    AffinePoint, FieldBytes, ProjectivePoint, Scalar,
    elliptic_curve::{ff::PrimeField, point::AffineCoordinates},
};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

/// The size of SHA-256's digests, in bytes. All keys, nonces and codes of a session have it.
pub(crate) const SIZE: usize = 32;

/// A key that is zeroed when it goes.
pub(crate) type Key = Zeroizing<[u8; SIZE]>;

pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; SIZE] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

/// An HMAC by this key. A key of more than a block is its digest (RFC 2104, section 2).
pub(crate) fn keyed(key: &[u8]) -> Hmac<Sha256> {
    let digest;
    let mut block = Zeroizing::new([0; 2 * SIZE]);
    let key = if key.len() > block.len() {
        digest = Zeroizing::new(sha256(&[key]));
        &digest[..]
    } else {
        key
    };
    block[..key.len()].copy_from_slice(key);
    Hmac::new(&(*block).into())
}

/// A started HMAC of these parts.
fn started(keyed: &Hmac<Sha256>, parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = keyed.clone();
    parts.iter().for_each(|part| mac.update(part));
    mac
}

/// The HMAC of these parts, by a key that more may be made with.
pub(crate) fn finished(keyed: &Hmac<Sha256>, parts: &[&[u8]]) -> [u8; SIZE] {
    started(keyed, parts).finalize().into_bytes().into()
}

pub(crate) fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; SIZE] {
    finished(&keyed(key), parts)
}

/// In a time that does not depend on how many bytes are right.
pub(crate) fn hmac_is(key: &[u8], parts: &[&[u8]], found: &[u8]) -> bool {
    started(&keyed(key), parts).verify_slice(found).is_ok()
}

/// KDFa (Part 1, section 11.4.10.2) of 256 bits: one round of SP 800-108 in counter mode. `label` ends with a zero byte.
pub(crate) fn kdfa(key: &[u8], label: &[u8], newer: &[u8], older: &[u8]) -> Key {
    Zeroizing::new(hmac(key, &[&1_u32.to_be_bytes(), label, newer, older, &256_u32.to_be_bytes()]))
}

/// Decrypts AES-128 in CFB mode, with full blocks of feedback (Part 1, section 21.3). `key` is the cipher's key and then the
/// first block of feedback.
pub(crate) fn cfb_decrypt(key: &Key, data: &mut [u8]) {
    let (key, start) = key.split_at(SIZE / 2);
    let (Ok(key), Ok(mut feedback)) = (<[u8; 16]>::try_from(key), <[u8; 16]>::try_from(start)) else { return };
    let key = Zeroizing::new(key);
    let cipher = Aes128Enc::new(&(*key).into());
    for chunk in data.chunks_mut(feedback.len()) {
        let mut block = Block::from(feedback);
        cipher.encrypt_block(&mut block);
        for ((byte, mask), next) in chunk.iter_mut().zip(&block).zip(&mut feedback) {
            *next = *byte;
            *byte ^= mask;
        }
        block.zeroize();
    }
}

/// A point of P-256: x and y, big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) x: [u8; SIZE],
    pub(crate) y: [u8; SIZE],
}

impl Point {
    fn of(point: ProjectivePoint) -> Self {
        let affine = point.to_affine();
        Self { x: affine.x().into(), y: affine.y().into() }
    }

    /// `None` where it is not on the curve: a secret agreed with it would be known to whoever chose it.
    fn on_curve(&self) -> Option<ProjectivePoint> {
        let affine: Option<AffinePoint> = AffinePoint::from_coordinates(&self.x.into(), &self.y.into()).into();
        affine.map(ProjectivePoint::from)
    }

    pub(crate) fn is_on_curve(&self) -> bool {
        self.on_curve().is_some()
    }

    /// A random secret that only the owner of this key learns, and what tells it to the owner: an ephemeral key (Part 1,
    /// annex C.6.1). KDFe is one round of SP 800-56A (section 11.4.10.3).
    ///
    /// `None` where there is no randomness, or the point is not on the curve.
    pub(crate) fn share_secret(&self) -> Option<(Key, Self)> {
        let owner = self.on_curve()?;
        let mut private = random_scalar()?;
        let ephemeral = Self::of(ProjectivePoint::GENERATOR * private);
        let mut agreed = Self::of(owner * private);
        private.zeroize();
        let secret = sha256(&[&1_u32.to_be_bytes(), &agreed.x, b"SECRET\0", &ephemeral.x, &self.x]);
        agreed.x.zeroize();
        agreed.y.zeroize();
        Some((Zeroizing::new(secret), ephemeral))
    }
}

/// 32 bytes from the kernel.
pub(crate) fn random() -> Option<Key> {
    let mut bytes = Zeroizing::new([0; SIZE]);
    getrandom::fill(&mut *bytes).ok()?;
    Some(bytes)
}

/// A private key: numbers that are 0, or not below the group's order, are drawn again (FIPS 186-5, annex A.2.2). That
/// happens once in 2^32 times, and never a hundred times in a row.
fn random_scalar() -> Option<Scalar> {
    for _ in 0..100 {
        let mut bytes = FieldBytes::from(*random()?);
        let candidate: Option<Scalar> = Scalar::from_repr(bytes).into();
        bytes.zeroize();
        if let Some(scalar) = candidate.filter(|scalar| *scalar != Scalar::ZERO) {
            return Some(scalar);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use iofs_policy::hex;

    use super::*;

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    /// NIST SP 800-38A, section F.3.14: CFB128-AES128.
    #[test]
    fn cfb_gives_nists_example() {
        let key = bytes("2b7e151628aed2a6abf7158809cf4f3c000102030405060708090a0b0c0d0e0f");
        let plain: [u8; 32] = bytes("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51");
        let expected: [u8; 32] = bytes("3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3a93fcde3cdad9f1ce58b");
        for size in [0, 1, 15, 16, 17, 32] {
            let mut data = expected[..size].to_vec();
            cfb_decrypt(&Zeroizing::new(key), &mut data);
            assert_eq!(data, plain[..size]);
        }
    }

    /// RFC 4231, section 4.3.
    #[test]
    fn hmac_gives_the_rfcs_example() {
        let expected = bytes("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert_eq!(hmac(b"Jefe", &[b"what do ya want ", b"for nothing?"]), expected);
        assert!(hmac_is(b"Jefe", &[b"what do ya want for nothing?"], &expected));
        // Section 4.7: a key larger than the block.
        let expected = bytes("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
        assert_eq!(hmac(&[0xaa; 131], &[b"Test Using Larger Than Block-Size Key - Hash Key First"]), expected);
        assert!(!hmac_is(b"Jefe", &[b"what do ya want for nothing!"], &expected));
        assert!(!hmac_is(b"Jefe", &[b"what do ya want for nothing?"], &expected[..31]));
        assert!(!hmac_is(b"Jefe", &[b"what do ya want for nothing?"], &[]));
    }

    #[test]
    fn a_shared_secret_is_what_the_owner_computes() {
        let private = random_scalar().unwrap();
        let public = Point::of(ProjectivePoint::GENERATOR * private);
        let (secret, ephemeral) = public.share_secret().unwrap();
        let agreed = Point::of(ephemeral.on_curve().unwrap() * private);
        let by_owner = sha256(&[&[0, 0, 0, 1], &agreed.x, b"SECRET\0", &ephemeral.x, &public.x]);
        assert_eq!(*secret, by_owner);
        assert_ne!(public.share_secret().unwrap().1, ephemeral, "each time another");
    }

    #[test]
    fn a_point_beside_the_curve_gets_no_secret() {
        let mut point = Point::of(ProjectivePoint::GENERATOR);
        assert!(point.is_on_curve());
        point.y[31] ^= 1;
        assert!(!point.is_on_curve() && point.share_secret().is_none());
        assert!(!Point { x: [0xff; 32], y: [0xff; 32] }.is_on_curve());
        assert!(!Point { x: [0; 32], y: [0; 32] }.is_on_curve());
    }
}
