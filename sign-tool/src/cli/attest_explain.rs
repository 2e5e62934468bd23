//! `iofs-sign attest explain` and `iofs-sign attest learn`.

use std::path::{Path, PathBuf};

use iofs_attest::{
    enrolment::{Device, ENROLMENT_VERSION},
    evidence::Evidence,
    explain::explain as explanation,
    learn as learning,
    verify::Verification,
};
use iofs_sign::{
    attest::{self, references},
    report::{ExitStatus, Failure, Output},
};
use serde::Serialize;

use super::attest_verify::{ExpectedArguments, device, evidence, policy};

/// Show what a device measured, event by event, beside what its release predicts
///
/// Nothing is verified here: it helps to find out why 'attest verify' refuses, or what to put into a policy. With releases it
/// names the first event that differs from them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign attest explain --evidence evidence.json
  iofs-sign attest explain --evidence evidence.json --release sealed --key release.pub.pem")]
pub(crate) struct ExplainArguments {
    /// What the device sent, or - for standard input
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
    /// The device's record, for the banks that it must quote
    #[arg(long, value_name = "FILE")]
    device: Option<PathBuf>,
    /// A release that the device may run: its statement, or the directory that 'iofs-sign seal' wrote
    #[arg(long, value_name = "RELEASE", requires = "key")]
    release: Vec<PathBuf>,
    /// A public key that must have signed the releases (SubjectPublicKeyInfo PEM)
    #[arg(long, value_name = "PUBLIC")]
    key: Vec<PathBuf>,
    /// How many of the keys must have signed
    #[arg(long, value_name = "N", default_value_t = 1)]
    threshold: u8,
    /// What is demanded besides (TOML)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

pub(crate) fn explain(arguments: &ExplainArguments, output: Output) -> Result<(), Failure> {
    let evidence = evidence(&arguments.evidence)?;
    let device = match &arguments.device {
        Some(path) => device(path)?,
        None => unknown(&evidence),
    };
    let references = if arguments.release.is_empty() {
        Vec::new()
    } else {
        let keys = references::trusted_keys(&arguments.key, arguments.threshold)?;
        references::references(&arguments.release, &keys)?
    };
    let policy = policy(arguments.policy.as_deref())?;
    let request = Verification { device: &device, nonce: &[], references: &references, policy: &policy };
    let explained = explanation(&request, &evidence);
    output.result(&explained, || explained.to_string());
    Ok(())
}

/// A stand-in for a device whose record is not at hand: it has the banks that it says it has.
fn unknown(evidence: &Evidence) -> Device {
    Device {
        enrolment_version: ENROLMENT_VERSION,
        name: "unknown".to_owned(),
        ak_public: evidence.ak_public.clone(),
        ek_public: Default::default(),
        ek_root: None,
        banks: evidence.pcrs.keys().cloned().collect(),
        last_seen: None,
    }
}

/// Write a policy that pins what a good device's firmware measured
///
/// The evidence must prove that the device runs one of the releases, as for 'attest verify'; what firmware measured is
/// believed. Read the policy before you use it: it accepts what that one device did.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  iofs-sign attest learn --evidence evidence.json --device gate-7.json --nonce @nonce \\
      --release sealed --key release.pub.pem --out policy.toml")]
pub(crate) struct LearnArguments {
    /// What the device sent, or - for standard input
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
    /// The device's record
    #[arg(long, value_name = "FILE")]
    device: PathBuf,
    /// What the device was sent: hexadecimal, or @FILE
    #[arg(long, value_name = "NONCE")]
    nonce: String,
    #[command(flatten)]
    expected: ExpectedArguments,
    /// The policy [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The result, where the policy goes to a file.
#[derive(Debug, Serialize)]
struct Learnt<'a> {
    out: &'a Path,
}

pub(crate) fn learn(arguments: &LearnArguments, output: Output) -> Result<(), Failure> {
    let (references, policy) = arguments.expected.read(output)?;
    let evidence = evidence(&arguments.evidence)?;
    let (nonce, device) = (attest::nonce(&arguments.nonce)?, device(&arguments.device)?);
    let request = Verification { device: &device, nonce: &nonce, references: &references, policy: &policy };
    let learnt = learning::learn(&request, &evidence).map_err(|refusal| {
        let fact = format!("refused ({}): {refusal}", refusal.reason());
        Failure::new(ExitStatus::NotVerified, fact).next(refusal.next_step())
    })?;
    attest::write(arguments.out.as_deref(), 0o644, learnt.as_bytes())?;
    if let Some(out) = arguments.out.as_deref().filter(|path| *path != Path::new("-")) {
        output.result(&Learnt { out }, || {
            format!("written: {}\n next: read it, then give it to 'attest verify' as --policy", out.display())
        });
    }
    Ok(())
}
