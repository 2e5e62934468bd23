//! Why evidence proves nothing.

use iofs_policy::{
    measurement_log::LogError,
    pcr::{PcrBank, PcrIndex},
};

use crate::{
    enrolment::Counters,
    quote::{KeyError, QuoteError, SignatureError},
    tcg::TcgError,
};

use super::MIN_NONCE;

/// Why evidence was refused: one variant for each reason. The message is the fact; [`Refusal::next_step`] says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A document of another version.
    #[error("{document}: version: expected {expected}, found {found}")]
    Version {
        /// The document.
        document: &'static str,
        /// This toolkit's version of it.
        expected: u32,
        /// Its version.
        found: u32,
    },
    /// A nonce that could come twice.
    #[error("nonce: expected at least {MIN_NONCE} bytes, found {found}")]
    NonceShort {
        /// Its size in bytes.
        found: usize,
    },
    /// There is nothing to compare with.
    #[error("references: expected at least one release statement, found none")]
    NoReference,
    /// The device has a bank that this toolkit cannot replay.
    #[error("device record: banks: expected sha1, sha256, sha384 or sha512, found {0:?}")]
    DeviceBank(String),
    /// There is no bank that collisions do not break.
    #[error("device record: banks: expected one stronger than sha1, found {0:?}")]
    WeakBanks(Vec<String>),
    /// The enrolled key is none that can attest.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// Another key signed, or claims to.
    #[error("attestation key: expected the enrolled one, {expected}, found {found}")]
    OtherKey {
        /// The enrolled key's name.
        expected: String,
        /// The name of the evidence's key.
        found: String,
    },
    /// The signature does not hold.
    #[error("{0}")]
    Signature(#[from] SignatureError),
    /// What was signed is no quote.
    #[error("{0}")]
    Quote(#[from] QuoteError),
    /// The quote answers another question.
    #[error("nonce: expected {expected}, found {found}")]
    Nonce {
        /// What was asked, in hexadecimal.
        expected: String,
        /// What was answered, in hexadecimal.
        found: String,
    },
    /// The quote is older than one that was accepted.
    #[error(
        "quote: resets: expected {}.{} or more, found {}.{}: it was made before a reset that was already seen",
        seen.reset_count, seen.restart_count, found.reset_count, found.restart_count
    )]
    BeforeReset {
        /// The newest accepted quote's counters.
        seen: Counters,
        /// This quote's.
        found: Counters,
    },
    /// The clock went back without a reset.
    #[error("quote: clock: expected {expected} ms or more since no reset came between, found {found} ms")]
    ClockBackwards {
        /// The newest accepted quote's.
        expected: u64,
        /// This quote's.
        found: u64,
    },
    /// A bank is left out of the quote.
    #[error("quote: expected registers of the {0} bank, found none")]
    BankNotQuoted(PcrBank),
    /// A bank is quoted that nobody asked for.
    #[error("quote: expected no registers of bank {0:04x}, found some")]
    BankNotDemanded(u16),
    /// Registers are left out of the quote, or too many are in it.
    #[error("quote: {bank} registers: {}", difference(missing, extra))]
    Selection {
        /// The bank.
        bank: PcrBank,
        /// What is not quoted, though demanded.
        missing: Vec<u8>,
        /// What is quoted, though not demanded.
        extra: Vec<u8>,
    },
    /// Firmware's log cannot be read.
    #[error("{0}")]
    FirmwareLog(#[from] TcgError),
    /// User space's log cannot be read.
    #[error("{0}")]
    MeasurementLog(#[from] LogError),
    /// User space's log lacks its last record.
    #[error("measurement log: the device says that it is torn: a register was extended and not noted")]
    Torn,
    /// A measurement went to some banks only.
    #[error(
        "{log}: event {event} in PCR {pcr}: expected a {bank} digest, found none: the banks were not extended alike"
    )]
    BankNotExtended {
        /// Which log.
        log: &'static str,
        /// Its number there.
        event: usize,
        /// The register.
        pcr: PcrIndex,
        /// The bank that it lacks.
        bank: PcrBank,
    },
    /// The logs lead to a register's value other than the quoted one.
    #[error("PCR {pcr} ({bank}): expected {quoted}, which was quoted, found {replayed} by replaying the logs")]
    Replay {
        /// The bank.
        bank: PcrBank,
        /// The register.
        pcr: PcrIndex,
        /// What was quoted, in hexadecimal.
        quoted: String,
        /// What the logs lead to, in hexadecimal.
        replayed: String,
    },
    /// The logs do not lead to the quoted registers, and nobody knows which.
    #[error("registers: expected {expected}, which was quoted, found {found} by replaying the logs")]
    PcrDigest {
        /// The quote's, in hexadecimal.
        expected: String,
        /// That of the replayed values, in hexadecimal.
        found: String,
    },
    /// A record says that something was measured which was not.
    #[error("measurement log: event {event} in PCR {pcr}: it says {text:?}, which is not what was measured")]
    Relabelled {
        /// The record, counted from 0.
        event: usize,
        /// The register.
        pcr: u8,
        /// Its label.
        text: String,
    },
    /// A step of the boot is not where it should be.
    #[error("measurement log: expected {expected}, found {found}")]
    StepMissing {
        /// The step.
        expected: String,
        /// What is there instead.
        found: String,
    },
    /// The image is of no release that is known.
    #[error("image: expected the manifest of a reference release, found {found}")]
    UnknownImage {
        /// What was measured.
        found: String,
    },
    /// The image is too old.
    #[error("image {release}: rollback index: expected {floor} or more, found {found}")]
    Rollback {
        /// The release.
        release: String,
        /// The least that is accepted.
        floor: u64,
        /// The image's.
        found: u64,
    },
    /// The image lets anybody in.
    #[error("image {release}: expected a production image, found a debug image")]
    Debug {
        /// The release.
        release: String,
    },
    /// Nobody says with which command line the release may boot.
    #[error("image {release}: command lines: expected one in the release statement or the policy, found none")]
    NoCommandLine {
        /// The release.
        release: String,
    },
    /// The kernel was asked for something else.
    #[error("command line: expected one that the release or the policy names, found {found}")]
    CommandLine {
        /// What was measured.
        found: String,
    },
    /// A measurement that nobody accounts for.
    #[error("{log}: event {event} in PCR {pcr}: {what}: nothing in the policy accounts for it")]
    UnknownEvent {
        /// Which log.
        log: &'static str,
        /// Its number there.
        event: usize,
        /// The register.
        pcr: PcrIndex,
        /// Digest and label.
        what: String,
    },
    /// What started the kernel measured something else than the release's unified kernel image.
    #[error(
        "firmware log: event {event} in PCR 11: expected {expected} of {release}'s unified kernel image, found {found}"
    )]
    Uki {
        /// Its number in the log.
        event: usize,
        /// The release.
        release: String,
        /// The part of its image.
        expected: String,
        /// What was measured.
        found: String,
    },
    /// A register of firmware holds none of the pinned values.
    #[error("PCR {pcr}: expected one of the policy's values, found {found}")]
    FirmwareValue {
        /// The register.
        pcr: PcrIndex,
        /// What it holds.
        found: String,
    },
    /// No file of the release was measured where the policy wants one.
    #[error("PCR {pcr}: expected an event of a file of release {release}, found none")]
    ReleaseFile {
        /// The register.
        pcr: PcrIndex,
        /// The release.
        release: String,
    },
    /// Register 15 is demanded, and nobody said what this machine measures there.
    #[error("PCR 15: expected [identity] in the policy, since the register is one machine's own, found none")]
    IdentityUnknown,
    /// Register 15 has other events than were learnt from the machine.
    #[error("PCR 15: expected {expected}, as learnt from this machine, found {found}")]
    Identity {
        /// The event that was learnt for this place, or that there is none.
        expected: String,
        /// What the log has there.
        found: String,
    },
    /// A fault of the verifier: nothing is proven.
    #[error("internal error: the verifier itself failed")]
    Internal,
}

