//! How keys sign.

use std::fmt;

use iofs_policy::pcr::PcrBank;

use super::{ALG_ECDAA, ALG_ECDH, ALG_NULL, ALG_OAEP, ALG_RSAES, PublicError, hash};
use crate::bytes::Reader;

const ALG_RSASSA: u16 = 0x0014;
const ALG_RSAPSS: u16 = 0x0016;
const ALG_ECDSA: u16 = 0x0018;

/// A signature algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureAlgorithm {
    /// RSASSA-PKCS1-v1_5 (RFC 8017, section 8.2).
    RsaSsa,
    /// RSASSA-PSS (RFC 8017, section 8.1).
    RsaPss,
    /// ECDSA (FIPS 186-5, section 6).
    EcDsa,
}

impl SignatureAlgorithm {
    pub(crate) fn from_id(id: u16) -> Option<Self> {
        match id {
            ALG_RSASSA => Some(Self::RsaSsa),
            ALG_RSAPSS => Some(Self::RsaPss),
            ALG_ECDSA => Some(Self::EcDsa),
            _ => None,
        }
    }

    fn id(self) -> u16 {
        match self {
            Self::RsaSsa => ALG_RSASSA,
            Self::RsaPss => ALG_RSAPSS,
            Self::EcDsa => ALG_ECDSA,
        }
    }
}

/// How a key signs. An attestation key knows one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignatureScheme {
    /// The algorithm.
    pub algorithm: SignatureAlgorithm,
    /// What hashes the message. It hashes the registers' values, too.
    pub digest: PcrBank,
}

/// `ALGORITHM with DIGEST`
impl fmt::Display for SignatureScheme {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.algorithm {
            SignatureAlgorithm::RsaSsa => "rsassa",
            SignatureAlgorithm::RsaPss => "rsapss",
            SignatureAlgorithm::EcDsa => "ecdsa",
        };
        write!(formatter, "{name} with {}", self.digest)
    }
}

/// What a key signs or decrypts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// None is fixed (`TPM_ALG_NULL`).
    Null,
    /// It signs in one way.
    Signature(SignatureScheme),
    /// One that this toolkit has no use for, by its number.
    Other(u16),
}

impl Scheme {
    /// Its number (TPM_ALG_ID, Part 2, section 6.3).
    pub(crate) fn id(self) -> u16 {
        match self {
            Self::Null => ALG_NULL,
            Self::Signature(scheme) => scheme.algorithm.id(),
            Self::Other(id) => id,
        }
    }

    /// TPMT_RSA_SCHEME or TPMT_ECC_SCHEME (Part 2, sections 11.2.4.2 and 11.2.5.6).
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, PublicError> {
        let found = reader.u16_be("scheme")?;
        if let Some(algorithm) = SignatureAlgorithm::from_id(found) {
            let digest = hash(reader, "scheme.hashAlg")?;
            return Ok(Self::Signature(SignatureScheme { algorithm, digest }));
        }
        match found {
            ALG_NULL => return Ok(Self::Null),
            ALG_RSAES => {}
            ALG_OAEP | ALG_ECDH => {
                reader.u16_be("scheme.hashAlg")?;
            }
            ALG_ECDAA => {
                reader.u16_be("scheme.hashAlg")?;
                reader.u16_be("scheme.count")?;
            }
            _ => return Err(PublicError::Value { field: "scheme", expected: "a scheme of RSA or ECC", found }),
        }
        Ok(Self::Other(found))
    }
}
