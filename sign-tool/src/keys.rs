//! ed25519 keys in the files that OpenSSL reads and writes: PKCS#8 and SubjectPublicKeyInfo, both in PEM.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use ed25519_dalek::{
    Signer, SigningKey,
    pkcs8::{
        DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes, spki::der::pem::LineEnding,
    },
};
use iofs_policy::{
    dsse::Envelope,
    trust::{KeyError, KeyId, TrustedKey},
};
use zeroize::Zeroizing;

use crate::{
    atomic::AtomicFile,
    report::{ExitStatus, Failure},
};

/// No key file is larger: a bound for what is read before anything is known of it.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// What went wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file could not be read.
    #[error("read key {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("key {}: expected {expected}, found {found}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the file should hold.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
    /// The public key is unusable.
    #[error("key {}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyError,
    },
}

impl From<KeyFileError> for Failure {
    fn from(error: KeyFileError) -> Self {
        let next = match &error {
            KeyFileError::Read { .. } => None,
            _ => Some("make a pair with 'iofs-sign keygen NAME': it writes NAME.pem and NAME.pub.pem"),
        };
        let status = if next.is_some() { ExitStatus::BadInput } else { ExitStatus::System };
        let failure = Self::new(status, error.to_string());
        match next {
            Some(step) => failure.next(step),
            None => failure,
        }
    }
}

/// A private key that signs envelopes. Its secret is wiped from memory when it goes.
pub struct PrivateKey(SigningKey);

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "PrivateKey({})", self.public().id())
    }
}

impl PrivateKey {
    /// A new key from the system's random numbers.
    ///
    /// # Errors
    /// The system has no random numbers to give.
    pub fn generate() -> Result<Self, Failure> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())
            .map_err(|error| Failure::new(ExitStatus::System, format!("the system's random numbers: {error}")))?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Reads a PKCS#8 PEM file.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let pem = read_pem(path)?;
        SigningKey::from_pkcs8_pem(&pem).map(Self).map_err(|error| KeyFileError::Format {
            path: path.to_owned(),
            expected: "an unencrypted ed25519 private key (PKCS#8, PEM)",
            found: describe(&pem, &error),
        })
    }

    /// The public half.
    pub fn public(&self) -> TrustedKey {
        TrustedKey::from_bytes(self.0.verifying_key().as_bytes()).expect("a private key's public half is a sound point")
    }

    /// Signs an envelope and adds the signature to it.
    pub fn sign(&self, envelope: &mut Envelope) -> Result<(), iofs_policy::dsse::EnvelopeError> {
        let signature = self.0.sign(&envelope.signed_bytes());
        envelope.add(self.public().id(), &signature.to_bytes())
    }

    /// PKCS#8 version 1, the form that `openssl genpkey` writes.
    fn to_pem(&self) -> Zeroizing<String> {
        KeypairBytes { secret_key: self.0.to_bytes(), public_key: None }
            .to_pkcs8_pem(LineEnding::LF)
            .expect("32 bytes always encode")
    }
}

/// Reads a public key from a SubjectPublicKeyInfo PEM file.
pub fn read_public(path: &Path) -> Result<TrustedKey, KeyFileError> {
    let pem = read_pem(path)?;
    let key = ed25519_dalek::VerifyingKey::from_public_key_pem(&pem).map_err(|error| KeyFileError::Format {
        path: path.to_owned(),
        expected: "an ed25519 public key (SubjectPublicKeyInfo, PEM)",
        found: describe(&pem, &error),
    })?;
    TrustedKey::from_bytes(key.as_bytes()).map_err(|source| KeyFileError::Key { path: path.to_owned(), source })
}

/// The two files of a new pair.
#[derive(Debug, serde::Serialize)]
pub struct KeyPairFiles {
    /// The private key's file, mode 0600.
    pub private: PathBuf,
    /// The public key's file.
    pub public: PathBuf,
    /// The key's id.
    pub keyid: KeyId,
}

/// Writes a new pair as `NAME.pem` and `NAME.pub.pem`. Nothing is ever overwritten.
pub fn write_pair(name: &Path, key: &PrivateKey) -> Result<KeyPairFiles, Failure> {
    let with = |ending: &str| {
        let mut path = name.as_os_str().to_owned();
        path.push(ending);
        PathBuf::from(path)
    };
    let files = KeyPairFiles { private: with(".pem"), public: with(".pub.pem"), keyid: key.public().id() };
    for path in [&files.private, &files.public] {
        if path.symlink_metadata().is_ok() {
            return Err(Failure::new(ExitStatus::Usage, format!("{} exists already", path.display()))
                .next("choose another name: a key is never overwritten"));
        }
    }
    let public =
        ed25519_dalek::VerifyingKey::from(&key.0).to_public_key_pem(LineEnding::LF).expect("32 bytes always encode");
    write_new(&files.private, 0o600, key.to_pem().as_bytes())?;
    write_new(&files.public, 0o644, public.as_bytes())?;
    Ok(files)
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Failure> {
    let mut file = AtomicFile::create(path, mode)?;
    file.file().write_all(bytes).map_err(|error| Failure::io(format_args!("write {}", path.display()), &error))?;
    file.create_new()
}

/// Whether others than the owner can read a private key's file.
pub fn is_exposed(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

pub(crate) fn read_pem(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let bytes = read_secret(path).map_err(|source| KeyFileError::Read { path: path.to_owned(), source })?;
    // Other bytes make it no key, which its parser says better.
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The bytes of a key's file, as many as a key can have.
pub(crate) fn read_secret(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // All room at once: a vector that grows would leave copies of the secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE as usize + 1));
    File::open(path)?.take(MAX_KEY_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Says what a file holds without showing any of it: only a PEM label is safe to repeat.
pub(crate) fn describe(pem: &str, error: &dyn std::fmt::Display) -> String {
    let label = pem.lines().find_map(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    match label {
        Some(label) => format!("a PEM file labelled {label:?} ({error})"),
        None if pem.is_empty() => "an empty file".to_owned(),
        None => "a file without a PEM label".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../keys-example").join(name)
    }

    #[test]
    fn the_example_keys_are_known_as_such() {
        for number in 1..=2 {
            let private = PrivateKey::read(&example(&format!("DO-NOT-SHIP-example-{number}.pem"))).unwrap();
            let public = read_public(&example(&format!("DO-NOT-SHIP-example-{number}.pub.pem"))).unwrap();
            assert_eq!(private.public(), public);
            assert!(public.id().is_example());
        }
    }

    #[test]
    fn a_new_pair_reads_back_and_is_never_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let name = home.path().join("k");
        let files = write_pair(&name, &PrivateKey::generate().unwrap()).unwrap();
        assert_eq!(PrivateKey::read(&files.private).unwrap().public(), read_public(&files.public).unwrap());
        assert!(!is_exposed(&files.private));
        let before = fs::read(&files.private).unwrap();
        assert_eq!(write_pair(&name, &PrivateKey::generate().unwrap()).unwrap_err().status, ExitStatus::Usage);
        assert_eq!(fs::read(&files.private).unwrap(), before);
    }

    #[test]
    fn a_public_key_in_place_of_a_private_one_is_named() {
        let error = PrivateKey::read(&example("DO-NOT-SHIP-example-1.pub.pem")).unwrap_err().to_string();
        assert!(error.contains("expected an unencrypted ed25519 private key"), "{error}");
        assert!(error.contains("labelled \"PUBLIC KEY\""), "{error}");
    }
}
