//! The verdict on one quote.
//!
//! ```text
//! key ─▶ signature ─▶ quote: magic, type, nonce ─▶ counters ─▶ selection ─▶ logs replay to the registers
//!     ─▶ user space: one release's sequence ─▶ firmware: what the policy says ─▶ register 15: the machine's own ─▶ Attested
//! ```
//!
//! Nothing but the enrolled key is believed; the logs count as far as they replay to what that key signed. Labels in them
//! never decide anything.

mod attested;
mod firmware;
mod identity;
mod refusal;
mod registers;
mod stub;
mod userspace;

pub use attested::Attested;
pub use refusal::Refusal;

pub(crate) use firmware::{LOAD_OPTIONS, file_of, release_files};
pub(crate) use identity::{
    Comparison, Standing, compare as compare_identity, found as found_in_identity, is_of_identity, nothing_more,
};
pub(crate) use registers::{Registers, replay_registers};
pub(crate) use stub::{expected as stub_expected, is_of_stub};
pub(crate) use userspace::{Booted, SYSTEMD_PHASES, accepted_lines, is_measured, is_volume_key, label_lies};

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
};

use iofs_policy::{
    digest::Sha256Digest,
    hex,
    measurement_log::{self, Record},
    pcr::PcrBank,
    release::{Release, ReleaseError},
    trust::VerifiedPayload,
};

use crate::{
    enrolment::{Counters, Device, ENROLMENT_VERSION},
    evidence::{EVIDENCE_VERSION, Evidence},
    policy_file::Policy,
    quote::{AttestationKey, BankSelection, ClockInfo, Name, Quote, Signature},
    tcg::EventLog,
};

/// The shortest nonce, in bytes: a shorter one could come twice.
pub const MIN_NONCE: usize = 16;

/// A release that a device may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    statement: Sha256Digest,
    release: Release,
}

impl Reference {
    /// Takes a release statement whose signatures were verified.
    ///
    /// # Errors
    /// [`ReleaseError`] where the payload is none.
    pub fn new(payload: &VerifiedPayload) -> Result<Self, ReleaseError> {
        let release = Release::from_payload(payload)?;
        Ok(Self { statement: Sha256Digest::of(payload.bytes()), release })
    }

    /// What it says.
    pub fn release(&self) -> &Release {
        &self.release
    }

    /// SHA-256 of the signed statement.
    pub fn statement(&self) -> Sha256Digest {
        self.statement
    }

    /// `ID VERSION`
    pub fn name(&self) -> String {
        format!("{} {}", self.release.image.id, self.release.image.version)
    }
}

/// What evidence is held against.
#[derive(Debug, Clone, Copy)]
pub struct Verification<'a> {
    /// The device, as it was enrolled.
    pub device: &'a Device,
    /// What the verifier sent, for this quote only. Whoever asks sees to it that no nonce is accepted twice.
    pub nonce: &'a [u8],
    /// The releases that it may run.
    pub references: &'a [Reference],
    /// What is demanded besides.
    pub policy: &'a Policy,
}

/// Decides whether evidence proves that the device runs one of the releases.
///
/// # Errors
/// [`Refusal`]: whatever is not proven is refused. A fault in here is, too.
pub fn verify(request: &Verification<'_>, evidence: &Evidence) -> Result<Attested, Refusal> {
    contained(|| verify_steps(request, evidence))
}

/// A panic anywhere is a refusal: no exception leaves a device attested.
fn contained<T>(work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Refusal::Internal))
}

fn verify_steps(request: &Verification<'_>, evidence: &Evidence) -> Result<Attested, Refusal> {
    identity::check(request.policy)?;
    let Proven { quote, banks, logs, registers, booted } = prove(request, evidence)?;
    let notes = firmware::judge(request, &banks, logs.firmware.as_ref(), &registers, booted.reference)?;
    identity::judge(request.policy, &banks, &logs.records)?;
    Ok(Attested::new(request, &quote, &banks, booted, notes))
}

/// All that holds before anything is said about firmware and about the machine's identity.
pub(crate) struct Proven<'a> {
    pub(crate) quote: Quote,
    pub(crate) banks: BTreeSet<PcrBank>,
    pub(crate) logs: Logs,
    pub(crate) registers: Registers,
    pub(crate) booted: Booted<'a>,
}

pub(crate) fn prove<'a>(request: &Verification<'a>, evidence: &Evidence) -> Result<Proven<'a>, Refusal> {
    let banks = check_request(request)?;
    let (quote, hash) = authenticate(request, evidence)?;
    check_counters(request.device.last_seen, &quote.clock)?;
    check_selection(request, &banks, &quote.selection)?;
    let logs = Logs::parse(evidence)?;
    let registers = Registers::authenticate(request.policy, evidence, &logs, &quote, hash)?;
    let booted = userspace::judge(request, &banks, &logs.records)?;
    Ok(Proven { quote, banks, logs, registers, booted })
}

/// Both logs, parsed.
pub(crate) struct Logs {
    pub(crate) firmware: Option<EventLog>,
    pub(crate) records: Vec<Record>,
}

impl Logs {
    pub(crate) fn parse(evidence: &Evidence) -> Result<Self, Refusal> {
        if evidence.measurement_log_torn {
            return Err(Refusal::Torn);
        }
        let firmware = evidence.firmware_log.as_deref().map(EventLog::parse).transpose()?;
        let records = evidence.measurement_log.as_deref().map(measurement_log::parse).transpose()?;
        Ok(Self { firmware, records: records.unwrap_or_default() })
    }
}

