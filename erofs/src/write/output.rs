//! Blocks on their way out.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::WriteError;
use crate::format::units::{BLOCK_SIZE, Block};

/// Takes the blocks of an image.
///
/// Blocks come in order from block 1 on, each once; but block 0 comes when all content of files is written, before what speaks of it.
pub trait BlockSink {
    /// Takes blocks from `first` on; `bytes` is a multiple of 4096.
    ///
    /// # Errors
    /// When they cannot be kept.
    fn write(&mut self, first: Block, bytes: &[u8]) -> io::Result<()>;
}

impl<S: BlockSink + ?Sized> BlockSink for &mut S {
    fn write(&mut self, first: Block, bytes: &[u8]) -> io::Result<()> {
        (**self).write(first, bytes)
    }
}

/// An image in memory.
impl BlockSink for Vec<u8> {
    fn write(&mut self, first: Block, bytes: &[u8]) -> io::Result<()> {
        let start = first.0 as usize * BLOCK_SIZE;
        if self.len() < start + bytes.len() {
            self.resize(start + bytes.len(), 0);
        }
        self[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// An image in a file, from its start on.
#[derive(Debug)]
pub struct FileSink(pub File);

impl BlockSink for FileSink {
    fn write(&mut self, first: Block, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, u64::from(first.0) * BLOCK_SIZE as u64)
    }
}

/// So many bytes go to the sink at once.
const BUFFER_SIZE: usize = 128 << 10;

/// Numbers blocks, and gathers them.
#[derive(Debug)]
pub(super) struct Output<S> {
    sink: S,
    /// The block at which `buffer` starts.
    first: Block,
    buffer: Vec<u8>,
}

impl<S: BlockSink> Output<S> {
    pub(super) fn new(sink: S) -> Self {
        Self { sink, first: Block(1), buffer: Vec::with_capacity(2 * BUFFER_SIZE) }
    }

    /// The number of the next block. What was pushed last must have been padded.
    pub(super) fn next(&self) -> Result<Block, WriteError> {
        debug_assert_eq!(self.buffer.len() % BLOCK_SIZE, 0);
        self.number(self.buffer.len())
    }

    /// Adds bytes to the current block and those after it.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let mut rest = bytes;
        if bytes.len() >= BUFFER_SIZE && self.buffer.len().is_multiple_of(BLOCK_SIZE) {
            self.flush()?;
            let whole;
            (whole, rest) = bytes.split_at(bytes.len() / BLOCK_SIZE * BLOCK_SIZE);
            self.hand_over(whole)?;
        }
        self.buffer.extend_from_slice(rest);
        if self.buffer.len() >= BUFFER_SIZE { self.flush() } else { Ok(()) }
    }

    /// Fills the current block with zeros.
    pub(super) fn pad(&mut self) -> Result<(), WriteError> {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK_SIZE), 0);
        if self.buffer.len() >= BUFFER_SIZE { self.flush() } else { Ok(()) }
    }

    /// Hands over the whole blocks that were gathered.
    fn flush(&mut self) -> Result<(), WriteError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let whole = buffer.len() / BLOCK_SIZE * BLOCK_SIZE;
        self.hand_over(&buffer[..whole])?;
        buffer.drain(..whole);
        self.buffer = buffer;
        Ok(())
    }

    fn hand_over(&mut self, blocks: &[u8]) -> Result<(), WriteError> {
        if blocks.is_empty() {
            return Ok(());
        }
        let next = self.number(blocks.len())?;
        let sink = |source| WriteError::Sink { what: self.first.to_string(), source };
        self.sink.write(self.first, blocks).map_err(sink)?;
        self.first = next;
        Ok(())
    }

    /// Block 0, out of the order.
    pub(super) fn block_zero(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.flush()?;
        let sink = |source| WriteError::Sink { what: "the superblock".into(), source };
        self.sink.write(Block(0), bytes).map_err(sink)
    }

    /// Hands over the rest.
    pub(super) fn finish(&mut self) -> Result<(), WriteError> {
        self.pad()?;
        self.flush()
    }

    fn number(&self, ahead: usize) -> Result<Block, WriteError> {
        number(u64::from(self.first.0) + (ahead / BLOCK_SIZE) as u64)
    }
}

/// The block of this number. The last one stands for a hole.
pub(super) fn number(number: u64) -> Result<Block, WriteError> {
    u32::try_from(number).ok().filter(|number| *number != u32::MAX).map(Block).ok_or(WriteError::TooLarge)
}
