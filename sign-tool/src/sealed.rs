//! The directory that `seal` writes: its files' names, and how they are read.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use iofs_policy::{
    digest::Sha256Digest,
    dsse::{Envelope, MAX_ENVELOPE_SIZE, PayloadType},
    keys::{KeyHistory, MAX_HISTORY_SIZE},
    manifest::Manifest,
    release::Artifact,
    trust::{MAX_TRUST_SIZE, TrustPolicy},
};
use rustix::fs::{FlockOperation, OFlags, flock};
use sha2::{Digest, Sha256};

use crate::{
    atomic,
    report::{ExitStatus, Failure},
};

mod measuring;

pub(crate) use measuring::{Follower, Measuring};

/// The erofs image.
pub const IMAGE: &str = "image.erofs";
/// Its hash area: superblock and tree.
pub const TREE: &str = "image.verity";
/// The signed manifest.
pub const MANIFEST: &str = "manifest.dsse.json";
/// What the boot side accepts; a copy of what the mini-initramfs holds.
pub const TRUST: &str = "trust.json";
/// The releases that moved the keys up to this one, each by its manifest's envelope.
pub const KEY_HISTORY: &str = "keys.history";
/// The trust policy of the release before, there only while a manifest that moves the keys waits for signatures.
pub const TRUST_BEFORE: &str = "trust.before";
/// The root hash as text, without a newline, the side-car that systemd's tools look for.
pub const ROOT_HASH: &str = "roothash";
/// The kernel.
pub const KERNEL: &str = "vmlinuz";
/// The mini-initramfs.
pub const INITRAMFS: &str = "initramfs.img";
/// The mini-initramfs without the manifest, there only until the manifest is signed.
pub const INITRAMFS_BASE: &str = "initramfs.base";
/// The unified kernel image.
pub const UKI: &str = "uki.efi";
/// The unified kernel image without kernel and initramfs, there only until the manifest is signed.
pub const UKI_BASE: &str = "uki.base";
/// The X.509 certificate of who signs the unified kernel image for Secure Boot, in DER.
pub const SECURE_BOOT_CERTIFICATE: &str = "secure-boot.crt";
/// The values of register 11 for this image, signed for the TPM: what `.pcrsig` holds.
pub const PCR_SIGNATURE: &str = "tpm2-pcr-signature.json";
/// The root hash, signed for the kernel's own check.
pub const ROOT_HASH_SIGNATURE: &str = "roothash.p7s";
/// The X.509 certificate of who signs the root hash, in DER.
pub const ROOT_HASH_CERTIFICATE: &str = "roothash.crt";
/// The signed statement about all of these.
pub const RELEASE: &str = "release.dsse.json";
/// The bytes that the next signature is to cover, there only until it is attached.
pub const TO_SIGN: &str = "to-sign.bin";

/// The largest kernel, mini-initramfs or image of both that is read whole, in bytes.
pub const MAX_IMAGE: usize = 512 * 1024 * 1024;

/// Every file that a release statement may list.
pub const ARTIFACTS: [&str; 13] = [
    IMAGE,
    TREE,
    MANIFEST,
    KEY_HISTORY,
    TRUST,
    ROOT_HASH,
    ROOT_HASH_SIGNATURE,
    ROOT_HASH_CERTIFICATE,
    KERNEL,
    INITRAMFS,
    UKI,
    PCR_SIGNATURE,
    SECURE_BOOT_CERTIFICATE,
];

/// A directory made by `seal`.
#[derive(Debug, Clone)]
pub struct SealedDirectory {
    path: PathBuf,
    /// Of the image, which need not be read again.
    measuring: Option<Arc<Measuring>>,
}