/// What can be checked without any evidence. Gives the banks to demand.
fn check_request(request: &Verification<'_>) -> Result<BTreeSet<PcrBank>, Refusal> {
    let device = request.device;
    if device.enrolment_version != ENROLMENT_VERSION {
        let (expected, found) = (ENROLMENT_VERSION, device.enrolment_version);
        return Err(Refusal::Version { document: "device record", expected, found });
    }
    if request.nonce.len() < MIN_NONCE {
        return Err(Refusal::NonceShort { found: request.nonce.len() });
    }
    if request.references.is_empty() {
        return Err(Refusal::NoReference);
    }
    required_banks(request)
}

/// The banks that must be quoted and replay: the policy's, or those of the enrolment.
pub(crate) fn required_banks(request: &Verification<'_>) -> Result<BTreeSet<PcrBank>, Refusal> {
    if let Some(banks) = &request.policy.banks {
        return Ok(banks.clone());
    }
    let bank = |name: &String| name.parse::<PcrBank>().map_err(|_| Refusal::DeviceBank(name.clone()));
    let banks = request.device.banks.iter().map(bank).collect::<Result<BTreeSet<_>, _>>()?;
    if banks.iter().all(|bank| *bank == PcrBank::Sha1) {
        return Err(Refusal::WeakBanks(request.device.banks.clone()));
    }
    Ok(banks)
}

/// Key, signature, and what the signed bytes begin with. Gives the quote, and the algorithm that hashed the registers.
fn authenticate(request: &Verification<'_>, evidence: &Evidence) -> Result<(Quote, PcrBank), Refusal> {
    if evidence.evidence_version != EVIDENCE_VERSION {
        let (expected, found) = (EVIDENCE_VERSION, evidence.evidence_version);
        return Err(Refusal::Version { document: "evidence", expected, found });
    }
    let key = AttestationKey::parse(&request.device.ak_public)?;
    if evidence.ak_public != request.device.ak_public {
        let found = Name::of_tpm2b(&evidence.ak_public).map_or("no key".to_owned(), |name| name.to_string());
        return Err(Refusal::OtherKey { expected: key.name().to_string(), found });
    }
    Signature::parse(&evidence.signature)?.verify(&key, &evidence.quote)?;
    let quote = Quote::parse(&evidence.quote)?;
    if quote.extra_data != request.nonce {
        let (expected, found) = (hex::encode(request.nonce), hex::encode(&quote.extra_data));
        return Err(Refusal::Nonce { expected, found });
    }
    Ok((quote, key.scheme().digest))
}

/// A TPM's counters never go back, unless it is cleared; that takes the attestation key along.
///
/// They are compared as serial numbers: for keys outside the endorsement hierarchy a TPM adds a constant to the resets and
/// restarts, and the sum wraps (Part 1, section 36.7). `safe` is not demanded: it is clear for an hour after each power
/// cut, and within one count of resets the clock is monotonic with it or without.
fn check_counters(last_seen: Option<Counters>, clock: &ClockInfo) -> Result<(), Refusal> {
    let (Some(seen), found) = (last_seen, clock.counters) else { return Ok(()) };
    let resets = found.reset_count.wrapping_sub(seen.reset_count) as i32;
    let restarts = found.restart_count.wrapping_sub(seen.restart_count) as i32;
    if resets < 0 || (resets == 0 && restarts < 0) {
        return Err(Refusal::BeforeReset { seen, found });
    }
    if resets == 0 && found.clock < seen.clock {
        return Err(Refusal::ClockBackwards { expected: seen.clock, found: found.clock });
    }
    Ok(())
}

/// Exactly the demanded registers in exactly the demanded banks: what is left out could hold anything.
fn check_selection(
    request: &Verification<'_>,
    banks: &BTreeSet<PcrBank>,
    selection: &[BankSelection],
) -> Result<(), Refusal> {
    for bank in banks {
        let quoted = selection.iter().find(|quoted| quoted.bank() == Some(*bank));
        let Some(quoted) = quoted else { return Err(Refusal::BankNotQuoted(*bank)) };
        let expected = &request.policy.pcrs;
        if quoted.pcrs != *expected {
            let missing = expected.difference(&quoted.pcrs).map(|pcr| pcr.get()).collect();
            let extra = quoted.pcrs.difference(expected).map(|pcr| pcr.get()).collect();
            return Err(Refusal::Selection { bank: *bank, missing, extra });
        }
    }
    let demanded = |quoted: &&BankSelection| quoted.bank().is_some_and(|bank| banks.contains(&bank));
    match selection.iter().find(|quoted| !demanded(quoted)) {
        Some(other) => Err(Refusal::BankNotDemanded(other.algorithm)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attestation_forgery_an_exception_in_the_verifier() {
        let refusal = contained(|| -> Result<(), Refusal> { panic!("on purpose") }).unwrap_err();
        assert_eq!(refusal.to_string(), "internal error: the verifier itself failed");
        assert_eq!(contained(|| Ok(7)), Ok(7));
    }

    #[test]
    fn the_documentation_names_every_reason() {
        let document = include_str!("../../docs/attestation.md");
        let source = include_str!("verify/refusal.rs");
        let reasons =
            source.split("pub fn reason").nth(1).and_then(|rest| rest.split("pub fn next_step").next()).unwrap();
        let reasons: Vec<&str> = reasons.split('"').skip(1).step_by(2).collect();
        assert!(reasons.len() > 25);
        for reason in reasons {
            assert!(document.contains(&format!("`{reason}`")), "{reason}");
        }
    }
}
