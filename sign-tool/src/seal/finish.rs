//! From an unsigned directory to a release: signed root hash, manifest signature, mini-initramfs, unified kernel image and
//! its signature, release statement and its signature.
//!
//! Each step is one file replaced at once, and says from the files alone what is left to do: a directory can be signed
//! by several people on several machines, and a step that was interrupted is simply done again.

use iofs_policy::{
    digest::Sha256Digest,
    dsse::{Envelope, EnvelopeError, PayloadType},
    manifest::Place,
    paths,
    release::Release,
    trust::{KeyId, TrustPolicy, TrustedKey},
    uki::UkiMeasurements,
};
use serde::Serialize;

use crate::{
    atomic,
    authenticode::{self, AuthenticodeError},
    initramfs::{self, EmbeddedFile, Format, in_archive},
    keys::PrivateKey,
    pcr_policy::PolicySigner,
    report::{ExitStatus, Failure},
    roothash,
    sealed::{self, MAX_IMAGE, SealedDirectory},
    uki,
    x509::{SignerName, X509Signer},
};

use super::{
    firmware::{self, Wanted},
    signers::Signers,
    succession,
};

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
        /// Those of the keys before, where the manifest moves the keys: `signed_by` and `threshold` are about the next ones.
        #[serde(skip_serializing_if = "Option::is_none")]
        keys_before: Option<KeysBefore>,
        /// SHA-256 of the bytes to be signed, which lie in `to-sign.bin`.
        to_sign_sha256: Sha256Digest,
    },
    /// A signature by an X.509 certificate's key, RSASSA-PKCS1-v1_5 with SHA-256.
    X509Signature {
        /// The document's file.
        document: &'static str,
        /// Whose signature.
        signer: SignerName,
        /// SHA-256 of the bytes to be signed, which lie in `to-sign.bin`.
        to_sign_sha256: Sha256Digest,
    },
    /// Signatures for the values of register 11, by the key whose public half the unified kernel image holds.
    PcrSignature {
        /// The key's fingerprint, as `pkfp` in signatures.
        key: Sha256Digest,
    },
    /// Nothing: the release is complete.
    Nothing,
}

/// The signatures of the keys that the release before trusts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeysBefore {
    /// The keys that have signed.
    pub signed_by: Vec<KeyId>,
    /// How many must.
    pub threshold: u8,
}

/// The keys at hand.
#[derive(Debug, Default)]
pub struct SigningKeys {
    /// What signs manifest and release statement.
    pub release: Vec<PrivateKey>,
    /// What signs root hash and unified kernel image.
    pub x509: Vec<X509Signer>,
    /// What signs the values of register 11: the key whose public half the image holds, and earlier ones.
    pub pcr: Vec<PolicySigner>,
}

/// Signs what waits for a signature with a key, and goes on as far as that leads.
///
/// # Errors
/// The key is not among the trusted ones, or the directory is damaged.
pub fn sign(directory: &SealedDirectory, keys: &SigningKeys) -> Result<Pending, Failure> {
    let _lock = directory.lock()?;
    sign_locked(directory, keys)
}

/// As [`sign`], for a directory that nobody else knows or that is locked.
pub(super) fn sign_locked(directory: &SealedDirectory, keys: &SigningKeys) -> Result<Pending, Failure> {
    let signers = Signers::of(directory)?;
    for key in &keys.release {
        signers.check(&key.public())?;
    }
    loop {
        let pending = advance(directory, keys)?;
        let Pending::Signature { document, .. } = pending else { return Ok(pending) };
        let mut envelope = directory.envelope(document, payload_type(document))?;
        let before = envelope.signatures().len();
        for key in keys.release.iter().filter(|key| signers.sign(document, &key.public())) {
            if !envelope.signatures().iter().any(|one| one.keyid == key.public().id()) {
                key.sign(&mut envelope).map_err(|error| bad_envelope(&error))?;
            }
        }
        if envelope.signatures().len() == before {
            return Ok(pending);
        }
        atomic::write(&directory.file(document), 0o644, &envelope.to_json())?;
    }
}

