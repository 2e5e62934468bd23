//! `struct erofs_super_block`, and what may follow it.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// `EROFS_SUPER_MAGIC_V1`.
pub const MAGIC: u32 = 0xE0F5_E1E2;
/// `EROFS_SUPER_OFFSET`: where the superblock starts.
pub const OFFSET: usize = 1024;
/// Bytes of one `sb_extslots`: `EROFS_SB_EXTSLOT_SIZE`.
pub const EXTENSION_SLOT_SIZE: usize = 16;

/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`: the checksum is set.
pub const COMPAT_CHECKSUM: u32 = 0x1;
/// `EROFS_FEATURE_COMPAT_MTIME`: the times of inodes are those of their content.
pub const COMPAT_MTIME: u32 = 0x2;

/// `EROFS_FEATURE_INCOMPAT_LZ4_0PADDING`: compressed data ends where its cluster ends.
pub const INCOMPAT_ZERO_PADDING: u32 = 0x1;
/// `EROFS_FEATURE_INCOMPAT_COMPR_CFGS` and `EROFS_FEATURE_INCOMPAT_BIG_PCLUSTER`: the algorithms' settings follow the
/// superblock; physical clusters have more than one block.
pub const INCOMPAT_CONFIGURATIONS: u32 = 0x2;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`: some files are lists of chunks.
pub const INCOMPAT_CHUNKED: u32 = 0x4;
/// `EROFS_FEATURE_INCOMPAT_DEVICE_TABLE` and `EROFS_FEATURE_INCOMPAT_COMPR_HEAD2`.
pub const INCOMPAT_DEVICES: u32 = 0x8;
/// `EROFS_FEATURE_INCOMPAT_ZTAILPACKING`: the last cluster of a compressed file may lie in its metadata.
pub const INCOMPAT_TAIL_PACKING: u32 = 0x10;
/// `EROFS_FEATURE_INCOMPAT_FRAGMENTS` and `EROFS_FEATURE_INCOMPAT_DEDUPE`.
pub const INCOMPAT_FRAGMENTS: u32 = 0x20;

/// The fixed part of the superblock.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawSuperblock {
    /// `magic`
    pub magic: U32,
    /// `checksum`: CRC32C without its last inversion, from here to the end of the first block.
    pub checksum: U32,
    /// `feature_compat`
    pub feature_compat: U32,
    /// `blkszbits`: the exponent of the block size.
    pub block_bits: u8,
    /// `sb_extslots`: units of 16 bytes that the superblock has beyond these.
    pub extension_slots: u8,
    /// `rootnid_2b`
    pub root_nid: U16,
    /// `inos`: how many inodes there are.
    pub inodes: U64,
    /// `epoch`: the time in seconds of inodes without one of their own.
    pub epoch: U64,
    /// `fixed_nsec`: its nanoseconds.
    pub fixed_nanoseconds: U32,
    /// `blocks_lo`: how many blocks there are.
    pub blocks: U32,
    /// `meta_blkaddr`: the block at which inode 0 would lie.
    pub meta_block: U32,
    /// `xattr_blkaddr`: the block from which shared attributes count.
    pub xattr_block: U32,
    /// `uuid`
    pub uuid: [u8; 16],
    /// `volume_name`
    pub volume_name: [u8; 16],
    /// `feature_incompat`
    pub feature_incompat: U32,
    /// `available_compr_algs`: a bit for each algorithm; without [`INCOMPAT_CONFIGURATIONS`], `lz4_max_distance`.
    pub algorithms: U16,
    /// `extra_devices`
    pub extra_devices: U16,
    /// `devt_slotoff`
    pub device_slot: U16,
    /// `dirblkbits`: the exponent of directory blocks beyond that of blocks.
    pub directory_bits: u8,
    /// `xattr_prefix_count`
    pub xattr_prefixes: u8,
    /// `xattr_prefix_start`
    pub xattr_prefix_start: U32,
    /// `packed_nid`: the inode that holds fragments.
    pub packed_nid: U64,
    /// `xattr_filter_reserved`
    pub xattr_filter: u8,
    /// `ishare_xattr_prefix_id`, `build_time` and `rootnid_8b` of newer formats; zero here.
    pub reserved: [u8; 23],
}

/// `struct z_erofs_lz4_cfgs`, with the size before it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Lz4Configuration {
    /// The bytes that follow: 14.
    pub size: U16,
    /// `max_distance`: how far back a match may lie.
    pub max_distance: U16,
    /// `max_pclusterblks`: the blocks of the largest physical cluster.
    pub max_cluster_blocks: U16,
    /// `reserved`
    pub reserved: [u8; 10],
}

/// `struct z_erofs_zstd_cfgs`, with the size before it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ZstdConfiguration {
    /// The bytes that follow: 6.
    pub size: U16,
    /// `format`: 0.
    pub format: u8,
    /// `windowlog`: the exponent of the largest window, less [`ZSTD_WINDOW_LOG_BASE`].
    pub window_log: u8,
    /// `reserved`
    pub reserved: [u8; 4],
}

/// `ZSTD_WINDOWLOG_ABSOLUTEMIN`, from which `windowlog` counts.
pub const ZSTD_WINDOW_LOG_BASE: u8 = 10;

/// Of the bytes from the superblock to the end of its block, whose field `checksum` counts as zero. The kernel's CRC32C
/// leaves out the last inversion.
pub fn checksum(from_superblock: &[u8]) -> u32 {
    let (before, rest) = from_superblock.split_at(4);
    let sum = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    !crc32c::crc32c_append(sum, rest.get(4..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_kernel() {
        assert_eq!(size_of::<RawSuperblock>(), 128);
        assert_eq!(size_of::<Lz4Configuration>(), 16);
        assert_eq!(size_of::<ZstdConfiguration>(), 8);
    }
}
