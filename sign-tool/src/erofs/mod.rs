//! erofs images: writing one from a tree, and reading enough of one to tell what it needs.

mod error;
pub mod kernel;
mod options;
pub mod superblock;
mod write;

use std::{fs::File, path::Path};

use erofs_image::{Image, ReadError};

pub use self::{
    error::ImageError,
    kernel::{Algorithm, KernelRelease, supported},
    options::{ImageCompression, ImageOptions, TimeClamp},
    write::{earlier, write, write_recorded},
};

use crate::report::{ExitStatus, Failure};

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

/// Opens an image to read what is in it.
pub(crate) fn open(path: &Path) -> Result<Image<File>, Failure> {
    let file = File::open(path).map_err(|error| Failure::io(format_args!("open {}", path.display()), &error))?;
    Image::open(file).map_err(damaged(path))
}

/// What reading an image says of it.
pub(crate) fn damaged(path: &Path) -> impl Fn(ReadError) -> Failure {
    |error| {
        let status = if matches!(error, ReadError::Io { .. }) { ExitStatus::System } else { ExitStatus::BadInput };
        Failure::new(status, format!("{}: {error}", path.display()))
    }
}
