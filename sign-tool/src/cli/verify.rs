//! `iofs-sign verify`.

use std::{num::NonZeroUsize, path::PathBuf};

use iofs_policy::trust::TrustedKeys;
use iofs_sign::{
    check::{self, CheckReport},
    keys,
    report::{ExitStatus, Failure, Output},
    sealed::SealedDirectory,
};

/// Verify everything in a sealed directory, offline
///
/// Checks both signatures, every digest of the release statement, every data block and tree level, the superblock, and
/// that the mini-initramfs holds the same manifest and trust policy. Exit code 4 means that something does not verify.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  iofs-sign verify sealed --key release.pub.pem")]
pub(crate) struct Arguments {
    /// The directory that 'iofs-sign seal' wrote
    directory: PathBuf,
    /// A public key that must have signed (SubjectPublicKeyInfo PEM)
    #[arg(long, value_name = "PUBLIC", required = true)]
    key: Vec<PathBuf>,
    /// How many of the keys must have signed
    #[arg(long, value_name = "N", default_value_t = 1)]
    threshold: u8,
    /// The most threads to use [default: one per processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let keys = arguments.key.iter().map(|path| keys::read_public(path)).collect::<Result<Vec<_>, _>>()?;
    for key in &keys {
        super::warn_example(key.id(), output);
    }
    let keys = TrustedKeys::new(keys, arguments.threshold)
        .map_err(|error| Failure::new(ExitStatus::Usage, format!("--key: {error}")))?;
    let directory = SealedDirectory::new(&arguments.directory);
    let report = check::check(&directory, &keys, super::threads(arguments.threads), output)?;
    if output.json || report.verified {
        output.result(&report, || describe(&report));
    } else {
        eprintln!("{}", describe(&report));
    }
    report.into_result().map(drop)
}

fn describe(report: &CheckReport) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        text += &format!("NOT VERIFIED {}: {}\n", problem.artifact, problem.what);
    }
    if let (true, Some(image), Some(root_hash)) = (report.verified, &report.image, &report.root_hash) {
        text += &format!("verified:  {} {} ({})\nroot hash: {root_hash}\n", image.id, image.version, image.role);
        for signer in &report.signers {
            text += &format!("signed by: {signer}\n");
        }
        text += &format!("artifacts: {}\n", report.artifacts.join(", "));
    }
    text
}
