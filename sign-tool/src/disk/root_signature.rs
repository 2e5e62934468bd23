//! The partition with the signature of the root hash: Discoverable Partitions Specification, "Verity signature
//! partition".

use std::{fs::File, io::Read, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use iofs_policy::{digest::Sha256Digest, verity::RootHash};
use serde::Serialize;

use super::{ROOT_CERTIFICATE, ROOT_SIGNATURE};
use crate::{
    report::{ExitStatus, Failure},
    sealed::{SealedDirectory, bad_input},
};

/// The partition's size is a multiple of this, filled with NULs. Bytes.
const BLOCK: usize = 4096;
/// Signatures and certificates of RSA-4096 have about 3 kB.
const LIMIT: usize = 64 * 1024;

const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const PEM_END: &str = "-----END CERTIFICATE-----";

/// The names are the specification's.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Signature {
    root_hash: String,
    /// SHA-256 of the certificate, DER.
    certificate_fingerprint: String,
    /// PKCS#7, DER, in base64.
    signature: String,
}

/// The partition's bytes. `certificate` stands in for the one in the directory.
pub(super) fn partition(
    directory: &SealedDirectory,
    root_hash: &RootHash,
    certificate: Option<&Path>,
) -> Result<Vec<u8>, Failure> {
    let path = directory.file(ROOT_SIGNATURE);
    let signature = directory.read(ROOT_SIGNATURE, LIMIT)?;
    expect_der(&path, &signature, "a PKCS#7 signature (DER)")?;
    let certificate = match certificate {
        Some(path) => der(path, read(path)?)?,
        None if directory.has(ROOT_CERTIFICATE) => {
            der(&directory.file(ROOT_CERTIFICATE), directory.read(ROOT_CERTIFICATE, LIMIT)?)?
        }
        None => {
            let fact = format!("{}: whose certificate goes with it is not known", path.display());
            let next = format!("give it with --verity-certificate, or put it beside as {ROOT_CERTIFICATE}");
            return Err(Failure::new(ExitStatus::Usage, fact).next(next));
        }
    };
    let document = Signature {
        root_hash: root_hash.to_string(),
        certificate_fingerprint: Sha256Digest::of(&certificate).to_string(),
        signature: BASE64.encode(signature),
    };
    let mut bytes = serde_json::to_vec(&document).expect("strings always serialize");
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    Ok(bytes)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LIMIT as u64).read_to_end(&mut bytes))
        .map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
    Ok(bytes)
}

/// A certificate in DER, out of either form.
fn der(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, Failure> {
    let der = pem_contents(&bytes).unwrap_or(bytes);
    expect_der(path, &der, "a certificate (X.509, PEM or DER)")?;
    Ok(der)
}

/// The first certificate of a PEM file: that of the signer comes before those that vouch for it.
fn pem_contents(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (_, text) = text.split_once(PEM_BEGIN)?;
    let (text, _) = text.split_once(PEM_END)?;
    BASE64.decode(text.split_ascii_whitespace().collect::<String>()).ok()
}

/// Both are one SEQUENCE that fills the file (X.690, section 8.1.3).
fn expect_der(path: &Path, bytes: &[u8], expected: &str) -> Result<(), Failure> {
    let length = match bytes {
        [0x30, short, ..] if *short < 0x80 => Some(2 + usize::from(*short)),
        [0x30, 0x81, length, ..] => Some(3 + usize::from(*length)),
        [0x30, 0x82, high, low, ..] => Some(4 + usize::from(u16::from_be_bytes([*high, *low]))),
        _ => None,
    };
    if length == Some(bytes.len()) {
        return Ok(());
    }
    Err(bad_input(path, &format_args!("expected {expected}, found {} other bytes", bytes.len())))
}
