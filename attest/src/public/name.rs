//! What TPMs call their objects.

use std::fmt;

use iofs_policy::{
    hex,
    pcr::{PcrBank, PcrDigest},
};

use super::{PublicError, area_of, hash};
use crate::bytes::Reader;

/// The name of an object: the algorithm and the digest of its public area (Part 1, section 16).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Vec<u8>);

impl Name {
    /// Computes the name of a public area (TPMT_PUBLIC), of any kind of object.
    ///
    /// # Errors
    /// [`PublicError`] where its `nameAlg` is not SHA-256, SHA-384 or SHA-512. Nothing else is looked at.
    pub fn of_public_area(area: &[u8]) -> Result<Self, PublicError> {
        let mut reader = Reader::new(area);
        reader.u16_be("type")?;
        Ok(Self::by(hash(&mut reader, "nameAlg")?, area))
    }

    /// Computes the name of a TPM2B_PUBLIC.
    ///
    /// # Errors
    /// As [`Name::of_public_area`]; and where bytes are missing or left over.
    pub fn of_tpm2b(bytes: &[u8]) -> Result<Self, PublicError> {
        Self::of_public_area(area_of(bytes)?)
    }

    pub(super) fn by(hash: PcrBank, area: &[u8]) -> Self {
        let digest = PcrDigest::of(hash, &[area]);
        Self([&hash.algorithm_id().to_be_bytes(), digest.as_bytes()].concat())
    }

    /// `nameAlg` and the digest, as in a TPM2B_NAME without its size.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Hexadecimal, as tpm2-tools print it.
impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Name({self})")
    }
}
