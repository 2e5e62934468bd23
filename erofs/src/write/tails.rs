//! The ends of files that will lie behind their inodes. They are known long before these are written.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
};

/// So many bytes stay in memory; the rest goes to a temporary file without a name.
const MEMORY_LIMIT: usize = 64 << 20;

/// Where a tail is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tail {
    start: u64,
    pub(super) length: u16,
}

/// All tails.
#[derive(Debug, Default)]
pub(super) struct Tails {
    memory: Vec<u8>,
    file: Option<File>,
    end: u64,
}

impl Tails {
    /// Keeps less than a block.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> io::Result<Tail> {
        let tail = Tail { start: self.end, length: bytes.len() as u16 };
        if self.file.is_none() && self.memory.len() + bytes.len() > MEMORY_LIMIT {
            self.file = Some(tempfile::tempfile()?);
        }
        match &mut self.file {
            None => self.memory.extend_from_slice(bytes),
            Some(file) => file.write_all(bytes)?,
        }
        self.end += bytes.len() as u64;
        Ok(tail)
    }

    /// Adds a kept tail to `target`.
    pub(super) fn append(&self, tail: Tail, target: &mut Vec<u8>) -> io::Result<()> {
        let start = target.len();
        target.resize(start + usize::from(tail.length), 0);
        let in_memory = self.memory.len() as u64;
        match &self.file {
            Some(file) if tail.start >= in_memory => file.read_exact_at(&mut target[start..], tail.start - in_memory),
            _ => {
                let from = tail.start as usize;
                target[start..].copy_from_slice(&self.memory[from..from + usize::from(tail.length)]);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_beyond_the_limit_come_back_as_they_were() {
        let mut tails = Tails::default();
        let size = 4000;
        let kept: Vec<_> =
            (0..MEMORY_LIMIT / size + 100).map(|at| tails.keep(&vec![at as u8; size]).unwrap()).collect();
        assert!(tails.file.is_some() && tails.memory.len() <= MEMORY_LIMIT);
        for (at, tail) in kept.into_iter().enumerate() {
            let mut bytes = vec![7];
            tails.append(tail, &mut bytes).unwrap();
            assert!(bytes.len() == size + 1 && bytes[1..].iter().all(|byte| *byte == at as u8), "tail {at}");
        }
    }
}
