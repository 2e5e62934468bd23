//! Release statements whose signatures were verified.

use std::path::{Path, PathBuf};

use iofs_attest::verify::Reference;
use iofs_policy::{
    dsse::{Envelope, MAX_ENVELOPE_SIZE, PayloadType},
    release::Release,
    trust::{TrustedKeys, VerifiedPayload},
};

use crate::{
    attest::read,
    keys,
    report::{ExitStatus, Failure},
    sealed::{self, bad_input},
};

/// Reads public keys of which `threshold` must have signed.
///
/// # Errors
/// A file is no key, or the threshold cannot be.
pub fn trusted_keys(paths: &[PathBuf], threshold: u8) -> Result<TrustedKeys, Failure> {
    let keys = paths.iter().map(|path| keys::read_public(path)).collect::<Result<Vec<_>, _>>()?;
    TrustedKeys::new(keys, threshold).map_err(|error| Failure::new(ExitStatus::Usage, format!("--key: {error}")))
}

/// Reads and verifies a release statement: a file, `-`, or the directory that `seal` wrote.
///
/// # Errors
/// It is malformed, or not signed by the keys.
pub fn verified_release(path: &Path, keys: &TrustedKeys) -> Result<VerifiedPayload, Failure> {
    let file = if path.is_dir() { path.join(sealed::RELEASE) } else { path.to_owned() };
    let bytes = read(&file, MAX_ENVELOPE_SIZE)?;
    let envelope = Envelope::parse(&bytes, PayloadType::Release).map_err(|error| bad_input(&file, &error))?;
    keys.verify(&envelope).map_err(|error| {
        Failure::new(ExitStatus::NotVerified, format!("{}: {error}", file.display()))
            .next("give the public keys of whoever signs releases with --key, or fetch the release anew")
    })
}

/// Reads a release for its content.
///
/// # Errors
/// As [`verified_release`].
pub fn release(path: &Path, keys: &TrustedKeys) -> Result<Release, Failure> {
    Release::from_payload(&verified_release(path, keys)?).map_err(|error| bad_input(path, &error))
}

/// Reads the releases that a device may run.
///
/// # Errors
/// As [`verified_release`].
pub fn references(paths: &[PathBuf], keys: &TrustedKeys) -> Result<Vec<Reference>, Failure> {
    let reference =
        |path: &PathBuf| Reference::new(&verified_release(path, keys)?).map_err(|error| bad_input(path, &error));
    paths.iter().map(reference).collect()
}
