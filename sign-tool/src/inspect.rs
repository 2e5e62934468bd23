//! `inspect`: tells what a file is and what it says, without believing any of it.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use iofs_policy::{
    boot_record::BootRecord,
    digest::Sha256Digest,
    dsse::{Envelope, MAX_ENVELOPE_SIZE, PayloadType},
    keys::{KeyHistory, KeySequence, MAX_HISTORY_SIZE},
    manifest::{ImageVersion, Manifest},
    modules::ModuleIndex,
    release::Release,
    trust::{KeyId, TrustPolicy},
    verity::{Geometry, Superblock as VeritySuperblock, VerityParameters},
};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    erofs,
    initramfs::kernel::KernelImage,
    keys,
    report::{ExitStatus, Failure},
    sealed::{KEY_HISTORY, MANIFEST, RELEASE, SealedDirectory},
};

mod disk;
mod entries;
pub mod image;
pub mod initramfs;
mod luks;
pub(crate) mod luks_text;
mod pe;
mod text;

pub use disk::{InspectedDisk, InspectedPartition};
pub use entries::{ListedEntry, Listing};
use entries::{extract_tree, mode_text, refuse_existing};
pub use image::{Checked, Detail, InspectedErofs};
pub use initramfs::InspectedInitramfs;
pub use luks::{InspectedKdf, InspectedKeyslot, InspectedLuks, InspectedSegment, InspectedToken, InspectedTpm2};
pub use pe::{InspectedPe, InspectedSection};

/// How much of a file decides what it is, in bytes.
const HEAD: usize = 4096;

/// What a file turned out to be.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Inspection {
    /// A sealed directory: its documents.
    SealedDirectory {
        /// `manifest.dsse.json`.
        manifest: Box<Inspection>,
        /// `release.dsse.json`, once there is one.
        release: Option<Box<Inspection>>,
        /// `keys.history`, where keys were moved.
        #[serde(skip_serializing_if = "Option::is_none")]
        history: Option<Box<Inspection>>,
    },
    /// The releases that moved the keys.
    KeyHistory {
        /// In order.
        moves: Vec<InspectedMove>,
    },
    /// An envelope around a manifest.
    Manifest(Box<Document<Manifest>>),
    /// An envelope around a release statement.
    Release(Box<Document<Release>>),
    /// A trust policy.
    Trust {
        /// The policy.
        policy: Box<TrustPolicy>,
        /// The ids of its keys.
        keys: Vec<KeyId>,
    },
    /// A verity hash area that begins with a superblock.
    VeritySuperblock(InspectedSuperblock),
    /// An erofs image.
    Erofs(InspectedErofs),
    /// An initramfs.
    Initramfs(InspectedInitramfs),
    /// A disk image with a GPT.
    Disk(InspectedDisk),
    /// A LUKS2 volume, or its header.
    Luks2(Box<InspectedLuks>),
    /// A unified kernel image, or a stub for one.
    Uki(Box<InspectedPe>),
    /// A kernel.
    Kernel {
        /// Its release.
        release: String,
        /// Its machine.
        machine: &'static str,
    },
    /// A public or private key.
    Key {
        /// Whether the file holds the private half, of which nothing is shown.
        private: bool,
        /// The key's id.
        keyid: KeyId,
        /// Whether it is one of the published examples.
        example: bool,
    },
    /// The record of a boot, `/run/iofs/boot.json`.
    BootRecord(Box<BootRecord>),
    /// A module index.
    ModuleIndex {
        /// The kernel's release.
        release: String,
        /// The modules' names.
        modules: Vec<String>,
    },
}

/// A release that moved the keys. Its signatures are listed, not verified.
#[derive(Debug, Serialize)]
pub struct InspectedMove {
    /// Which move, as the history counts.
    pub sequence: KeySequence,
    /// The release's version.
    pub version: ImageVersion,
    /// The keys that claim to have signed.
    pub claimed_signers: Vec<KeyId>,
    /// How many must sign from there on.
    pub threshold: u8,
    /// The keys that may.
    pub trusted: Vec<KeyId>,
    /// The keys whose signatures ended.
    pub revoked: Vec<KeyId>,
}

/// A signed document. Its signatures are listed, not verified.
#[derive(Debug, Serialize)]
pub struct Document<T> {
    /// SHA-256 of the payload.
    pub digest: Sha256Digest,
    /// SHA-256 of the bytes that signatures cover.
    pub signed_bytes_sha256: Sha256Digest,
    /// The keys that claim to have signed.
    pub claimed_signers: Vec<KeyId>,
    /// The payload.
    pub payload: T,
}

