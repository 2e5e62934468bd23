//! What a key of a TPM is good for: endorsement keys and attestation keys.

use crate::{
    public::{AesCfb, Attributes, Key, Name, Public, PublicError, Scheme, SignatureAlgorithm, SignatureScheme},
    verifying::VerifyingKey,
};

/// What every key must be that only its TPM knows, and that does nothing with bytes from outside.
const BOUND: [Attributes; 4] =
    [Attributes::FIXED_TPM, Attributes::FIXED_PARENT, Attributes::SENSITIVE_DATA_ORIGIN, Attributes::RESTRICTED];

const ENDORSEMENT: &str = "endorsement key";
const ATTESTATION: &str = "attestation key";

/// Why a key is no endorsement key or no attestation key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is no key at all.
    #[error("{role}: {source}")]
    Public {
        /// Which key.
        role: &'static str,
        /// What is wrong.
        source: PublicError,
    },
    /// It lacks an attribute.
    #[error("{role}: objectAttributes: expected {expected} to be set, found {found:08x}")]
    AttributeMissing {
        /// Which key.
        role: &'static str,
        /// The attribute.
        expected: &'static str,
        /// All attributes.
        found: u32,
    },
    /// It has an attribute too many.
    #[error("{role}: objectAttributes: expected {expected} to be clear, found {found:08x}")]
    AttributeSet {
        /// Which key.
        role: &'static str,
        /// The attribute.
        expected: &'static str,
        /// All attributes.
        found: u32,
    },
    /// It works in another way than keys of its role.
    #[error("{role}: {field}: expected {expected}, found {found:04x}")]
    Algorithm {
        /// Which key.
        role: &'static str,
        /// The field.
        field: &'static str,
        /// What may be there.
        expected: &'static str,
        /// The algorithm's number.
        found: u16,
    },
    /// It cannot encrypt what is below it by a cipher that holds.
    #[error("endorsement key: symmetric: expected AES-128 or AES-256 in CFB mode, as storage keys have it")]
    Symmetric,
}

/// Checks that a public area can be an endorsement key's (TCG EK Credential Profile, section 4.6): a storage key that never
/// leaves its TPM and decrypts only what TPM2_ActivateCredential and the like are for.
///
/// # Errors
/// See [`KeyError`].
pub fn check_endorsement_key(ek: &Public) -> Result<(), KeyError> {
    check_attributes(ENDORSEMENT, ek.attributes, Attributes::DECRYPT, &[Attributes::SIGN])?;
    if matches!(ek.symmetric, Some(AesCfb(128 | 256))) { Ok(()) } else { Err(KeyError::Symmetric) }
}

/// The public half of a key that never leaves its TPM, that the TPM made itself, and that signs nothing but what the TPM made
/// itself. Without all of these, a signature says nothing about registers.
#[derive(Debug, Clone)]
pub struct AttestationKey {
    name: Name,
    scheme: SignatureScheme,
    key: VerifyingKey,
}

impl AttestationKey {
    /// Reads a TPM2B_PUBLIC, all bytes of it.
    ///
    /// # Errors
    /// [`KeyError`], by the first field that is not as an attestation key has it.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        Public::parse(bytes).map_err(malformed).and_then(|public| Self::new(&public))
    }

    /// Checks that a public area can be an attestation key's.
    ///
    /// # Errors
    /// As [`AttestationKey::parse`].
    pub fn new(ak: &Public) -> Result<Self, KeyError> {
        let clear = [Attributes::DECRYPT, Attributes::X509_SIGN];
        check_attributes(ATTESTATION, ak.attributes, Attributes::SIGN, &clear)?;
        if ak.symmetric.is_some() {
            return Err(algorithm("symmetric", "0010 (TPM_ALG_NULL)", AesCfb::ID));
        }
        let scheme = scheme(ak)?;
        let key = VerifyingKey::new(&ak.key);
        let key = key.ok_or_else(|| malformed(PublicError::Unique("not a point on the curve")))?;
        Ok(Self { name: ak.name(), scheme, key })
    }

    /// The key's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// How it signs.
    pub fn scheme(&self) -> SignatureScheme {
        self.scheme
    }

    pub(crate) fn verifying_key(&self) -> &VerifyingKey {
        &self.key
    }
}

fn malformed(source: PublicError) -> KeyError {
    KeyError::Public { role: ATTESTATION, source }
}

fn algorithm(field: &'static str, expected: &'static str, found: u16) -> KeyError {
    KeyError::Algorithm { role: ATTESTATION, field, expected, found }
}

/// An attestation key has one scheme, that of its type, which hashes and nothing else.
fn scheme(ak: &Public) -> Result<SignatureScheme, KeyError> {
    use SignatureAlgorithm::{EcDsa, RsaPss, RsaSsa};
    let (allowed, expected) = match ak.key {
        Key::Rsa { .. } => (&[RsaSsa, RsaPss][..], "0014 (RSASSA) or 0016 (RSAPSS)"),
        Key::Ecc { .. } => (&[EcDsa][..], "0018 (ECDSA)"),
    };
    match ak.scheme {
        Scheme::Signature(scheme) if allowed.contains(&scheme.algorithm) => Ok(scheme),
        other => Err(algorithm("scheme", expected, other.id())),
    }
}

fn check_attributes(
    role: &'static str,
    attributes: Attributes,
    purpose: Attributes,
    clear: &[Attributes],
) -> Result<(), KeyError> {
    let found = attributes.0;
    if let Some(expected) = attributes.first_missing(&BOUND).or_else(|| attributes.first_missing(&[purpose])) {
        return Err(KeyError::AttributeMissing { role, expected, found });
    }
    match attributes.first_present(clear) {
        Some(expected) => Err(KeyError::AttributeSet { role, expected, found }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
