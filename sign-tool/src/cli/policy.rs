//! `iofs-sign policy`: what keys say of register values.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    str::FromStr,
};

use iofs_policy::{
    hex,
    manifest::RollbackIndex,
    pcr::{PcrBank, PcrDigest, PcrError, PcrIndex},
    pcr_signature::{MAX_SIZE, PcrSignature, PcrSignatures},
};
use iofs_sign::{
    atomic, attest, keys,
    pcr_policy::{self, PcrPolicyError, Phase, PolicySigner, Values},
    report::{ExitStatus, Failure, Output},
    sealed::bad_input,
};
use serde::Serialize;

/// Say by a key what the TPM's registers may hold
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Sign(SignArguments),
}

/// Sign what register 11 holds while the initramfs of a unified kernel image runs
///
/// A volume that was enrolled with 'enroll --pcr-policy' opens for every image that the key signs, also a later one, and
/// needs no new enrolment. The result is the file tpm2-pcr-signature.json, byte for byte as 'systemd-measure sign' writes
/// it. The same input gives the same bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out pcr.pem
  iofs-sign policy sign sealed.efi --key pcr.pem --out tpm2-pcr-signature.json
  iofs-sign policy sign next.efi --key pcr.pem --append tpm2-pcr-signature.json --out tpm2-pcr-signature.json
  iofs-sign policy sign --pcr 12:sha256=00…00 --key pcr.pem

Exit codes: 1 system, 2 usage, 3 malformed input.")]
struct SignArguments {
    /// The image, as 'iofs-sign uki' or ukify wrote it
    #[arg(value_name = "UKI", required_unless_present = "pcr", conflicts_with = "pcr")]
    image: Option<PathBuf>,
    /// The private key (RSA or P-256, PEM)
    #[arg(long, value_name = "PRIVATE")]
    key: PathBuf,
    /// The banks to sign for
    #[arg(long, value_name = "BANK", value_delimiter = ',', default_value = "sha256")]
    bank: Vec<PcrBank>,
    /// The words measured until then, with colons between them, as systemd-measure has it [default: enter-initrd]
    #[arg(long, value_name = "WORDS", conflicts_with = "pcr")]
    phase: Vec<Phase>,
    /// Sign these values instead, all of a bank together; once for each register
    #[arg(long, value_name = "INDEX:BANK=HEX", conflicts_with = "bank")]
    pcr: Vec<RegisterValue>,
    /// Sign the release's rollback index too, for volumes that end with a rollback counter: what systemd-measure writes
    /// gets one more field, which systemd passes over
    #[arg(long, value_name = "N")]
    rollback_index: Option<u64>,
    /// Keep the signatures that this file has
    #[arg(long, value_name = "FILE")]
    append: Option<PathBuf>,
    /// The file to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// `11:sha256=HEX`
#[derive(Debug, Clone, Copy)]
struct RegisterValue(PcrIndex, PcrDigest);

impl FromStr for RegisterValue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('=').and_then(|(at, value)| Some((at.split_once(':')?, value)));
        let ((index, bank), value) = parts.ok_or("expected INDEX:BANK=HEX, such as 11:sha256=00ff…")?;
        let index = index.parse().map_err(|_| format!("expected a register from 0 to 23, found {index:?}"))?;
        let index = PcrIndex::new(index).map_err(|error: PcrError| error.to_string())?;
        let value = hex::decode(value).map_err(|error| error.to_string())?;
        let bank = bank.parse().map_err(|error: PcrError| error.to_string())?;
        Ok(Self(index, PcrDigest::new(bank, &value).map_err(|error: PcrError| error.to_string())?))
    }
}

/// What was signed, for scripts.
#[derive(Debug, Serialize)]
struct Signed {
    /// The file, or null for standard output.
    out: Option<PathBuf>,
    /// `pkfp` of the key.
    key: String,
    /// What is new.
    signatures: Vec<SignedPolicy>,
}

#[derive(Debug, Serialize)]
struct SignedPolicy {
    bank: &'static str,
    pcrs: Vec<u8>,
    policy: String,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let Verb::Sign(arguments) = &arguments.verb;
    sign(arguments, output)
}

