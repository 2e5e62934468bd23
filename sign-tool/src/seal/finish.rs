//! From an unsigned directory to a release: manifest signature, mini-initramfs, release statement and its signature.
//!
//! Each step is one file replaced at once, and says from the files alone what is left to do: a directory can be signed
//! by several people on several machines, and a step that was interrupted is simply done again.

use iofs_policy::{
    digest::Sha256Digest,
    dsse::{Envelope, EnvelopeError, PayloadType},
    manifest::Manifest,
    paths,
    release::Release,
    trust::{KeyId, TrustPolicy, TrustedKey},
};
use serde::Serialize;

use crate::{
    atomic,
    authenticode::{self, AuthenticodeError},
    initramfs::{self, EmbeddedFile, Format, in_archive},
    keys::PrivateKey,
    report::{ExitStatus, Failure},
    sealed::{self, SealedDirectory},
};

/// The largest mini-initramfs that is read back, in bytes.
const MAX_BASE: usize = 256 * 1024 * 1024;
/// More than any kernel image has.
const MAX_KERNEL: usize = 256 * 1024 * 1024;

/// What a sealed directory waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "waits_for")]
pub enum Pending {
    /// More signatures over a document.
    Signature {
        /// The document's file.
        document: &'static str,
        /// The keys that have signed it.
        signed_by: Vec<KeyId>,
        /// How many signatures it needs.
        threshold: u8,
        /// SHA-256 of the bytes to be signed, which lie in `to-sign.bin`.
        to_sign_sha256: Sha256Digest,
    },
    /// Nothing: the release is complete.
    Nothing,
}

/// The two documents, in the order in which they are signed.
const DOCUMENTS: [(&str, PayloadType); 2] =
    [(sealed::MANIFEST, PayloadType::Manifest), (sealed::RELEASE, PayloadType::Release)];

/// Signs what waits for a signature with a key, and goes on as far as that leads.
///
/// # Errors
/// The key is not among the trusted ones, or the directory is damaged.
pub fn sign(directory: &SealedDirectory, keys: &[PrivateKey]) -> Result<Pending, Failure> {
    let _lock = directory.lock()?;
    sign_locked(directory, keys)
}

/// As [`sign`], for a directory that nobody else knows or that is locked.
pub(super) fn sign_locked(directory: &SealedDirectory, keys: &[PrivateKey]) -> Result<Pending, Failure> {
    let trust = directory.trust()?;
    for key in keys {
        check_trusted(&trust, &key.public())?;
    }
    advance(directory)?;
    loop {
        let Some((name, mut envelope)) = first_pending(directory, &trust)? else { return advance(directory) };
        let before = envelope.signatures().len();
        for key in keys {
            if !envelope.signatures().iter().any(|one| one.keyid == key.public().id()) {
                key.sign(&mut envelope).map_err(|error| bad_envelope(&error))?;
            }
        }
        if envelope.signatures().len() == before {
            return advance(directory);
        }
        atomic::write(&directory.file(name), 0o644, &envelope.to_json())?;
        advance(directory)?;
    }
}

/// Adds a signature that was made elsewhere over `to-sign.bin`.
///
/// # Errors
/// The key is not trusted, or the signature does not verify: nothing is changed then.
pub fn attach(directory: &SealedDirectory, key: &TrustedKey, signature: &[u8]) -> Result<Pending, Failure> {
    let _lock = directory.lock()?;
    let trust = directory.trust()?;
    check_trusted(&trust, key)?;
    advance(directory)?;
    let Some((name, mut envelope)) = first_pending(directory, &trust)? else {
        return Err(Failure::new(ExitStatus::Usage, format!("{} is complete", directory.path().display()))
            .next("there is nothing to attach: check it with 'iofs-sign verify'"));
    };
    envelope.add(key.id(), signature).map_err(|error| bad_envelope(&error))?;
    let alone = iofs_policy::trust::TrustedKeys::new(vec![key.clone()], 1).expect("one key, one signature");
    alone.verify(&envelope).map_err(|error| {
        Failure::new(ExitStatus::NotVerified, format!("the signature for {name}: {error}")).next(format!(
            "sign the bytes of {} with ed25519, not their hash",
            directory.file(sealed::TO_SIGN).display()
        ))
    })?;
    atomic::write(&directory.file(name), 0o644, &envelope.to_json())?;
    advance(directory)
}

