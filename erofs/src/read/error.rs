//! Images that cannot be read.

use std::io;

use crate::format::units::Nid;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file behind it cannot be read.
    #[error("read {length} bytes at byte {offset} of the image: {source}; check the file")]
    Io {
        /// From where.
        offset: u64,
        /// How many.
        length: usize,
        /// What the system says.
        source: io::Error,
    },
    /// A field has a value that it cannot have.
    #[error("{place}: {field}: expected {expected}, found {found}; the image is damaged: make it anew")]
    Field {
        /// The structure.
        place: Place,
        /// The field by its name in `erofs_fs.h`, or what it stands for.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A part of the format that is not read here.
    #[error("{place}: {feature} is not supported; make the image without it")]
    Unsupported {
        /// The structure.
        place: Place,
        /// The part.
        feature: String,
    },
}

/// A structure of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The superblock.
    Superblock,
    /// An inode with all that belongs to it.
    Inode(Nid),
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Superblock => formatter.write_str("the superblock"),
            Self::Inode(nid) => nid.fmt(formatter),
        }
    }
}

impl ReadError {
    pub(super) fn field(
        place: Place,
        field: &'static str,
        expected: impl Into<String>,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::Field { place, field, expected: expected.into(), found: found.to_string() }
    }

    pub(super) fn inode(
        nid: Nid,
        field: &'static str,
        expected: impl Into<String>,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::field(Place::Inode(nid), field, expected, found)
    }
}
