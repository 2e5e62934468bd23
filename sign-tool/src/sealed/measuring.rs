//! The image's size and SHA-256, for the release statement, taken while the image is still being written.
//!
//! SHA-256 goes from the first byte to the last and keeps one processor busy. It begins with block 0, which is known once all
//! content of files is written; inodes, hash tree, manifest and signatures come while it goes on. What is read for it serves all
//! else that is made of the image's bytes.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        LazyLock,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

use iofs_policy::digest::Sha256Digest;
use sha2::{Digest, Sha256};

/// Size in bytes, and SHA-256.
type Measured = (u64, Sha256Digest);

/// So much is read at once: it stays in a processor's cache for whatever else looks at it.
const PART_SIZE: u64 = 256 << 10;
/// Parts that may wait for the other thread: five milliseconds of work, and no more than a cache holds.
const PARTS: usize = 32;

/// Reads a file as far as it is written.
#[derive(Debug)]
pub(crate) struct Follower<'a> {
    pub(crate) file: &'a File,
    at: u64,
    digesting: Digesting,
}

#[derive(Debug)]
enum Digesting {
    Here(Sha256, Vec<u8>),
    Beside { filled: Sender<Vec<u8>>, empty: Receiver<Vec<u8>>, thread: JoinHandle<Sha256> },
}

impl<'a> Follower<'a> {
    /// Begins with a file's first byte; `beside` takes another thread, where there is one.
    pub(crate) fn new(file: &'a File, beside: bool) -> Self {
        let here = || Digesting::Here(Sha256::new(), Vec::new());
        let digesting = if beside { Digesting::beside().unwrap_or_else(|_| here()) } else { here() };
        Self { file, at: 0, digesting }
    }

    /// Goes on to `end`, before which all is written, or only as far as it need not wait for the other thread. `look` is shown what
    /// was read, in order, each byte once.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn follow(&mut self, end: u64, wait: bool, mut look: impl FnMut(&[u8])) -> io::Result<()> {
        while self.at < end {
            let Some(mut part) = self.digesting.buffer(wait)? else { return Ok(()) };
            part.resize(PART_SIZE.min(end - self.at) as usize, 0);
            self.file.read_exact_at(&mut part, self.at)?;
            look(&part);
            self.at += part.len() as u64;
            self.digesting.hash(part)?;
        }
        Ok(())
    }

    /// Of all that was read.
    pub(crate) fn finish(self) -> Measuring {
        let size = self.at;
        let digest = move |hasher: Sha256| (size, Sha256Digest::from_bytes(hasher.finalize().into()));
        Measuring(LazyLock::new(match self.digesting {
            Digesting::Here(hasher, _) => Box::new(move || digest(hasher)),
            Digesting::Beside { filled, thread, .. } => {
                drop(filled);
                Box::new(move || digest(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
            }
        }))
    }
}

impl Digesting {
    fn beside() -> io::Result<Self> {
        let ((filled, parts), (done, empty)) = (channel::<Vec<u8>>(), channel());
        (0..PARTS).for_each(|_| drop(done.send(Vec::new())));
        let thread = thread::Builder::new().spawn(move || {
            let mut hasher = Sha256::new();
            for part in parts {
                hasher.update(&part);
                // Nobody takes the last ones.
                let _ = done.send(part);
            }
            hasher
        })?;
        Ok(Self::Beside { filled, empty, thread })
    }

    /// A buffer that is free; `None` where that takes waiting, and `wait` says no.
    fn buffer(&mut self, wait: bool) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Here(_, buffer) => Ok(Some(std::mem::take(buffer))),
            Self::Beside { empty, .. } if wait => empty.recv().map(Some).map_err(|_| ended()),
            Self::Beside { empty, .. } => Ok(empty.try_recv().ok()),
        }
    }

    fn hash(&mut self, part: Vec<u8>) -> io::Result<()> {
        match self {
            Self::Here(hasher, buffer) => {
                hasher.update(&part);
                *buffer = part;
                Ok(())
            }
            Self::Beside { filled, .. } => filled.send(part).map_err(|_| ended()),
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("a thread ended too early")
}

/// A measurement of all of a file, perhaps still under way.
#[derive(Debug)]
pub(crate) struct Measuring(LazyLock<Measured, Box<dyn FnOnce() -> Measured + Send>>);

impl Measuring {
    /// Size and digest, once they are there.
    pub(crate) fn wait(&self) -> Measured {
        *self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_measured_and_looked_at_while_it_is_written() {
        let size = 3 * PARTS as u64 * PART_SIZE / 2 + 4096;
        let bytes: Vec<u8> = (0..size as u32).map(|at| (at * 7 + at / 4096) as u8).collect();
        for beside in [false, true] {
            let file = tempfile::tempfile().unwrap();
            let (mut follower, mut seen) = (Follower::new(&file, beside), Vec::new());
            let mut look = |part: &[u8]| seen.extend_from_slice(part);
            for part in [0..1_000_000, 1_000_000..1_000_001, 1_000_001..bytes.len()] {
                file.write_all_at(&bytes[part.clone()], part.start as u64).unwrap();
                follower.follow(part.end as u64, false, &mut look).unwrap();
            }
            follower.follow(size, true, &mut look).unwrap();
            let measuring = follower.finish();
            assert!(seen == bytes, "beside: {beside}");
            for _ in 0..2 {
                assert_eq!(measuring.wait(), (size, Sha256Digest::of(&bytes)));
            }
        }
    }

    #[test]
    fn a_file_that_is_shorter_than_said_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let found = Follower::new(&file, true).follow(1, true, |_| {});
        assert_eq!(found.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
