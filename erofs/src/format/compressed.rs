//! The index of compressed files.
//!
//! A file is cut into logical clusters of one block each. Compressed data is cut into physical clusters of whole blocks.
//! Each logical cluster has an entry: it either has the start of a physical cluster's data within it (a head), or
//! continues that of an earlier one.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

/// `struct z_erofs_map_header`, at the next multiple of 8 after inode and attributes.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct MapHeader {
    /// `h_reserved1`; with `h_idata_size` the offset in the packed inode, `h_fragmentoff`
    pub reserved: U16,
    /// `h_idata_size`: bytes of the last physical cluster, where it lies in the metadata
    pub inline_size: U16,
    /// `h_advise`: `Z_EROFS_ADVISE_*`
    pub advise: U16,
    /// `h_algorithmtype`: that of heads in the lower four bits, of second heads in the upper
    pub algorithms: u8,
    /// `h_clusterbits`: the exponent of a logical cluster's blocks in the lower four bits; bit 7: all in the packed inode
    pub cluster_bits: u8,
}

/// `Z_EROFS_ADVISE_COMPACTED_2B`: some entries take 2 bytes.
pub const ADVISE_COMPACTED_2B: u16 = 0x1;
/// `Z_EROFS_ADVISE_BIG_PCLUSTER_1`: heads may have several blocks.
pub const ADVISE_BIG_1: u16 = 0x2;
/// `Z_EROFS_ADVISE_BIG_PCLUSTER_2`: and second heads. In a compacted index both are set, or none.
pub const ADVISE_BIG_2: u16 = 0x4;
/// `Z_EROFS_ADVISE_INLINE_PCLUSTER`: the last physical cluster lies in the metadata.
pub const ADVISE_INLINE: u16 = 0x8;
/// `Z_EROFS_ADVISE_INTERLACED_PCLUSTER`: plain blocks hold their bytes at the offset that these have in the file.
pub const ADVISE_INTERLACED: u16 = 0x10;
/// `Z_EROFS_ADVISE_FRAGMENT_PCLUSTER`: the end of the file lies in the packed inode.
pub const ADVISE_FRAGMENT: u16 = 0x20;

/// `Z_EROFS_LI_D0_CBLKCNT`: an entry that tells the blocks of its physical cluster, and not the distance to the head.
pub const COUNT_FLAG: u16 = 1 << 11;
/// `Z_EROFS_LI_PARTIAL_REF`, in full indexes: the file uses only the start of what the cluster holds.
pub const PARTIAL_REFERENCE: u16 = 1 << 15;

/// What an entry is: `Z_EROFS_LCLUSTER_TYPE_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Here starts a physical cluster of one block that is not compressed.
    Plain = 0,
    /// Here starts a compressed one.
    Head1 = 1,
    /// Here none starts.
    NonHead = 2,
    /// Here starts one compressed by the second algorithm.
    Head2 = 3,
}

impl Kind {
    /// By the lowest two bits.
    pub fn of_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::Plain,
            1 => Self::Head1,
            2 => Self::NonHead,
            _ => Self::Head2,
        }
    }
}

/// `struct z_erofs_lcluster_index`: an entry of a full index. The index begins 8 bytes after the [`MapHeader`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FullEntry {
    /// `di_advise`: the kind in the lowest bits
    pub advise: U16,
    /// `di_clusterofs`: where in the logical cluster the physical one starts
    pub offset: U16,
    /// `di_u`: the block; or, in halves, the distances back to the head and on to the next
    pub target: U32,
}

/// Between the header and the entries of a full index: `Z_EROFS_FULL_INDEX_START`.
pub const FULL_INDEX_GAP: u64 = 8;

/// Where the three parts of a compacted index begin: entries of 4 bytes until the entries are aligned to 32 bytes,
/// then packs of 16 entries of 2 bytes, then entries of 4 bytes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactParts {
    /// Entries of 4 bytes before the packs; an even number.
    pub initial: u64,
    /// Entries of 2 bytes; a multiple of 16.
    pub packed: u64,
}

impl CompactParts {
    /// For an index that begins at byte `start`, a multiple of 8, and has `entries`.
    pub fn new(start: u64, entries: u64, advise: u16) -> Self {
        let initial = ((32 - start % 32) / 4) & 7;
        let packs = advise & ADVISE_COMPACTED_2B != 0 && initial < entries;
        Self { initial, packed: if packs { (entries - initial) / 16 * 16 } else { 0 } }
    }

    /// Bytes of the whole index with `entries`. Packs are whole: the last one of 4-byte entries has two.
    pub fn size(self, entries: u64) -> u64 {
        let small = entries - self.packed.min(entries);
        small.next_multiple_of(2) * 4 + self.packed * 2
    }

    /// The pack that holds entry `number`.
    pub fn pack(self, number: u64) -> Pack {
        if self.packed != 0 && number >= self.initial && number < self.initial + self.packed {
            let inside = number - self.initial;
            let offset = self.initial * 4 + inside / 16 * 32;
            return Pack { first: number - inside % 16, offset, entries: 16, bits: 14, size: 32 };
        }
        let before = if number < self.initial { 0 } else { self.packed };
        let small = number - before;
        Pack { first: number - small % 2, offset: small / 2 * 8 + before * 2, entries: 2, bits: 16, size: 8 }
    }
}

/// Some entries of a compacted index, with the block from which those of their heads count in its last four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pack {
    /// The number of its first entry.
    pub first: u64,
    /// Its place from the start of the index.
    pub offset: u64,
    /// Its entries.
    pub entries: usize,
    /// Bits of each.
    pub bits: usize,
    /// Its bytes.
    pub size: usize,
}

/// Bits of an entry below its kind, with logical clusters of 4096 bytes.
pub const LOW_BITS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_kernel() {
        assert_eq!((size_of::<MapHeader>(), size_of::<FullEntry>()), (8, 8));
    }

    #[test]
    fn packs_follow_each_other_without_gaps() {
        for start in [0, 8, 16, 24] {
            for entries in 1..200 {
                let parts = CompactParts::new(start, entries, ADVISE_COMPACTED_2B);
                let (mut number, mut offset) = (0, 0);
                while number < entries {
                    let pack = parts.pack(number);
                    assert_eq!((pack.first, pack.offset), (number, offset), "start {start}, {entries} entries");
                    number += pack.entries as u64;
                    offset += pack.size as u64;
                }
                assert_eq!(parts.size(entries), offset);
            }
        }
    }
}
