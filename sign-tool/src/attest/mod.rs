//! Attestation as files: the documents that `attest` reads and writes, the logs, and the TPM where there is one.
//!
//! What is decided is decided in `iofs-attest`; here is what surrounds it.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use iofs_attest::enrolment::EnrolmentError;
use iofs_policy::hex;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    atomic,
    report::{ExitStatus, Failure},
    sealed::bad_input,
};

pub mod logs;
pub mod references;
#[cfg(feature = "tpm")]
pub mod tpm;

/// The size of a nonce that is made here, in bytes.
pub const NONCE_SIZE: usize = 32;
/// The most bytes that every TPM takes into a quote: the digest of SHA-512.
pub const MAX_NONCE: usize = 64;

/// Reads a whole file, or standard input for `-`.
///
/// # Errors
/// It cannot be read, or is larger than `limit` bytes.
pub fn read(path: &Path, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let result = if path == Path::new("-") {
        io::stdin().lock().take(limit as u64 + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes))
    };
    result.map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
    if bytes.len() > limit {
        return Err(bad_input(path, &format_args!("expected at most {limit} bytes, found more")));
    }
    Ok(bytes)
}

/// Reads a JSON document.
///
/// # Errors
/// As [`read`], and where it is none.
pub fn read_json<T: DeserializeOwned>(path: &Path, what: &str, limit: usize) -> Result<T, Failure> {
    let bytes = read(path, limit)?;
    serde_json::from_slice(&bytes).map_err(|error| bad_input(path, &format_args!("expected {what}: {error}")))
}

/// A document as it is written: JSON with a newline at its end.
pub fn to_json(document: &impl Serialize) -> Vec<u8> {
    let mut json = serde_json::to_vec_pretty(document).expect("documents hold no maps with odd keys");
    json.push(b'\n');
    json
}

/// Writes a document to a file that appears whole, or to standard output.
///
/// # Errors
/// It cannot be written.
pub fn write(out: Option<&Path>, mode: u32, bytes: &[u8]) -> Result<(), Failure> {
    match out.filter(|path| *path != Path::new("-")) {
        Some(path) => atomic::write(path, mode, bytes),
        None => {
            let mut stdout = io::stdout().lock();
            let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
            written.map_err(|error| Failure::io("write standard output", &error))
        }
    }
}

/// Reads a nonce as the command line has it: hexadecimal, or `@FILE` with a file of it.
///
/// # Errors
/// It is none, or longer than TPMs take.
pub fn nonce(text: &str) -> Result<Vec<u8>, Failure> {
    let from_file = text.strip_prefix('@').map(|path| read(Path::new(path), 1024)).transpose()?;
    let (status, digits) = match &from_file {
        Some(bytes) => (ExitStatus::BadInput, String::from_utf8_lossy(bytes).trim().to_owned()),
        None => (ExitStatus::Usage, text.to_owned()),
    };
    let next = "make one with 'iofs-sign attest nonce'";
    let nonce = hex::decode(&digits);
    let nonce = nonce.map_err(|error| Failure::new(status, format!("--nonce: {error}")).next(next))?;
    if nonce.is_empty() || nonce.len() > MAX_NONCE {
        let fact = format!("--nonce: expected 1 to {MAX_NONCE} bytes, found {}", nonce.len());
        return Err(Failure::new(status, fact).next(next));
    }
    Ok(nonce)
}

/// Makes a nonce.
///
/// # Errors
/// The system has no random numbers to give.
pub fn new_nonce() -> Result<String, Failure> {
    let mut nonce = [0; NONCE_SIZE];
    getrandom::fill(&mut nonce)
        .map_err(|error| Failure::new(ExitStatus::System, format!("the system's random numbers: {error}")))?;
    Ok(hex::encode(&nonce))
}

impl From<EnrolmentError> for Failure {
    fn from(error: EnrolmentError) -> Self {
        use EnrolmentError::{
            Bank, Banks, Certificate, Credential, Key, NoCertificate, Public, Random, Version, WrongSecret,
        };
        let (status, next) = match &error {
            Version { .. } => (ExitStatus::BadInput, "use the same version of iofs-sign on both sides"),
            Public { .. } | Bank(_) | Banks(_) | Credential(_) => {
                (ExitStatus::BadInput, "make the request anew with 'iofs-sign attest enroll request'")
            }
            Key(_) => (
                ExitStatus::NotVerified,
                "do not enrol this device: such a key proves nothing. 'iofs-sign attest enroll request' makes another",
            ),
            NoCertificate => (
                ExitStatus::NotVerified,
                "if you know by other means that this request came from the device, and from nobody between, say \
                 --allow-unverified-ek",
            ),
            Certificate(_) => (
                ExitStatus::NotVerified,
                "give the maker's certificates with --ek-root and --ek-intermediate; if these are the right ones, do not \
                 enrol this device",
            ),
            WrongSecret => {
                (ExitStatus::NotVerified, "do not enrol this device; if answers were mixed up, send it a new challenge")
            }
            Random(_) => return Self::new(ExitStatus::System, error.to_string()),
        };
        Self::new(status, error.to_string()).next(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_are_read_from_the_command_line_and_from_files() {
        let made = new_nonce().unwrap();
        assert_eq!(nonce(&made).unwrap().len(), NONCE_SIZE);
        assert_ne!(new_nonce().unwrap(), made);
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("nonce");
        std::fs::write(&path, format!("{made}\n")).unwrap();
        assert_eq!(nonce(&format!("@{}", path.display())).unwrap(), nonce(&made).unwrap());
        for (text, status) in [("", 2), ("0", 2), ("zz", 2), (&"00".repeat(65), 2), ("@/no/such/file", 1)] {
            assert_eq!(nonce(text).unwrap_err().status as u8, status, "{text}");
        }
    }
}
