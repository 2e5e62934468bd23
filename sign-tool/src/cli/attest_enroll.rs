//! `iofs-sign attest enroll`.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand};
use iofs_attest::{
    certificate::{self, Certificate, CertificateError},
    enrolment::{self, Answer, Device, MAX_SIZE, Pending, Request, Trust},
};
use iofs_sign::{
    atomic::{self, AtomicFile},
    attest,
    report::{ExitStatus, Failure, Output},
    sealed::bad_input,
};
use serde::Serialize;

#[cfg(feature = "tpm")]
use super::attest_tpm::{Algorithm, HandleArguments, TpmArguments};

/// Make a device known to a verifier, so that its quotes count
///
/// Four steps, by four files: 'request' on the device, 'challenge' on the verifier, 'activate' on the device, 'accept' on
/// the verifier. They prove that the attestation key is in the TPM whose endorsement key its maker certified.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, Subcommand)]
enum Step {
    #[cfg(feature = "tpm")]
    Request(RequestArguments),
    Challenge(ChallengeArguments),
    #[cfg(feature = "tpm")]
    Activate(ActivateArguments),
    Accept(AcceptArguments),
}

/// On the device: make its attestation key, and ask to be enrolled
///
/// The key is made once and stays in the TPM, at the same handle; running this again finds it. Whatever else is at that
/// handle is left alone.
#[cfg(feature = "tpm")]
#[derive(Debug, Args)]
#[command(after_help = "Example:
  iofs-sign attest enroll request --out request.json")]
struct RequestArguments {
    /// The request [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The endorsement key [default: the one that has a certificate, else ecc]
    #[arg(long, value_name = "ALGORITHM")]
    ek: Option<Algorithm>,
    /// The attestation key
    #[arg(long, value_name = "ALGORITHM", default_value = "ecc")]
    ak: Algorithm,
    #[command(flatten)]
    handle: HandleArguments,
    #[command(flatten)]
    tpm: TpmArguments,
}

/// On the verifier: check a request, and encrypt a secret that only the TPM of both keys can read
///
/// The endorsement key needs a certificate that leads to one of the roots. What the answer is to be compared with stays in
/// the state file, readable by you alone, until 'accept' removes it.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  iofs-sign attest enroll challenge request.json --name gate-7 --state gate-7.state \\
      --ek-root maker-root.pem --ek-intermediate maker-intermediate.der --out challenge.json")]
struct ChallengeArguments {
    /// The device's request, or - for standard input
    request: PathBuf,
    /// What the device is to be called
    #[arg(long)]
    name: String,
    /// Where to keep what 'accept' needs
    #[arg(long, value_name = "FILE")]
    state: PathBuf,
    /// A certificate of a maker of TPMs that is trusted (PEM or DER)
    #[arg(long, value_name = "FILE")]
    ek_root: Vec<PathBuf>,
    /// Certificates between it and the endorsement key's (PEM or DER)
    #[arg(long, value_name = "FILE")]
    ek_intermediate: Vec<PathBuf>,
    /// The time at which all certificates must be valid, as 2026-11-22T05:31:44Z [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Accept an endorsement key that nobody vouches for: it may be a program's that says it is a TPM
    #[arg(long)]
    allow_unverified_ek: bool,
    /// The challenge [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// On the device: read the secret of the challenge
#[cfg(feature = "tpm")]
#[derive(Debug, Args)]
#[command(after_help = "Example:
  iofs-sign attest enroll activate challenge.json --out answer.json")]
struct ActivateArguments {
    /// The verifier's challenge, or - for standard input
    challenge: PathBuf,
    /// The answer, readable by you alone [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    handle: HandleArguments,
    #[command(flatten)]
    tpm: TpmArguments,
}

/// On the verifier: enrol the device if it could read the secret
///
/// Writes the device's record and removes the state. A record of another device is never overwritten.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  iofs-sign attest enroll accept answer.json --state gate-7.state --out gate-7.json")]
struct AcceptArguments {
    /// The device's answer, or - for standard input
    answer: PathBuf,
    /// What 'challenge' kept
    #[arg(long, value_name = "FILE")]
    state: PathBuf,
    /// The device's record
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// A document that was written to a file.
#[derive(Debug, Serialize)]
struct Written<'a> {
    out: &'a Path,
}

/// The result of `accept`.
#[derive(Debug, Serialize)]
struct Accepted<'a> {
    out: &'a Path,
    name: &'a str,
    ek_root: Option<&'a str>,
    banks: &'a [String],
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    match &arguments.step {
        #[cfg(feature = "tpm")]
        Step::Request(arguments) => request(arguments, output),
        Step::Challenge(arguments) => challenge(arguments, output),
        #[cfg(feature = "tpm")]
        Step::Activate(arguments) => activate(arguments, output),
        Step::Accept(arguments) => accept(arguments, output),
    }
}

#[cfg(feature = "tpm")]
fn request(arguments: &RequestArguments, output: Output) -> Result<(), Failure> {
    let mut host = arguments.tpm.open()?;
    let (ek, ak) = (arguments.ek.map(Into::into), arguments.ak.into());
    let request = attest::tpm::request(&mut host, ek, ak, arguments.handle.ak_handle.0)?;
    if request.ek_certificate.is_none() {
        output.warn(
            "the TPM has no certificate of this endorsement key: the verifier has to decide whether it believes it",
        );
    }
    attest::write(arguments.out.as_deref(), 0o644, &attest::to_json(&request))?;
    written(arguments.out.as_deref(), "send it to the verifier: iofs-sign attest enroll challenge", output);
    Ok(())
}

