//! What an image is to be like.

use std::fmt;

use super::WriteError;
use crate::{format::units::BLOCK_SIZE, tree::Time};

/// How files are compressed. A file that does not shrink stays plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4: fast to write and to read.
    Lz4,
    /// LZ4 that is slow to write, with a level from 3 to 12.
    Lz4hc {
        /// The level.
        level: i32,
    },
    /// Zstandard with a level from 1 to 22.
    Zstd {
        /// The level.
        level: i32,
    },
}

/// A kernel's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelRelease {
    /// 6 of 6.1
    pub major: u16,
    /// 1 of 6.1
    pub minor: u16,
}

impl KernelRelease {
    /// From its two numbers.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for KernelRelease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// The first kernel that reads big clusters (5.13) and chunks (5.15), without which nothing is written here.
const LEAST_KERNEL: KernelRelease = KernelRelease::new(5, 15);
/// The first kernel that reads Zstandard.
const ZSTD_KERNEL: KernelRelease = KernelRelease::new(6, 10);
/// `Z_EROFS_PCLUSTER_MAX_SIZE`.
const CLUSTER_LIMIT: usize = 1 << 20;

/// What an image is to be like. All of it but the number of threads shows in its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How files are compressed.
    pub compression: Compression,
    /// Bytes of a physical cluster: what a reader reads at once. A multiple of 4096, 1 MiB at most.
    pub cluster_size: usize,
    /// Threads that compress; 0 takes one for each processor.
    pub threads: usize,
    /// The time of the image; by default the one that most of its inodes have.
    pub build_time: Option<Time>,
    /// One time for all inodes, in place of their own.
    pub same_time: Option<Time>,
    /// The oldest kernel that shall read the image.
    pub kernel: KernelRelease,
    /// The volume's name, filled up with zeros.
    pub volume_name: [u8; 16],
}

impl Default for Options {
    /// Not compressed, for Linux 6.1.
    fn default() -> Self {
        Self {
            compression: Compression::None,
            cluster_size: 65536,
            threads: 0,
            build_time: None,
            same_time: None,
            kernel: KernelRelease::new(6, 1),
            volume_name: [0; 16],
        }
    }
}

impl Options {
    /// Checks ranges, and what the kernel knows.
    ///
    /// # Errors
    /// The option, what it may be, and what it is.
    pub fn check(&self) -> Result<(), WriteError> {
        let refuse = |option, expected: &str, found: String| {
            Err(WriteError::Option { option, expected: expected.into(), found })
        };
        if self.cluster_size == 0 || !self.cluster_size.is_multiple_of(BLOCK_SIZE) || self.cluster_size > CLUSTER_LIMIT
        {
            return refuse("cluster_size", "a multiple of 4096 up to 1048576", self.cluster_size.to_string());
        }
        if self.kernel < LEAST_KERNEL {
            return refuse("kernel", &format!("{LEAST_KERNEL} or newer"), self.kernel.to_string());
        }
        match self.compression {
            Compression::Zstd { .. } if self.kernel < ZSTD_KERNEL => {
                let found = format!("zstd for {}", self.kernel);
                refuse("compression", &format!("lz4, or a kernel from {ZSTD_KERNEL} on"), found)
            }
            Compression::Lz4hc { level } if !(3..=12).contains(&level) => {
                refuse("compression", "a level from 3 to 12 for lz4hc", level.to_string())
            }
            Compression::Zstd { level } if !(1..=22).contains(&level) => {
                refuse("compression", "a level from 1 to 22 for zstd", level.to_string())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn worker_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, Into::into),
            given => given,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_does_not_know_is_refused() {
        let zstd = Options { compression: Compression::Zstd { level: 3 }, ..Options::default() };
        assert!(zstd.check().unwrap_err().to_string().contains("a kernel from 6.10 on"));
        assert!(Options { kernel: KernelRelease::new(6, 12), ..zstd }.check().is_ok());
        assert!(Options { kernel: KernelRelease::new(5, 10), ..Options::default() }.check().is_err());
        assert!(Options { cluster_size: 5000, ..Options::default() }.check().is_err());
        assert!(Options { compression: Compression::Lz4hc { level: 13 }, ..Options::default() }.check().is_err());
    }
}
