//! The partition with the signature of the root hash: Discoverable Partitions Specification, "Verity signature
//! partition".

use std::path::{Path, PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use iofs_policy::verity::RootHash;
use serde::Serialize;

use crate::{
    report::{ExitStatus, Failure},
    roothash,
    sealed::{ROOT_HASH_CERTIFICATE, ROOT_HASH_SIGNATURE, SealedDirectory},
    x509::SigningCertificate,
};

/// The partition's size is a multiple of this, filled with NULs. Bytes.
const BLOCK: usize = 4096;

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

/// The partition's bytes. `certificate` stands in for the one in the directory, and must be that of whoever signed: systemd
/// would refuse the image only when it is used.
pub(super) fn partition(
    directory: &SealedDirectory,
    root_hash: &RootHash,
    certificate: Option<&Path>,
) -> Result<Vec<u8>, Failure> {
    let path = directory.file(ROOT_HASH_SIGNATURE);
    let signature = directory.read(ROOT_HASH_SIGNATURE, roothash::MAX_SIZE)?;
    let signer = SigningCertificate::read(&certificate_path(directory, certificate)?)?;
    roothash::verify(&signature, root_hash, &signer).map_err(|error| Failure::from(error).about(&path))?;
    let document = Signature {
        root_hash: root_hash.to_string(),
        certificate_fingerprint: signer.name().fingerprint.to_string(),
        signature: BASE64.encode(signature),
    };
    let mut bytes = serde_json::to_vec(&document).expect("strings always serialize");
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    Ok(bytes)
}

fn certificate_path(directory: &SealedDirectory, given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if directory.has(ROOT_HASH_CERTIFICATE) {
        return Ok(directory.file(ROOT_HASH_CERTIFICATE));
    }
    let signature = directory.file(ROOT_HASH_SIGNATURE);
    let fact = format!("{}: whose certificate goes with it is not known", signature.display());
    let next = format!("give it with --verity-certificate, or put it beside as {ROOT_HASH_CERTIFICATE}");
    Err(Failure::new(ExitStatus::Usage, fact).next(next))
}