#[cfg(feature = "tpm")]
fn activate(arguments: &ActivateArguments, output: Output) -> Result<(), Failure> {
    let challenge = attest::read_json(&arguments.challenge, "a challenge", MAX_SIZE)?;
    let mut host = arguments.tpm.open()?;
    let answer = attest::tpm::activate(&mut host, &challenge, arguments.handle.ak_handle.0)?;
    attest::write(arguments.out.as_deref(), 0o600, &attest::to_json(&answer))?;
    written(arguments.out.as_deref(), "send it to the verifier: iofs-sign attest enroll accept", output);
    Ok(())
}

fn challenge(arguments: &ChallengeArguments, output: Output) -> Result<(), Failure> {
    check_free(&arguments.state)?;
    let request: Request = attest::read_json(&arguments.request, "a request", MAX_SIZE)?;
    let (roots, intermediates) = (certificates(&arguments.ek_root)?, certificates(&arguments.ek_intermediate)?);
    let at = time(arguments.at.as_deref())?;
    // A certificate that can be checked is checked, whatever else is allowed.
    let unverified = arguments.allow_unverified_ek && (request.ek_certificate.is_none() || roots.is_empty());
    if roots.is_empty() && !unverified {
        return Err(Failure::new(
            ExitStatus::Usage,
            "--ek-root: expected the certificate of a trusted maker, found none",
        )
        .next("fetch the root certificate from the TPM's maker; --allow-unverified-ek does without, and says so"));
    }
    let trust = if unverified {
        output.warn("nobody vouches for this endorsement key: it may be a program's that says it is a TPM");
        Trust::Unverified
    } else {
        Trust::Roots { roots: &roots, intermediates: &intermediates, at }
    };
    let (challenge, pending) = enrolment::challenge(&request, &arguments.name, trust)?;
    // The state last: whoever is interrupted before runs this again.
    attest::write(arguments.out.as_deref(), 0o644, &attest::to_json(&challenge))?;
    write_new(&arguments.state, &attest::to_json(&pending))?;
    written(arguments.out.as_deref(), "send it to the device: iofs-sign attest enroll activate", output);
    Ok(())
}

/// The state of another challenge that waits for its answer is not overwritten.
fn check_free(path: &Path) -> Result<(), Failure> {
    if path.symlink_metadata().is_ok() {
        return Err(Failure::new(ExitStatus::Usage, format!("{} exists already", path.display()))
            .next("choose another --state; remove this one if its challenge will not be answered any more"));
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut file = AtomicFile::create(path, 0o600)?;
    std::io::Write::write_all(file.file(), bytes)
        .map_err(|error| Failure::io(format_args!("write {}", path.display()), &error))?;
    file.create_new()
}

fn accept(arguments: &AcceptArguments, output: Output) -> Result<(), Failure> {
    let out = arguments.out.as_path();
    let pending: Pending = attest::read_json(&arguments.state, "what 'challenge' kept", MAX_SIZE)?;
    let answer: Answer = attest::read_json(&arguments.answer, "an answer", MAX_SIZE)?;
    let device = enrolment::accept(&pending, &answer)?;
    let device = keep(out, device)?;
    // Last: whoever is interrupted before runs this again.
    fs::remove_file(&arguments.state)
        .map_err(|error| Failure::io(format_args!("remove {}", arguments.state.display()), &error))?;
    let Device { name, ek_root, banks, .. } = &device;
    let accepted = Accepted { out, name, ek_root: ek_root.as_deref(), banks };
    output.result(&accepted, || {
        let root = ek_root.as_deref().unwrap_or("nobody");
        let banks = banks.join(", ");
        format!("enrolled:   {name}\nrecord:     {}\nvouched by: {root}\nbanks:      {banks}", out.display())
    });
    Ok(())
}

/// Writes a device's record. One of the same keys stays as it is: it may know a newer quote.
fn keep(path: &Path, device: Device) -> Result<Device, Failure> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        _ => {
            let present: Device = attest::read_json(path, "a device's record", MAX_SIZE)?;
            if (&present.ak_public, &present.ek_public) == (&device.ak_public, &device.ek_public) {
                return Ok(present);
            }
            let fact = format!("{}: it is the record of a device with other keys: {:?}", path.display(), present.name);
            return Err(Failure::new(ExitStatus::Usage, fact)
                .next("choose another --out; if the device has a new TPM, remove the old record first"));
        }
    }
    atomic::write(path, 0o644, &attest::to_json(&device))?;
    Ok(device)
}

/// Says where a document was written; standard output has the document alone.
fn written(out: Option<&Path>, next: &str, output: Output) {
    if let Some(out) = out.filter(|path| *path != Path::new("-")) {
        output.result(&Written { out }, || format!("written: {}\n next: {next}", out.display()));
    }
}

fn certificates(paths: &[PathBuf]) -> Result<Vec<Certificate>, Failure> {
    let mut all = Vec::new();
    for path in paths {
        let bytes = attest::read(path, certificate::MAX_SIZE)?;
        all.extend(Certificate::from_file(&bytes).map_err(|error| bad_input(path, &error))?);
    }
    Ok(all)
}

fn time(asked: Option<&str>) -> Result<enrolment::Time, Failure> {
    let usage = |error: CertificateError| Failure::new(ExitStatus::Usage, format!("--at: {error}"));
    match asked {
        Some(text) => certificate::parse_time(text).map_err(usage),
        None => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            certificate::time(now.as_secs()).map_err(usage)
        }
    }
}
