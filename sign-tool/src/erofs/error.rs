//! Why an image cannot be written or read.

use std::{io, path::PathBuf};

use erofs_image::WriteError;

use super::kernel::Unsupported;
use crate::report::{ExitStatus, Failure};

/// An image that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The target kernel is too old.
    #[error(transparent)]
    Kernel(#[from] Unsupported),
    /// The image cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
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
            ImageError::Write(WriteError::Option { .. }) => {
                failure(ExitStatus::Usage).next("correct it; lz4 and lz4hc are read by every kernel with erofs")
            }
            ImageError::Write(WriteError::Content { .. } | WriteError::Sink { .. }) => failure(ExitStatus::System),
            ImageError::Write(_) => failure(ExitStatus::BadInput),
            ImageError::Io { .. } => failure(ExitStatus::System),
            ImageError::Format { .. } => {
                failure(ExitStatus::BadInput).next("make the image anew, or pass the tree itself")
            }
        }
    }
}
