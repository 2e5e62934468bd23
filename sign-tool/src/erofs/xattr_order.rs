//! To come.
use std::{fs::File, path::Path};

use super::ImageError;

pub(super) fn sort(_file: &File, _image: &Path) -> Result<(), ImageError> {
    Ok(())
}
