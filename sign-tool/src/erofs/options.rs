//! How an image shall be written.

use std::str::FromStr;

use erofs_image::{Compression, Options, Time, source::archive::Keep, write::KernelRelease as Kernel};

use super::{
    error::ImageError,
    kernel::{Algorithm, KernelRelease},
};

/// The levels of those who name none.
const LZ4HC_LEVEL: i32 = 9;
const ZSTD_LEVEL: i32 = 3;
/// Whatever compression it has, such a kernel reads it.
const LEAST_KERNEL: KernelRelease = KernelRelease::new(6, 1);

/// The compression of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageCompression {
    /// Not at all.
    None,
    /// LZ4, fast to write.
    Lz4,
    /// LZ4, smaller and just as fast to read: level 3 to 12, default 9.
    Lz4Hc(Option<u32>),
    /// Zstandard: level 1 to 22, default 3.
    Zstd(Option<u32>),
}

impl ImageCompression {
    /// The algorithm that the kernel needs.
    pub fn algorithm(self) -> Option<Algorithm> {
        match self {
            Self::None => None,
            Self::Lz4 | Self::Lz4Hc(_) => Some(Algorithm::Lz4),
            Self::Zstd(_) => Some(Algorithm::Zstd),
        }
    }
}

/// Text that names no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("compression: expected none, lz4, lz4hc[,LEVEL] or zstd[,LEVEL], found {0:?}")]
pub struct CompressionError(String);

impl FromStr for ImageCompression {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, CompressionError> {
        let bad = || CompressionError(text.to_owned());
        let (name, level) = match text.split_once(',') {
            Some((name, level)) => (name, Some(level.parse().map_err(|_| bad())?)),
            None => (text, None),
        };
        match (name, level) {
            ("none", None) => Ok(Self::None),
            ("lz4", None) => Ok(Self::Lz4),
            ("lz4hc", level) => Ok(Self::Lz4Hc(level)),
            ("zstd", level) => Ok(Self::Zstd(level)),
            _ => Err(bad()),
        }
    }
}

/// To what later modification times are set back. It is also the image's own time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeClamp {
    /// The newest time in the tree, so that nothing changes and the image depends on nothing else.
    Newest,
    /// `SOURCE_DATE_EPOCH`: seconds since 1970.
    Epoch(u64),
}

/// How an image shall be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOptions {
    /// The compression of files.
    pub compression: ImageCompression,
    /// Bytes that are compressed to at most at once: a multiple of 4096 up to 1 MiB. Larger packs better and reads
    /// more than was asked for.
    pub cluster_size: u32,
    /// What becomes of modification times.
    pub clamp: TimeClamp,
    /// The kernel that shall read it, if known.
    pub kernel: Option<KernelRelease>,
    /// The most threads that compress; 0 takes one for each processor. The bytes do not depend on it.
    pub threads: usize,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            compression: ImageCompression::Lz4Hc(None),
            cluster_size: 64 * 1024,
            clamp: TimeClamp::Newest,
            kernel: None,
            threads: 0,
        }
    }
}

impl ImageOptions {
    /// Checks ranges and the target kernel.
    ///
    /// # Errors
    /// The option, what it may be, and what it is.
    pub fn check(&self) -> Result<(), ImageError> {
        Ok(self.of_writer(0).check()?)
    }

    /// How content of compressed archives is kept until it is written so.
    pub fn keep(&self) -> Keep {
        Keep::Packed(self.of_writer(0))
    }

    /// What the writer is told; `time` is the image's own, in seconds since 1970.
    pub(super) fn of_writer(&self, time: u64) -> Options {
        let level = |given: Option<u32>, usual| given.map_or(usual, |level| i32::try_from(level).unwrap_or(i32::MAX));
        let compression = match self.compression {
            ImageCompression::None => Compression::None,
            ImageCompression::Lz4 => Compression::Lz4,
            ImageCompression::Lz4Hc(given) => Compression::Lz4hc { level: level(given, LZ4HC_LEVEL) },
            ImageCompression::Zstd(given) => Compression::Zstd { level: level(given, ZSTD_LEVEL) },
        };
        let algorithm = self.compression.algorithm();
        let needed = algorithm.map_or(LEAST_KERNEL, |algorithm| algorithm.least_kernel().max(LEAST_KERNEL));
        let kernel = self.kernel.unwrap_or(needed);
        Options {
            compression,
            cluster_size: self.cluster_size as usize,
            threads: self.threads,
            build_time: Some(Time { seconds: time as i64, nanoseconds: 0 }),
            kernel: Kernel::new(kernel.major as u16, kernel.minor as u16),
            ..Options::default()
        }
    }
}
