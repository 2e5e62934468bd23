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
        Arc, LazyLock,
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
/// Parts that may wait for the digest: five milliseconds of work, and no more than a cache holds.
const PARTS: usize = 32;

/// Reads a file as far as it is written, and shows what it read to `looker`, in order, each byte once.
#[derive(Debug)]
pub(crate) struct Follower<T> {
    pub(crate) file: Arc<File>,
    following: Following<T>,
}

#[derive(Debug)]
enum Following<T> {
    Here(Reader<T>, Sha256, Vec<u8>),
    /// One thread reads up to what it is told, another one digests.
    Beside {
        ends: Sender<u64>,
        reader: JoinHandle<io::Result<Reader<T>>>,
        digest: JoinHandle<Sha256>,
    },
}

#[derive(Debug)]
struct Reader<T> {
    file: Arc<File>,
    at: u64,
    looker: T,
    look: fn(&mut T, &[u8]),
}

impl<T: Send + 'static> Follower<T> {
    /// Begins with a file's first byte; `beside` takes other threads.
    ///
    /// # Errors
    /// When there are none.
    pub(crate) fn new(file: File, looker: T, look: fn(&mut T, &[u8]), beside: bool) -> io::Result<Self> {
        let file = Arc::new(file);
        let reader = Reader { file: Arc::clone(&file), at: 0, looker, look };
        let following =
            if beside { Following::beside(reader)? } else { Following::Here(reader, Sha256::new(), Vec::new()) };
        Ok(Self { file, following })
    }

    /// Goes on to `end`, before which all is written.
    ///
    /// # Errors
    /// When the file cannot be read; [`Self::finish`] may tell it later.
    pub(crate) fn follow(&mut self, end: u64) -> io::Result<()> {
        match &mut self.following {
            Following::Here(reader, hasher, part) => reader.read_to(end, |reader| {
                reader.read(part, end)?;
                hasher.update(&*part);
                Ok(())
            }),
            Following::Beside { ends, .. } => {
                // Whoever ended before has an error to tell in the end.
                let _ = ends.send(end);
                Ok(())
            }
        }
    }

    /// Waits until all is read.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn finish(self) -> io::Result<(T, Measuring)> {
        let (reader, hasher): (_, Box<dyn FnOnce() -> Sha256 + Send>) = match self.following {
            Following::Here(reader, hasher, _) => (reader, Box::new(|| hasher)),
            Following::Beside { ends, reader, digest } => {
                drop(ends);
                (joined(reader)?, Box::new(|| joined(digest)))
            }
        };
        let size = reader.at;
        let measured = move || (size, Sha256Digest::from_bytes(hasher().finalize().into()));
        Ok((reader.looker, Measuring(LazyLock::new(Box::new(measured)))))
    }
}

impl<T: Send + 'static> Following<T> {
    fn beside(mut reader: Reader<T>) -> io::Result<Self> {
        let ((ends, told), (filled, parts), (done, empty)) = (channel(), channel::<Vec<u8>>(), channel());
        (0..PARTS).for_each(|_| drop(done.send(Vec::new())));
        let digest = thread::Builder::new().spawn(move || {
            let mut hasher = Sha256::new();
            for part in parts {
                hasher.update(&part);
                // Nobody takes the last ones.
                let _ = done.send(part);
            }
            hasher
        })?;
        let reader = thread::Builder::new().spawn(move || {
            for end in told {
                reader.read_to(end, |reader| reader.pass_on(end, &empty, &filled))?;
            }
            Ok(reader)
        })?;
        Ok(Self::Beside { ends, reader, digest })
    }
}

impl<T> Reader<T> {
    fn read_to(&mut self, end: u64, mut part: impl FnMut(&mut Self) -> io::Result<()>) -> io::Result<()> {
        while self.at < end {
            part(self)?;
        }
        Ok(())
    }

    /// The part that is next, but nothing from `end` on.
    fn read(&mut self, part: &mut Vec<u8>, end: u64) -> io::Result<()> {
        part.resize(PART_SIZE.min(end - self.at) as usize, 0);
        self.file.read_exact_at(part, self.at)?;
        (self.look)(&mut self.looker, part);
        self.at += part.len() as u64;
        Ok(())
    }

    fn pass_on(&mut self, end: u64, empty: &Receiver<Vec<u8>>, filled: &Sender<Vec<u8>>) -> io::Result<()> {
        let mut part = empty.recv().map_err(|_| ended())?;
        self.read(&mut part, end)?;
        filled.send(part).map_err(|_| ended())
    }
}

fn joined<R>(thread: JoinHandle<R>) -> R {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
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

    fn gather(seen: &mut Vec<u8>, part: &[u8]) {
        seen.extend_from_slice(part);
    }

    #[test]
    fn a_file_is_measured_and_looked_at_while_it_is_written() {
        let size = 3 * PARTS as u64 * PART_SIZE / 2 + 4096;
        let bytes: Vec<u8> = (0..size as u32).map(|at| (at * 7 + at / 4096) as u8).collect();
        for beside in [false, true] {
            let mut follower = Follower::new(tempfile::tempfile().unwrap(), Vec::new(), gather, beside).unwrap();
            for part in [0..1_000_000, 1_000_000..1_000_001, 1_000_001..bytes.len()] {
                follower.file.write_all_at(&bytes[part.clone()], part.start as u64).unwrap();
                follower.follow(part.end as u64).unwrap();
            }
            let (seen, measuring) = follower.finish().unwrap();
            assert!(seen == bytes, "beside: {beside}");
            for _ in 0..2 {
                assert_eq!(measuring.wait(), (size, Sha256Digest::of(&bytes)));
            }
        }
    }

    #[test]
    fn a_file_that_is_shorter_than_said_is_an_error() {
        for beside in [false, true] {
            let mut follower = Follower::new(tempfile::tempfile().unwrap(), Vec::new(), gather, beside).unwrap();
            let followed = follower.follow(1).and_then(|()| follower.finish().map(drop));
            assert_eq!(followed.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