/// A verity superblock with what follows from it.
#[derive(Debug, Serialize)]
pub struct InspectedSuperblock {
    /// The device's id.
    pub uuid: Uuid,
    /// What the superblock says.
    pub parameters: VerityParameters,
    /// Size of the data in bytes.
    pub data_bytes: u64,
    /// Blocks of each level of the tree, from the data up.
    pub levels: Vec<u64>,
    /// Size of the tree in bytes.
    pub tree_bytes: u64,
}

/// Looks at a file or a sealed directory.
///
/// # Errors
/// It cannot be read, it is nothing that this tool knows, or it is damaged: the failure names the field.
pub fn inspect(path: &Path) -> Result<Inspection, Failure> {
    if path.is_dir() {
        return sealed_directory(path);
    }
    let fail = |error| Failure::io(format_args!("read {}", path.display()), &error);
    let mut file = File::open(path).map_err(fail)?;
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(HEAD as u64).read_to_end(&mut head).map_err(fail)?;
    file.seek(SeekFrom::Start(0)).map_err(fail)?;
    by_head(path, &mut file, &head)
}

/// Whether a file is an erofs image.
///
/// # Errors
/// It cannot be read.
pub fn is_image(path: &Path) -> Result<bool, Failure> {
    let found = File::open(path).and_then(|mut file| erofs::superblock::has_magic(&mut file));
    found.map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))
}

fn by_head(path: &Path, file: &mut File, head: &[u8]) -> Result<Inspection, Failure> {
    if head.starts_with(b"verity\0\0") {
        return verity_superblock(path, head);
    }
    if head.get(512..520) == Some(b"EFI PART") {
        return disk::inspect(path).map(Inspection::Disk);
    }
    if head.starts_with(b"LUKS\xba\xbe") {
        return luks::inspect(path, file).map(Box::new).map(Inspection::Luks2);
    }
    if erofs::superblock::has_magic(file).unwrap_or(false) {
        return image::inspect(path, Detail::default()).map(Inspection::Erofs);
    }
    if head.trim_ascii_start().starts_with(b"{") {
        return json(path, file);
    }
    if head.starts_with(b"-----BEGIN ") {
        return key(path, head);
    }
    if head.starts_with(b"MZ")
        && let Some(image) = pe::inspect(path)?
    {
        return Ok(Inspection::Uki(Box::new(image)));
    }
    if head.starts_with(b"MZ") || head.get(0x202..0x206) == Some(b"HdrS") {
        let kernel = KernelImage::read(path)?;
        return Ok(Inspection::Kernel { release: kernel.release.to_string(), machine: kernel.machine.name() });
    }
    if head.starts_with(b"iofs-key-history ") {
        return key_history(path, file);
    }
    if head.starts_with(b"iofs-modules ") {
        return module_index(path, file);
    }
    if luks::has_secondary(file) {
        return luks::inspect(path, file).map(Box::new).map(Inspection::Luks2);
    }
    initramfs::inspect(path).map(Inspection::Initramfs).map_err(|failure| {
        Failure::new(
            ExitStatus::BadInput,
            format!(
                "{}: expected an envelope, trust policy, boot record, verity superblock, erofs image, LUKS2 \
                 volume, initramfs, disk image, kernel or key; as an initramfs it reads: {}",
                path.display(),
                failure.fact
            ),
        )
    })
}

fn sealed_directory(path: &Path) -> Result<Inspection, Failure> {
    let directory = SealedDirectory::new(path);
    if !directory.has(MANIFEST) {
        return Err(Failure::new(ExitStatus::BadInput, format!("{}: a directory without {MANIFEST}", path.display()))
            .next("give a file, or a directory that 'iofs-sign seal' wrote"));
    }
    let release = directory.has(RELEASE).then(|| inspect(&directory.file(RELEASE))).transpose()?;
    let manifest = inspect(&directory.file(MANIFEST))?;
    let history = directory.has(KEY_HISTORY).then(|| inspect(&directory.file(KEY_HISTORY))).transpose()?;
    let (release, history) = (release.map(Box::new), history.map(Box::new));
    Ok(Inspection::SealedDirectory { manifest: Box::new(manifest), release, history })
}

