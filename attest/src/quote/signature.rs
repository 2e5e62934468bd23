//! TPMT_SIGNATURE (section 11.3.4), and whether it holds.

use iofs_policy::pcr::{PcrBank, PcrDigest};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::{Pkcs1v15Sign, Pss};
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::{
    public::{AttestationKey, Scheme, SchemeAlgorithm, VerifyingKey, padded},
    strong_digest,
};
use crate::bytes::{FieldError, Reader};

/// DigestInfo up to the digest (RFC 8017, section 9.2, note 1).
const SHA256_INFO: &[u8] = b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20";
const SHA384_INFO: &[u8] = b"\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30";
const SHA512_INFO: &[u8] = b"\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40";

/// A signature by a TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// How it says that it was made.
    pub scheme: Scheme,
    numbers: Numbers,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Numbers {
    Rsa(Vec<u8>),
    EcDsa { r: Vec<u8>, s: Vec<u8> },
}

/// Why a signature was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It ends early or late.
    #[error("signature: {0}")]
    Field(#[from] FieldError),
    /// An algorithm that is unknown here.
    #[error("signature: sigAlg: expected 0014 (RSASSA), 0016 (RSAPSS) or 0018 (ECDSA), found {0:04x}")]
    Algorithm(u16),
    /// A digest algorithm that is unknown, or too weak.
    #[error("signature: hash: expected SHA-256, SHA-384 or SHA-512, found {0:04x}")]
    Digest(u16),
    /// The key signs in one way, and this is another.
    #[error("signature: expected {expected}, the attestation key's scheme, found {found}")]
    Scheme {
        /// The key's.
        expected: Scheme,
        /// The signature's.
        found: Scheme,
    },
    /// The key did not sign these bytes.
    #[error("signature: it is not the attestation key's over this quote")]
    Wrong,
}

impl Signature {
    /// Reads a TPMT_SIGNATURE, all bytes of it.
    ///
    /// # Errors
    /// [`SignatureError`], by the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, SignatureError> {
        let mut reader = Reader::new(bytes);
        let id = reader.u16_be("sigAlg")?;
        let algorithm = SchemeAlgorithm::from_id(id).ok_or(SignatureError::Algorithm(id))?;
        let id = reader.u16_be("hash")?;
        let digest = strong_digest(id).ok_or(SignatureError::Digest(id))?;
        let numbers = match algorithm {
            SchemeAlgorithm::RsaSsa | SchemeAlgorithm::RsaPss => Numbers::Rsa(reader.sized("sig")?.to_vec()),
            SchemeAlgorithm::EcDsa => {
                Numbers::EcDsa { r: reader.sized("signatureR")?.to_vec(), s: reader.sized("signatureS")?.to_vec() }
            }
        };
        reader.end("signature")?;
        Ok(Self { scheme: Scheme { algorithm, digest }, numbers })
    }

    /// Checks that the key signed the message. Only public keys take part: nothing here is secret, so that time tells
    /// nobody anything (RUSTSEC-2023-0071 is about private keys).
    ///
    /// # Errors
    /// [`SignatureError::Scheme`] and [`SignatureError::Wrong`].
    pub fn verify(&self, key: &AttestationKey, message: &[u8]) -> Result<(), SignatureError> {
        if self.scheme != key.scheme() {
            return Err(SignatureError::Scheme { expected: key.scheme(), found: self.scheme });
        }
        let digest = PcrDigest::of(self.scheme.digest, &[message]);
        let holds = match (&key.key, &self.numbers) {
            (VerifyingKey::P256(key), Numbers::EcDsa { r, s }) => p256_holds(key, r, s, digest.as_bytes()),
            (VerifyingKey::P384(key), Numbers::EcDsa { r, s }) => p384_holds(key, r, s, digest.as_bytes()),
            (VerifyingKey::Rsa(key), Numbers::Rsa(number)) => rsa_holds(key, self.scheme, number, &digest),
            _ => false,
        };
        if holds { Ok(()) } else { Err(SignatureError::Wrong) }
    }
}

fn p256_holds(key: &p256::ecdsa::VerifyingKey, r: &[u8], s: &[u8], digest: &[u8]) -> bool {
    let Some(numbers) = joined(r, s, 32) else { return false };
    p256::ecdsa::Signature::from_slice(&numbers).is_ok_and(|signature| key.verify_prehash(digest, &signature).is_ok())
}

fn p384_holds(key: &p384::ecdsa::VerifyingKey, r: &[u8], s: &[u8], digest: &[u8]) -> bool {
    let Some(numbers) = joined(r, s, 48) else { return false };
    p384::ecdsa::Signature::from_slice(&numbers).is_ok_and(|signature| key.verify_prehash(digest, &signature).is_ok())
}

fn joined(r: &[u8], s: &[u8], size: usize) -> Option<Vec<u8>> {
    Some([padded(r, size)?, padded(s, size)?].concat())
}

/// TPMs make the salt of PSS as long as the digest, or as long as the key lets them (Part 1, annex B.7): any length passes.
fn rsa_holds(key: &rsa::RsaPublicKey, scheme: Scheme, number: &[u8], digest: &PcrDigest) -> bool {
    let hashed = digest.as_bytes();
    let checked = match (scheme.algorithm, scheme.digest) {
        (SchemeAlgorithm::RsaSsa, PcrBank::Sha256) => key.verify(pkcs1(SHA256_INFO), hashed, number),
        (SchemeAlgorithm::RsaSsa, PcrBank::Sha384) => key.verify(pkcs1(SHA384_INFO), hashed, number),
        (SchemeAlgorithm::RsaSsa, PcrBank::Sha512) => key.verify(pkcs1(SHA512_INFO), hashed, number),
        (SchemeAlgorithm::RsaPss, PcrBank::Sha256) => key.verify(pss(Sha256::new()), hashed, number),
        (SchemeAlgorithm::RsaPss, PcrBank::Sha384) => key.verify(pss(Sha384::new()), hashed, number),
        (SchemeAlgorithm::RsaPss, PcrBank::Sha512) => key.verify(pss(Sha512::new()), hashed, number),
        _ => return false,
    };
    checked.is_ok()
}

fn pkcs1(info: &[u8]) -> Pkcs1v15Sign {
    Pkcs1v15Sign { hash_len: None, prefix: info.into() }
}

fn pss<D>(digest: D) -> Pss<D> {
    Pss { blinded: false, digest, salt_len: None }
}
