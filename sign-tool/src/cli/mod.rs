//! The command line: one module per verb, each an arguments type and a `run`.

mod attest;
mod attest_enroll;
mod attest_explain;
#[cfg(feature = "tpm")]
mod attest_quote;
#[cfg(feature = "tpm")]
mod attest_tpm;
mod attest_verify;
mod bundle;
mod disk;
#[cfg(feature = "enroll")]
mod enroll;
#[cfg(feature = "enroll")]
mod enroll_plan;
#[cfg(feature = "enroll")]
mod enroll_report;
mod generate;
mod initramfs;
mod inspect;
mod install;
mod keygen;
#[cfg(feature = "enroll")]
mod mark_good;
mod policy;
mod predict;
#[cfg(feature = "enroll")]
mod prompt;
mod seal;
mod secure_boot;
mod sign;
mod status;
mod uki;
mod update;
mod verify;
mod verity;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use iofs_policy::trust::KeyId;
use iofs_sign::{
    attest as inputs,
    initramfs::cache::SegmentCache,
    report::{ExitStatus, Failure, Output},
    sealed::bad_input,
};
use iofs_tpm::policy_key::{MAX_PEM, PolicyKey};

/// Seal a root tree into a signed, verified image, and check what was sealed.
#[derive(Debug, Parser)]
#[command(name = "iofs-sign", version, propagate_version = true)]
struct Arguments {
    /// Print the result as JSON on standard output, and errors as JSON on standard error
    #[arg(long, global = true)]
    json: bool,
    /// Print no progress
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Keygen(keygen::Arguments),
    Seal(Box<seal::Arguments>),
    Sign(sign::SignArguments),
    Attach(sign::AttachArguments),
    Verify(verify::Arguments),
    Inspect(inspect::Arguments),
    Disk(disk::Arguments),
    Bundle(bundle::Arguments),
    Update(Box<update::Arguments>),
    Uki(Box<uki::Arguments>),
    SignEfi(secure_boot::Arguments),
    Initramfs(initramfs::Arguments),
    Policy(Box<policy::Arguments>),
    Predict(predict::Arguments),
    Attest(Box<attest::Arguments>),
    #[cfg(feature = "enroll")]
    Enroll(Box<enroll::Arguments>),
    #[cfg(feature = "enroll")]
    MarkGood(mark_good::Arguments),
    Install(Box<install::InstallArguments>),
    Uninstall(install::UninstallArguments),
    Status(status::Arguments),
    Verity(verity::Arguments),
    #[command(hide = true)]
    Generate(generate::Arguments),
}

/// Parses the command line, runs the verb and reports.
pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return not_parsed(&error),
    };
    let output = Output { json: arguments.json, quiet: arguments.quiet };
    match run(&arguments.verb, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, output);
            ExitCode::from(failure.status as u8)
        }
    }
}

/// Help, or a command line that is none. Scripts that ask for JSON get it here too.
fn not_parsed(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == "--json");
    if !(json && error.use_stderr()) {
        let _ = error.print();
        return if error.use_stderr() { ExitCode::from(ExitStatus::Usage as u8) } else { ExitCode::SUCCESS };
    }
    let text = error.render().to_string();
    let fact = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect::<Vec<_>>().join(" ");
    let fact = fact.strip_prefix("error: ").unwrap_or(&fact);
    let failure = Failure::new(ExitStatus::Usage, fact).next("see 'iofs-sign --help'");
    report(&failure, Output { json, quiet: false });
    ExitCode::from(failure.status as u8)
}

fn run(verb: &Verb, output: Output) -> Result<(), Failure> {
    match verb {
        Verb::Keygen(arguments) => keygen::run(arguments, output),
        Verb::Seal(arguments) => seal::run(arguments, output),
        Verb::Sign(arguments) => sign::sign(arguments, output),
        Verb::Attach(arguments) => sign::attach(arguments, output),
        Verb::Verify(arguments) => verify::run(arguments, output),
        Verb::Inspect(arguments) => inspect::run(arguments, output),
        Verb::Disk(arguments) => disk::run(arguments, output),
        Verb::Bundle(arguments) => bundle::run(arguments, output),
        Verb::Update(arguments) => update::run(arguments, output),
        Verb::Uki(arguments) => uki::run(arguments, output),
        Verb::SignEfi(arguments) => secure_boot::run(arguments, output),
        Verb::Initramfs(arguments) => initramfs::run(arguments, output),
        Verb::Policy(arguments) => policy::run(arguments, output),
        Verb::Predict(arguments) => predict::run(arguments, output),
        Verb::Attest(arguments) => attest::run(arguments, output),
        #[cfg(feature = "enroll")]
        Verb::Enroll(arguments) => enroll::run(arguments, output),
        #[cfg(feature = "enroll")]
        Verb::MarkGood(arguments) => mark_good::run(arguments, output),
        Verb::Install(arguments) => install::install(arguments, output),
        Verb::Uninstall(arguments) => install::uninstall(arguments, output),
        Verb::Status(arguments) => status::run(arguments, output),
        Verb::Verity(arguments) => verity::run(arguments, output),
        Verb::Generate(arguments) => generate::run(arguments, output),
    }
}

fn report(failure: &Failure, output: Output) {
    if output.json {
        eprintln!("{}", serde_json::json!({ "error": failure }));
    } else {
        eprintln!("{failure}");
    }
}

/// Where mini-initramfs are kept compressed.
#[derive(Debug, clap::Args)]
struct CacheArguments {
    /// Keep what is compressed for a kernel here, for its next image; all of it may be removed at any time [default:
    /// iofs-sign in $XDG_CACHE_HOME, or in ~/.cache]
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    cache: Option<PathBuf>,
    /// Compress the mini-initramfs anew, and keep nothing
    #[arg(long)]
    no_cache: bool,
}

impl CacheArguments {
    fn to_cache(&self) -> SegmentCache {
        match &self.cache {
            Some(place) => SegmentCache::at(place),
            None if self.no_cache => SegmentCache::none(),
            None => SegmentCache::of_user(),
        }
    }
}

/// The number of threads to use: as asked, else one per processor.
fn threads(asked: Option<NonZeroUsize>) -> NonZeroUsize {
    asked.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
}

/// Reads a public key that a TPM takes, and its PEM.
fn read_policy_key(path: &Path) -> Result<(Vec<u8>, PolicyKey), Failure> {
    let pem = inputs::read(path, MAX_PEM)?;
    let key = PolicyKey::from_pem(&pem).map_err(|error| bad_input(path, &error))?;
    Ok((pem, key))
}

/// Says aloud that everybody has the private half of an example key.
fn warn_example(key: KeyId, output: Output) {
    if key.is_example() {
        output.warn(format_args!(
            "key {key} is one of the published example keys: anybody can sign with it. Use it for tests alone"
        ));
    }
}
