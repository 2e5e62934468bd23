//! `disk`: a GPT disk image with the sealed data and its hash tree in typed partitions.
//!
//! Types, attributes and PARTUUIDs follow the Discoverable Partitions Specification, so that systemd's tools recognise
//! the image; `verify-init` only looks at what the manifest names.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use gpt::{
    GptConfig,
    disk::LogicalBlockSize,
    mbr::ProtectiveMBR,
    partition::Partition,
    partition_types::{OperatingSystem, Type},
};
use iofs_policy::{
    dsse::PayloadType,
    manifest::{Architecture, Manifest, Place, Role},
    verity::RootHash,
};
use uuid::{Uuid, uuid};

use crate::{
    atomic::AtomicFile,
    report::{ExitStatus, Failure, Output, Progress},
    sealed::{self, SealedDirectory, bad_input},
};

/// Partitions begin on multiples of this, as every partitioning tool aligns them. Bytes.
const ALIGNMENT: u64 = 1 << 20;
/// The logical block size of the disk. Bytes.
const SECTOR: u64 = 512;
/// Room for the backup table at the end: 32 sectors of entries and a header. Bytes.
const BACKUP: u64 = 33 * SECTOR;
/// Copies skip blocks of zeros of this size, so that the image file stays sparse. Bytes.
const HOLE: usize = 64 * 1024;
/// The attribute bit "read-only".
pub(crate) const READ_ONLY: u64 = 1 << 60;

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

/// Writes a disk image of a sealed directory. It appears whole or not at all.
///
/// # Errors
/// The manifest seals places that are no partitions, or a file cannot be read or written.
pub fn write(directory: &SealedDirectory, out: &Path, output: Output) -> Result<DiskReport, Failure> {
    let envelope = directory.envelope(sealed::MANIFEST, PayloadType::Manifest)?;
    let manifest = Manifest::from_json(envelope.unverified_payload())
        .map_err(|error| bad_input(&directory.file(sealed::MANIFEST), &error))?;
    let plan = plan(directory, &manifest)?;
    let size = plan.last().map_or(0, |(last, _)| last.offset + last.size).next_multiple_of(ALIGNMENT) + ALIGNMENT;

    let mut file = AtomicFile::create(out, 0o644)?;
    let total = plan.iter().map(|(partition, _)| partition.size).sum();
    let progress = output.progress("writing the disk image", total);
    let mut fill = || {
        file.file().set_len(size)?;
        for (partition, name) in &plan {
            let mut source = File::open(directory.file(name))?;
            copy_sparse(&mut source, file.file(), partition.offset, &progress)?;
        }
        write_table(file.file(), size, &plan, &manifest.verity.root_hash)
    };
    fill().map_err(|error| Failure::io(format_args!("write {}", out.display()), &error))?;
    progress.finish();
    file.replace()?;
    let partitions = plan.into_iter().map(|(partition, _)| partition).collect();
    Ok(DiskReport { path: out.to_owned(), size, partitions })
}

/// Where each file goes.
fn plan(directory: &SealedDirectory, manifest: &Manifest) -> Result<Vec<(DiskPartition, &'static str)>, Failure> {
    let hash = manifest.verity.root_hash.as_bytes();
    let (first, last) = (&hash[..16], &hash[hash.len() - 16..]);
    let [data_type, tree_type] = partition_types(manifest)?;
    let mut plan: Vec<(DiskPartition, &'static str)> = Vec::new();
    for (place, name, label, derived, type_uuid) in [
        (&manifest.data, sealed::IMAGE, "root", first, data_type),
        (&manifest.tree, sealed::TREE, "root-verity", last, tree_type),
    ] {
        let derived = Uuid::from_slice(derived).expect("16 bytes are a UUID");
        let (label, partuuid) = match place {
            Place::PartUuid(uuid) => (label.to_owned(), *uuid),
            Place::PartLabel(label) => (label.to_string(), derived),
            Place::Volume(volume) => {
                let seek = if name == sealed::TREE { manifest.verity.hash_offset } else { 0 };
                return Err(Failure::new(
                    ExitStatus::Usage,
                    format!("{name} is sealed to lie in the encrypted volume {volume}"),
                )
                .next(format!(
                    "open the volume, then: dd if={} of=/dev/mapper/{volume} oflag=seek_bytes seek={seek}",
                    directory.file(name).display()
                )));
            }
            Place::Disk(_) => {
                return Err(Failure::new(
                    ExitStatus::Usage,
                    format!("{name} is sealed to lie on the whole disk {place}"),
                )
                .next(format!("write it there as it is: dd if={} of={place}", directory.file(name).display())));
            }
        };
        let size = fs::metadata(directory.file(name))
            .map_err(|error| Failure::io(format_args!("read {}", directory.file(name).display()), &error))?
            .len()
            .next_multiple_of(SECTOR);
        let end = plan.last().map_or(ALIGNMENT, |(before, _)| before.offset + before.size);
        let (number, offset) = (plan.len() as u32 + 1, end.next_multiple_of(ALIGNMENT));
        plan.push((DiskPartition { number, label, partuuid, type_uuid, offset, size }, name));
    }
    Ok(plan)
}

/// Discoverable Partitions Specification: root and root-verity. A second stage is nobody's root.
fn partition_types(manifest: &Manifest) -> Result<[Uuid; 2], Failure> {
    match (manifest.image.role, manifest.image.architecture) {
        (Role::Root, Architecture::X86_64) => {
            Ok([uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"), uuid!("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5")])
        }
        (Role::Root, Architecture::Arm64) => {
            Ok([uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae"), uuid!("df3300ce-d69f-4c92-978c-9bfb0f38d820")])
        }
        (Role::InitOverlay, _) => {
            // Linux file system data: systemd must not take it for a root.
            let generic = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");
            Ok([generic, generic])
        }
    }
}

fn copy_sparse(source: &mut File, target: &mut File, offset: u64, progress: &Progress) -> io::Result<()> {
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

fn write_table(
    file: &mut File,
    size: u64,
    plan: &[(DiskPartition, &'static str)],
    root_hash: &RootHash,
) -> io::Result<()> {
    debug_assert!(plan.iter().all(|(partition, _)| partition.offset + partition.size + BACKUP <= size));
    let sectors = u32::try_from(size / SECTOR - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(file).map_err(io::Error::other)?;
    let mut disk = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(file, Some(disk_guid(root_hash)))
        .map_err(io::Error::other)?;
    disk.update_partitions(
        plan.iter().map(|(partition, _)| (partition.number, entry(partition))).collect::<BTreeMap<_, _>>(),
    )
    .map_err(io::Error::other)?;
    disk.write().map_err(io::Error::other)?;
    Ok(())
}

fn entry(partition: &DiskPartition) -> Partition {
    Partition {
        part_type_guid: Type { guid: partition.type_uuid, os: OperatingSystem::None },
        part_guid: partition.partuuid,
        first_lba: partition.offset / SECTOR,
        last_lba: (partition.offset + partition.size) / SECTOR - 1,
        flags: READ_ONLY,
        name: partition.label.clone(),
    }
}

/// The disk's id follows from the root hash too: the same input gives the same disk.
fn disk_guid(root_hash: &RootHash) -> Uuid {
    let digest = iofs_policy::digest::Sha256Digest::of(&[b"iofs disk guid\0", root_hash.as_bytes()].concat());
    uuid::Builder::from_custom_bytes(digest.as_bytes()[..16].try_into().expect("16 of 32 bytes")).into_uuid()
}
