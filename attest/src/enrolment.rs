//! How a verifier comes to know a device: the documents that go back and forth.
//!
//! ```text
//! device:   request   ── endorsement key, its certificate, attestation key ──▶ verifier
//! verifier: challenge ── a secret that only a TPM with both keys can read ───▶ device     (MakeCredential)
//! device:   answer    ── the secret ─────────────────────────────────────────▶ verifier   (ActivateCredential)
//! verifier: device record: this attestation key is in that TPM
//! ```

use std::collections::BTreeSet;

use iofs_policy::{
    digest::Sha256Digest,
    pcr::{PcrBank, PcrError},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    base64_bytes::Base64Bytes,
    certificate::{Certificate, CertificateError, verify_chain},
    credential::{CredentialError, make_credential},
    key::{AttestationKey, KeyError, check_endorsement_key},
    public::{Public, PublicError},
};

/// The version of these documents' shape.
pub const ENROLMENT_VERSION: u32 = 1;
/// The largest of these documents, in bytes: a request with its certificate has about 4000.
pub const MAX_SIZE: usize = 64 * 1024;
/// The secret of a challenge, in bytes: what every endorsement key takes.
const SECRET_SIZE: usize = 32;

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

/// What a verifier keeps between challenge and answer. It holds no secret, but whoever writes it says whom to enrol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// [`ENROLMENT_VERSION`].
    pub enrolment_version: u32,
    /// The device as it will be if it answers.
    pub device: Device,
    /// SHA-256 of the secret.
    pub secret_sha256: Sha256Digest,
}

/// A time, as certificates have it.
pub use x509_cert::der::DateTime as Time;

/// Who vouches for endorsement keys.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// Makers of TPMs.
    Roots {
        /// The certificates that are trusted.
        roots: &'a [Certificate],
        /// Certificates between them and the endorsement keys'.
        intermediates: &'a [Certificate],
        /// The time at which all must be valid.
        at: Time,
    },
    /// Nobody: the request came on a way that only the device's owner could use, and is believed.
    Unverified,
}

/// Why a device is not enrolled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolmentError {
    /// A document is of another version.
    #[error("{document}: enrolment_version: expected {ENROLMENT_VERSION}, found {found}")]
    Version {
        /// Which document.
        document: &'static str,
        /// Its version.
        found: u32,
    },
    /// A key is malformed.
    #[error("request: {field}: {source}")]
    Public {
        /// Which key.
        field: &'static str,
        /// What is wrong with it.
        source: PublicError,
    },
    /// A key is not what it must be.
    #[error("request: {0}")]
    Key(#[from] KeyError),
    /// A bank is unknown.
    #[error("request: banks: {0}")]
    Bank(PcrError),
    /// The banks are too few, or there is one twice.
    #[error("request: banks: expected each once, and one of sha256, sha384 or sha512, found {0:?}")]
    Banks(Vec<String>),
    /// There is no certificate to check.
    #[error("request: ek_certificate: expected a certificate of the endorsement key, found none")]
    NoCertificate,
    /// The certificate does not lead to a root.
    #[error("request: ek_certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// The challenge was not made.
    #[error("challenge: {0}")]
    Credential(#[from] CredentialError),
    /// The system has no random numbers to give.
    #[error("the system's random numbers: {0}")]
    Random(getrandom::Error),
    /// The answer holds another secret: the attestation key is not in the TPM with that endorsement key.
    #[error("answer: expected the secret of the challenge, found another: nothing ties the two keys to one TPM")]
    WrongSecret,
}

/// Checks a request, and makes a challenge that only the TPM with both of its keys can answer.
///
/// # Errors
/// See [`EnrolmentError`].
pub fn challenge(request: &Request, name: &str, trust: Trust<'_>) -> Result<(Challenge, Pending), EnrolmentError> {
    check_version("request", request.enrolment_version)?;
    let key =
        |field, bytes: &Base64Bytes| Public::parse(bytes).map_err(|source| EnrolmentError::Public { field, source });
    let ek = key("ek_public", &request.ek_public)?;
    let ak = key("ak_public", &request.ak_public)?;
    check_endorsement_key(&ek)?;
    let attestation_key = AttestationKey::new(&ak)?;
    check_banks(&request.banks)?;
    let ek_root = check_certificate(request, &ek, trust)?;
    let mut secret = Zeroizing::new([0; SECRET_SIZE]);
    getrandom::fill(secret.as_mut()).map_err(EnrolmentError::Random)?;
    let made = make_credential(&ek, attestation_key.name(), secret.as_ref())?;
    let device = Device {
        enrolment_version: ENROLMENT_VERSION,
        name: name.to_owned(),
        ak_public: request.ak_public.clone(),
        ek_public: request.ek_public.clone(),
        ek_root,
        banks: request.banks.clone(),
        last_seen: None,
    };
    let challenge = Challenge {
        enrolment_version: ENROLMENT_VERSION,
        credential: Base64Bytes(made.id_object),
        secret: Base64Bytes(made.secret),
    };
    let secret_sha256 = Sha256Digest::of(secret.as_ref());
    Ok((challenge, Pending { enrolment_version: ENROLMENT_VERSION, device, secret_sha256 }))
}

/// Takes the answer to a challenge: the device is enrolled if it could read the secret.
///
/// # Errors
/// [`EnrolmentError::WrongSecret`], [`EnrolmentError::Version`].
pub fn accept(pending: &Pending, answer: &Answer) -> Result<Device, EnrolmentError> {
    check_version("state of the challenge", pending.enrolment_version)?;
    check_version("answer", answer.enrolment_version)?;
    // Digests of secrets may be compared in any way: nobody can choose them.
    if Sha256Digest::of(&answer.secret) == pending.secret_sha256 {
        Ok(pending.device.clone())
    } else {
        Err(EnrolmentError::WrongSecret)
    }
}

/// Checks the version of a document.
///
/// # Errors
/// [`EnrolmentError::Version`].
pub fn check_version(document: &'static str, found: u32) -> Result<(), EnrolmentError> {
    if found == ENROLMENT_VERSION { Ok(()) } else { Err(EnrolmentError::Version { document, found }) }
}

fn check_banks(names: &[String]) -> Result<(), EnrolmentError> {
    let banks = names.iter().map(|name| name.parse::<PcrBank>()).collect::<Result<BTreeSet<_>, _>>();
    let banks = banks.map_err(EnrolmentError::Bank)?;
    if banks.len() == names.len() && banks.iter().any(|bank| *bank != PcrBank::Sha1) {
        Ok(())
    } else {
        Err(EnrolmentError::Banks(names.to_vec()))
    }
}

/// The subject of the root that vouches for the key.
fn check_certificate(request: &Request, ek: &Public, trust: Trust<'_>) -> Result<Option<String>, EnrolmentError> {
    let Trust::Roots { roots, intermediates, at } = trust else { return Ok(None) };
    let certificate = request.ek_certificate.as_ref().ok_or(EnrolmentError::NoCertificate)?;
    let certificate = Certificate::from_der(certificate)?;
    Ok(Some(verify_chain(&certificate, ek, intermediates, roots, at)?))
}

#[cfg(test)]
mod tests;
