//! What an update writes to: a slot's device, and the one place through which everything is written.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Advice, FlockOperation, OFlags},
    io::Errno,
};

use crate::{
    report::{ExitStatus, Failure},
    verity,
};

/// The blocks in which what is there is compared with what shall be there, in bytes.
const UNIT: usize = 4096;

/// How an update writes. Tests lose the power in it.
pub trait Storage: Sync {
    /// Writes all bytes to an offset.
    ///
    /// # Errors
    /// The system's.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns once all that was written before is safe from a power cut.
    ///
    /// # Errors
    /// The system's.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The real one.
#[derive(Debug, Clone, Copy)]
pub struct Disk;

impl Storage for Disk {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }
}

/// A slot's partition, or a file in its place.
#[derive(Debug)]
pub struct SlotDevice {
    path: PathBuf,
    file: File,
    size: u64,
}

impl SlotDevice {
    /// Opens a slot that is to be written, which nobody else may have: no mount, no mapping, no other update.
    ///
    /// # Errors
    /// It is in use, or neither a block device nor a regular file.
    pub fn open_unused(path: &Path, write: bool) -> Result<Self, Failure> {
        let fail = |error: io::Error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY | Errno::WOULDBLOCK) => in_use(path, "something that has it open for itself"),
            _ => Failure::io(format_args!("open the slot {}", path.display()), &error),
        };
        let kind = path.metadata().map_err(fail)?.file_type();
        // Of block devices, O_EXCL is the kernel's own word for "nobody has it mounted or mapped".
        let exclusive = if kind.is_block_device() { OFlags::EXCL } else { OFlags::NONBLOCK };
        let mut options = File::options();
        options.read(true).write(write).custom_flags(exclusive.bits().cast_signed());
        let file = options.open(path).map_err(fail)?;
        if kind.is_file() {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| fail(error.into()))?;
            if let Some(device) = loop_device_of(path) {
                return Err(in_use(path, &format!("the loop device {device}")));
            }
        } else if !kind.is_block_device() {
            let fact = format!("slot {}: expected a block device or a regular file", path.display());
            return Err(Failure::new(ExitStatus::BadInput, fact));
        }
        Self::new(path, file)
    }

    /// Opens a slot that is only read, such as the running one.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_to_read(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path);
        Self::new(path, file.map_err(|error| Failure::io(format_args!("open the slot {}", path.display()), &error))?)
    }

    fn new(path: &Path, file: File) -> Result<Self, Failure> {
        let size = verity::size(&file)
            .map_err(|error| Failure::io(format_args!("find the size of the slot {}", path.display()), &error))?;
        Ok(Self { path: path.to_owned(), file, size })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open device.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills the buffer from an offset.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// Whether writing to this one changes that file.
    pub fn is(&self, other: &File) -> bool {
        // In doubt it is: then nothing is written.
        verity::same(&self.file, other).unwrap_or(true)
    }

    /// Writes those blocks whose bytes differ from what is there, and returns how many bytes that were.
    ///
    /// # Errors
    /// The system's.
    pub fn write_differing(&self, storage: &dyn Storage, bytes: &[u8], offset: u64) -> io::Result<u64> {
        let mut there = vec![0; bytes.len()];
        // What cannot be read, such as a bad sector, may well be written.
        let readable = self.read(&mut there, offset).is_ok();
        let differs = |(new, old): (&[u8], &[u8])| !readable || new != old;
        let differing: Vec<bool> = bytes.chunks(UNIT).zip(there.chunks(UNIT)).map(differs).collect();
        let mut written = 0;
        for run in runs(&differing) {
            let piece = &bytes[run.start * UNIT..bytes.len().min(run.end * UNIT)];
            storage.write(&self.file, piece, offset + (run.start * UNIT) as u64)?;
            written += piece.len() as u64;
        }
        Ok(written)
    }

    /// Waits until all is stored, and has what is read next come from the device itself.
    ///
    /// # Errors
    /// The system's.
    pub fn settle(&self, storage: &dyn Storage) -> io::Result<()> {
        storage.sync(&self.file)?;
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed).map_err(io::Error::from)
    }
}

/// The runs of `true`.
pub(super) fn runs(flags: &[bool]) -> Vec<std::ops::Range<usize>> {
    let mut runs = Vec::new();
    let mut at = 0;
    for piece in flags.chunk_by(|left, right| left == right) {
        if piece[0] {
            runs.push(at..at + piece.len());
        }
        at += piece.len();
    }
    runs
}

fn in_use(path: &Path, by: &str) -> Failure {
    let fact = format!("slot {}: expected one that is not in use, found {by}", path.display());
    Failure::new(ExitStatus::Usage, fact).next("unmount it, or name the slot that does not run")
}

/// The loop device that a file is behind.
fn loop_device_of(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    std::fs::read_dir("/sys/block").into_iter().flatten().flatten().find_map(|device| {
        let backing = std::fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end_matches('\n')) == path).then(|| device.file_name().to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_that_differ_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slot");
        std::fs::write(&path, [1; 5 * UNIT]).unwrap();
        let slot = SlotDevice::open_unused(&path, true).unwrap();
        let mut wanted = vec![1; 3 * UNIT + 100];
        assert_eq!(slot.write_differing(&Disk, &wanted, UNIT as u64).unwrap(), 0);
        (wanted[0], wanted[2 * UNIT], wanted[3 * UNIT + 99]) = (2, 3, 4);
        assert_eq!(slot.write_differing(&Disk, &wanted, UNIT as u64).unwrap(), 2 * UNIT as u64 + 100);
        assert_eq!(std::fs::read(&path).unwrap()[UNIT..4 * UNIT + 100], wanted);
        assert_eq!(runs(&[true, true, false, true]), [0..2, 3..4]);
        assert!(runs(&[]).is_empty());
    }

    #[test]
    fn a_slot_that_another_update_writes_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slot");
        std::fs::write(&path, [1; UNIT]).unwrap();
        let first = SlotDevice::open_unused(&path, true).unwrap();
        let refused = SlotDevice::open_unused(&path, true).unwrap_err();
        assert!(refused.fact.contains("expected one that is not in use"), "{refused}");
        drop(first);
        assert!(SlotDevice::open_unused(&path, true).is_ok());
        assert!(SlotDevice::open_unused(folder.path(), false).is_err());
    }
}
