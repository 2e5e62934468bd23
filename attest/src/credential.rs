//! TPM2_MakeCredential without a TPM (TPM 2.0 Library, Part 1, section 24): a secret that only the TPM can read that holds
//! an endorsement key and, beside it, the object of a given name.
//!
//! Without it, an attestation key is anybody's: a quote proves that *some* key signed it. The Name goes into what the
//! secret is encrypted by, so that a TPM gives it out for an object with exactly that public area and no other.

use aes::{Aes128, Aes256, cipher::KeyIvInit};
use cfb_mode::Encryptor;
use hmac::{Hmac, KeyInit, Mac};
use iofs_policy::pcr::{PcrBank, PcrDigest};
use sha2::{Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use crate::{
    bytes::sized,
    key::{KeyError, check_endorsement_key},
    public::{AesCfb, Curve, Key, Name, Public},
    rsa::{RsaError, RsaKey},
};

mod ecc;

/// What the seed is labelled with, the zero at its end included (Part 1, section 24.2).
const IDENTITY: &[u8] = b"IDENTITY\0";
const STORAGE: &[u8] = b"STORAGE\0";
const INTEGRITY: &[u8] = b"INTEGRITY\0";
/// The initial vector of CFB mode: each key encrypts once.
const IV: [u8; 16] = [0; 16];

/// What TPM2_ActivateCredential takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// TPM2B_ID_OBJECT (Part 2, section 12.4.3).
    pub id_object: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET (Part 2, section 11.4.5).
    pub secret: Vec<u8>,
}

/// Why there is no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The endorsement key is none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Nothing can be encrypted to it.
    #[error("endorsement key: {0}")]
    Rsa(#[from] RsaError),
    /// Its point is not on its curve.
    #[error("endorsement key: expected a point of the curve")]
    Point,
    /// The secret is longer than the key's digests (Part 3, section 12.6: TPM_RC_SIZE).
    #[error("the secret: expected at most {most} bytes, found {found}")]
    TooLong {
        /// The size of the digests of the key's nameAlg.
        most: usize,
        /// The secret's size.
        found: usize,
    },
    /// The system has no random numbers to give.
    #[error("the system's random numbers: {0}")]
    Random(getrandom::Error),
}

/// Encrypts a secret so that only the TPM with this endorsement key reads it, and only if it also holds the object with this
/// name.
///
/// # Errors
/// See [`CredentialError`].
pub fn make_credential(ek: &Public, name: &Name, secret: &[u8]) -> Result<Credential, CredentialError> {
    check_endorsement_key(ek)?;
    let hash = ek.name_algorithm;
    if secret.len() > hash.digest_size() {
        return Err(CredentialError::TooLong { most: hash.digest_size(), found: secret.len() });
    }
    let (seed, encrypted_seed) = share_seed(ek)?;
    Ok(Credential { id_object: protect(ek, &seed, name.as_bytes(), secret), secret: sized(&encrypted_seed) })
}

/// A seed, and its form that only the key's owner can read (Part 1, sections B.10.4 and C.6.4).
fn share_seed(ek: &Public) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), CredentialError> {
    let hash = ek.name_algorithm;
    match &ek.key {
        Key::Rsa { modulus, exponent } => {
            let mut seed = Zeroizing::new(vec![0; hash.digest_size()]);
            getrandom::fill(&mut seed).map_err(CredentialError::Random)?;
            let encrypted = RsaKey::new(modulus, *exponent)?.encrypt(hash, IDENTITY, &seed)?;
            Ok((seed, encrypted))
        }
        Key::Ecc { curve: Curve::P256, point } => ecc::share_p256(hash, point),
        Key::Ecc { curve: Curve::P384, point } => ecc::share_p384(hash, point),
    }
}

/// The TPM2B_ID_OBJECT: an HMAC, then the encrypted secret (Part 1, sections 24.4 and 24.5).
fn protect(ek: &Public, seed: &[u8], name: &[u8], secret: &[u8]) -> Vec<u8> {
    let hash = ek.name_algorithm;
    let mut identity = sized(secret);
    if ek.symmetric == Some(AesCfb(256)) {
        encrypt(hash, seed, name, &mut identity, |key, data| {
            Encryptor::<Aes256>::new(key.into(), &IV.into()).encrypt(data);
        });
    } else {
        encrypt(hash, seed, name, &mut identity, |key, data| {
            Encryptor::<Aes128>::new(key.into(), &IV.into()).encrypt(data);
        });
    }
    let hmac_key = kdf_a(hash, seed, INTEGRITY, &[], hash.digest_size());
    let integrity = hmac(hash, &hmac_key, &[&identity, name]);
    sized(&[sized(&integrity), identity].concat())
}

/// CFB mode with zeroes as the initial vector, by a key of `N` bytes that is derived for the name.
fn encrypt<const N: usize, E>(hash: PcrBank, seed: &[u8], name: &[u8], data: &mut [u8], run: E)
where
    E: FnOnce(&[u8; N], &mut [u8]),
{
    let mut key = Zeroizing::new([0; N]);
    let derived = kdf_a(hash, seed, STORAGE, name, N);
    key.iter_mut().zip(derived.iter()).for_each(|(byte, derived)| *byte = *derived);
    run(&key, data);
}

/// KDFa (Part 1, section 11.4.10.2) with one context, for `size` bytes: the label's zero is in `label`.
fn kdf_a(hash: PcrBank, key: &[u8], label: &[u8], context: &[u8], size: usize) -> Zeroizing<Vec<u8>> {
    let bits = (size as u32 * 8).to_be_bytes();
    let blocks = (1..=size.div_ceil(hash.digest_size()) as u32)
        .flat_map(|counter| hmac(hash, key, &[&counter.to_be_bytes(), label, context, &bits]));
    let mut derived = Zeroizing::new(Vec::with_capacity(size));
    derived.extend(blocks.take(size));
    derived
}

/// KDFe (Part 1, section 11.4.10.3), for exactly one digest: the label's zero is in `label`.
fn kdf_e(hash: PcrBank, shared: &[u8], label: &[u8], party_u: &[u8], party_v: &[u8]) -> Zeroizing<Vec<u8>> {
    let counter = 1_u32.to_be_bytes();
    Zeroizing::new(PcrDigest::of(hash, &[&counter, shared, label, party_u, party_v]).as_bytes().to_vec())
}

fn hmac(hash: PcrBank, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    match hash {
        // No public area has it: `Public::parse`.
        PcrBank::Sha1 => hmac_of::<Hmac<sha1::Sha1>>(key, parts),
        PcrBank::Sha256 => hmac_of::<Hmac<Sha256>>(key, parts),
        PcrBank::Sha384 => hmac_of::<Hmac<Sha384>>(key, parts),
        PcrBank::Sha512 => hmac_of::<Hmac<Sha512>>(key, parts),
    }
}

fn hmac_of<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any size");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests;
