//! Directory blocks: entries of fixed size, then their names. Names are sorted by bytes over all blocks.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U64},
};

/// `EROFS_NAME_LEN`: the longest name in bytes.
pub const NAME_LIMIT: usize = 255;

/// `struct erofs_dirent`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawEntry {
    /// `nid`
    pub nid: U64,
    /// `nameoff`: where in the block the name starts. The first entry's tells how many entries there are.
    pub name_offset: U16,
    /// `file_type`: `EROFS_FT_*`, the numbers of [`file_type`].
    pub file_type: u8,
    /// `reserved`
    pub reserved: u8,
}

/// Bytes of a [`RawEntry`].
pub const ENTRY_SIZE: usize = size_of::<RawEntry>();

/// The `EROFS_FT_*` for an `i_mode`; 0, which stands for unknown, where there is none.
pub fn file_type(mode: u16) -> u8 {
    use super::inode::*;
    match mode & MODE_TYPE {
        MODE_FILE => 1,
        MODE_DIRECTORY => 2,
        MODE_CHARACTER => 3,
        MODE_BLOCK => 4,
        MODE_FIFO => 5,
        MODE_SOCKET => 6,
        MODE_SYMLINK => 7,
        _ => 0,
    }
}
