//! Numbers that must not be mixed up.

use std::fmt;

/// The exponent of the block size that the writer uses.
pub const BLOCK_BITS: u8 = 12;
/// Bytes of a block that the writer uses.
pub const BLOCK_SIZE: usize = 1 << BLOCK_BITS;
/// Inodes lie at multiples of this many bytes: `EROFS_ISLOTBITS`.
pub const SLOT_SIZE: usize = 32;

/// The number of a block of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Block(pub u32);

impl Block {
    /// Where it starts, with blocks of `1 << bits` bytes.
    pub fn offset(self, bits: u8) -> u64 {
        u64::from(self.0) << bits
    }
}

impl fmt::Display for Block {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "block {}", self.0)
    }
}

/// The number of an inode: its place in the metadata area, in slots of [`SLOT_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nid(pub u64);

impl fmt::Display for Nid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "inode {}", self.0)
    }
}
