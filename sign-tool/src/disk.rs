//! `disk`: a GPT disk image with the sealed data and its hash tree in typed partitions, and what firmware starts.
//!
//! Types, attributes and PARTUUIDs follow the Discoverable Partitions Specification, so that systemd's tools recognise
//! the image; `verify-init` only looks at what the manifest names.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use uuid::Uuid;

use crate::{
    atomic::AtomicFile,
    report::{Failure, Output, Progress},
    sealed::SealedDirectory,
};

mod esp;
mod plan;
mod root_signature;
mod slots;
mod table;
mod types;

pub use types::type_name;

/// Partitions begin on multiples of this, as every partitioning tool aligns them. Bytes.
const ALIGNMENT: u64 = 1 << 20;
/// The logical block size of the disk. Bytes.
const SECTOR: u64 = 512;
/// Copies skip blocks of zeros of this size, so that the image file stays sparse. Bytes.
const HOLE: usize = 64 * 1024;
/// The attribute bit "read-only".
pub(crate) const READ_ONLY: u64 = 1 << 60;

/// What goes onto the disk beside data and tree. The default is what the sealed directory has.
#[derive(Debug, Clone, Default)]
pub struct Additions {
    /// The unified kernel image that firmware starts, instead of [`sealed::UKI`].
    pub uki: Option<PathBuf>,
    /// The boot loader, where that chooses among slots, instead of the systemd-boot that is installed.
    pub boot_loader: Option<PathBuf>,
    /// The size of the EFI system partition in bytes, instead of what two such images need.
    pub esp_size: Option<u64>,
    /// The size of each slot in bytes, instead of half as much again as the image takes.
    pub slot_size: Option<u64>,
    /// The certificate of the signature of the root hash, instead of [`sealed::ROOT_HASH_CERTIFICATE`].
    pub root_certificate: Option<PathBuf>,
}

/// A partition of the image, for reports.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DiskPartition {
    /// Its number, from 1.
    pub number: u32,
    /// Its GPT name.
    pub label: String,
    /// Its unique id.
    pub partuuid: Uuid,
    /// Its type.
    pub type_uuid: Uuid,
    /// Its first byte on the disk.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// What `disk` wrote.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DiskReport {
    /// The image file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Its partitions.
    pub partitions: Vec<DiskPartition>,
}

/// What a partition holds.
#[derive(Debug)]
enum Content {
    /// These, each at its offset.
    Pieces(Vec<(Piece, u64)>),
    /// A file system with what firmware starts.
    Esp(esp::Esp),
}

/// A part of what a partition holds.
#[derive(Debug)]
enum Piece {
    /// A file of the sealed directory as it is.
    File(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// A partition with what it holds.
#[derive(Debug)]
struct Planned {
    partition: DiskPartition,
    /// Attribute bits.
    flags: u64,
    content: Content,
}

/// Writes a disk image of a sealed directory. It appears whole or not at all.
///
/// # Errors
/// The manifest seals places that are no partitions, what is added does not fit it, or a file cannot be read or written.
pub fn write(
    directory: &SealedDirectory,
    out: &Path,
    additions: &Additions,
    output: Output,
) -> Result<DiskReport, Failure> {
    let manifest = directory.manifest()?;
    let plan = plan::plan(directory, &manifest, additions)?;
    let end = plan.last().map_or(0, |last| last.partition.offset + last.partition.size);
    let size = end.next_multiple_of(ALIGNMENT) + ALIGNMENT;

    let mut file = AtomicFile::create(out, 0o644)?;
    let total = plan.iter().map(|planned| planned.partition.size).sum();
    let progress = output.progress("writing the disk image", total);
    let mut fill = || {
        file.file().set_len(size)?;
        for planned in &plan {
            fill_partition(planned, file.file(), &progress)?;
        }
        table::write(file.file(), size, &plan, &manifest.verity.root_hash)
    };
    fill().map_err(|error| Failure::io(format_args!("write {}", out.display()), &error))?;
    progress.finish();
    file.replace()?;
    let partitions = plan.into_iter().map(|planned| planned.partition).collect();
    Ok(DiskReport { path: out.to_owned(), size, partitions })
}

fn fill_partition(planned: &Planned, target: &mut File, progress: &Progress) -> io::Result<()> {
    let DiskPartition { offset, size, .. } = planned.partition;
    match &planned.content {
        Content::Pieces(pieces) => pieces.iter().try_for_each(|(piece, at)| match piece {
            Piece::File(path) => copy_sparse(&mut File::open(path)?, target, offset + at, progress),
            Piece::Bytes(bytes) => copy_sparse(&mut &bytes[..], target, offset + at, progress),
        }),
        Content::Esp(esp) => esp.write(target, offset, size, progress),
    }
}

fn copy_sparse(source: &mut impl Read, target: &mut File, offset: u64, progress: &Progress) -> io::Result<()> {
    let mut buffer = vec![0; HOLE];
    let mut position = offset;
    loop {
        let mut filled = 0;
        while filled < HOLE {
            match source.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        if buffer[..filled].iter().any(|byte| *byte != 0) {
            target.seek(SeekFrom::Start(position))?;
            target.write_all(&buffer[..filled])?;
        }
        position += filled as u64;
        progress.advance(filled as u64);
    }
}