/// Writes what the signatures present allow: the mini-initramfs once the manifest is signed, the release statement
/// once that is there, and the bytes that the next signature is to cover.
fn advance(directory: &SealedDirectory) -> Result<Pending, Failure> {
    let trust = directory.trust()?;
    let manifest = directory.envelope(sealed::MANIFEST, PayloadType::Manifest)?;
    if enough(&manifest, &trust) && !directory.has(sealed::RELEASE) {
        if directory.has(sealed::INITRAMFS_BASE) {
            write_initramfs(directory, &manifest, &trust)?;
        }
        let release = release_statement(directory, &manifest)?;
        let envelope = Envelope::unsigned(PayloadType::Release, release.to_json());
        atomic::write(&directory.file(sealed::RELEASE), 0o644, &envelope.to_json())?;
    }
    let pending = first_pending(directory, &trust)?;
    let Some((document, envelope)) = pending else {
        remove(directory, sealed::INITRAMFS_BASE)?;
        remove(directory, sealed::TO_SIGN)?;
        return Ok(Pending::Nothing);
    };
    let to_sign = envelope.signed_bytes();
    atomic::write(&directory.file(sealed::TO_SIGN), 0o644, &to_sign)?;
    Ok(Pending::Signature {
        document,
        signed_by: envelope.signatures().iter().map(|one| one.keyid).collect(),
        threshold: trust.keys.threshold(),
        to_sign_sha256: Sha256Digest::of(&to_sign),
    })
}

/// The first document without enough valid signatures.
fn first_pending(
    directory: &SealedDirectory,
    trust: &TrustPolicy,
) -> Result<Option<(&'static str, Envelope)>, Failure> {
    for (name, payload_type) in DOCUMENTS {
        let envelope = directory.envelope(name, payload_type)?;
        if !enough(&envelope, trust) {
            return Ok(Some((name, envelope)));
        }
    }
    Ok(None)
}

fn enough(envelope: &Envelope, trust: &TrustPolicy) -> bool {
    trust.keys.verify(envelope).is_ok()
}

fn check_trusted(trust: &TrustPolicy, key: &TrustedKey) -> Result<(), Failure> {
    if trust.keys.keys().contains(key) {
        return Ok(());
    }
    let trusted: Vec<String> = trust.keys.keys().iter().map(|key| key.id().to_string()).collect();
    let fact = format!("key {} is not among those that this image trusts: {}", key.id(), trusted.join(", "));
    Err(Failure::new(ExitStatus::Usage, fact).next("seal again with this key's public half, or sign with another"))
}

fn bad_envelope(error: &EnvelopeError) -> Failure {
    Failure::new(ExitStatus::BadInput, error.to_string())
}

fn write_initramfs(directory: &SealedDirectory, manifest: &Envelope, trust: &TrustPolicy) -> Result<(), Failure> {
    let mut bytes = directory.read(sealed::INITRAMFS_BASE, MAX_BASE)?;
    let embedded = |path: &str, bytes| EmbeddedFile { path: in_archive(path).to_owned(), mode: 0o644, bytes };
    let files = [embedded(paths::MANIFEST, manifest.to_json()), embedded(paths::TRUST, trust.to_json())];
    // Two small files: not worth a compression that the kernel might lack.
    let (segment, _) = initramfs::image_segment(&files, Format::None, 0)?;
    bytes.extend_from_slice(&segment);
    atomic::write(&directory.file(sealed::INITRAMFS), 0o644, &bytes)
}

fn release_statement(directory: &SealedDirectory, envelope: &Envelope) -> Result<Release, Failure> {
    let payload = envelope.unverified_payload();
    let manifest =
        Manifest::from_json(payload).map_err(|error| sealed::bad_input(&directory.file(sealed::MANIFEST), &error))?;
    Ok(Release {
        image: manifest.image,
        manifest_digest: Sha256Digest::of(payload),
        root_hash: manifest.verity.root_hash,
        kernel_release: manifest.kernel_release,
        kernel_authenticode: kernel_authenticode(directory)?,
        command_lines: manifest.command_lines,
        artifacts: directory.artifacts()?,
    })
}

/// The kernel as UEFI firmware measures it. Kernels without EFI stub are not measured by firmware.
fn kernel_authenticode(directory: &SealedDirectory) -> Result<Option<Sha256Digest>, Failure> {
    let path = directory.file(sealed::KERNEL);
    if !path.is_file() {
        return Ok(None);
    }
    let image = directory.read(sealed::KERNEL, MAX_KERNEL)?;
    match authenticode::digest(&image) {
        Ok(digest) => Ok(Some(digest)),
        Err(AuthenticodeError::NotPe) => Ok(None),
        Err(error) => Err(sealed::bad_input(&path, &error)),
    }
}

fn remove(directory: &SealedDirectory, name: &str) -> Result<(), Failure> {
    let path = directory.file(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(format_args!("remove {}", path.display()), &error))
        }
        _ => Ok(()),
    }
}
