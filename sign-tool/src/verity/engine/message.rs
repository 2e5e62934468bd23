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

impl Framing {
    pub(in crate::verity) fn new(salt: &[u8]) -> Self {
        let (whole, rest) = salt.as_chunks::<CHUNK_SIZE>();
        let mut state = START;
        sha2::block_api::compress256(&mut state, whole);
        Self { state, rest: rest.to_vec(), salt_size: salt.len() }
    }

    /// The chunk that begins with the rest of the salt, where there is one, and how much of the block it takes.
    fn first(&self) -> Option<(Chunk, usize)> {
        let rest = self.rest.len();
        let mut chunk = [0; CHUNK_SIZE];
        chunk[..rest].copy_from_slice(&self.rest);
        (rest > 0).then_some((chunk, CHUNK_SIZE - rest))
    }

    /// The padding of messages with blocks of `block_size`: one chunk or two, where the first `end` bytes are the block's last.
    fn padding(&self, block_size: usize, end: usize) -> ([Chunk; 2], usize) {
        let mut padding = [0; 2 * CHUNK_SIZE];
        padding[end] = 0x80;
        // The length in bits takes the last eight bytes.
        let count = if end + 9 <= CHUNK_SIZE { 1 } else { 2 };
        let bits = 8 * (self.salt_size + block_size) as u64;
        padding[count * CHUNK_SIZE - 8..count * CHUNK_SIZE].copy_from_slice(&bits.to_be_bytes());
        let (chunks, _) = padding.as_chunks::<CHUNK_SIZE>();
        ([chunks[0], chunks[1]], count)
    }
}

/// Gives the chunks of several blocks, those of one number side by side, to `compress`. The blocks are of one size, and that is a
/// multiple of a chunk's.
#[inline(always)]
pub(super) fn side_by_side<const WIDTH: usize>(
    framing: &Framing,
    blocks: &[&[u8]; WIDTH],
    mut compress: impl FnMut(&[&Chunk; WIDTH]),
) {
    let mut start = 0;
    if let Some((template, taken)) = framing.first() {
        let mut chunks = [template; WIDTH];
        for (chunk, block) in chunks.iter_mut().zip(blocks) {
            chunk[CHUNK_SIZE - taken..].copy_from_slice(&block[..taken]);
        }
        compress(&chunks.each_ref());
        start = taken;
    }
    let mut chunks = [&[0; CHUNK_SIZE]; WIDTH];
    for number in 0..(blocks[0].len() - start) / CHUNK_SIZE {
        for (chunk, block) in chunks.iter_mut().zip(blocks) {
            *chunk = &block[start..].as_chunks().0[number];
        }
        compress(&chunks);
    }
    let end = (blocks[0].len() - start) % CHUNK_SIZE;
    let (padding, count) = framing.padding(blocks[0].len(), end);
    for (number, padding) in padding[..count].iter().enumerate() {
        let mut chunks = [*padding; WIDTH];
        if number == 0 {
            for (chunk, block) in chunks.iter_mut().zip(blocks) {
                chunk[..end].copy_from_slice(&block[block.len() - end..]);
            }
        }
        compress(&chunks.each_ref());
    }
}
