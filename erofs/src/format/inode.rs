//! Inodes in their two forms, and the ways in which they hold data.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// `EROFS_I_VERSION_BIT`: set in `i_format` of extended inodes.
pub const FORMAT_EXTENDED: u16 = 1;
/// `EROFS_I_DATALAYOUT_BIT`.
pub const FORMAT_LAYOUT_SHIFT: u16 = 1;
/// `EROFS_I_DATALAYOUT_MASK`.
pub const FORMAT_LAYOUT_MASK: u16 = 7;
/// Everything in `i_format` that is known here: version and layout.
pub const FORMAT_KNOWN: u16 = FORMAT_EXTENDED | FORMAT_LAYOUT_MASK << FORMAT_LAYOUT_SHIFT;

/// How an inode's data is stored: the values of `EROFS_INODE_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `EROFS_INODE_FLAT_PLAIN`: consecutive blocks.
    FlatPlain = 0,
    /// `EROFS_INODE_COMPRESSED_FULL`: compressed, 8 bytes of index for each logical cluster.
    CompressedFull = 1,
    /// `EROFS_INODE_FLAT_INLINE`: consecutive blocks; what fills no block follows the inode.
    FlatInline = 2,
    /// `EROFS_INODE_COMPRESSED_COMPACT`: compressed, 2 or 4 bytes of index for each logical cluster.
    CompressedCompact = 3,
    /// `EROFS_INODE_CHUNK_BASED`: chunks, which may be absent.
    ChunkBased = 4,
}

impl Layout {
    /// The layout in an `i_format`.
    pub fn of_format(format: u16) -> Option<Self> {
        Some(match format >> FORMAT_LAYOUT_SHIFT & FORMAT_LAYOUT_MASK {
            0 => Self::FlatPlain,
            1 => Self::CompressedFull,
            2 => Self::FlatInline,
            3 => Self::CompressedCompact,
            4 => Self::ChunkBased,
            _ => return None,
        })
    }

    /// The bits of an `i_format`.
    pub fn format(self) -> u16 {
        (self as u16) << FORMAT_LAYOUT_SHIFT
    }
}

/// `struct erofs_inode_compact`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CompactInode {
    /// `i_format`
    pub format: U16,
    /// `i_xattr_icount`: 0, or one more than the units of 4 bytes after the attributes' header.
    pub xattr_count: U16,
    /// `i_mode`, with the file type
    pub mode: U16,
    /// `i_nlink`
    pub links: U16,
    /// `i_size`
    pub size: U32,
    /// `i_mtime` in new formats; `i_reserved`, zero, before.
    pub reserved: U32,
    /// `i_u`: first block, compressed blocks, device number or chunk format.
    pub data: U32,
    /// `i_ino`: a number for `stat` on 32-bit systems.
    pub number: U32,
    /// `i_uid`
    pub uid: U16,
    /// `i_gid`
    pub gid: U16,
    /// `i_reserved2`
    pub reserved2: U32,
}

/// `struct erofs_inode_extended`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExtendedInode {
    /// `i_format`
    pub format: U16,
    /// `i_xattr_icount`, as in [`CompactInode`]
    pub xattr_count: U16,
    /// `i_mode`, with the file type
    pub mode: U16,
    /// `i_reserved`
    pub reserved: U16,
    /// `i_size`
    pub size: U64,
    /// `i_u`, as in [`CompactInode`]
    pub data: U32,
    /// `i_ino`
    pub number: U32,
    /// `i_uid`
    pub uid: U32,
    /// `i_gid`
    pub gid: U32,
    /// `i_mtime`: signed seconds since 1970.
    pub mtime: U64,
    /// `i_mtime_nsec`
    pub mtime_nanoseconds: U32,
    /// `i_nlink`
    pub links: U32,
    /// `i_reserved2`
    pub reserved2: [u8; 16],
}

/// `EROFS_CHUNK_FORMAT_BLKBITS_MASK`: the exponent of a chunk's blocks.
pub const CHUNK_BITS_MASK: u16 = 0x1f;
/// `EROFS_CHUNK_FORMAT_INDEXES`: 8 bytes for each chunk, `struct erofs_inode_chunk_index`, and not 4.
pub const CHUNK_INDEXES: u16 = 0x20;
/// `EROFS_NULL_ADDR`: a chunk of zeros.
pub const NO_BLOCK: u32 = u32::MAX;

/// `struct erofs_inode_chunk_index`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChunkIndex {
    /// `startblk_hi`, zero before the 48-bit format (then `advise`).
    pub reserved: U16,
    /// `device_id`
    pub device: U16,
    /// `startblk_lo`
    pub block: U32,
}

/// A file type in `i_mode`: `S_IFMT`.
pub const MODE_TYPE: u16 = 0o170_000;
/// `S_IFDIR`
pub const MODE_DIRECTORY: u16 = 0o040_000;
/// `S_IFREG`
pub const MODE_FILE: u16 = 0o100_000;
/// `S_IFLNK`
pub const MODE_SYMLINK: u16 = 0o120_000;
/// `S_IFCHR`
pub const MODE_CHARACTER: u16 = 0o020_000;
/// `S_IFBLK`
pub const MODE_BLOCK: u16 = 0o060_000;
/// `S_IFIFO`
pub const MODE_FIFO: u16 = 0o010_000;
/// `S_IFSOCK`
pub const MODE_SOCKET: u16 = 0o140_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_have_the_sizes_of_the_kernel() {
        assert_eq!(size_of::<CompactInode>(), 32);
        assert_eq!(size_of::<ExtendedInode>(), 64);
        assert_eq!(size_of::<ChunkIndex>(), 8);
    }
}
