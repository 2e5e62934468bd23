//! SHA-256 of many blocks at once: each of AVX-512's sixteen lanes works on a block of its own.
#![allow(
    unsafe_code,
    reason = "loads and stores of references of the right size, and instructions that the processor was asked for"
)]

use std::arch::x86_64::*;

use super::{
    CHUNK_SIZE, Chunk, State,
    constants::K,
    message::{Framing, side_by_side},
};

/// Blocks in one group: a lane of 32 bits each.
const LANES: usize = 16;

/// The states of `GROUPS` groups of digests under way, word by word. Two groups take turns: processors that take in four vectors a
/// cycle would wait for the results of one, and those that take in two run out of registers for two.
struct States<const GROUPS: usize>([[__m512i; 8]; GROUPS]);

/// Whether this processor has what [`States::compress`] needs.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

/// The digests of sixteen salted blocks of one size.
pub(super) fn one_group(framing: &Framing, blocks: &[&[u8]; LANES]) -> [State; LANES] {
    assert!(is_available(), "engines are only chosen where there are");
    // SAFETY: the processor has what it needs.
    unsafe { hash::<1, _>(framing, blocks) }
}

/// The digests of 32 salted blocks of one size.
pub(super) fn two_groups(framing: &Framing, blocks: &[&[u8]; 2 * LANES]) -> [State; 2 * LANES] {
    assert!(is_available(), "engines are only chosen where there are");
    // SAFETY: the processor has what it needs.
    unsafe { hash::<2, _>(framing, blocks) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn hash<const GROUPS: usize, const WIDTH: usize>(framing: &Framing, blocks: &[&[u8]; WIDTH]) -> [State; WIDTH] {
    const { assert!(WIDTH == GROUPS * LANES) };
    let mut states = States::<GROUPS>::new(&framing.state);
    side_by_side(framing, blocks, |chunks| states.compress(chunks));
    states.finish()
}

impl<const GROUPS: usize> States<GROUPS> {
    /// All from one state.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(state: &State) -> Self {
        Self([state.map(|word| _mm512_set1_epi32(word as i32)); GROUPS])
    }

    /// Each lane's state.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn finish<const WIDTH: usize>(&self) -> [State; WIDTH] {
        let mut found = [[0; 8]; WIDTH];
        for (states, found) in self.0.iter().zip(found.chunks_exact_mut(LANES)) {
            for (word, lanes) in states.iter().enumerate() {
                let mut values = [0_u32; LANES];
                // SAFETY: `values` has room for a whole vector, and need not be aligned.
                unsafe { _mm512_storeu_si512(values.as_mut_ptr().cast(), *lanes) };
                for (state, value) in found.iter_mut().zip(values) {
                    state[word] = value;
                }
            }
        }
        found
    }

    /// Takes in a chunk of each message.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn compress(&mut self, chunks: &[&Chunk]) {
        let mut words = [[_mm512_setzero_si512(); 16]; GROUPS];
        let (groups, _) = chunks.as_chunks::<LANES>();
        for (words, chunks) in words.iter_mut().zip(groups) {
            *words = transposed(chunks);
        }
        let mut work = self.0;
        let (constants, _) = K.as_chunks();
        for constants in &constants[..3] {
            sixteen_rounds::<true, _>(&mut work, &mut words, constants);
        }
        sixteen_rounds::<false, _>(&mut work, &mut words, &constants[3]);
        for (states, work) in self.0.iter_mut().zip(work) {
            for (state, work) in states.iter_mut().zip(work) {
                *state = _mm512_add_epi32(*state, work);
            }
        }
    }
}

