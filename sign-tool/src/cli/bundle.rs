//! `iofs-sign bundle`.

use std::{num::NonZeroUsize, path::PathBuf};

use iofs_sign::{
    report::{Failure, Output},
    sealed::SealedDirectory,
    slots::bundle,
};

/// Put a sealed directory into one file, for 'iofs-sign update'
///
/// It is an uncompressed tar with the directory's files, written in one way only: the same directory gives the same bytes. The
/// directory is checked first, as 'iofs-sign verify' does, but by the keys of its own trust policy: it says that the release is
/// complete, not whose it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  iofs-sign bundle sealed --out gateway-7.iofs

Exit codes: 1 system, 2 usage, 3 malformed or unsigned, 4 something does not verify.")]
pub(crate) struct Arguments {
    /// The directory that 'iofs-sign seal' wrote
    directory: PathBuf,
    /// The file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The most threads to use [default: one per processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let directory = SealedDirectory::new(&arguments.directory);
    let report = bundle::write(&directory, &arguments.out, super::threads(arguments.threads), output)?;
    output.result(&report, || {
        format!("bundle: {} ({} bytes)\nfiles:  {}\n", report.path.display(), report.size, report.files.join(", "))
    });
    Ok(())
}
