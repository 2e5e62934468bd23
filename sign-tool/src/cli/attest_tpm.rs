//! What the verbs share that use a TPM, and `iofs-sign attest lockout`.

use std::{env, os::unix::process::CommandExt, path::PathBuf, process::Command};

use iofs_sign::{
    attest::tpm,
    report::{Failure, Output},
};
use iofs_tpm::host::{AK_HANDLE, DEFAULT_TCTI, Host, KeyKind};
use serde::Serialize;

/// Where the TPM is, and what it wants to hear.
#[derive(Debug, clap::Args)]
pub(super) struct TpmArguments {
    /// The TPM, as tpm2-tools name it: device:PATH, swtpm:host=ADDRESS,port=N, mssim:host=ADDRESS,port=N or tabrmd
    #[arg(long, value_name = "TCTI", env = "TPM2TOOLS_TCTI", default_value = DEFAULT_TCTI)]
    tcti: String,
    /// A file with the owner's password [default: the empty one]
    #[arg(long, value_name = "FILE")]
    owner_auth: Option<PathBuf>,
    /// A file with the password of the endorsement hierarchy [default: the empty one]
    #[arg(long, value_name = "FILE")]
    endorsement_auth: Option<PathBuf>,
}

impl TpmArguments {
    /// Connects.
    pub(super) fn open(&self) -> Result<Host, Failure> {
        silence_library();
        let authorizations = tpm::authorizations(self.owner_auth.as_deref(), self.endorsement_auth.as_deref())?;
        Ok(Host::open(&self.tcti, &authorizations)?)
    }

    /// Connects both clients.
    #[cfg(feature = "enroll")]
    pub(super) fn open_side(&self) -> Result<iofs_sign::enroll::tpm::TpmSide, Failure> {
        silence_library();
        let authorizations = tpm::authorizations(self.owner_auth.as_deref(), self.endorsement_auth.as_deref())?;
        iofs_sign::enroll::tpm::TpmSide::open(&self.tcti, &authorizations)
    }
}

/// Where the attestation key is.
#[derive(Debug, clap::Args)]
pub(super) struct HandleArguments {
    /// The persistent handle of the attestation key
    #[arg(long, value_name = "HANDLE", value_parser = parse_handle, default_value_t = Handle(AK_HANDLE))]
    pub(super) ak_handle: Handle,
}

/// A handle, in hexadecimal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Handle(pub(super) u32);

impl std::fmt::Display for Handle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:#010x}", self.0)
    }
}

fn parse_handle(text: &str) -> Result<Handle, String> {
    let digits = text.strip_prefix("0x").ok_or("expected 0x and hexadecimal digits")?;
    u32::from_str_radix(digits, 16).map(Handle).map_err(|error| error.to_string())
}

/// One that the owner may give (Part 2, section 7.5).
#[cfg(feature = "enroll")]
pub(super) fn parse_owner_handle(text: &str) -> Result<Handle, String> {
    let handle = parse_handle(text)?;
    match handle.0 {
        0x8100_0000..=0x817f_ffff => Ok(handle),
        _ => Err("expected 0x81000000 to 0x817fffff".to_owned()),
    }
}

/// An NV index that the owner can define.
#[cfg(feature = "enroll")]
pub(super) fn parse_nv_index(text: &str) -> Result<Handle, String> {
    let index = parse_handle(text)?;
    match iofs_tpm::rollback::OWNER_INDICES.contains(&index.0) {
        true => Ok(index),
        false => Err("expected 0x01800000 to 0x01bfffff".to_owned()),
    }
}

/// An algorithm on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Algorithm {
    /// RSA with 2048 bits
    Rsa,
    /// NIST P-256
    Ecc,
}

impl From<Algorithm> for KeyKind {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Rsa => Self::Rsa2048,
            Algorithm::Ecc => Self::EccP256,
        }
    }
}

/// libtss2 writes its own lines to standard error, between ours and in no form that programs could read. It is told not to
/// by its environment alone, so that this program starts itself anew with it.
fn silence_library() {
    const LEVEL: &str = "TSS2_LOG";
    let mut arguments = env::args_os();
    let name = arguments.next();
    if let (None, Ok(program), Some(name)) = (env::var_os(LEVEL), env::current_exe(), name) {
        // It comes back only where that did not work: then there are more lines than needed.
        let _ = Command::new(program).arg0(name).args(arguments).env(LEVEL, "all+NONE").exec();
    }
}

/// Say whether the TPM has locked itself, and when it opens
///
/// A TPM that has seen too many wrong passwords refuses right ones, too, for a while. Enrolment and quotes work on: none of
/// their keys has a password to guess.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  iofs-sign attest lockout --json")]
pub(crate) struct LockoutArguments {
    #[command(flatten)]
    tpm: TpmArguments,
}

#[derive(Debug, Serialize)]
struct Lockout {
    locked: bool,
    failures: u32,
    limit: u32,
    interval: u32,
    recovery: u32,
}

pub(crate) fn lockout(arguments: &LockoutArguments, output: Output) -> Result<(), Failure> {
    let state = arguments.tpm.open()?.lockout()?;
    let iofs_tpm::host::Lockout { locked, failures, limit, interval, recovery } = state;
    output.result(&Lockout { locked, failures, limit, interval, recovery }, || {
        let next = "\n next: wait, or 'tpm2_dictionarylockout --clear-lockout' with the lockout password";
        format!("lockout: {state}{}", if locked { next } else { "" })
    });
    Ok(())
}
