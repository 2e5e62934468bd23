//! How a boot uses the TPM.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::RollbackIndex;

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
    /// The rollback counter of that TPM: images that are older than it says are refused. Images without the rule do not
    /// mention it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackRule>,
}

/// What a TPM's rollback counter says. It only counts up, by one for each rollback index, and starts at another value on each
/// TPM: so one of its values is sealed with the index that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRule {
    /// The counter: an NV index.
    pub counter: u32,
    /// A value of it.
    pub value: u64,
    /// The oldest rollback index that may boot at this value.
    pub index: RollbackIndex,
}

impl RollbackRule {
    /// The value of the counter at which this rollback index is the oldest that may boot. `None` beyond what a counter holds.
    pub fn value_of(&self, index: RollbackIndex) -> Option<u64> {
        u64::try_from(i128::from(self.value) + i128::from(index.0) - i128::from(self.index.0)).ok()
    }

    /// Whether both say the same of that counter, at whichever index.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let difference = |rule: &Self| i128::from(rule.value) - i128::from(rule.index.0);
        self.counter == other.counter && difference(self) == difference(other)
    }

    /// The oldest rollback index that may boot while the counter has this value.
    pub fn floor(&self, counter: u64) -> RollbackIndex {
        let floor = i128::from(self.index.0) + i128::from(counter) - i128::from(self.value);
        let nearest = if floor < 0 { 0 } else { u64::MAX };
        RollbackIndex(u64::try_from(floor).unwrap_or(nearest))
    }
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
    fn the_floor_rises_with_the_counter_and_stays_within_bounds() {
        let rule: RollbackRule = serde_json::from_str(r#"{"counter": 25184591, "value": 7, "index": 3}"#).unwrap();
        let floors = [(7, 3), (8, 4), (6, 2), (0, 0), (u64::MAX, u64::MAX - 4)];
        assert!(floors.iter().all(|(counter, floor)| rule.floor(*counter) == RollbackIndex(*floor)));
        assert!([3, 4, 2, 0].iter().all(|index| rule.floor(rule.value_of(RollbackIndex(*index)).unwrap()).0 == *index));
        let high = RollbackRule { value: 0, index: RollbackIndex(u64::MAX), ..rule };
        assert_eq!(high.floor(1), RollbackIndex(u64::MAX));
        let low = RollbackRule { value: u64::MAX, index: RollbackIndex(0), ..rule };
        assert_eq!(low.floor(0), RollbackIndex(0));
    }

    #[test]
    fn a_word_that_is_none_is_refused() {
        assert!(serde_json::from_str::<TpmRules>(r#"{"use": "maybe"}"#).is_err());
        assert!(serde_json::from_str::<TpmRules>(r#"{"use": "off", "srk": "!"}"#).is_err());
    }
}
