//! What a device sends: a quote and the logs that explain it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base64_bytes::Base64Bytes;

/// The version of this document's shape.
pub const EVIDENCE_VERSION: u32 = 1;

/// The largest document that is parsed, in bytes: both logs at their largest, in base64, and half a megabyte of the rest.
pub const MAX_SIZE: usize = (crate::tcg::MAX_SIZE + iofs_policy::measurement_log::MAX_SIZE) / 3 * 4 + (1 << 19);

/// Why a document was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// It is larger than any real one.
    #[error("evidence: expected at most {MAX_SIZE} bytes, found {0}")]
    TooLarge(usize),
    /// It is not the JSON of evidence.
    #[error("evidence: {0}")]
    Json(String),
}

/// The document of one quote. Nothing in it is believed: the quote's signature covers the registers, and the logs count as
/// far as they replay to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// [`EVIDENCE_VERSION`].
    pub evidence_version: u32,
    /// TPMS_ATTEST (TPM 2.0 Library, Part 2, section 10.12.12): the bytes that were signed.
    pub quote: Base64Bytes,
    /// TPMT_SIGNATURE (Part 2, section 11.3.4).
    pub signature: Base64Bytes,
    /// The attestation key, a TPM2B_PUBLIC (Part 2, section 12.2.5). It must be the enrolled one.
    pub ak_public: Base64Bytes,
    /// The registers as read beside the quote, by bank and number, in hexadecimal. They help to explain; the quote decides.
    #[serde(default)]
    pub pcrs: BTreeMap<String, BTreeMap<u8, String>>,
    /// Firmware's log, `/sys/kernel/security/tpm0/binary_bios_measurements` (TCG PC Client Platform Firmware Profile).
    #[serde(default)]
    pub firmware_log: Option<Base64Bytes>,
    /// The log of user space, `/run/log/systemd/tpm2-measure.log`.
    #[serde(default)]
    pub measurement_log: Option<Base64Bytes>,
    /// Whether that log's file had the sticky bit: somebody was stopped between extending a register and noting it.
    #[serde(default)]
    pub measurement_log_torn: bool,
}

impl Evidence {
    /// Parses the JSON form.
    ///
    /// # Errors
    /// [`EvidenceError`]
    pub fn from_json(bytes: &[u8]) -> Result<Self, EvidenceError> {
        if bytes.len() > MAX_SIZE {
            return Err(EvidenceError::TooLarge(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(|error| EvidenceError::Json(error.to_string()))
    }

    /// The JSON form.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("evidence always serialises");
        json.push(b'\n');
        json
    }
}
