//! The salted digests of blocks.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use iofs_policy::verity::{HashAlgorithm, HashFormat, VerityParameters};
use sha2::{Digest, Sha256, Sha512};

use super::engine::{Engine, Framing};

/// Hashes blocks as a tree's parameters say. Each block starts from the state after the salt.
#[derive(Debug, Clone)]
pub(super) struct BlockHasher {
    state: State,
    /// What hashes many blocks at once, where it can.
    engine: Option<(Engine, Framing)>,
}

#[derive(Debug, Clone)]
enum State {
    Sha256(Salted<Sha256>),
    Sha512(Salted<Sha512>),
}

#[derive(Debug, Clone)]
struct Salted<D> {
    start: D,
    suffix: Vec<u8>,
}

impl BlockHasher {
    pub(super) fn new(parameters: &VerityParameters, engine: Engine) -> Self {
        let state = match parameters.algorithm {
            HashAlgorithm::Sha256 => State::Sha256(Salted::new(parameters)),
            HashAlgorithm::Sha512 => State::Sha512(Salted::new(parameters)),
        };
        let fits = parameters.algorithm == HashAlgorithm::Sha256 && parameters.format == HashFormat::Normal;
        Self { state, engine: fits.then(|| (engine, Framing::new(parameters.salt.as_bytes()))) }
    }

    /// Hashes each block of `block_size` bytes into the slot of the same number. Slots may be longer than digests.
    pub(super) fn hash(&self, blocks: &[u8], block_size: usize, slots: &mut [u8], slot_size: usize) {
        let done = self
            .engine
            .as_ref()
            .map_or(0, |(engine, framing)| engine.hash(framing, blocks, block_size, slots, slot_size));
        let (blocks, slots) = (&blocks[done * block_size..], &mut slots[done * slot_size..]);
        match &self.state {
            State::Sha256(salted) => salted.hash(blocks, block_size, slots, slot_size),
            State::Sha512(salted) => salted.hash(blocks, block_size, slots, slot_size),
        }
    }

    /// The digest of one block.
    pub(super) fn digest(&self, block: &[u8]) -> Vec<u8> {
        match &self.state {
            State::Sha256(salted) => salted.digest(block).to_vec(),
            State::Sha512(salted) => salted.digest(block).to_vec(),
        }
    }
}

/// Of the data that tells which engine is the fastest: for each of them a few rows.
const TRIAL_BLOCKS: usize = 32;
const TRIAL_BLOCK_SIZE: usize = 4096;
/// What else the processor does disturbs one time, and seldom several.
const TRIALS: usize = 3;

impl Engine {
    /// The fastest here. It is tried out, once and for about a millisecond.
    pub fn best() -> Self {
        static BEST: LazyLock<Engine> = LazyLock::new(|| {
            let available = Engine::ALL.into_iter().filter(|engine| engine.is_available());
            available.min_by_key(|engine| trial(*engine)).unwrap_or(Engine::Sha2)
        });
        *BEST
    }
}

fn trial(engine: Engine) -> Duration {
    let salt = [0; 32];
    let state = State::Sha256(Salted { start: Sha256::new_with_prefix(salt), suffix: Vec::new() });
    let hasher = BlockHasher { state, engine: Some((engine, Framing::new(&salt))) };
    let (blocks, mut slots) = (vec![0; TRIAL_BLOCKS * TRIAL_BLOCK_SIZE], vec![0; TRIAL_BLOCKS * 32]);
    let times = (0..TRIALS).map(|_| {
        let start = Instant::now();
        hasher.hash(&blocks, TRIAL_BLOCK_SIZE, &mut slots, 32);
        start.elapsed()
    });
    times.min().unwrap_or(Duration::MAX)
}

impl<D: Digest + Clone> Salted<D> {
    fn new(parameters: &VerityParameters) -> Self {
        let salt = parameters.salt.as_bytes();
        match parameters.format {
            HashFormat::Normal => Self { start: D::new_with_prefix(salt), suffix: Vec::new() },
            HashFormat::ChromeOs => Self { start: D::new(), suffix: salt.to_vec() },
        }
    }

    fn digest(&self, block: &[u8]) -> sha2::digest::Output<D> {
        let mut state = self.start.clone();
        state.update(block);
        state.update(&self.suffix);
        state.finalize()
    }

    fn hash(&self, blocks: &[u8], block_size: usize, slots: &mut [u8], slot_size: usize) {
        for (block, slot) in blocks.chunks_exact(block_size).zip(slots.chunks_exact_mut(slot_size)) {
            let digest = self.digest(block);
            slot[..digest.len()].copy_from_slice(&digest);
        }
    }
}
