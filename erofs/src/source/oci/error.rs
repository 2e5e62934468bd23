//! What can go wrong while an image becomes a tree.

use std::{io, path::PathBuf};

use super::Digest;
use crate::source::archive::UnpackError;

/// An image that becomes no tree.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A call failed.
    #[error("{call} {}: {source}; check that it is an image layout and may be read", .path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A blob that the layout lacks.
    #[error("{}: there is no {name}; copy the whole image, with all platforms that it names or with one alone", .layout.display())]
    Missing {
        /// The layout.
        layout: PathBuf,
        /// The file in it.
        name: String,
    },
    /// A document is not what it should be.
    #[error("{name}: {source}")]
    Json {
        /// The document.
        name: String,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// A field holds what it must not.
    #[error("{name}: {field}: expected {expected}, found {found}")]
    Field {
        /// The document or blob.
        name: String,
        /// Its field.
        field: &'static str,
        /// What is allowed there.
        expected: String,
        /// What was there.
        found: String,
    },
    /// A blob of another size than its descriptor says.
    #[error("{name}: size: expected {expected} as its descriptor says, found {found}; copy the image again")]
    Size {
        /// The blob.
        name: String,
        /// In bytes.
        expected: u64,
        /// In bytes.
        found: u64,
    },
    /// A blob with another content than its name says.
    #[error("{name}: digest: expected {expected}, found {found}; copy the image again")]
    Digest {
        /// The blob.
        name: String,
        /// What its descriptor says.
        expected: Digest,
        /// What its content hashes to.
        found: Digest,
    },
    /// No image, or several.
    #[error("{}: expected one image {wanted}, found {found}; choose by name and architecture", .layout.display())]
    Choice {
        /// The layout.
        layout: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// A layer that cannot be applied.
    #[error("layer {layer}: {error}")]
    Layer {
        /// The blob.
        layer: String,
        /// What is wrong with it.
        error: UnpackError,
    },
    /// What only all layers together show.
    #[error("the image: {error}")]
    Image {
        /// What is wrong with it.
        error: UnpackError,
    },
}

impl OciError {
    pub(super) fn field(name: impl Into<String>, field: &'static str, expected: String, found: &str) -> Self {
        let found = crate::archive::entry::printable(found.as_bytes());
        Self::Field { name: name.into(), field, expected, found }
    }
}