/// Word `t` of each of sixteen chunks, in the order of the processor.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transposed(chunks: &[&Chunk; LANES]) -> [__m512i; 16] {
    const _: () = assert!(CHUNK_SIZE == size_of::<__m512i>());
    let swap = _mm512_broadcast_i32x4(_mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
    // Not by `map`, which would call a function for each.
    let mut rows = [swap; 16];
    for (row, chunk) in rows.iter_mut().zip(chunks) {
        // SAFETY: a chunk has as many bytes as a vector, and need not be aligned.
        let loaded = unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) };
        *row = _mm512_shuffle_epi8(loaded, swap);
    }
    let mut pairs = rows;
    for at in (0..16).step_by(2) {
        pairs[at] = _mm512_unpacklo_epi32(rows[at], rows[at + 1]);
        pairs[at + 1] = _mm512_unpackhi_epi32(rows[at], rows[at + 1]);
    }
    let mut fours = pairs;
    for at in (0..16).step_by(4) {
        fours[at] = _mm512_unpacklo_epi64(pairs[at], pairs[at + 2]);
        fours[at + 1] = _mm512_unpackhi_epi64(pairs[at], pairs[at + 2]);
        fours[at + 2] = _mm512_unpacklo_epi64(pairs[at + 1], pairs[at + 3]);
        fours[at + 3] = _mm512_unpackhi_epi64(pairs[at + 1], pairs[at + 3]);
    }
    let mut words = fours;
    for at in 0..4 {
        // Quarters of four rows each: of words `at`, `at + 4`, `at + 8`, `at + 12`.
        let [a, b, c, d] = [fours[at], fours[at + 4], fours[at + 8], fours[at + 12]];
        let (low, high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
        let (low2, high2) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
        words[at] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        words[at + 4] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
        words[at + 8] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        words[at + 12] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
    }
    words
}

/// Sixteen rounds, each of which leaves the word for the sixteenth round after it where there is one: so there is always something
/// to do while a result is waited for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn sixteen_rounds<const MORE: bool, const GROUPS: usize>(
    work: &mut [[__m512i; 8]; GROUPS],
    words: &mut [[__m512i; 16]; GROUPS],
    constants: &[u32; 16],
) {
    macro_rules! rounds {
        ($($at:literal)*) => {$(
            for (state, words) in work.iter_mut().zip(words.iter_mut()) {
                round::<$at>(state, _mm512_add_epi32(words[$at], _mm512_set1_epi32(constants[$at] as i32)));
                if MORE {
                    words[$at] = scheduled::<$at>(words);
                }
            }
        )*};
    }
    rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

/// The next word of the message schedule, for the place of the oldest.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scheduled<const AT: usize>(words: &[__m512i; 16]) -> __m512i {
    let (before15, before2) = (words[(AT + 1) % 16], words[(AT + 14) % 16]);
    let low = xor3(_mm512_ror_epi32::<7>(before15), _mm512_ror_epi32::<18>(before15), _mm512_srli_epi32::<3>(before15));
    let high = xor3(_mm512_ror_epi32::<17>(before2), _mm512_ror_epi32::<19>(before2), _mm512_srli_epi32::<10>(before2));
    _mm512_add_epi32(_mm512_add_epi32(words[AT], words[(AT + 9) % 16]), _mm512_add_epi32(low, high))
}

/// One round. Instead of moving the eight variables on, the places that stand for them do.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn round<const AT: usize>(state: &mut [__m512i; 8], input: __m512i) {
    const fn place(variable: usize, round: usize) -> usize {
        (variable + 8 - round % 8) % 8
    }
    let [a, b, c, d, e, f, g, h] = const {
        let mut places = [0; 8];
        let mut variable = 0;
        while variable < 8 {
            places[variable] = place(variable, AT);
            variable += 1;
        }
        places
    };
    let sum1 =
        xor3(_mm512_ror_epi32::<6>(state[e]), _mm512_ror_epi32::<11>(state[e]), _mm512_ror_epi32::<25>(state[e]));
    let choice = _mm512_ternarylogic_epi32::<0xca>(state[e], state[f], state[g]);
    let first = _mm512_add_epi32(_mm512_add_epi32(state[h], input), _mm512_add_epi32(sum1, choice));
    let sum0 =
        xor3(_mm512_ror_epi32::<2>(state[a]), _mm512_ror_epi32::<13>(state[a]), _mm512_ror_epi32::<22>(state[a]));
    let majority = _mm512_ternarylogic_epi32::<0xe8>(state[a], state[b], state[c]);
    state[d] = _mm512_add_epi32(state[d], first);
    state[h] = _mm512_add_epi32(first, _mm512_add_epi32(sum0, majority));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0x96>(a, b, c)
}
