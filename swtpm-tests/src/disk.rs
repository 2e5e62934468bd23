//! Disks that a test may damage.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::cache;

/// A disk image of one test's own, removed when dropped.
#[derive(Debug)]
pub struct ScratchDisk {
    path: PathBuf,
    file: File,
    _folder: TempDir,
}

impl ScratchDisk {
    /// Copies `source`, sharing its blocks where the file system can and leaving holes where it has zeroes.
    ///
    /// # Errors
    ///
    /// Where `source` cannot be read, or the scratch folder not be written.
    pub fn copy_of(source: impl AsRef<Path>) -> Result<Self> {
        let source = source.as_ref();
        let folder = scratch_folder()?;
        let path = folder.path().join("disk.img");
        let copied = Command::new("cp")
            .args(["--reflink=auto", "--sparse=always", "--no-preserve=mode", "--"])
            .args([source, &path])
            .output()
            .context("cannot run cp")?;
        let complaint = String::from_utf8_lossy(&copied.stderr);
        ensure!(copied.status.success(), "cannot copy {}: {}", source.display(), complaint.trim());
        Self::open(path, folder)
    }

    /// Makes a disk of `size` bytes that all read as zero.
    ///
    /// # Errors
    ///
    /// Where the scratch folder cannot be written.
    pub fn empty(size: u64) -> Result<Self> {
        let folder = scratch_folder()?;
        let path = folder.path().join("disk.img");
        File::create(&path)?.set_len(size)?;
        Self::open(path, folder)
    }

    /// Where the image lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The image's size in bytes.
    ///
    /// # Errors
    ///
    /// Where the file system does not say.
    pub fn size(&self) -> Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Flips bit `bit` (0 is the lowest) of the byte at `offset`: the smallest tampering there is.
    ///
    /// # Errors
    ///
    /// Where `offset` lies outside the disk, or `bit` outside the byte.
    pub fn flip_bit(&self, offset: u64, bit: u8) -> Result<()> {
        ensure!(bit < 8, "a byte has no bit {bit}");
        let byte = self.read(offset, 1)?[0];
        self.write(offset, &[byte ^ (1 << bit)])
    }

    /// Reads `length` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// Where they do not lie within the disk.
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, offset)
            .with_context(|| format!("{length} bytes at {offset} are not on {}", self.path.display()))?;
        Ok(bytes)
    }

    /// Overwrites what is at `offset`. The disk does not grow.
    ///
    /// # Errors
    ///
    /// Where `bytes` do not fit.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        let size = self.size()?;
        ensure!(end.is_some_and(|end| end <= size), "{} bytes at {offset} do not fit a disk of {size}", bytes.len());
        Ok(self.file.write_all_at(bytes, offset)?)
    }

    /// Cuts the disk off after `size` bytes.
    ///
    /// # Errors
    ///
    /// Where it is not longer than that.
    pub fn truncate(&self, size: u64) -> Result<()> {
        let before = self.size()?;
        ensure!(size < before, "cannot cut a disk of {before} bytes to {size}");
        Ok(self.file.set_len(size)?)
    }

    fn open(path: PathBuf, folder: TempDir) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        Ok(Self { path, file, _folder: folder })
    }
}

/// Below the target folder, not in `/tmp`: that may be a small tmpfs.
fn scratch_folder() -> Result<TempDir> {
    Ok(tempfile::tempdir_in(cache::target_folder("vm-scratch")?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flipping_a_bit_changes_that_bit_alone_and_the_source_not_at_all() {
        let source = ScratchDisk::empty(8192).unwrap();
        let copy = ScratchDisk::copy_of(source.path()).unwrap();
        copy.flip_bit(4097, 7).unwrap();

        let mut expected = vec![0; 8192];
        expected[4097] = 0x80;
        assert_eq!(copy.read(0, 8192).unwrap(), expected);
        assert_eq!(source.read(0, 8192).unwrap(), vec![0; 8192]);
    }

    #[test]
    fn a_disk_neither_grows_by_writing_nor_by_truncating() {
        let disk = ScratchDisk::empty(512).unwrap();
        assert!(disk.write(511, b"ab").is_err());
        assert!(disk.flip_bit(512, 0).is_err());
        assert!(disk.truncate(512).is_err());
        disk.truncate(100).unwrap();
        assert_eq!(disk.size().unwrap(), 100);
    }

    #[test]
    fn a_scratch_disk_is_gone_when_dropped() {
        let disk = ScratchDisk::empty(1).unwrap();
        let path = disk.path().to_owned();
        drop(disk);
        assert!(!path.exists());
    }
}
