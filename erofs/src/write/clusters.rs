//! Cuts content into physical clusters.

use serde::{Deserialize, Serialize};

use super::{contents::PIECE_SIZE, encoder::Encoder};
use crate::format::units::BLOCK_SIZE;

/// A physical cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cluster {
    /// Bytes of the file that it holds.
    pub(super) length: u32,
    /// Its blocks.
    pub(super) blocks: u16,
    /// It is one block that is not compressed.
    pub(super) raw: bool,
}

/// The bytes that `clusters` take in the image, where they can be what [`encode`] makes of a piece of `length` bytes.
pub(super) fn size(clusters: &[Cluster], length: usize) -> Option<u64> {
    let sound = |cluster: &Cluster| {
        let (length, size) = (u64::from(cluster.length), cluster.size());
        if cluster.raw { size == BLOCK_SIZE as u64 && (1..=size).contains(&length) } else { size > 0 && length > size }
    };
    let held: u64 = clusters.iter().map(|cluster| u64::from(cluster.length)).sum();
    let all_sound = length as u64 <= PIECE_SIZE && held == length as u64 && clusters.iter().all(sound);
    all_sound.then(|| clusters.iter().map(Cluster::size).sum())
}

impl Cluster {
    /// Its bytes in the image.
    pub(super) fn size(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_SIZE as u64
    }
}

/// Content as clusters.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    /// Whole blocks.
    pub(super) bytes: Vec<u8>,
    pub(super) clusters: Vec<Cluster>,
}

/// Encodes `input`, which starts at a multiple of the block size in its file. So each piece of a file can be encoded
/// apart, and the result does not depend on who does it.
///
/// The index has one head for each logical cluster. Hence each physical cluster must reach beyond the logical one in
/// which it starts: a compressed one does since it holds more than a block, a raw one ends exactly there.
pub(super) fn encode(input: &[u8], encoder: &mut Encoder) -> Result<Encoded, String> {
    let mut encoded = Encoded { bytes: Vec::with_capacity(input.len()), clusters: Vec::new() };
    let mut at = 0;
    while at < input.len() {
        let found = encoder.fill(&input[at..])?;
        let took = found.map_or(0, |(took, _)| took);
        match found {
            Some((took, wrote)) if took > wrote.next_multiple_of(BLOCK_SIZE) => {
                encoded.push_compressed(took, &encoder.output[..wrote]);
                at += took;
            }
            _ => {
                let end = raw_end(at, took, input.len());
                encoded.push_raw(at, &input[at..end]);
                at = end;
            }
        }
    }
    Ok(encoded)
}

/// What did not shrink is not tried again byte by byte: the whole of it stays raw, up to a boundary.
fn raw_end(at: usize, took: usize, length: usize) -> usize {
    let next = (at / BLOCK_SIZE + 1) * BLOCK_SIZE;
    next.max((at + took) / BLOCK_SIZE * BLOCK_SIZE).min(length)
}

impl Encoded {
    /// Data lies at the cluster's end, as [`crate::format::superblock::INCOMPAT_ZERO_PADDING`] says.
    fn push_compressed(&mut self, length: usize, bytes: &[u8]) {
        let size = bytes.len().next_multiple_of(BLOCK_SIZE);
        self.bytes.resize(self.bytes.len() + size - bytes.len(), 0);
        self.bytes.extend_from_slice(bytes);
        let blocks = (size / BLOCK_SIZE) as u16;
        self.clusters.push(Cluster { length: length as u32, blocks, raw: false });
    }

    fn push_raw(&mut self, at: usize, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(BLOCK_SIZE - at % BLOCK_SIZE));
        for piece in std::iter::once(first).chain(rest.chunks(BLOCK_SIZE)) {
            self.bytes.extend_from_slice(piece);
            self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_SIZE), 0);
            self.clusters.push(Cluster { length: piece.len() as u32, blocks: 1, raw: true });
        }
    }
}
