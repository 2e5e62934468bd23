//! A disk image: its GPT, and what its partitions begin with.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use gpt::{GptConfig, disk::LogicalBlockSize};
use iofs_policy::verity::Superblock;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    disk::{DiskPartition, READ_ONLY, type_name},
    erofs,
    report::{ExitStatus, Failure},
};

/// A disk image.
#[derive(Debug, Serialize)]
pub struct InspectedDisk {
    /// The disk's id.
    pub disk_uuid: Uuid,
    /// Its partitions, by number.
    pub partitions: Vec<InspectedPartition>,
}

/// A partition.
#[derive(Debug, Serialize)]
pub struct InspectedPartition {
    /// What the table says.
    #[serde(flatten)]
    pub entry: DiskPartition,
    /// What its type says that it is, if this toolkit writes such.
    pub purpose: Option<&'static str>,
    /// Whether the read-only attribute is set.
    pub read_only: bool,
    /// What it begins with, if that is known.
    pub content: Option<&'static str>,
}

/// Reads the GPT. Both headers must be intact.
pub(super) fn inspect(path: &Path) -> Result<InspectedDisk, Failure> {
    let bad = |error: gpt::GptError| {
        Failure::new(ExitStatus::BadInput, format!("{}: GPT: {error}", path.display()))
            .next("look at it with 'sfdisk --verify'; 'iofs-sign disk' writes it anew")
    };
    let disk = GptConfig::new().logical_block_size(LogicalBlockSize::Lb512).open(path).map_err(bad)?;
    let file = File::open(path).map_err(|error| Failure::io(format_args!("open {}", path.display()), &error))?;
    let partitions = disk
        .partitions()
        .iter()
        .filter(|(_, partition)| partition.is_used())
        .map(|(number, partition)| {
            let offset = partition.first_lba.saturating_mul(512);
            let entry = DiskPartition {
                number: *number,
                label: partition.name.clone(),
                partuuid: partition.part_guid,
                type_uuid: partition.part_type_guid.guid,
                offset,
                size: (partition.last_lba + 1).saturating_sub(partition.first_lba).saturating_mul(512),
            };
            InspectedPartition {
                purpose: type_name(&entry.type_uuid),
                entry,
                read_only: partition.flags & READ_ONLY != 0,
                content: content(&file, offset),
            }
        })
        .collect();
    Ok(InspectedDisk { disk_uuid: *disk.guid(), partitions })
}

fn content(file: &File, offset: u64) -> Option<&'static str> {
    let mut head = [0; 2048];
    file.read_exact_at(&mut head, offset).ok()?;
    if Superblock::decode(head.first_chunk()?).is_ok() {
        return Some("verity hash area");
    }
    if head.starts_with(b"LUKS\xba\xbe") {
        return Some("LUKS header");
    }
    // Microsoft, FAT specification: BS_FilSysType and Signature_word of FAT32's boot sector.
    if head[82..].starts_with(b"FAT32   ") && head[510..].starts_with(&[0x55, 0xaa]) {
        return Some("FAT32");
    }
    if head.starts_with(br#"{"rootHash""#) {
        return Some("signature of a root hash");
    }
    let magic = erofs::superblock::MAGIC.to_le_bytes();
    let start = erofs::superblock::OFFSET as usize;
    head[start..].starts_with(&magic).then_some("erofs")
}
