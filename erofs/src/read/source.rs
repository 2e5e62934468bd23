//! Where images are read from.

use std::{fs::File, io, os::unix::fs::FileExt};

/// The bytes of an image.
pub trait ReadAt {
    /// Fills `target` from `offset` on.
    ///
    /// # Errors
    /// When they cannot be read, or there are not as many.
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()>;

    /// How many there are.
    ///
    /// # Errors
    /// When it cannot be told.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, target, offset)
    }

    fn size(&self) -> io::Result<u64> {
        use std::io::Seek;
        // A block device's metadata tells no size.
        let mut file = self.try_clone()?;
        file.seek(io::SeekFrom::End(0))
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(target.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        target.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(target, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl<R: ReadAt + ?Sized> ReadAt for &R {
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(target, offset)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }
}
