//! Why an image cannot be written or read.

use std::{io, path::PathBuf};

use super::kernel::Unsupported;
use crate::report::{ExitStatus, Failure};

/// An image that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The target kernel is too old.
    #[error(transparent)]
    Kernel(#[from] Unsupported),
    /// The program is not installed.
    #[error("{program} is not installed")]
    Missing {
        /// The program.
        program: String,
    },
    /// The program lacks a compressor.
    #[error("{generator}: compressor {wanted} is not built in, only {}", .available.join(", "))]
    Compressor {
        /// The program and its version.
        generator: String,
        /// What was asked for.
        wanted: &'static str,
        /// What it has.
        available: Vec<String>,
    },
    /// The program is not what it must be.
    #[error("{program}: version: expected mkfs.erofs 1.5 or later, found {found}")]
    Version {
        /// The program.
        program: String,
        /// What it says.
        found: String,
    },
    /// An option outside its range.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its range.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// A name that the program would cut, making another file of it.
    #[error("{generator}: cannot store the name of {}, which has 255 bytes", .path.display())]
    LongName {
        /// The program and its version.
        generator: String,
        /// The file.
        path: PathBuf,
    },
    /// A time that the program would take for one far in the future, and set to the newest in the tree.
    #[error("{generator}: cannot store the time of {}, which was modified before 1970", .path.display())]
    Early {
        /// The program and its version.
        generator: String,
        /// The file.
        path: PathBuf,
    },
    /// The program failed.
    #[error("{generator} failed ({status}): {}", .stderr)]
    Child {
        /// The program and its version.
        generator: String,
        /// Its exit code or signal.
        status: String,
        /// Its last words.
        stderr: String,
    },
    /// A file cannot be read or written.
    #[error("{doing} {}: {source}", .path.display())]
    Io {
        /// The call.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The image is damaged, or none.
    #[error("{}: erofs {field}: expected {expected}, found {found}", .path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// The field, as `erofs_fs.h` names it.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
}

impl ImageError {
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let fact = error.to_string();
        let failure = |status| Self::new(status, fact);
        match error {
            ImageError::Kernel(_) => {
                failure(ExitStatus::Usage).next("compress with lz4 or lz4hc, or choose a newer kernel for the target")
            }
            ImageError::Missing { .. } => failure(ExitStatus::Missing).next("apt-get install erofs-utils"),
            ImageError::Compressor { .. } => failure(ExitStatus::Missing)
                .next("compress with one of those, or install a newer erofs-utils (Debian 13 has zstd)"),
            ImageError::Version { .. } => failure(ExitStatus::Missing).next("apt-get install erofs-utils"),
            ImageError::LongName { .. } => {
                failure(ExitStatus::Missing).next("shorten the name by one byte, or install erofs-utils 1.8 or later")
            }
            ImageError::Early { .. } => {
                failure(ExitStatus::BadInput).next("set its time in the tree: touch --no-dereference --date @0 FILE")
            }
            ImageError::Option { .. } => failure(ExitStatus::Usage),
            ImageError::Child { .. } => {
                failure(ExitStatus::System).next("check that the tree is readable and that there is room for the image")
            }
            ImageError::Io { .. } => failure(ExitStatus::System),
            ImageError::Format { .. } => {
                failure(ExitStatus::BadInput).next("make the image anew with mkfs.erofs, or pass the tree itself")
            }
        }
    }
}
