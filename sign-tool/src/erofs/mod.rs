//! erofs images: writing one from a tree, and reading enough of one to tell what it needs.
//!
//! [`ImageWriter`] is the border: what stands behind it today is `mkfs.erofs`, and nobody else needs to know.

mod error;
pub mod kernel;
pub mod mkfs;
mod options;
pub mod superblock;
mod xattr_order;

use std::path::Path;

use serde::Serialize;
use uuid::Uuid;

pub use self::{
    error::ImageError,
    kernel::{Algorithm, KernelRelease, supported},
    options::{ImageCompression, ImageOptions, TimeClamp},
};
use crate::report::Progress;

/// The unit of dm-verity and of the image: bytes.
pub const BLOCK_SIZE: u64 = 4096;

/// Writes images.
pub trait ImageWriter {
    /// Writes `tree` to the file `image`, which is overwritten; the caller cares for atomicity. The same tree gives
    /// the same bytes, on whatever file system and with however many processors.
    ///
    /// # Errors
    /// What the target kernel or this writer lacks, or what failed. `image` may then hold anything.
    fn write(
        &self,
        tree: &Path,
        image: &Path,
        options: &ImageOptions,
        progress: &Progress,
    ) -> Result<ImageInfo, ImageError>;
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// Bytes, a multiple of [`BLOCK_SIZE`].
    pub size: u64,
    /// Derived from the image's content.
    pub uuid: Uuid,
    /// What its files are compressed with.
    pub algorithms: Vec<Algorithm>,
    /// The oldest kernel that reads it, as far as the image tells.
    pub least_kernel: KernelRelease,
    /// The time to which later modification times were set back: seconds since 1970.
    pub time_limit: u64,
    /// The program and its version.
    pub generator: String,
}

/// Checks a ready image, handed in as TREE, against the target kernel.
///
/// # Errors
/// An image that is damaged, or that the kernel cannot read.
pub fn check_image(image: &Path, kernel: Option<KernelRelease>) -> Result<superblock::Superblock, ImageError> {
    let found = superblock::read(image)?;
    if let Some(kernel) = kernel {
        for algorithm in found.algorithms() {
            supported(kernel, algorithm)?;
        }
        let (least, feature) = found.least_kernel();
        if kernel < least {
            return Err(ImageError::Kernel(kernel::Unsupported { kernel, least, feature }));
        }
    }
    Ok(found)
}
