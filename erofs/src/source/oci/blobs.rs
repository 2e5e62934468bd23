//! Blobs: read at most once for each need, and never without their digest being checked.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
};

use super::{
    OciError,
    digest::{Digest, Hasher},
};

/// So many bytes are read at once where they are only hashed.
const BUFFER_SIZE: usize = 64 << 10;

/// A file of a layout: one in a directory, or a part of an archive.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) name: String,
}

impl Blob {
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn io_error(&self, call: &'static str, source: io::Error) -> OciError {
        OciError::Io { call, path: self.path.clone(), source }
    }

    /// The first bytes, for a look at them; fewer at the end.
    pub(super) fn first(&self, count: usize) -> Result<Vec<u8>, OciError> {
        let mut bytes = vec![0; count.min(usize::try_from(self.size).unwrap_or(count))];
        self.file.read_exact_at(&mut bytes, self.start).map_err(|source| self.io_error("read", source))?;
        Ok(bytes)
    }

    /// Reads it with its digest being computed.
    pub(super) fn verified(&self, digest: Digest) -> Verified<'_> {
        Verified { blob: self, at: 0, hasher: Hasher::of(&digest), expected: digest }
    }
}

/// Reads a blob, all of which must have been read before [`Verified::finish`] tells whether it can be trusted.
pub(super) struct Verified<'a> {
    blob: &'a Blob,
    at: u64,
    hasher: Hasher,
    expected: Digest,
}

impl Verified<'_> {
    /// Reads what is left, and compares.
    pub(super) fn finish(mut self) -> Result<(), OciError> {
        let mut buffer = vec![0; BUFFER_SIZE];
        while self.read(&mut buffer).map_err(|source| self.blob.io_error("read", source))? > 0 {}
        let name = self.blob.name.clone();
        let found = self.hasher.finish();
        if found == self.expected { Ok(()) } else { Err(OciError::Digest { name, expected: self.expected, found }) }
    }
}

impl Read for Verified<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.blob.size - self.at).unwrap_or(usize::MAX);
        let wanted = target.len().min(rest);
        let count = self.blob.file.read_at(&mut target[..wanted], self.blob.start + self.at)?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.hasher.update(&target[..count]);
        self.at += count as u64;
        Ok(count)
    }
}