fn sign(arguments: &SignArguments, output: Output) -> Result<(), Failure> {
    if output.json && arguments.out.is_none() {
        return Err(Failure::new(ExitStatus::Usage, "--json: the signatures are JSON themselves on standard output")
            .next("leave --json out, or give --out FILE"));
    }
    let key = PolicySigner::read(&arguments.key)?;
    if keys::is_exposed(&arguments.key) && !output.quiet {
        output.warn(format_args!("{}: others can read this private key", arguments.key.display()));
    }
    let rollback = arguments.rollback_index.map(RollbackIndex);
    let new = match &arguments.image {
        Some(path) => of_image(arguments, path, &key, output)?,
        None => pcr_policy::sign_values(&key, &values(&arguments.pcr)?, rollback)?,
    };
    let signed = describe(arguments, &key, &new);
    let mut all = arguments.append.as_deref().map(before).transpose()?.unwrap_or_default();
    all.merge(new);
    let json = all.to_json();
    match &arguments.out {
        Some(out) => {
            atomic::write(out, 0o644, &json)?;
            output.result(&signed, || text(&signed));
        }
        None => output.result(&(), || String::from_utf8_lossy(&json).into_owned()),
    }
    Ok(())
}

fn of_image(
    arguments: &SignArguments,
    path: &Path,
    key: &PolicySigner,
    output: Output,
) -> Result<PcrSignatures, Failure> {
    let image = atomic::read(path)?;
    let mut phases: BTreeSet<Phase> = arguments.phase.iter().cloned().collect();
    if phases.is_empty() {
        phases.insert(Phase::initramfs());
    }
    for phase in phases.iter().filter(|phase| phase.is_exposed()) {
        output.warn(format_args!(
            "phase {phase}: others than the initramfs can unseal then, such as whoever got into the running system; sign \
             enter-initrd alone for disks that the initramfs opens"
        ));
    }
    if let Err(PcrPolicyError::OtherKey { found, .. }) = pcr_policy::check_public_key(&image, key.public()) {
        output.warn(format_args!(
            "{}: .pcrpkey is not the public half of {}: {found}",
            path.display(),
            arguments.key.display()
        ));
    }
    let banks = arguments.bank.iter().copied().collect();
    let rollback = arguments.rollback_index.map(RollbackIndex);
    pcr_policy::sign_image(&image, key, &banks, &phases, rollback).map_err(|error| of(path, error))
}

fn of(path: &Path, error: PcrPolicyError) -> Failure {
    let mut failure = Failure::from(error);
    failure.fact = format!("{}: {}", path.display(), failure.fact);
    failure
}

fn values(given: &[RegisterValue]) -> Result<Values, Failure> {
    let mut values = Values::new();
    for RegisterValue(index, value) in given {
        if values.insert((value.bank(), *index), *value).is_some_and(|before| before != *value) {
            let fact = format!("--pcr {index}:{}: expected one value, found two", value.bank());
            return Err(Failure::new(ExitStatus::Usage, fact).next("sign twice, the second time with --append"));
        }
    }
    Ok(values)
}

fn before(path: &Path) -> Result<PcrSignatures, Failure> {
    let bytes = attest::read(path, MAX_SIZE)?;
    PcrSignatures::parse(&bytes).map_err(|error| bad_input(path, &error))
}

fn describe(arguments: &SignArguments, key: &PolicySigner, new: &PcrSignatures) -> Signed {
    let each = new.iter().map(|(bank, signature): (PcrBank, &PcrSignature)| SignedPolicy {
        bank: bank.name(),
        pcrs: signature.registers.iter().map(|index| index.get()).collect(),
        policy: signature.policy.to_string(),
    });
    Signed { out: arguments.out.clone(), key: key.public().fingerprint().to_string(), signatures: each.collect() }
}

fn text(signed: &Signed) -> String {
    let mut text = format!("signed by {}\n", signed.key);
    for SignedPolicy { bank, pcrs, policy } in &signed.signatures {
        let pcrs: Vec<String> = pcrs.iter().map(u8::to_string).collect();
        text += &format!("  {bank} registers {}: policy {policy}\n", pcrs.join(", "));
    }
    text
}
