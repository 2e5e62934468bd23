//! Files and block devices that hold data and hash areas.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    num::NonZeroUsize,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use iofs_policy::verity::{BlockSize, Superblock, SuperblockError};

/// How much data a thread reads at once. Larger buffers fall out of the second-level cache before they are hashed.
pub(super) const BUFFER_SIZE: u64 = 1 << 18;

/// Why a file or device cannot hold what it should.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// A call of the system failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried, on which input.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The data is empty.
    #[error("data: expected at least one block, found an empty file")]
    Empty,
    /// The data does not end on a block: its tail could not be protected.
    #[error("data: expected a multiple of {block_size} bytes, found {found} bytes")]
    NotMultiple {
        /// The data block size in bytes.
        block_size: u32,
        /// The size found, in bytes.
        found: u64,
    },
    /// There is no room for a superblock before the end.
    #[error("superblock: expected {} bytes at byte {offset}, found a file of {found} bytes", Superblock::SIZE)]
    NoSuperblock {
        /// Where it should be, in bytes.
        offset: u64,
        /// The size found, in bytes.
        found: u64,
    },
    /// The superblock is malformed.
    #[error("superblock at byte {offset}: {source}")]
    Superblock {
        /// Where it is, in bytes.
        offset: u64,
        /// What is wrong with it.
        source: SuperblockError,
    },
}

pub(super) fn io_error(doing: &'static str) -> impl Fn(io::Error) -> MediaError {
    move |source| MediaError::Io { doing, source }
}

/// Number of blocks in a data file or device.
///
/// # Errors
/// [`MediaError::Empty`] and [`MediaError::NotMultiple`]: a tail that is no whole block would stay unprotected.
pub fn count_blocks(data: &File, block_size: BlockSize) -> Result<u64, MediaError> {
    let found = size(data).map_err(io_error("find the size of the data"))?;
    if found == 0 {
        return Err(MediaError::Empty);
    }
    if !found.is_multiple_of(block_size.into()) {
        return Err(MediaError::NotMultiple { block_size: block_size.bytes(), found });
    }
    Ok(found / u64::from(block_size))
}

/// Reads the superblock at `offset` bytes. What it says is a claim: only a root hash or a signature makes it true.
///
/// # Errors
/// [`MediaError::NoSuperblock`] if the file ends before, [`MediaError::Superblock`] if it is malformed.
pub fn read_superblock(hash: &File, offset: u64) -> Result<Superblock, MediaError> {
    let mut bytes = [0; Superblock::SIZE];
    let found = size(hash).map_err(io_error("find the size of the hash area"))?;
    if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > found) {
        return Err(MediaError::NoSuperblock { offset, found });
    }
    hash.read_exact_at(&mut bytes, offset).map_err(io_error("read the superblock"))?;
    Superblock::decode(&bytes).map_err(|source| MediaError::Superblock { offset, source })
}

/// The size in bytes; unlike the metadata's, also of block devices. Moves the file's position, which nothing here uses.
pub(crate) fn size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Whether writing to one changes the other.
pub(crate) fn same(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (a.metadata()?, b.metadata()?);
    if a.file_type().is_block_device() && b.file_type().is_block_device() {
        return Ok(a.rdev() == b.rdev());
    }
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// Runs `work` on the numbers from 0 to `count`, handed out in order to at most `threads` threads.
///
/// Each thread makes its own `scratch`. No number is handed out once `work` has returned `false` or failed, but those
/// handed out before are finished: all numbers below a finished one are finished too.
pub(crate) fn in_parallel<S, E: Send>(
    count: u64,
    threads: NonZeroUsize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, u64) -> Result<bool, E> + Sync,
) -> Result<(), E> {
    let (next, stop, failed) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(None));
    let run = &|| {
        let mut scratch = scratch();
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            match work(&mut scratch, number) {
                Ok(true) => {}
                Ok(false) => stop.store(true, Ordering::Relaxed),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    keep_lowest(&failed, number, error);
                }
            }
        }
    };
    let helpers = count.min(threads.get() as u64).saturating_sub(1);
    std::thread::scope(|scope| {
        for _ in 0..helpers {
            // A machine that is out of threads only works slower: the others take over the numbers.
            let _ = std::thread::Builder::new().spawn_scoped(scope, run);
        }
        run();
    });
    let failed = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    failed.map_or(Ok(()), |(_, error)| Err(error))
}

fn keep_lowest<E>(failed: &Mutex<Option<(u64, E)>>, number: u64, error: E) {
    let mut failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if failed.as_ref().is_none_or(|(lowest, _)| number < *lowest) {
        *failed = Some((number, error));
    }
}
