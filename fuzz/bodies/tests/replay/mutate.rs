//! Mutations of seeds, the kinds that libFuzzer makes too. Everything follows from a seed and the number of the run.

/// No input grows beyond this.
const LONGEST: usize = 64 * 1024;
/// Values at which arithmetic goes wrong.
const NUMBERS: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 32, i64::MAX as u64, u64::MAX];
/// Bytes that mean something in one of the formats.
const BYTES: &[u8] = b"\0\n \"'=,.-_/\\*?[]{}:0179afzAF\x7f\x80\xa0\xff";

/// Makes one input.
pub(crate) struct Mutator(u64);

impl Mutator {
    pub(crate) fn new(seed: u64, run: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ run.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// One seed with one to eight changes; one in 64 is noise.
    pub(crate) fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        if self.below(64) == 0 {
            let length = self.below(1024);
            return (0..length).map(|_| self.next() as u8).collect();
        }
        let mut input = self.pick(seeds).clone();
        for _ in 0..1 << self.below(4) {
            self.change(&mut input, seeds);
        }
        input.truncate(LONGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(10) {
            0 | 1 if at < input.len() => input[at] ^= 1 << self.below(8),
            2 if at < input.len() => input[at] = *self.pick(BYTES),
            3 => self.overwrite(input, at),
            4 => self.digits(input, at),
            5 => input.truncate(at),
            6 => input.insert(at, *self.pick(BYTES)),
            7 => {
                let end = (at + self.below(64)).min(input.len());
                input.drain(at..end);
            }
            8 => {
                let end = (at + self.below(600)).min(input.len());
                let part = input[at..end].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, part);
            }
            _ => {
                let other = self.pick(seeds);
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }

    /// A number in either byte order over what stands there.
    fn overwrite(&mut self, input: &mut [u8], at: usize) {
        let number = self.pick(&NUMBERS).wrapping_sub(self.below(2) as u64);
        let width = 1 << self.below(4);
        let mut bytes = number.to_le_bytes()[..width].to_vec();
        if self.below(2) == 0 {
            bytes.reverse();
        }
        let end = (at + width).min(input.len());
        input[at..end].copy_from_slice(&bytes[..end - at]);
    }

    /// A number as text in place of the digits that stand there, if there are any.
    fn digits(&mut self, input: &mut Vec<u8>, at: usize) {
        let Some(start) = input[at..].iter().position(u8::is_ascii_digit).map(|found| at + found) else { return };
        let length = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = self.pick(&NUMBERS).to_string().into_bytes();
        input.splice(start..start + length, number);
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
