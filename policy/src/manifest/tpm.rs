//! How a boot uses the TPM.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

/// The longest public area that is taken, in bytes: an RSA-4096 key has less than this.
const MAX_PUBLIC: usize = 1024;

/// Whether a boot needs a TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TpmUse {
    /// Without a TPM, or where one measurement fails, the boot is refused.
    Required,
    /// Measured where there is a TPM. What fails is a warning: a verifier notices what is missing.
    #[default]
    Preferred,
    /// The TPM is left alone.
    Off,
}

impl fmt::Display for TpmUse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Required => "required",
            Self::Preferred => "preferred",
            Self::Off => "off",
        })
    }
}

/// The sealed rules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpmRules {
    /// Whether there must be one.
    #[serde(rename = "use")]
    pub usage: TpmUse,
    /// The storage root key of the one TPM that this image is for. With it, every command that extends a register runs in a
    /// session that only that TPM can answer.
    pub srk: Option<SrkPublic>,
}

/// A storage root key's public part: a TPM2B_PUBLIC (TPM 2.0 Library, Part 2, section 12.2.5), as `tpm2_readpublic -o`
/// writes it. What is in it is the TPM client's to check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SrkPublic(Vec<u8>);

/// Why a public part was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SrkError {
    /// It is not base64.
    #[error("tpm.srk: expected base64: {0}")]
    Base64(String),
    /// Its size does not fit what it says of itself.
    #[error(
        "tpm.srk: expected a TPM2B_PUBLIC of 3 to {MAX_PUBLIC} bytes that begins with its own size, found {0} bytes"
    )]
    Size(usize),
}

impl SrkPublic {
    /// Takes a TPM2B_PUBLIC.
    ///
    /// # Errors
    /// [`SrkError::Size`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, SrkError> {
        let (found, says) = (bytes.len(), bytes.first_chunk().map(|size| usize::from(u16::from_be_bytes(*size))));
        let fits = says.is_some_and(|size| size > 0 && size + 2 == found);
        if fits && found <= MAX_PUBLIC { Ok(Self(bytes)) } else { Err(SrkError::Size(found)) }
    }

    /// The TPM2B_PUBLIC.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<String> for SrkPublic {
    type Error = SrkError;

    fn try_from(text: String) -> Result<Self, SrkError> {
        Self::new(STANDARD.decode(text).map_err(|error| SrkError::Base64(error.to_string()))?)
    }
}

impl From<SrkPublic> for String {
    fn from(public: SrkPublic) -> Self {
        STANDARD.encode(public.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_part_says_its_own_size() {
        for bytes in [vec![], vec![0], vec![0, 0], vec![0, 2, 1], vec![0, 1, 1, 1], vec![4; 2000]] {
            let found = bytes.len();
            assert_eq!(SrkPublic::new(bytes), Err(SrkError::Size(found)));
        }
        let rules: TpmRules = serde_json::from_str(r#"{"use": "required", "srk": "AAEH"}"#).unwrap();
        assert_eq!(rules.srk.as_ref().map(SrkPublic::as_bytes), Some(&[0, 1, 7][..]));
        assert_eq!(serde_json::to_string(&rules).unwrap(), r#"{"use":"required","srk":"AAEH"}"#);
    }

    #[test]
    fn a_word_that_is_none_is_refused() {
        assert!(serde_json::from_str::<TpmRules>(r#"{"use": "maybe"}"#).is_err());
        assert!(serde_json::from_str::<TpmRules>(r#"{"use": "off", "srk": "!"}"#).is_err());
    }
}
