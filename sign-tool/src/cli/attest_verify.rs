//! `iofs-sign attest verify`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter},
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use iofs_attest::{
    batch::{self, Config, Outcome, Verdict},
    enrolment::{Device, MAX_SIZE},
    evidence::{self, Evidence},
    policy_file::{self, Policy},
    verify::{Attested, Reference, Verification, verify},
};
use iofs_sign::{
    atomic,
    attest::{self, references},
    report::{ExitStatus, Failure, Output},
    sealed::bad_input,
};
use rustix::fs::{FlockOperation, flock};

/// On the verifier: decide whether a quote proves that a device runs one of your releases
///
/// Exit code 0 says that it does. Whatever is not proven is refused, with exit code 4, the reason and the next step. Send
/// each nonce once: a nonce that is accepted twice lets an old quote pass as a new one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign attest verify --evidence evidence.json --device gate-7.json --nonce @nonce \\
      --release sealed --key release.pub.pem --policy policy.toml --update
  collect | iofs-sign attest verify --jsonl - --release sealed --key release.pub.pem")]
pub(crate) struct Arguments {
    /// What the device sent, or - for standard input
    #[arg(long, value_name = "FILE", required_unless_present = "jsonl")]
    evidence: Option<PathBuf>,
    /// The device's record
    #[arg(long, value_name = "FILE", required_unless_present = "jsonl")]
    device: Option<PathBuf>,
    /// What the device was sent: hexadecimal, or @FILE
    #[arg(long, value_name = "NONCE", required_unless_present = "jsonl")]
    nonce: Option<String>,
    #[command(flatten)]
    expected: ExpectedArguments,
    /// Note in the device's record what was seen, so that no older quote passes any more
    #[arg(long)]
    update: bool,
    /// Many at once: a file, or - for standard input, with {"device", "nonce", "evidence"} on each line
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = "-",
        conflicts_with_all = ["evidence", "device", "nonce", "update"]
    )]
    jsonl: Option<PathBuf>,
    /// The most threads to use for --jsonl [default: one per processor]
    #[arg(long, value_name = "N", requires = "jsonl")]
    threads: Option<NonZeroUsize>,
}

/// What evidence is held against.
#[derive(Debug, clap::Args)]
pub(super) struct ExpectedArguments {
    /// A release that the device may run: its statement, or the directory that 'iofs-sign seal' wrote
    #[arg(long, value_name = "RELEASE", required = true)]
    release: Vec<PathBuf>,
    /// A public key that must have signed the releases (SubjectPublicKeyInfo PEM)
    #[arg(long, value_name = "PUBLIC", required = true)]
    key: Vec<PathBuf>,
    /// How many of the keys must have signed
    #[arg(long, value_name = "N", default_value_t = 1)]
    threshold: u8,
    /// What is demanded besides (TOML) [default: nothing of firmware]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

impl ExpectedArguments {
    pub(super) fn read(&self, output: Output) -> Result<(Vec<Reference>, Policy), Failure> {
        let keys = references::trusted_keys(&self.key, self.threshold)?;
        for key in keys.keys() {
            super::warn_example(key.id(), output);
        }
        Ok((references::references(&self.release, &keys)?, policy(self.policy.as_deref())?))
    }
}

/// Reads a policy, or takes the default one.
pub(super) fn policy(path: Option<&Path>) -> Result<Policy, Failure> {
    let Some(path) = path else { return Ok(Policy::default()) };
    let bytes = attest::read(path, policy_file::MAX_SIZE)?;
    Policy::parse(&bytes).map_err(|error| bad_input(path, &error))
}

/// Reads evidence.
pub(super) fn evidence(path: &Path) -> Result<Evidence, Failure> {
    let bytes = attest::read(path, evidence::MAX_SIZE)?;
    Evidence::from_json(&bytes).map_err(|error| bad_input(path, &error))
}

/// Reads a device's record.
pub(super) fn device(path: &Path) -> Result<Device, Failure> {
    attest::read_json(path, "a device's record", MAX_SIZE)
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let (references, policy) = arguments.expected.read(output)?;
    match (&arguments.jsonl, &arguments.evidence, &arguments.device, &arguments.nonce) {
        (Some(lines), ..) => many(lines, &Config { references, policy }, super::threads(arguments.threads)),
        (None, Some(evidence), Some(device), Some(nonce)) => {
            let case = Case { evidence, device, nonce, update: arguments.update };
            case.run(&references, &policy, output)
        }
        // clap demands them.
        _ => Err(Failure::new(ExitStatus::Usage, "expected --evidence, --device and --nonce, or --jsonl")),
    }
}

/// One device's evidence.
struct Case<'a> {
    evidence: &'a Path,
    device: &'a Path,
    nonce: &'a str,
    update: bool,
}

