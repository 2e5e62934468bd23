//! Engines that hash many salted blocks by SHA-256 at once, the fastest that the processor has.
//!
//! Which that is shows when they run ([`Engine::best`]): it does not follow from the instructions that there are, but from how wide and
//! how many the units behind them are. Each takes the chunks of several messages of one length side by side. Their digests are those of the `sha2` crate, which
//! does what no engine takes: other algorithms, the salt behind the block, and what is left of a row.

#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "what rows are made of; elsewhere sha2 does it all")
)]

#[cfg(target_arch = "x86_64")]
mod avx512;
mod constants;
mod message;
#[cfg(target_arch = "x86_64")]
mod sha_ni;

use std::{fmt, str::FromStr};

pub(super) use self::message::Framing;

/// SHA-256 takes in so many bytes at once.
const CHUNK_SIZE: usize = 64;
type Chunk = [u8; CHUNK_SIZE];
type State = [u32; 8];

/// What hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// AVX-512: 16 blocks at once.
    Avx512,
    /// AVX-512: two groups of 16 blocks in turn.
    Avx512Pairs,
    /// The SHA extensions of x86: four blocks in turn.
    ShaNi,
    /// The `sha2` crate, which finds the best for one block.
    Sha2,
}

/// Text that names no engine, or one that this processor lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("engine: expected {expected}, found {found:?}")]
pub struct EngineError {
    expected: String,
    found: String,
}

impl Engine {
    /// All.
    pub const ALL: [Self; 4] = [Self::Avx512Pairs, Self::Avx512, Self::ShaNi, Self::Sha2];

    /// The name in options and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx512Pairs => "avx512x2",
            Self::ShaNi => "sha-ni",
            Self::Sha2 => "sha2",
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Pairs => avx512::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::ShaNi => sha_ni::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx512Pairs | Self::ShaNi => false,
            Self::Sha2 => true,
        }
    }

    /// Hashes as many of the blocks as it takes side by side, from the first on, into the slots of the same number. Returns how
    /// many these are.
    pub(super) fn hash(
        self,
        framing: &Framing,
        blocks: &[u8],
        block_size: usize,
        slots: &mut [u8],
        slot_size: usize,
    ) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => rows(blocks, block_size, slots, slot_size, |row| avx512::one_group(framing, row)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Pairs => {
                let done = rows(blocks, block_size, slots, slot_size, |row| avx512::two_groups(framing, row));
                let (blocks, slots) = (&blocks[done * block_size..], &mut slots[done * slot_size..]);
                done + Self::Avx512.hash(framing, blocks, block_size, slots, slot_size)
            }
            #[cfg(target_arch = "x86_64")]
            Self::ShaNi => rows(blocks, block_size, slots, slot_size, |row| sha_ni::digests(framing, row)),
            _ => 0,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Engine {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        let available = || Self::ALL.into_iter().filter(|engine| engine.is_available());
        available().find(|engine| engine.name() == text).ok_or_else(|| {
            let names: Vec<&str> = available().map(Self::name).collect();
            EngineError { expected: format!("one of {} on this processor", names.join(", ")), found: text.to_owned() }
        })
    }
}

/// Whole rows of `WIDTH` blocks.
fn rows<const WIDTH: usize>(
    blocks: &[u8],
    block_size: usize,
    slots: &mut [u8],
    slot_size: usize,
    digests: impl Fn(&[&[u8]; WIDTH]) -> [State; WIDTH],
) -> usize {
    let rows = blocks.chunks_exact(WIDTH * block_size).zip(slots.chunks_exact_mut(WIDTH * slot_size));
    let mut done = 0;
    for (row, slots) in rows {
        let found = digests(&std::array::from_fn(|lane| &row[lane * block_size..(lane + 1) * block_size]));
        for (state, slot) in found.iter().zip(slots.chunks_exact_mut(slot_size)) {
            let words = slot.chunks_exact_mut(size_of::<u32>()).zip(state);
            words.for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_be_bytes()));
        }
        done += WIDTH;
    }
    done
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    fn expected(salt: &[u8], blocks: &[u8], block_size: usize, slot_size: usize) -> Vec<u8> {
        let digests = blocks.chunks_exact(block_size).map(|block| Sha256::new_with_prefix(salt).chain_update(block));
        let mut slots = Vec::new();
        for digest in digests {
            slots.extend_from_slice(&digest.finalize());
            slots.resize(slots.len().next_multiple_of(slot_size), 0);
        }
        slots
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn every_engine_has_the_digests_of_sha2(
            salt in proptest::collection::vec(any::<u8>(), 0..=256),
            exponent in 9_u32..=13,
            count in 0_usize..100,
            seed: u64,
            wide: bool,
        ) {
            let block_size = 1 << exponent;
            let mut blocks = vec![0; count * block_size];
            let mut next = seed | 1;
            for bytes in blocks.chunks_exact_mut(8) {
                next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                bytes.copy_from_slice(&next.to_le_bytes());
            }
            let slot_size = if wide { 64 } else { 32 };
            let expected = expected(&salt, &blocks, block_size, slot_size);
            let framing = Framing::new(&salt);
            for engine in Engine::ALL.into_iter().filter(|engine| engine.is_available()) {
                let mut found = vec![0; count * slot_size];
                let done = engine.hash(&framing, &blocks, block_size, &mut found, slot_size);
                prop_assert!(done <= count && (engine == Engine::Sha2 || count - done < 32));
                prop_assert!(found[..done * slot_size] == expected[..done * slot_size], "{engine}");
                prop_assert!(found[done * slot_size..].iter().all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn engines_are_named_and_others_refused_with_those_that_there_are() {
        assert!(Engine::best().is_available());
        assert_eq!(Engine::best().name().parse(), Ok(Engine::best()));
        let error = "md5".parse::<Engine>().unwrap_err().to_string();
        assert!(error.starts_with("engine: expected one of ") && error.contains("sha2"), "{error}");
    }
}
