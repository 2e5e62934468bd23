//! The image's size and SHA-256, for the release statement, taken while the image is still being written.
//!
//! SHA-256 goes from the first byte to the last and keeps one processor busy. It begins with block 0, which is known once all
//! content of files is written; inodes, hash tree, manifest and signatures come while it goes on.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread::{self, JoinHandle},
};

use iofs_policy::digest::Sha256Digest;

use super::digest_file;

/// Size in bytes, and SHA-256.
type Measured = (u64, Sha256Digest);

/// A measurement on a thread of its own. Dropped, it ends early.
#[derive(Debug)]
pub(crate) struct Measuring {
    frontier: Arc<Frontier>,
    thread: Mutex<Option<JoinHandle<io::Result<Measured>>>>,
    found: OnceLock<Measured>,
}

/// How far the file is written.
#[derive(Debug, Default)]
struct Frontier {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    written: u64,
    end: End,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    Whole,
    GivenUp,
}

impl Measuring {
    /// Begins with a file whose first `written` bytes are there.
    ///
    /// # Errors
    /// When the file cannot be opened once more, or there is no other thread.
    pub(crate) fn start(file: &File, written: u64) -> io::Result<Self> {
        let frontier = Arc::new(Frontier::default());
        frontier.update(|state| state.written = written);
        let mut follower = Follower { file: file.try_clone()?, at: 0, frontier: Arc::clone(&frontier) };
        let thread = thread::Builder::new().spawn(move || digest_file(&mut follower))?;
        Ok(Self { frontier, thread: Mutex::new(Some(thread)), found: OnceLock::new() })
    }

    /// All before `end` is written.
    pub(crate) fn advance(&self, end: u64) {
        self.frontier.update(|state| state.written = state.written.max(end));
    }

    /// Nothing more will be written.
    pub(crate) fn complete(&self) {
        self.frontier.update(|state| state.end = End::Whole);
    }

    /// Waits for size and digest of a file that is complete.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn wait(&self) -> io::Result<Measured> {
        let mut thread = locked(&self.thread);
        if let Some(thread) = thread.take() {
            let found = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            return Ok(*self.found.get_or_init(|| found));
        }
        self.found.get().copied().ok_or_else(|| io::Error::other("the file could not be read before"))
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        if let Some(thread) = locked(&self.thread).take() {
            self.frontier.update(|state| state.end = End::GivenUp);
            // Whatever it says is of no account.
            let _ = thread.join();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Frontier {
    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut locked(&self.state));
        self.moved.notify_all();
    }

    /// Waits until more than `at` bytes are there, and tells how many; `at` once there will be no more.
    fn beyond(&self, at: u64) -> io::Result<u64> {
        let waits = |state: &mut State| state.written <= at && state.end == End::Open;
        let state = self.moved.wait_while(locked(&self.state), waits).unwrap_or_else(PoisonError::into_inner);
        match state.end {
            End::GivenUp => Err(io::Error::other("given up")),
            End::Open | End::Whole => Ok(state.written.max(at)),
        }
    }
}

/// Reads a file as far as it is written, and then waits.
struct Follower {
    file: File,
    at: u64,
    frontier: Arc<Frontier>,
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.frontier.beyond(self.at)? - self.at;
        let length = usize::try_from(there).map_or(buffer.len(), |there| there.min(buffer.len()));
        self.file.read_exact_at(&mut buffer[..length], self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_file_is_measured_while_it_is_written() {
        let bytes: Vec<u8> = (0..5_000_000_u32).map(|at| (at * 7 + at / 4096) as u8).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes[..1_000_000], 0).unwrap();
        let measuring = Measuring::start(&file, 1_000_000).unwrap();
        for part in [1_000_000..1_000_001, 1_000_001..4_500_000, 4_500_000..5_000_000] {
            file.write_all_at(&bytes[part.clone()], part.start as u64).unwrap();
            measuring.advance(part.end as u64);
            thread::sleep(Duration::from_millis(5));
        }
        measuring.complete();
        for _ in 0..2 {
            assert_eq!(measuring.wait().unwrap(), (5_000_000, Sha256Digest::of(&bytes)));
        }
    }

    #[test]
    fn a_measurement_of_a_file_that_is_never_complete_ends_when_it_is_dropped() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 5000], 0).unwrap();
        drop(Measuring::start(&file, 5000).unwrap());
    }

    #[test]
    fn a_file_that_is_shorter_than_said_is_an_error() {
        let measuring = Measuring::start(&tempfile::tempfile().unwrap(), 1).unwrap();
        measuring.complete();
        assert_eq!(measuring.wait().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
