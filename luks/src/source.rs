//! Where bytes come from: a device, a file, or memory.

use std::{fs::File, io, os::unix::fs::FileExt};

/// Something that LUKS2 can be on.
pub trait ReadAt {
    /// Reads exactly `length` bytes that begin at byte `offset`.
    ///
    /// # Errors
    /// Fewer bytes are there, or they cannot be read.
    fn read_at(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>>;
}

impl ReadAt for File {
    fn read_at(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

impl ReadAt for &[u8] {
    fn read_at(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        match rest.and_then(|rest| rest.get(..length)) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
