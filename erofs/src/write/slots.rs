//! Finds places for inodes.

use std::collections::VecDeque;

use crate::format::units::{BLOCK_SIZE, SLOT_SIZE};

/// Gaps to be filled later. Few, so that inodes of one directory stay close together.
const GAP_LIMIT: usize = 16;

/// What must lie within one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// Nothing.
    Anywhere,
    /// The last so many bytes: a tail.
    Tail(usize),
    /// Everything: older kernels read short symbolic links only so.
    Whole,
}

/// The metadata area as it fills. Places are bytes from its start.
#[derive(Debug)]
pub(super) struct Slots {
    next: usize,
    /// Start and length of gaps.
    gaps: VecDeque<(usize, usize)>,
}

impl Slots {
    /// The first slot stays free: programs take inode number 0 for none.
    pub(super) fn new() -> Self {
        Self { next: SLOT_SIZE, gaps: VecDeque::new() }
    }

    /// A place for `length` bytes.
    pub(super) fn place(&mut self, length: usize, fit: Fit) -> usize {
        let taken = length.next_multiple_of(SLOT_SIZE);
        let best =
            self.gaps.iter_mut().filter(|gap| gap.1 >= taken && fits(gap.0, length, fit)).min_by_key(|gap| gap.1);
        if let Some(gap) = best {
            let start = gap.0;
            *gap = (start + taken, gap.1 - taken);
            return start;
        }
        let mut start = self.next;
        while !fits(start, length, fit) {
            start += SLOT_SIZE;
        }
        self.skip(start);
        self.next = start + taken;
        start
    }

    /// Bytes of the area.
    #[cfg(test)]
    fn end(&self) -> usize {
        self.next
    }

    fn skip(&mut self, start: usize) {
        if start > self.next {
            self.gaps.push_back((self.next, start - self.next));
        }
        if self.gaps.len() > GAP_LIMIT {
            let smallest = self.gaps.iter().enumerate().min_by_key(|(_, gap)| gap.1).map(|(number, _)| number);
            smallest.map(|number| self.gaps.remove(number));
        }
    }
}

fn fits(start: usize, length: usize, fit: Fit) -> bool {
    let guarded = match fit {
        Fit::Anywhere => return true,
        Fit::Tail(tail) => tail,
        Fit::Whole => length,
    };
    (start + length - guarded) / BLOCK_SIZE == (start + length - 1) / BLOCK_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_cross_a_block_does_not_and_nothing_overlaps() {
        let mut slots = Slots::new();
        let mut taken = Vec::new();
        for number in 0..5000_usize {
            let before = 32 + number * 4 % 200;
            let tail = number * 37 % 4065;
            let fit = if number % 7 == 0 { Fit::Anywhere } else { Fit::Tail(tail.max(1)) };
            let length = before + tail.max(1);
            let start = slots.place(length, fit);
            if let Fit::Tail(tail) = fit {
                assert_eq!((start + length - tail) / BLOCK_SIZE, (start + length - 1) / BLOCK_SIZE);
            }
            taken.push((start, start + length));
        }
        taken.sort_unstable();
        assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert!(taken.last().is_some_and(|last| last.1 <= slots.end()));
    }
}
