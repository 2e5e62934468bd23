//! A buffered byte source that knows its name and position, so that errors can tell them.

use std::io::{self, BufRead, Read};

use super::error::{ArchiveError, Place};

/// How much is read at a time; also the most that [`Input::peek`] can show.
const BUFFER_SIZE: usize = 64 * 1024;

/// A named source of bytes with its position.
pub struct Input<R> {
    inner: R,
    name: String,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    offset: u64,
}

impl<R: Read> Input<R> {
    /// Wraps `inner`, which stands at offset 0 of what people call `name`.
    pub fn new(inner: R, name: impl Into<String>) -> Self {
        Self { inner, name: name.into(), buffer: vec![0; BUFFER_SIZE].into(), start: 0, end: 0, offset: 0 }
    }

    /// What people call this source.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes consumed so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The place of an error at `offset`.
    pub fn place(&self, offset: u64, entry: Option<String>) -> Box<Place> {
        Box::new(Place { archive: self.name.clone(), entry, offset })
    }

    /// The next `count` bytes without consuming them; fewer only at the end of the source.
    ///
    /// # Errors
    /// What the source says.
    pub fn peek(&mut self, count: usize) -> Result<&[u8], ArchiveError> {
        debug_assert!(count <= BUFFER_SIZE);
        if self.start + count > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < count {
            match self.read_more() {
                Ok(0) => break,
                Ok(_) => {}
                Err(source) => return Err(self.read_error(source)),
            }
        }
        Ok(&self.buffer[self.start..self.end.min(self.start + count)])
    }

    /// Fills `target`, a part of `what`.
    ///
    /// # Errors
    /// Truncation, or what the source says.
    pub fn read_whole(
        &mut self,
        target: &mut [u8],
        what: &'static str,
        entry: Option<&str>,
    ) -> Result<(), ArchiveError> {
        let mut filled = 0;
        while filled < target.len() {
            match self.read(&mut target[filled..]) {
                Ok(0) => return Err(self.truncated(what, entry)),
                Ok(count) => filled += count,
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.read_error(source)),
            }
        }
        Ok(())
    }

    /// Passes over `count` bytes of `what`.
    ///
    /// # Errors
    /// Truncation, or what the source says.
    pub fn skip(&mut self, mut count: u64, what: &'static str, entry: Option<&str>) -> Result<(), ArchiveError> {
        while count > 0 {
            let available = self.fill_buf().map(<[u8]>::len).map_err(|source| self.read_error(source))?;
            if available == 0 {
                return Err(self.truncated(what, entry));
            }
            let step = available.min(usize::try_from(count).unwrap_or(available));
            self.consume(step);
            count -= step as u64;
        }
        Ok(())
    }

    /// Passes over zero bytes and returns how many there were.
    ///
    /// # Errors
    /// What the source says.
    pub fn skip_zeros(&mut self) -> Result<u64, ArchiveError> {
        let begin = self.offset;
        loop {
            let available = match self.fill_buf() {
                Ok(available) => available,
                Err(source) => return Err(self.read_error(source)),
            };
            let zeros = available.iter().take_while(|byte| **byte == 0).count();
            let more = zeros == available.len() && zeros > 0;
            self.consume(zeros);
            if !more {
                return Ok(self.offset - begin);
            }
        }
    }

    /// The error for an end at this position.
    pub fn truncated(&self, what: &'static str, entry: Option<&str>) -> ArchiveError {
        ArchiveError::Truncated { place: self.place(self.offset, entry.map(str::to_owned)), what }
    }

    /// The error for a failed read at this position.
    pub fn read_error(&self, source: io::Error) -> ArchiveError {
        ArchiveError::Read { place: self.place(self.offset, None), source }
    }

    fn read_more(&mut self) -> io::Result<usize> {
        loop {
            match self.inner.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    self.end += count;
                    return Ok(count);
                }
            }
        }
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(target.len());
        target[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for Input<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.read_more()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        self.offset += count as u64;
    }
}
