//! Pieces under way, taken from the pool in the order in which they came.

use std::collections::VecDeque;

use super::{
    WriteError,
    contents::PIECE_SIZE,
    options::Options,
    pool::{Job, Piece, Pool, Promise, Reply},
};

/// Pieces under way at once, which counts where they are small.
const QUEUE_LIMIT: usize = 512;

/// The pool with what it was given; each piece comes back with a `T`.
#[derive(Debug)]
pub(super) struct Pipeline<T> {
    pool: Pool,
    queue: VecDeque<(Promise, u64, T)>,
    bytes: u64,
}

impl<T> Pipeline<T> {
    pub(super) fn new(options: &Options) -> Self {
        Self { pool: Pool::new(options), queue: VecDeque::new(), bytes: 0 }
    }

    /// Begins a piece of `length` bytes.
    pub(super) fn submit(&mut self, job: Job, length: u64, with: T) {
        let promise = self.pool.submit(job);
        self.queue.push_back((promise, length, with));
        self.bytes += length;
    }

    /// A piece that cannot wait for its turn.
    pub(super) fn now(&mut self, job: Job) -> Reply {
        self.pool.work(job)
    }

    /// So much is under way that the next piece should be taken before another is submitted.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > self.pool.depth() as u64 * PIECE_SIZE || self.queue.len() > QUEUE_LIMIT
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Waits for the piece that was submitted first.
    pub(super) fn next(&mut self) -> Result<Option<(Piece, T)>, WriteError> {
        let Some((promise, length, with)) = self.queue.pop_front() else { return Ok(None) };
        self.bytes -= length;
        Ok(Some((self.pool.wait(promise)?, with)))
    }
}
