//! The device's side: what it asks of its TPM.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use iofs_attest::{
    base64_bytes::Base64Bytes,
    enrolment::{Answer, Challenge, ENROLMENT_VERSION, Request, check_version},
    evidence::{EVIDENCE_VERSION, Evidence},
};
use iofs_policy::{
    hex,
    pcr::{PcrBank, PcrIndex},
};
use iofs_tpm::host::{Authorizations, Host, HostError, KeyKind, Selection};
use zeroize::Zeroizing;

use crate::{
    attest::{logs, read},
    report::{ExitStatus, Failure},
};

/// How large a TPM2B_ENCRYPTED_SECRET is that was made for an RSA-2048 key, in bytes; for P-256 it has 70.
const RSA_SECRET: usize = 258;
/// The longest password file that is read, in bytes. TPMs take 64 at most, and a newline does not count.
const MAX_PASSWORD: usize = 65;

/// Reads what authorizes the hierarchies.
///
/// # Errors
/// A file cannot be read, or is too large.
pub fn authorizations(owner: Option<&Path>, endorsement: Option<&Path>) -> Result<Authorizations, Failure> {
    let password = |path: Option<&Path>| -> Result<_, Failure> {
        let Some(path) = path else { return Ok(Zeroizing::default()) };
        let mut bytes = Zeroizing::new(read(path, MAX_PASSWORD)?);
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        Ok(bytes)
    };
    Ok(Authorizations { owner: password(owner)?, endorsement: password(endorsement)? })
}

/// Makes or finds the device's keys, and describes them.
///
/// # Errors
/// The TPM does not do it.
pub fn request(host: &mut Host, ek: Option<KeyKind>, ak: KeyKind, handle: u32) -> Result<Request, Failure> {
    let (kind, certificate) = choose(host, ek)?;
    let ek = host.endorsement_key(kind)?;
    let banks = host.banks()?.into_keys().map(|bank| bank.name().to_owned()).collect();
    // Last: whatever fails before leaves the TPM as it was.
    let ak = host.provide_attestation_key(&ek, ak, handle)?;
    Ok(Request {
        enrolment_version: ENROLMENT_VERSION,
        ek_public: Base64Bytes(ek.public),
        ek_certificate: certificate.map(Base64Bytes),
        ak_public: Base64Bytes(ak.public),
        banks,
    })
}

/// The endorsement key that was asked for; else the first one with a certificate, else that of P-256, which is made faster.
fn choose(host: &mut Host, asked: Option<KeyKind>) -> Result<(KeyKind, Option<Vec<u8>>), Failure> {
    if let Some(kind) = asked {
        return Ok((kind, host.endorsement_certificate(kind)?));
    }
    for kind in [KeyKind::Rsa2048, KeyKind::EccP256] {
        if let Some(certificate) = host.endorsement_certificate(kind)? {
            return Ok((kind, Some(certificate)));
        }
    }
    Ok((KeyKind::EccP256, None))
}

/// Reads the secret of a challenge, if the TPM gives it out.
///
/// # Errors
/// [`ExitStatus::NotVerified`] where the challenge is for other keys.
pub fn activate(host: &mut Host, challenge: &Challenge, handle: u32) -> Result<Answer, Failure> {
    check_version("challenge", challenge.enrolment_version)?;
    let kind = if challenge.secret.len() == RSA_SECRET { KeyKind::Rsa2048 } else { KeyKind::EccP256 };
    let ak = host.attestation_key(handle)?;
    let ek = host.endorsement_key(kind)?;
    let secret = host.activate_credential(&ek, &ak, &challenge.credential, &challenge.secret)?;
    Ok(Answer { enrolment_version: ENROLMENT_VERSION, secret: Base64Bytes(secret.to_vec()) })
}

/// What a quote is to be about.
#[derive(Debug)]
pub struct QuotePlan {
    /// What the verifier sent.
    pub nonce: Vec<u8>,
    /// The registers.
    pub pcrs: BTreeSet<PcrIndex>,
    /// The banks: all active ones where none is named.
    pub banks: BTreeSet<PcrBank>,
    /// The attestation key.
    pub handle: u32,
    /// Firmware's log.
    pub firmware_log: logs::Place,
    /// User space's log.
    pub measurement_log: logs::Place,
}

