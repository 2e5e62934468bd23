//! TPMT_SIGNATURE (section 11.3.4), and whether it holds.

use crate::{
    bytes::{FieldError, Reader},
    key::AttestationKey,
    public::{SignatureAlgorithm, SignatureScheme, strong_digest},
    verifying::Numbers,
};

/// A signature by a TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// How it says that it was made.
    pub scheme: SignatureScheme,
    numbers: Numbers,
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
        expected: SignatureScheme,
        /// The signature's.
        found: SignatureScheme,
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
        let algorithm = SignatureAlgorithm::from_id(id).ok_or(SignatureError::Algorithm(id))?;
        let id = reader.u16_be("hash")?;
        let digest = strong_digest(id).ok_or(SignatureError::Digest(id))?;
        let numbers = match algorithm {
            SignatureAlgorithm::RsaSsa | SignatureAlgorithm::RsaPss => Numbers::Rsa(reader.sized("sig")?.to_vec()),
            SignatureAlgorithm::EcDsa => {
                Numbers::EcDsa { r: reader.sized("signatureR")?.to_vec(), s: reader.sized("signatureS")?.to_vec() }
            }
        };
        reader.end("signature")?;
        Ok(Self { scheme: SignatureScheme { algorithm, digest }, numbers })
    }

    /// Checks that the key signed the message. Only public keys take part: nothing here is secret.
    ///
    /// # Errors
    /// [`SignatureError::Scheme`] and [`SignatureError::Wrong`].
    pub fn verify(&self, key: &AttestationKey, message: &[u8]) -> Result<(), SignatureError> {
        if self.scheme != key.scheme() {
            return Err(SignatureError::Scheme { expected: key.scheme(), found: self.scheme });
        }
        if key.verifying_key().verifies(self.scheme.algorithm, self.scheme.digest, message, &self.numbers) {
            Ok(())
        } else {
            Err(SignatureError::Wrong)
        }
    }
}
