//! `iofs-sign keygen`.

use std::path::PathBuf;

use iofs_sign::{
    keys::{self, PrivateKey},
    report::{Failure, Output},
};

/// Make a signing key pair
///
/// Writes NAME.pem (private, PKCS#8, readable by you alone) and NAME.pub.pem (public, SubjectPublicKeyInfo), as
/// 'openssl genpkey -algorithm ed25519' and 'openssl pkey -pubout' do. Nothing is overwritten.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  iofs-sign keygen ~/keys/release-2026\n\n\
    Keep the private half off the devices: only the public half is sealed into them.")]
pub(crate) struct Arguments {
    /// Where to write, without the endings
    name: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let files = keys::write_pair(&arguments.name, &PrivateKey::generate()?)?;
    output.result(&files, || {
        format!(
            "private key: {}\npublic key:  {}\nkey id:      {}",
            files.private.display(),
            files.public.display(),
            files.keyid
        )
    });
    Ok(())
}