fn difference(missing: &[u8], extra: &[u8]) -> String {
    let list = |pcrs: &[u8]| pcrs.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    match (missing.is_empty(), extra.is_empty()) {
        (false, true) => format!("expected {} too, found them left out", list(missing)),
        (true, _) => format!("expected no others than those demanded, found {}", list(extra)),
        (false, false) => format!("expected {} and not {}, found the contrary", list(missing), list(extra)),
    }
}

impl Refusal {
    /// The reason as a word for programs. These words do not change.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Version { .. } => "version",
            Self::NonceShort { .. } => "nonce-short",
            Self::NoReference => "no-reference",
            Self::DeviceBank(_) => "device-bank",
            Self::WeakBanks(_) => "weak-banks",
            Self::Key(_) => "key",
            Self::OtherKey { .. } => "other-key",
            Self::Signature(_) => "signature",
            Self::Quote(_) => "quote",
            Self::Nonce { .. } => "nonce",
            Self::BeforeReset { .. } => "before-reset",
            Self::ClockBackwards { .. } => "clock-backwards",
            Self::BankNotQuoted(_) => "bank-not-quoted",
            Self::BankNotDemanded(_) => "bank-not-demanded",
            Self::Selection { .. } => "selection",
            Self::FirmwareLog(_) => "firmware-log",
            Self::MeasurementLog(_) => "measurement-log",
            Self::Torn => "torn",
            Self::BankNotExtended { .. } => "bank-not-extended",
            Self::Replay { .. } | Self::PcrDigest { .. } => "replay",
            Self::Relabelled { .. } => "relabelled",
            Self::StepMissing { .. } => "step-missing",
            Self::UnknownImage { .. } => "unknown-image",
            Self::Rollback { .. } => "rollback",
            Self::Debug { .. } => "debug",
            Self::NoCommandLine { .. } => "no-command-line",
            Self::CommandLine { .. } => "command-line",
            Self::UnknownEvent { .. } => "unknown-event",
            Self::Uki { .. } => "uki",
            Self::FirmwareValue { .. } => "firmware-value",
            Self::ReleaseFile { .. } => "release-file",
            Self::IdentityUnknown => "identity-unknown",
            Self::Identity { .. } => "identity",
            Self::Internal => "internal",
        }
    }

    /// What to do about it.
    pub fn next_step(&self) -> &'static str {
        match self {
            Self::Version { .. } => "use the same version of the toolkit on both sides",
            Self::NonceShort { .. } => "ask again with a fresh nonce of 32 random bytes",
            Self::NoReference => "give the signed release statement of each image that the device may run",
            Self::DeviceBank(_) => "name the banks to demand in the policy: banks = [\"sha256\"]",
            Self::WeakBanks(_) => "activate the SHA-256 bank in the device's firmware, and enrol it again",
            Self::Key(_) => "enrol the device again: its record holds no attestation key",
            Self::OtherKey { .. } => "look for a mix-up of devices; if its TPM was cleared or replaced, enrol it again",
            Self::Signature(_) | Self::Quote(_) => "ask for a new quote; if it happens again, do not trust the device",
            Self::Nonce { .. } => "ask again: this answers another question, or was recorded earlier",
            Self::BeforeReset { .. } | Self::ClockBackwards { .. } => {
                "ask for a new quote; if the TPM was cleared, enrol the device again"
            }
            Self::BankNotQuoted(_) | Self::BankNotDemanded(_) | Self::Selection { .. } => {
                "have the device quote exactly the registers and banks that the policy demands"
            }
            Self::FirmwareLog(_) => "read the log anew from binary_bios_measurements",
            Self::MeasurementLog(_) | Self::Torn => "reboot the device: the next boot writes a new log",
            Self::BankNotExtended { .. } => "do not trust the device: what one bank does not hold was hidden from it",
            Self::Replay { .. } | Self::PcrDigest { .. } => {
                "send logs and quote of one moment; if it happens again, the logs were changed: do not trust the device"
            }
            Self::Relabelled { .. } => "do not trust the device: its log was changed",
            Self::StepMissing { .. } => {
                "look at the device's console: its boot was refused, or verify-init did not run"
            }
            Self::UnknownImage { .. } => "give the release statement of that image, or do not trust the device",
            Self::Rollback { .. } => "update the device",
            Self::Debug { .. } => "install a production image; a laboratory may set allow_debug = true in its policy",
            Self::NoCommandLine { .. } => "add the line that the device boots with to command_lines in the policy",
            Self::CommandLine { .. } => "boot with an accepted line; if this one is meant, add it to command_lines",
            Self::UnknownEvent { .. } => "look at the events by `explain`; add what is known to be good to the policy",
            Self::Uki { .. } => "boot the release's own image: kernel, initramfs or command line are others",
            Self::FirmwareValue { .. } => "if firmware was updated on purpose, learn the policy anew",
            Self::ReleaseFile { .. } => "boot the release's own kernel and initramfs",
            Self::IdentityUnknown => {
                "learn [identity] from a boot that is known to be good: `attest learn` with this policy; or leave 15 out of pcrs"
            }
            Self::Identity { .. } => {
                "if volumes or machine-id were changed on purpose, learn the policy anew; else do not trust the device: \
                 another volume was opened, or one was left out"
            }
            Self::Internal => "report this with the evidence",
        }
    }
}
