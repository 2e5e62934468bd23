//! `iofs-sign attest`.

use clap::{Args, Subcommand};
use iofs_sign::{
    attest,
    report::{Failure, Output},
};
use serde::Serialize;

use super::{attest_enroll as enroll, attest_explain as explain, attest_verify as verify};
#[cfg(feature = "tpm")]
use super::{attest_quote as quote, attest_tpm};

/// Prove to another machine what a device booted, and check such proofs
///
/// On the device: 'enroll request', 'enroll activate', 'quote'. On the verifier, which needs no TPM: all else.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Enroll(enroll::Arguments),
    Nonce(NonceArguments),
    #[cfg(feature = "tpm")]
    Quote(quote::Arguments),
    Verify(verify::Arguments),
    Explain(explain::ExplainArguments),
    Learn(explain::LearnArguments),
    #[cfg(feature = "tpm")]
    Lockout(attest_tpm::LockoutArguments),
}

/// Make a nonce: 32 random bytes in hexadecimal
///
/// A quote over a nonce was made after the nonce was. Send each to one device, and accept it once.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  iofs-sign attest nonce > nonce")]
struct NonceArguments {}

#[derive(Debug, Serialize)]
struct Nonce {
    nonce: String,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    match &arguments.verb {
        Verb::Enroll(arguments) => enroll::run(arguments, output),
        Verb::Nonce(NonceArguments {}) => {
            let made = Nonce { nonce: attest::new_nonce()? };
            output.result(&made, || made.nonce.clone());
            Ok(())
        }
        #[cfg(feature = "tpm")]
        Verb::Quote(arguments) => quote::run(arguments, output),
        Verb::Verify(arguments) => verify::run(arguments, output),
        Verb::Explain(arguments) => explain::explain(arguments, output),
        Verb::Learn(arguments) => explain::learn(arguments, output),
        #[cfg(feature = "tpm")]
        Verb::Lockout(arguments) => attest_tpm::lockout(arguments, output),
    }
}
