//! erofs images: writing one from a tree, and reading enough of one to tell what it needs.

mod error;
pub mod kernel;
mod options;
pub mod superblock;
mod write;

use std::path::Path;

pub use self::{
    error::ImageError,
    kernel::{Algorithm, KernelRelease, supported},
    options::{ImageCompression, ImageOptions, TimeClamp},
    write::write,
};

/// The unit of dm-verity and of the image: bytes.
pub const BLOCK_SIZE: u64 = 4096;

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