impl Case<'_> {
    fn run(&self, references: &[Reference], policy: &Policy, output: Output) -> Result<(), Failure> {
        let evidence = evidence(self.evidence)?;
        let nonce = attest::nonce(self.nonce)?;
        let _lock = self.update.then(|| lock(self.device)).transpose()?;
        let device = device(self.device)?;
        let request = Verification { device: &device, nonce: &nonce, references, policy };
        let result = verify(&request, &evidence);
        // Noted before it is told: nobody acts on a verdict that the record does not know.
        if let (Ok(attested), true) = (&result, self.update) {
            let seen = Device { last_seen: Some(attested.counters()), ..device.clone() };
            atomic::write(self.device, 0o644, &attest::to_json(&seen))?;
        }
        let outcome = Outcome::from(result);
        let verdict = Verdict { line: 1, device: Some(device.name), outcome };
        tell(&verdict, output)
    }
}

/// Keeps another verifier from noting something older meanwhile. The file itself is replaced: its folder is locked.
fn lock(path: &Path) -> Result<File, Failure> {
    let folder = atomic::parent(path);
    let lock = || {
        let file = File::open(folder)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    };
    lock().map_err(|error: io::Error| Failure::io(format_args!("lock {}", folder.display()), &error))
}

fn tell(verdict: &Verdict, output: Output) -> Result<(), Failure> {
    match &verdict.outcome {
        Outcome::Attested { attested } => {
            output.result(verdict, || describe(attested));
            Ok(())
        }
        Outcome::Refused { reason, message, next } => {
            if output.json {
                output.result(verdict, String::new);
            }
            Err(Failure::new(ExitStatus::NotVerified, format!("refused ({reason}): {message}")).next(*next))
        }
    }
}

fn describe(attested: &Attested) -> String {
    let image = attested.image();
    let mut text = format!(
        "attested:     {}\nimage:        {} {} ({})\nmanifest:     {}\ncommand line: {}\n",
        attested.device(),
        image.id,
        image.version,
        image.role,
        attested.manifest_digest(),
        attested.command_line(),
    );
    if !attested.phases().is_empty() {
        text += &format!("phases:       {}\n", attested.phases().join(", "));
    }
    let ignored = attested.ignored_pcrs();
    if !ignored.is_empty() {
        let list = ignored.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        text += &format!("unproven:     what firmware measured into {list}\n");
    }
    for note in attested.notes() {
        text += &format!("note:         {note}\n");
    }
    text
}

/// Verdicts line by line. Refusals are results: the exit code says that all lines have one.
fn many(lines: &Path, config: &Config, threads: NonZeroUsize) -> Result<(), Failure> {
    let reader: Box<dyn BufRead + Send> = if lines == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(lines).map_err(|error| Failure::io(format_args!("open {}", lines.display()), &error))?;
        Box::new(BufReader::new(file))
    };
    let writer = BufWriter::new(io::stdout());
    match batch::verify_jsonl(reader, writer, config, threads) {
        // A reader that has seen enough, such as `head`, is no error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io(format_args!("verify the lines of {}", lines.display()), &error))
        }
        _ => Ok(()),
    }
}
