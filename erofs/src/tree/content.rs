//! Content of files, opened when it is written.

use std::{fmt, io};

use rustix::{
    buffer::spare_capacity,
    io::{Errno, pread},
};
use serde::{Deserialize, Serialize};

use super::node::Time;
use crate::write::Packed;

/// Bytes of a file, from `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first.
    pub start: u64,
    /// How many.
    pub length: u64,
}

/// What `stat` says of a file. Whatever changes its content changes this too, but for what writes to a mapping that is shared
/// on some file systems, to the storage below, or with a clock that was set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// The file system: `st_dev`.
    pub device: u64,
    /// The inode of it: `st_ino`.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// When its content was changed, or what somebody set: `st_mtim`.
    pub mtime: Time,
    /// When its content or anything of its inode was changed: `st_ctim`.
    pub changed: Time,
}

/// Something that can be read at any place, from any thread.
pub trait ContentReader: Send + Sync {
    /// Fills `target` from `offset` on.
    ///
    /// # Errors
    /// When it cannot be read, or ends before.
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()>;

    /// The bytes of a part, which must fit into memory.
    ///
    /// # Errors
    /// As [`Self::read_exact_at`].
    fn read_part(&self, part: Extent) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(part.length).map_err(|_| io::ErrorKind::OutOfMemory)?];
        self.read_exact_at(&mut bytes, part.start)?;
        Ok(bytes)
    }
}

/// A handle of a file's content. It is cheap to keep, and opened when it is needed, perhaps more than once.
pub trait Content: fmt::Debug + Send + Sync {
    /// Bytes of the file.
    fn size(&self) -> u64;

    /// Where there is data, in order and apart. All else is zeros. By default all is data.
    ///
    /// # Errors
    /// When it cannot be told.
    fn data(&self) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent { start: 0, length: self.size() }])
    }

    /// Opens it.
    ///
    /// # Errors
    /// When it cannot be opened, or its size is no longer [`Content::size`].
    fn open(&self) -> io::Result<Box<dyn ContentReader + '_>>;

    /// All of it, which must fit into memory.
    ///
    /// # Errors
    /// As [`Self::open`], or when it cannot be read.
    fn read_all(&self) -> io::Result<Vec<u8>> {
        self.open()?.read_part(Extent { start: 0, length: self.size() })
    }

    /// What people call it in messages.
    fn name(&self) -> String;

    /// What a file system says of it, where it is a file of one.
    fn stamp(&self) -> Option<Stamp> {
        None
    }

    /// Itself, where it is compressed already as an image may have it.
    #[doc(hidden)]
    fn packed(&self) -> Option<&Packed> {
        None
    }
}

impl ContentReader for &[u8] {
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(target.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        target.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl Content for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn open(&self) -> io::Result<Box<dyn ContentReader + '_>> {
        Ok(Box::new(self.as_slice()))
    }

    fn name(&self) -> String {
        format!("{} bytes in memory", self.len())
    }
}

impl ContentReader for std::fs::File {
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, target, offset)
    }

    fn read_part(&self, part: Extent) -> io::Result<Vec<u8>> {
        let bytes = read_up_to(self, part, 0)?;
        if bytes.len() as u64 == part.length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// The bytes of a part, or fewer where the file ends before. Up to `more` bytes behind it come along, where they are there. None of them is
/// set before it is read.
pub(crate) fn read_up_to(file: &std::fs::File, part: Extent, more: usize) -> io::Result<Vec<u8>> {
    let length = usize::try_from(part.length).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::with_capacity(length + more);
    loop {
        let at = part.start.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        match pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) if bytes.len() >= length => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // What was allocated may be more than what was asked for.
    bytes.truncate(length + more);
    Ok(bytes)
}

/// A part of an open file, such as an entry of an archive that is not compressed.
#[derive(Debug, Clone)]
pub struct Region {
    /// The file.
    pub file: std::sync::Arc<std::fs::File>,
    /// The part.
    pub extent: Extent,
    /// What people call it.
    pub name: String,
}

impl Content for Region {
    fn size(&self) -> u64 {
        self.extent.length
    }

    fn open(&self) -> io::Result<Box<dyn ContentReader + '_>> {
        Ok(Box::new(RegionReader(self)))
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

struct RegionReader<'a>(&'a Region);

impl ContentReader for RegionReader<'_> {
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(target.len() as u64).filter(|end| *end <= self.0.extent.length);
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let start = self.0.extent.start.checked_add(offset).ok_or(io::ErrorKind::UnexpectedEof)?;
        std::os::unix::fs::FileExt::read_exact_at(&*self.0.file, target, start)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_region_ends_where_it_ends() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before, content, after").unwrap();
        let extent = Extent { start: 8, length: 7 };
        let region = Region { file: std::sync::Arc::new(file), extent, name: "an entry".into() };
        let opened = region.open().unwrap();
        let mut bytes = [0; 7];
        opened.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"content");
        opened.read_exact_at(&mut bytes[..3], 4).unwrap();
        assert_eq!(&bytes[..3], b"ent");
        assert!(opened.read_exact_at(&mut bytes, 1).is_err());
        assert!(opened.read_exact_at(&mut bytes[..1], u64::MAX).is_err());
    }
}
