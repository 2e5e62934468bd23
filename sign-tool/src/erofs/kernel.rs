//! Which kernel reads what. Source: Linux `Documentation/filesystems/erofs.rst` and `fs/erofs/Kconfig` by release.

use std::{fmt, str::FromStr};

use serde::Serialize;

/// A kernel's release, as far as abilities depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct KernelRelease {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl KernelRelease {
    /// `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for KernelRelease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// Text that does not begin like a kernel's release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kernel release: expected two numbers such as in 6.1.0-37-amd64, found {0:?}")]
pub struct ReleaseError(String);

impl FromStr for KernelRelease {
    type Err = ReleaseError;

    /// Accepts `6.1` as well as `6.1.0-37-amd64`.
    fn from_str(text: &str) -> Result<Self, ReleaseError> {
        let bad = || ReleaseError(text.to_owned());
        let (major, rest) = text.split_once('.').ok_or_else(bad)?;
        let digits = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
        let number = |digits: &str| digits.parse().map_err(|_| bad());
        Ok(Self { major: number(major)?, minor: number(&rest[..digits])? })
    }
}

/// An algorithm in an image; `lz4` and `lz4hc` write the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// LZ4.
    Lz4,
    /// MicroLZMA.
    Lzma,
    /// DEFLATE.
    Deflate,
    /// Zstandard.
    Zstd,
}

impl Algorithm {
    /// All, by their number in an image.
    pub const ALL: [Self; 4] = [Self::Lz4, Self::Lzma, Self::Deflate, Self::Zstd];

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
        }
    }

    /// The first kernel that reads it, if configured.
    pub fn least_kernel(self) -> KernelRelease {
        match self {
            Self::Lz4 => KernelRelease::new(5, 4),
            Self::Lzma => KernelRelease::new(5, 16),
            Self::Deflate => KernelRelease::new(6, 6),
            Self::Zstd => KernelRelease::new(6, 10),
        }
    }
}

/// A kernel too old for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("target kernel {kernel}: erofs with {feature} needs Linux {least} or later")]
pub struct Unsupported {
    /// The target.
    pub kernel: KernelRelease,
    /// The first that has it.
    pub least: KernelRelease,
    /// What it lacks.
    pub feature: &'static str,
}

/// Tells whether a kernel reads images with an algorithm. LZ4 is read by every kernel that has erofs.
///
/// # Errors
/// The kernel that would be needed.
pub fn supported(kernel: KernelRelease, algorithm: Algorithm) -> Result<(), Unsupported> {
    let least = algorithm.least_kernel();
    if kernel >= least || algorithm == Algorithm::Lz4 {
        return Ok(());
    }
    Err(Unsupported { kernel, least, feature: algorithm.name() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zstd_is_refused_for_debian_12_and_accepted_for_debian_13() {
        let release = |text: &str| text.parse::<KernelRelease>().unwrap();
        assert!(supported(release("6.1.0-37-amd64"), Algorithm::Lz4).is_ok());
        assert!(supported(release("6.12"), Algorithm::Zstd).is_ok());
        assert!(supported(release("6.1"), Algorithm::Lzma).is_ok());
        assert!(supported(release("6.6-rc1"), Algorithm::Deflate).is_ok());
        let error = supported(release("6.1.0-37-amd64"), Algorithm::Zstd).unwrap_err();
        assert_eq!(error.to_string(), "target kernel 6.1: erofs with zstd needs Linux 6.10 or later");
        for bad in ["", "6", "six.1", "6.", ".1"] {
            assert!(bad.parse::<KernelRelease>().is_err(), "{bad}");
        }
    }
}