/// Quotes the registers and gathers the logs that explain them. Nobody who takes the log's lock measures meanwhile.
///
/// # Errors
/// The TPM does not do it, or a log cannot be read.
pub fn evidence(host: &mut Host, plan: &QuotePlan) -> Result<Evidence, Failure> {
    let banks = if plan.banks.is_empty() { host.banks()?.into_keys().collect() } else { plan.banks.clone() };
    let selection: Selection = banks.into_iter().map(|bank| (bank, plan.pcrs.clone())).collect();
    let ak = host.attestation_key(plan.handle)?;
    let firmware_log = logs::firmware(&plan.firmware_log)?;
    let measurement_log = logs::measurement(&plan.measurement_log)?;
    let quote = host.quote(&ak, &plan.nonce, &selection)?;
    let mut pcrs: BTreeMap<String, BTreeMap<u8, String>> = BTreeMap::new();
    for ((bank, index), digest) in &quote.values {
        let value = hex::encode(digest.as_bytes());
        pcrs.entry(bank.name().to_owned()).or_default().insert(index.get(), value);
    }
    Ok(Evidence {
        evidence_version: EVIDENCE_VERSION,
        quote: Base64Bytes(quote.attest),
        signature: Base64Bytes(quote.signature),
        ak_public: Base64Bytes(ak.public),
        pcrs,
        firmware_log: firmware_log.map(Base64Bytes),
        measurement_log_torn: measurement_log.as_ref().is_some_and(|log| log.torn),
        measurement_log: measurement_log.map(|log| Base64Bytes(log.bytes)),
    })
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        if error.is_credential_of_another() {
            let fact = format!("{error}: the challenge is not for the keys of this TPM");
            return Self::new(ExitStatus::NotVerified, fact)
                .next("make a new request on this device, and answer the challenge to that one");
        }
        let (status, next) = match &error {
            HostError::Tcti { .. } => (ExitStatus::Usage, "give the TPM's place with --tcti or TPM2TOOLS_TCTI"),
            HostError::Open { .. } => {
                (ExitStatus::Missing, "see that the TPM is switched on, and run this as root or in the group tss")
            }
            HostError::AuthSize(_) => (ExitStatus::Usage, "give the file that holds the password alone"),
            HostError::Password { .. } => {
                (ExitStatus::System, "name the files with the passwords: --owner-auth and --endorsement-auth")
            }
            HostError::Locked { .. } => (
                ExitStatus::System,
                "wait until failed attempts are forgotten, or reset them with the lockout password: \
                 'tpm2_dictionarylockout --clear-lockout'",
            ),
            HostError::Full { .. } => (
                ExitStatus::System,
                "use the kernel's resource manager (--tcti device:/dev/tpmrm0), or free what others left: \
                 'tpm2_flushcontext -t', '-l' and '-s'",
            ),
            HostError::Foreign { .. } => (
                ExitStatus::System,
                "choose another handle with --ak-handle; if nobody needs what is there: 'tpm2_evictcontrol -c HANDLE'",
            ),
            HostError::NoAttestationKey { .. } => {
                (ExitStatus::System, "make one with 'iofs-sign attest enroll request', and enrol it")
            }
            HostError::Handle(_) => (ExitStatus::Usage, "leave --ak-handle out"),
            HostError::NoStorageKey { .. } => (
                ExitStatus::System,
                "see whose key it is; if nobody needs it, 'tpm2_evictcontrol -c HANDLE' makes room for the storage root key",
            ),
            HostError::Occupied { .. } | HostError::OtherObject { .. } | HostError::NoHandle => (
                ExitStatus::System,
                "choose a free handle, or see what is there: 'tpm2_getcap handles-persistent', 'tpm2_evictcontrol -c HANDLE'",
            ),
            HostError::SecretSize(_) => (ExitStatus::Usage, "seal less"),
            HostError::NoBank => (ExitStatus::Missing, "activate the SHA-256 bank in the firmware's setup"),
            HostError::Selection => {
                (ExitStatus::Usage, "see what there is with 'tpm2_pcrread', then use --banks and --pcrs")
            }
            HostError::Changing(_) => {
                (ExitStatus::System, "find out who extends registers all the time, or leave them out")
            }
            HostError::Command { .. } | HostError::Answer { .. } => {
                (ExitStatus::System, "repeat with TSS2_LOG=all+warning in the environment to see what libtss2 says")
            }
        };
        Self::new(status, error.to_string()).next(next)
    }
}
