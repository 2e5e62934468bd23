//! A salted block as SHA-256 sees it, chunk by chunk (FIPS 180-4, section 5): `salt ‖ block ‖ padding`.
//!
//! The salt's whole chunks are the same for all blocks, so that their state is made once. Chunks within a block are taken where
//! they lie; only the one that begins with the rest of the salt and those that hold the padding are put together.

use super::{CHUNK_SIZE, Chunk, State, constants::START};

/// What all blocks of one tree have in common.
#[derive(Debug, Clone)]
pub(in crate::verity) struct Framing {
    /// After the salt's whole chunks.
    pub(super) state: State,
    /// What of the salt is left, at the start of a chunk.
    rest: Vec<u8>,
    salt_size: usize,
}

/// The chunks of one block.
struct Chunks<'b> {
    /// Put together, unless the salt ends with a chunk.
    first: Chunk,
    within: &'b [Chunk],
    /// Put together: the end of the block with the padding.
    last: [Chunk; 2],
    last_count: usize,
}

impl Framing {
    pub(in crate::verity) fn new(salt: &[u8]) -> Self {
        let (whole, rest) = salt.as_chunks::<CHUNK_SIZE>();
        let mut state = START;
        sha2::block_api::compress256(&mut state, whole);
        Self { state, rest: rest.to_vec(), salt_size: salt.len() }
    }

    /// `block` has at least 64 bytes.
    fn chunks<'b>(&self, block: &'b [u8]) -> Chunks<'b> {
        let rest = self.rest.len();
        let (start, after) = block.split_at(if rest == 0 { 0 } else { CHUNK_SIZE - rest });
        let mut first = [0; CHUNK_SIZE];
        first[..rest].copy_from_slice(&self.rest);
        first[rest..rest + start.len()].copy_from_slice(start);
        let (within, end) = after.as_chunks::<CHUNK_SIZE>();
        let mut last = [0; 2 * CHUNK_SIZE];
        last[..end.len()].copy_from_slice(end);
        last[end.len()] = 0x80;
        // The length in bits takes the last eight bytes.
        let last_count = if end.len() + 9 <= CHUNK_SIZE { 1 } else { 2 };
        let bits = 8 * (self.salt_size + block.len()) as u64;
        last[last_count * CHUNK_SIZE - 8..last_count * CHUNK_SIZE].copy_from_slice(&bits.to_be_bytes());
        let (last, _) = last.as_chunks::<CHUNK_SIZE>();
        Chunks { first, within, last: [last[0], last[1]], last_count }
    }
}

/// Gives the chunks of several blocks, those of one number side by side, to `compress`.
#[inline(always)]
pub(super) fn side_by_side<const WIDTH: usize>(
    framing: &Framing,
    blocks: &[&[u8]; WIDTH],
    mut compress: impl FnMut(&[&Chunk; WIDTH]),
) {
    let messages = blocks.map(|block| framing.chunks(block));
    if !framing.rest.is_empty() {
        compress(&std::array::from_fn(|lane| &messages[lane].first));
    }
    for number in 0..messages[0].within.len() {
        compress(&std::array::from_fn(|lane| &messages[lane].within[number]));
    }
    for number in 0..messages[0].last_count {
        compress(&std::array::from_fn(|lane| &messages[lane].last[number]));
    }
}
