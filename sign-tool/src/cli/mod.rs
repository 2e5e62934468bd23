//! The command line: one module per verb, each an arguments type and a `run`.

mod initramfs;

use std::process::ExitCode;

use clap::Parser;
use iofs_sign::report::{Failure, Output};

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
    Initramfs(initramfs::Arguments),
}

/// Parses the command line, runs the verb and reports.
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output { json: arguments.json, quiet: arguments.quiet };
    match run(&arguments.verb, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, output);
            ExitCode::from(failure.status as u8)
        }
    }
}

fn run(verb: &Verb, output: Output) -> Result<(), Failure> {
    match verb {
        Verb::Initramfs(arguments) => initramfs::run(arguments, output),
    }
}

fn report(failure: &Failure, output: Output) {
    if output.json {
        eprintln!("{}", serde_json::json!({ "error": failure }));
    } else {
        eprintln!("{failure}");
    }
}