/// Adds a signature that was made elsewhere over `to-sign.bin`. An ed25519 signature needs the key; an X.509 signature is by
/// the certificate in the directory.
///
/// # Errors
/// The key is not trusted, or the signature does not verify: nothing is changed then.
pub fn attach(directory: &SealedDirectory, key: Option<&TrustedKey>, signature: &[u8]) -> Result<Pending, Failure> {
    let _lock = directory.lock()?;
    let signers = Signers::of(directory)?;
    key.map(|key| signers.check(key)).transpose()?;
    match (advance(directory, &SigningKeys::default())?, key) {
        (Pending::Signature { document, .. }, Some(key)) => {
            signers.check_for(document, key)?;
            attach_ed25519(directory, document, key, signature)?;
        }
        (Pending::X509Signature { document, .. }, None) => firmware::attach(directory, document, signature)?,
        (Pending::Signature { document, .. }, None) => {
            return Err(Failure::new(ExitStatus::Usage, format!("{document} waits for a signature by a trusted key"))
                .next("say whose signature it is: --key PUBLIC"));
        }
        (Pending::X509Signature { document, signer, .. }, Some(_)) => {
            return Err(Failure::new(ExitStatus::Usage, format!("{document} waits for a signature by {signer}"))
                .next("leave --key out: the certificate is in the directory"));
        }
        (Pending::PcrSignature { key }, _) => {
            let fact = format!("{} waits for signatures for register 11 by key {key}", directory.path().display());
            return Err(
                Failure::new(ExitStatus::Usage, fact).next("sign them with: iofs-sign sign DIR --pcr-key PRIVATE")
            );
        }
        (Pending::Nothing, _) => {
            return Err(Failure::new(ExitStatus::Usage, format!("{} is complete", directory.path().display()))
                .next("there is nothing to attach: check it with 'iofs-sign verify'"));
        }
    }
    advance(directory, &SigningKeys::default())
}

fn attach_ed25519(
    directory: &SealedDirectory,
    name: &'static str,
    key: &TrustedKey,
    signature: &[u8],
) -> Result<(), Failure> {
    let mut envelope = directory.envelope(name, payload_type(name))?;
    envelope.add(key.id(), signature).map_err(|error| bad_envelope(&error))?;
    let alone = iofs_policy::trust::TrustedKeys::new(vec![key.clone()], 1).expect("one key, one signature");
    alone.verify(&envelope).map_err(|error| {
        Failure::new(ExitStatus::NotVerified, format!("the signature for {name}: {error}")).next(format!(
            "sign the bytes of {} with ed25519, not their hash",
            directory.file(sealed::TO_SIGN).display()
        ))
    })?;
    atomic::write(&directory.file(name), 0o644, &envelope.to_json())
}

/// Writes what the signatures present allow: the signed root hash, the mini-initramfs and the unified kernel image once the
/// manifest is signed, the release statement once those are there, and the bytes that the next signature is to cover.
fn advance(directory: &SealedDirectory, keys: &SigningKeys) -> Result<Pending, Failure> {
    let signers = Signers::of(directory)?;
    let (to_sign, pending) = match next(directory, &signers, keys)? {
        Some(wanted) => wanted,
        None => {
            for name in [sealed::INITRAMFS_BASE, sealed::UKI_BASE, sealed::TRUST_BEFORE, sealed::TO_SIGN] {
                remove(directory, name)?;
            }
            return Ok(Pending::Nothing);
        }
    };
    match to_sign {
        Some(bytes) => atomic::write(&directory.file(sealed::TO_SIGN), 0o644, &bytes)?,
        None => remove(directory, sealed::TO_SIGN)?,
    }
    Ok(pending)
}

/// The next signature that is needed, and the bytes that it covers.
fn next(directory: &SealedDirectory, signers: &Signers, keys: &SigningKeys) -> Result<Option<Wanted>, Failure> {
    let manifest = directory.envelope(sealed::MANIFEST, PayloadType::Manifest)?;
    if !directory.has(sealed::RELEASE) {
        if let Some(wanted) = firmware::sign_root_hash(directory, &directory.manifest_in(&manifest)?, &keys.x509)? {
            return Ok(Some(wanted));
        }
        if !signers.enough(sealed::MANIFEST, &manifest) {
            return Ok(Some(signers.wanted(sealed::MANIFEST, &manifest)));
        }
        write_history(directory, &manifest)?;
        if directory.has(sealed::INITRAMFS_BASE) {
            write_initramfs(directory, &manifest, &signers.trust)?;
        }
        if let Some(wanted) = firmware::write_uki(directory, &directory.manifest_in(&manifest)?, keys)? {
            return Ok(Some(wanted));
        }
        let release = release_statement(directory, &manifest)?;
        let envelope = Envelope::unsigned(PayloadType::Release, release.to_json());
        atomic::write(&directory.file(sealed::RELEASE), 0o644, &envelope.to_json())?;
    }
    for name in [sealed::MANIFEST, sealed::RELEASE] {
        let envelope = directory.envelope(name, payload_type(name))?;
        if !signers.enough(name, &envelope) {
            return Ok(Some(signers.wanted(name, &envelope)));
        }
    }
    Ok(None)
}

