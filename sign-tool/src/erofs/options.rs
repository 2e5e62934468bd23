//! How an image shall be written.

use std::str::FromStr;

use super::{
    error::ImageError,
    kernel::{Algorithm, KernelRelease, Unsupported, supported},
};

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
    pub fn check(&self) -> Result<(), ImageError> {
        let level = |option, expected, level: Option<u32>, range: std::ops::RangeInclusive<u32>| match level {
            Some(level) if !range.contains(&level) => {
                Err(ImageError::Option { option, expected, found: level.to_string() })
            }
            _ => Ok(()),
        };
        match self.compression {
            ImageCompression::Lz4Hc(given) => level("lz4hc level", "3 to 12", given, 3..=12)?,
            ImageCompression::Zstd(given) => level("zstd level", "1 to 22", given, 1..=22)?,
            ImageCompression::None | ImageCompression::Lz4 => {}
        }
        if !self.cluster_size.is_multiple_of(4096) || !(4096..=1 << 20).contains(&self.cluster_size) {
            let expected = "a multiple of 4096 up to 1048576";
            return Err(ImageError::Option { option: "cluster size", expected, found: self.cluster_size.to_string() });
        }
        self.check_kernel().map_err(ImageError::Kernel)
    }

    fn check_kernel(&self) -> Result<(), Unsupported> {
        let Some(kernel) = self.kernel else { return Ok(()) };
        self.compression.algorithm().map_or(Ok(()), |algorithm| supported(kernel, algorithm))?;
        let least = KernelRelease::new(5, 15);
        if kernel < least {
            return Err(Unsupported { kernel, least, feature: "big clusters and chunks" });
        }
        Ok(())
    }
}
