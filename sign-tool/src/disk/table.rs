//! The partition table.

use std::{collections::BTreeMap, fs::File, io};

use gpt::{
    GptConfig,
    disk::LogicalBlockSize,
    mbr::ProtectiveMBR,
    partition::Partition,
    partition_types::{OperatingSystem, Type},
};
use iofs_policy::verity::RootHash;

use super::{Planned, SECTOR, plan::derived_uuid};

/// Room for the backup table at the end: 32 sectors of entries and a header. Bytes.
const BACKUP: u64 = 33 * SECTOR;

/// Writes both copies of the table and the protective MBR.
pub(super) fn write(file: &mut File, size: u64, plan: &[Planned], root_hash: &RootHash) -> io::Result<()> {
    debug_assert!(plan.iter().all(|Planned { partition, .. }| partition.offset + partition.size + BACKUP <= size));
    let sectors = u32::try_from(size / SECTOR - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(file).map_err(io::Error::other)?;
    // The disk's id follows from the root hash too: the same input gives the same disk.
    let mut disk = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(file, Some(derived_uuid("iofs disk guid", root_hash)))
        .map_err(io::Error::other)?;
    let entries: BTreeMap<_, _> = plan.iter().map(|planned| (planned.partition.number, entry(planned))).collect();
    disk.update_partitions(entries).map_err(io::Error::other)?;
    disk.write().map_err(io::Error::other)?;
    Ok(())
}

fn entry(planned: &Planned) -> Partition {
    let partition = &planned.partition;
    Partition {
        part_type_guid: Type { guid: partition.type_uuid, os: OperatingSystem::None },
        part_guid: partition.partuuid,
        first_lba: partition.offset / SECTOR,
        last_lba: (partition.offset + partition.size) / SECTOR - 1,
        flags: planned.flags,
        name: partition.label.clone(),
    }
}