fn payload_type(document: &str) -> PayloadType {
    if document == sealed::MANIFEST { PayloadType::Manifest } else { PayloadType::Release }
}

/// A release that moves the keys is the last link of the history that travels with it.
fn write_history(directory: &SealedDirectory, manifest: &Envelope) -> Result<(), Failure> {
    let Some(change) = directory.manifest_in(manifest)?.keys else { return Ok(()) };
    let history = succession::completed(directory.key_history()?, change.sequence, manifest.clone())?;
    atomic::write(&directory.file(sealed::KEY_HISTORY), 0o644, &history.to_bytes())
}

fn bad_envelope(error: &EnvelopeError) -> Failure {
    Failure::new(ExitStatus::BadInput, error.to_string())
}

fn write_initramfs(directory: &SealedDirectory, manifest: &Envelope, trust: &TrustPolicy) -> Result<(), Failure> {
    let mut bytes = directory.read(sealed::INITRAMFS_BASE, MAX_IMAGE)?;
    let embedded = |path: &str, bytes| EmbeddedFile { path: in_archive(path).to_owned(), mode: 0o644, bytes };
    let mut files = vec![embedded(paths::MANIFEST, manifest.to_json()), embedded(paths::TRUST, trust.to_json())];
    if directory.has(sealed::ROOT_HASH_SIGNATURE) {
        let signature = directory.read(sealed::ROOT_HASH_SIGNATURE, roothash::MAX_SIZE)?;
        files.push(embedded(paths::ROOT_HASH_SIGNATURE, signature));
    }
    // Small files: not worth a compression that the kernel might lack.
    let sealed = directory.manifest_in(manifest)?;
    if sealed.data == Place::Memory {
        let mut image = Vec::new();
        directory.write_one_piece(&sealed, &mut image)?;
        // Compressed as far as it will be: the kernel copies it once.
        files.push(embedded(paths::IMAGE, image));
    }
    let (segment, _) = initramfs::image_segment(&files, Format::None, 0)?;
    bytes.extend_from_slice(&segment);
    atomic::write(&directory.file(sealed::INITRAMFS), 0o644, &bytes)
}

fn release_statement(directory: &SealedDirectory, envelope: &Envelope) -> Result<Release, Failure> {
    let manifest = directory.manifest_in(envelope)?;
    let (kernel_authenticode, artifacts) = rayon::join(|| kernel_authenticode(directory), || directory.artifacts());
    Ok(Release {
        image: manifest.image,
        manifest_digest: Sha256Digest::of(envelope.unverified_payload()),
        root_hash: manifest.verity.root_hash,
        kernel_release: manifest.kernel_release,
        kernel_authenticode: kernel_authenticode?,
        uki: uki_measurements(directory)?,
        command_lines: manifest.command_lines,
        artifacts: artifacts?,
    })
}

/// The unified kernel image as firmware and its stub measure it.
fn uki_measurements(directory: &SealedDirectory) -> Result<Option<UkiMeasurements>, Failure> {
    if !directory.has(sealed::UKI) {
        return Ok(None);
    }
    let image = directory.read(sealed::UKI, MAX_IMAGE)?;
    Ok(Some(uki::measurements(&image).map_err(|error| Failure::from(error).about(&directory.file(sealed::UKI)))?))
}

/// The kernel as UEFI firmware measures it. Kernels without EFI stub are not measured by firmware.
fn kernel_authenticode(directory: &SealedDirectory) -> Result<Option<Sha256Digest>, Failure> {
    let path = directory.file(sealed::KERNEL);
    if !path.is_file() {
        return Ok(None);
    }
    let image = directory.read(sealed::KERNEL, MAX_IMAGE)?;
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
