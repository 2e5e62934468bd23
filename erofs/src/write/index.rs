//! The compacted index of a compressed file.

use zerocopy::IntoBytes;

use super::clusters::Cluster;
use crate::format::{
    compressed::{
        ADVISE_BIG_1, ADVISE_BIG_2, ADVISE_COMPACTED_2B, COUNT_FLAG, CompactParts, Kind, LOW_BITS, MapHeader,
    },
    units::{BLOCK_SIZE, Block},
};

/// An entry, and the blocks of clusters that count from it on.
#[derive(Debug, Clone, Copy)]
enum Entry {
    /// A cluster starts here. `blocks` counts here unless an entry of its own tells it.
    Head { raw: bool, offset: u16, blocks: u16 },
    /// The first one after a head.
    Count { blocks: u16 },
    /// Distances to the head and to the next head.
    NonHead { back: u16, ahead: u16 },
}

const ADVISE: u16 = ADVISE_COMPACTED_2B | ADVISE_BIG_1 | ADVISE_BIG_2;

/// Bytes of header and index that follow `before` bytes of inode and attributes.
pub(super) fn size(before: usize, file_size: u64) -> usize {
    let start = before.next_multiple_of(8) + size_of::<MapHeader>();
    let count = file_size.div_ceil(BLOCK_SIZE as u64);
    start - before + CompactParts::new(start as u64, count, ADVISE).size(count) as usize
}

/// Adds header and index to `target`, which holds inode and attributes.
pub(super) fn append(target: &mut Vec<u8>, file_size: u64, algorithm: u8, first: Block, clusters: &[Cluster]) {
    target.resize(target.len().next_multiple_of(8), 0);
    let header = MapHeader { advise: ADVISE.into(), algorithms: algorithm, ..MapHeader::default() };
    target.extend_from_slice(header.as_bytes());
    let entries = entries(file_size, clusters);
    let parts = CompactParts::new(target.len() as u64, entries.len() as u64, ADVISE);
    let (mut at, mut block) = (0, first.0);
    while at < entries.len() {
        let pack = parts.pack(at as u64);
        let end = entries.len().min(at + pack.entries);
        let mut bytes = [0; 32];
        for (number, entry) in entries[at..end].iter().enumerate() {
            put(&mut bytes, number * pack.bits, entry.bits(number + 1 == pack.entries));
        }
        bytes[pack.size - 4..pack.size].copy_from_slice(&block.to_le_bytes());
        target.extend_from_slice(&bytes[..pack.size]);
        block += entries[at..end].iter().map(|entry| entry.blocks()).sum::<u32>();
        at = end;
    }
}

impl Entry {
    /// The blocks of a cluster count where the reader learns them.
    fn blocks(self) -> u32 {
        match self {
            Self::Head { blocks, .. } | Self::Count { blocks } => blocks.into(),
            Self::NonHead { .. } => 0,
        }
    }

    /// The last entry of a pack tells the distance ahead, since that back follows from the entry before.
    fn bits(self, last: bool) -> u32 {
        let (kind, low) = match self {
            Self::Head { raw: true, offset, .. } => (Kind::Plain, offset),
            Self::Head { raw: false, offset, .. } => (Kind::Head1, offset),
            Self::Count { blocks } => (Kind::NonHead, blocks | COUNT_FLAG),
            Self::NonHead { ahead, .. } if last => (Kind::NonHead, ahead.min(COUNT_FLAG - 1)),
            Self::NonHead { back, .. } => (Kind::NonHead, back),
        };
        (kind as u32) << LOW_BITS | u32::from(low)
    }
}

/// One entry for each logical cluster.
fn entries(file_size: u64, clusters: &[Cluster]) -> Vec<Entry> {
    let block = BLOCK_SIZE as u64;
    let count = file_size.div_ceil(block);
    let mut entries = Vec::with_capacity(count as usize);
    let mut start = 0;
    for cluster in clusters {
        let end = start + u64::from(cluster.length);
        let offset = (start % block) as u16;
        let next = end / block;
        let head = start / block;
        let told_apart = next > head + 1;
        let blocks = if told_apart { 0 } else { cluster.blocks };
        entries.push(Entry::Head { raw: cluster.raw, offset, blocks });
        if told_apart {
            entries.push(Entry::Count { blocks: cluster.blocks });
        }
        for number in head + 2..next {
            entries.push(Entry::NonHead { back: (number - head) as u16, ahead: (next - number) as u16 });
        }
        start = end;
    }
    if (entries.len() as u64) < count {
        // The last logical cluster holds the end of a physical one: a head that heads nothing tells where it ends.
        entries.push(Entry::Head { raw: true, offset: (file_size % block) as u16, blocks: 0 });
    }
    entries
}

/// Puts bits into a little-endian stream whose bits were zero.
fn put(bytes: &mut [u8; 32], position: usize, value: u32) {
    let shifted = value << (position % 8);
    for (number, byte) in shifted.to_le_bytes().into_iter().enumerate() {
        if let Some(target) = bytes.get_mut(position / 8 + number) {
            *target |= byte;
        }
    }
}