fn bad(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    crate::sealed::bad_input(path, error)
}

fn verity_superblock(path: &Path, head: &[u8]) -> Result<Inspection, Failure> {
    let bytes = head.first_chunk().ok_or_else(|| {
        bad(path, &format!("verity superblock: expected {} bytes, found {}", VeritySuperblock::SIZE, head.len()))
    })?;
    let superblock = VeritySuperblock::decode(bytes).map_err(|error| bad(path, &error))?;
    let geometry = Geometry::new(&superblock.parameters).map_err(|error| bad(path, &error))?;
    Ok(Inspection::VeritySuperblock(InspectedSuperblock {
        uuid: superblock.uuid,
        data_bytes: geometry.data_bytes(),
        levels: geometry.levels().iter().map(|level| level.blocks).collect(),
        tree_bytes: geometry.hash_bytes(),
        parameters: superblock.parameters,
    }))
}

/// Everything; of what is too large one byte more than that, so that its parser says so.
fn read_beyond(path: &Path, file: &File, most: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    file.take(most as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
    Ok(bytes)
}

fn json(path: &Path, file: &File) -> Result<Inspection, Failure> {
    let bytes = read_beyond(path, file, MAX_ENVELOPE_SIZE)?;
    if let Ok(policy) = TrustPolicy::parse(&bytes) {
        let keys = policy.keys.ids().collect();
        return Ok(Inspection::Trust { policy: Box::new(policy), keys });
    }
    if let Ok(record) = serde_json::from_slice(&bytes) {
        return Ok(Inspection::BootRecord(Box::new(record)));
    }
    match Envelope::parse_unsigned(&bytes, PayloadType::Release) {
        Ok(envelope) => document(path, &envelope, Release::from_json).map(|one| Inspection::Release(Box::new(one))),
        Err(_) => {
            let envelope =
                Envelope::parse_unsigned(&bytes, PayloadType::Manifest).map_err(|error| bad(path, &error))?;
            document(path, &envelope, Manifest::from_json).map(Box::new).map(Inspection::Manifest)
        }
    }
}

fn document<T, E: std::fmt::Display>(
    path: &Path,
    envelope: &Envelope,
    parse: fn(&[u8]) -> Result<T, E>,
) -> Result<Document<T>, Failure> {
    let payload = envelope.unverified_payload();
    Ok(Document {
        digest: Sha256Digest::of(payload),
        signed_bytes_sha256: Sha256Digest::of(&envelope.signed_bytes()),
        claimed_signers: envelope.signatures().iter().map(|one| one.keyid).collect(),
        payload: parse(payload).map_err(|error| bad(path, &error))?,
    })
}

fn key(path: &Path, head: &[u8]) -> Result<Inspection, Failure> {
    let private = head.starts_with(b"-----BEGIN PRIVATE");
    let key = if private { keys::PrivateKey::read(path)?.public() } else { keys::read_public(path)? };
    Ok(Inspection::Key { private, keyid: key.id(), example: key.id().is_example() })
}

fn key_history(path: &Path, file: &File) -> Result<Inspection, Failure> {
    let bytes = read_beyond(path, file, MAX_HISTORY_SIZE)?;
    let history = KeyHistory::parse(&bytes).map_err(|error| bad(path, &error))?;
    let inspected = |(sequence, link): (KeySequence, &Envelope)| -> Result<InspectedMove, Failure> {
        let document = document(path, link, Manifest::from_json)?;
        let without = || bad(path, &format_args!("key move {sequence}: keys: expected other keys, found none"));
        let change = document.payload.keys.ok_or_else(without)?;
        Ok(InspectedMove {
            sequence,
            version: document.payload.image.version,
            claimed_signers: document.claimed_signers,
            threshold: change.trusted.threshold(),
            trusted: change.trusted.ids().collect(),
            revoked: change.revoked,
        })
    };
    Ok(Inspection::KeyHistory { moves: history.numbered().map(inspected).collect::<Result<_, _>>()? })
}

fn module_index(path: &Path, file: &File) -> Result<Inspection, Failure> {
    let mut text = String::new();
    file.take(iofs_policy::modules::MAX_TEXT as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
    let index = ModuleIndex::parse(&text).map_err(|error| bad(path, &error))?;
    Ok(Inspection::ModuleIndex {
        release: index.release().to_owned(),
        modules: index.modules().iter().map(|module| module.name.clone()).collect(),
    })
}
