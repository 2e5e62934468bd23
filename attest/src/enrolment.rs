//! How a verifier comes to know a device: the documents that go back and forth.
//!
//! ```text
//! device:   request   ── endorsement key, its certificate, attestation key ──▶ verifier
//! verifier: challenge ── a secret that only a TPM with both keys can read ───▶ device     (MakeCredential)
//! device:   answer    ── the secret ─────────────────────────────────────────▶ verifier   (ActivateCredential)
//! verifier: device record: this attestation key is in that TPM
//! ```

use serde::{Deserialize, Serialize};

use crate::base64_bytes::Base64Bytes;

/// The version of these documents' shape.
pub const ENROLMENT_VERSION: u32 = 1;

/// What the device says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`ENROLMENT_VERSION`].
    pub enrolment_version: u32,
    /// The endorsement key, a TPM2B_PUBLIC.
    pub ek_public: Base64Bytes,
    /// Its certificate in DER, where the TPM has one.
    #[serde(default)]
    pub ek_certificate: Option<Base64Bytes>,
    /// The attestation key, a TPM2B_PUBLIC.
    pub ak_public: Base64Bytes,
    /// The names of the active banks.
    pub banks: Vec<String>,
}

/// What the verifier sends back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// [`ENROLMENT_VERSION`].
    pub enrolment_version: u32,
    /// TPM2B_ID_OBJECT (TPM 2.0 Library, Part 2, section 12.4.3).
    pub credential: Base64Bytes,
    /// TPM2B_ENCRYPTED_SECRET (Part 2, section 11.4.5).
    pub secret: Base64Bytes,
}

/// What the device could read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// [`ENROLMENT_VERSION`].
    pub enrolment_version: u32,
    /// The secret of the challenge.
    pub secret: Base64Bytes,
}

/// An enrolled device, as the verifier keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// [`ENROLMENT_VERSION`].
    pub enrolment_version: u32,
    /// What the verifier calls it.
    pub name: String,
    /// The attestation key, a TPM2B_PUBLIC.
    pub ak_public: Base64Bytes,
    /// The endorsement key that it is bound to, a TPM2B_PUBLIC.
    pub ek_public: Base64Bytes,
    /// Who vouches for the endorsement key: the subject of the certificate at the root of its chain, if one was checked.
    pub ek_root: Option<String>,
    /// The banks that must be quoted: those that were active at enrolment.
    pub banks: Vec<String>,
    /// Counters of the newest quote that was accepted.
    pub last_seen: Option<Counters>,
}

/// Where a TPM is in its life (TPMS_CLOCK_INFO, TPM 2.0 Library, Part 2, section 10.11.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// How often the TPM was reset: each boot counts.
    pub reset_count: u32,
    /// How often it was restarted or resumed since.
    pub restart_count: u32,
    /// Milliseconds that it was powered.
    pub clock: u64,
}