impl SealedDirectory {
    /// Names a directory. Nothing is read yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), measuring: None }
    }

    /// Takes what measures the image as it was written, so that it is not read again: for whoever alone knows where the directory lies,
    /// and does not change the image.
    pub(crate) fn with_measuring(self, measuring: Measuring) -> Self {
        Self { measuring: Some(Arc::new(measuring)), ..self }
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of one of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether a file is there.
    pub fn has(&self, name: &str) -> bool {
        self.file(name).symlink_metadata().is_ok()
    }

    /// Keeps other processes from changing the directory, and removes what a killed one left behind.
    pub fn lock(&self) -> Result<File, Failure> {
        let lock = || {
            let directory = File::open(&self.path)?;
            flock(&directory, FlockOperation::LockExclusive)?;
            for name in self.names().iter().filter(|name| name.starts_with(atomic::TEMPORARY)) {
                std::fs::remove_file(self.file(name))?;
            }
            Ok(directory)
        };
        lock().map_err(|error: io::Error| Failure::io(format_args!("lock {}", self.path.display()), &error))
    }

    /// The names of all files that are there, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Opens a file. Anything but a regular file is refused: a pipe would never end.
    pub fn open(&self, name: &str) -> Result<File, Failure> {
        let path = self.file(name);
        let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(&path);
        let file = file.map_err(|error| {
            let failure = Failure::io(format_args!("open {}", path.display()), &error);
            match error.kind() {
                io::ErrorKind::NotFound => Failure { status: ExitStatus::BadInput, ..failure }
                    .next("give a directory that 'iofs-sign seal' wrote"),
                _ => failure,
            }
        })?;
        match file.metadata() {
            Ok(metadata) if !metadata.is_file() => Err(bad_input(&path, &"expected a regular file")),
            _ => Ok(file),
        }
    }

    /// Reads a whole file, which must not be larger than `limit` bytes.
    pub fn read(&self, name: &str, limit: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        self.open(name)?
            .take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::io(format_args!("read {}", self.file(name).display()), &error))?;
        if bytes.len() > limit {
            let fact = format!("{}: expected at most {limit} bytes, found more", self.file(name).display());
            return Err(Failure::new(ExitStatus::BadInput, fact));
        }
        Ok(bytes)
    }

    /// Reads an envelope that may still lack signatures.
    pub fn envelope(&self, name: &str, payload_type: PayloadType) -> Result<Envelope, Failure> {
        let bytes = self.read(name, MAX_ENVELOPE_SIZE)?;
        Envelope::parse_unsigned(&bytes, payload_type).map_err(|error| bad_input(&self.file(name), &error))
    }

    /// Reads the manifest, whoever signed it or not.
    pub fn manifest(&self) -> Result<Manifest, Failure> {
        let envelope = self.envelope(MANIFEST, PayloadType::Manifest)?;
        self.manifest_in(&envelope)
    }

    /// The manifest in its envelope.
    pub fn manifest_in(&self, envelope: &Envelope) -> Result<Manifest, Failure> {
        Manifest::from_json(envelope.unverified_payload()).map_err(|error| bad_input(&self.file(MANIFEST), &error))
    }

    /// Reads the copy of the trust policy.
    pub fn trust(&self) -> Result<TrustPolicy, Failure> {
        let bytes = self.read(TRUST, MAX_TRUST_SIZE)?;
        TrustPolicy::parse(&bytes).map_err(|error| bad_input(&self.file(TRUST), &error))
    }

    /// Reads the key history, if there is one.
    pub fn key_history(&self) -> Result<Option<KeyHistory>, Failure> {
        if !self.has(KEY_HISTORY) {
            return Ok(None);
        }
        let bytes = self.read(KEY_HISTORY, MAX_HISTORY_SIZE)?;
        KeyHistory::parse(&bytes).map(Some).map_err(|error| bad_input(&self.file(KEY_HISTORY), &error))
    }

    /// Reads the trust policy of the release before, where the manifest moves the keys and is not signed by all yet.
    pub fn trust_before(&self) -> Result<Option<TrustPolicy>, Failure> {
        if !self.has(TRUST_BEFORE) {
            return Ok(None);
        }
        let bytes = self.read(TRUST_BEFORE, MAX_TRUST_SIZE)?;
        TrustPolicy::parse(&bytes).map(Some).map_err(|error| bad_input(&self.file(TRUST_BEFORE), &error))
    }

    /// Writes the image with its tree behind it, as both lie at one place, and returns how many bytes that are.
    ///
    /// # Errors
    /// The image is longer than its manifest says, or a file cannot be read or written.
    pub fn write_one_piece(&self, manifest: &Manifest, out: &mut impl Write) -> Result<u64, Failure> {
        let piece = |name: &str, out: &mut dyn Write| {
            io::copy(&mut self.open(name)?, out)
                .map_err(|error| Failure::io(format_args!("copy {}", self.file(name).display()), &error))
        };
        let data = piece(IMAGE, out)?;
        let gap = manifest.verity.hash_offset.checked_sub(data).ok_or_else(|| {
            let fact =
                format!("expected at most {} bytes in front of its tree, found {data}", manifest.verity.hash_offset);
            bad_input(&self.file(IMAGE), &fact)
        })?;
        io::copy(&mut io::repeat(0).take(gap), out).map_err(|error| Failure::io("write the image", &error))?;
        Ok(data + gap + piece(TREE, out)?)
    }

    /// Measures the files that are there, for a release statement. The order is that of [`ARTIFACTS`].
    pub fn artifacts(&self) -> Result<Vec<Artifact>, Failure> {
        // The last first: the image may still be under way.
        let found = ARTIFACTS.into_iter().rev().filter(|name| self.has(name)).map(|name| self.artifact(name));
        let mut found = found.collect::<Result<Vec<_>, _>>()?;
        found.reverse();
        Ok(found)
    }

    /// Measures a file.
    pub(crate) fn artifact(&self, name: &str) -> Result<Artifact, Failure> {
        let measured = match self.measuring.as_ref().filter(|_| name == IMAGE) {
            Some(measuring) => Ok(measuring.wait()),
            None => digest_file(&mut self.open(name)?),
        };
        let (size, sha256) =
            measured.map_err(|error| Failure::io(format_args!("read {}", self.file(name).display()), &error))?;
        Ok(Artifact { name: name.to_owned(), size, sha256 })
    }
}

/// Size and SHA-256 of a stream. What is next is read while the processor is busy with what came before.
pub fn digest_file(input: &mut (impl Read + Send)) -> io::Result<(u64, Sha256Digest)> {
    let mut hasher = Sha256::new();
    let [mut current, mut next] = [(); 2].map(|()| vec![0; 1 << 20]);
    let (mut size, mut count) = (0, input.read(&mut current)?);
    while count > 0 {
        let ((), read) = rayon::join(|| hasher.update(&current[..count]), || input.read(&mut next));
        size += count as u64;
        count = read?;
        std::mem::swap(&mut current, &mut next);
    }
    Ok((size, Sha256Digest::from_bytes(hasher.finalize().into())))
}

/// A malformed file.
pub fn bad_input(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(ExitStatus::BadInput, format!("{}: {error}", path.display()))
}
