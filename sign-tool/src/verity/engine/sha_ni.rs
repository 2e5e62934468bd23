//! SHA-256 by the processor's SHA extensions, a few blocks in turn: one alone waits for its own results half of the time.
#![allow(
    unsafe_code,
    reason = "loads and stores of references of the right size, and instructions that the processor was asked for"
)]

use std::arch::x86_64::*;

use super::{
    Chunk, State,
    constants::K,
    message::{Framing, side_by_side},
};

/// Blocks in turn.
pub(super) const WIDTH: usize = 4;

/// The states of `WIDTH` digests under way, in the two registers that the instructions take: ABEF and CDGH.
struct States([[__m128i; 2]; WIDTH]);

/// Whether this processor has what [`States::compress`] needs.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1")
}

/// The digests of salted blocks of one size.
pub(super) fn digests(framing: &Framing, blocks: &[&[u8]; WIDTH]) -> [State; WIDTH] {
    assert!(is_available(), "engines are only chosen where there are");
    // SAFETY: the processor has what it needs.
    unsafe { hash(framing, blocks) }
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn hash(framing: &Framing, blocks: &[&[u8]; WIDTH]) -> [State; WIDTH] {
    let mut states = States::new(&framing.state);
    side_by_side(framing, blocks, |chunks| states.compress(chunks));
    states.finish()
}

impl States {
    /// All from one state.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn new(state: &State) -> Self {
        let [a, b, c, d, e, f, g, h] = state.map(|word| word as i32);
        Self([[_mm_set_epi32(a, b, e, f), _mm_set_epi32(c, d, g, h)]; WIDTH])
    }

    /// Each block's state.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn finish(&self) -> [State; WIDTH] {
        self.0.map(|registers| {
            let [[f, e, b, a], [h, g, d, c]] = registers.map(|register| {
                let mut words = [0_u32; 4];
                // SAFETY: `words` has room for a whole vector, and need not be aligned.
                unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), register) };
                words
            });
            [a, b, c, d, e, f, g, h]
        })
    }

    /// Takes in a chunk of each message.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn compress(&mut self, chunks: &[&Chunk; WIDTH]) {
        let mut words = [[_mm_setzero_si128(); 4]; WIDTH];
        for (words, chunk) in words.iter_mut().zip(chunks) {
            load(chunk, words);
        }
        let mut work = self.0;
        macro_rules! rounds {
            ($($round:literal)*) => {$(
                let constants = four_constants($round);
                for (state, words) in work.iter_mut().zip(&mut words) {
                    four_rounds(state, words, constants);
                }
            )*};
        }
        rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        for (state, work) in self.0.iter_mut().zip(work) {
            *state = [_mm_add_epi32(state[0], work[0]), _mm_add_epi32(state[1], work[1])];
        }
    }
}

/// The sixteen words of a chunk, in the order of the processor.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn load(chunk: &Chunk, words: &mut [__m128i; 4]) {
    let swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    let (quarters, _) = chunk.as_chunks::<16>();
    for (words, quarter) in words.iter_mut().zip(quarters) {
        // SAFETY: a quarter has as many bytes as a vector, and need not be aligned.
        let quarter = unsafe { _mm_loadu_si128(quarter.as_ptr().cast()) };
        *words = _mm_shuffle_epi8(quarter, swap);
    }
}

/// Those of rounds `4 * round` and the next three.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn four_constants(round: usize) -> __m128i {
    let (constants, _) = K.as_chunks::<4>();
    let [a, b, c, d] = constants[round];
    _mm_set_epi32(d as i32, c as i32, b as i32, a as i32)
}

/// Four rounds. `words` has the schedule's last sixteen words, the oldest first.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn four_rounds(state: &mut [__m128i; 2], words: &mut [__m128i; 4], constants: __m128i) {
    let input = _mm_add_epi32(words[0], constants);
    let next = _mm_sha256rnds2_epu32(state[1], state[0], input);
    let after = _mm_sha256rnds2_epu32(state[0], next, _mm_shuffle_epi32::<0x0e>(input));
    *state = [after, next];
    let middle = _mm_add_epi32(_mm_sha256msg1_epu32(words[0], words[1]), _mm_alignr_epi8::<4>(words[3], words[2]));
    *words = [words[1], words[2], words[3], _mm_sha256msg2_epu32(middle, words[3])];
}
