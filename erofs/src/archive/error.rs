//! What can be wrong with an archive, told with the place where it is wrong.

use std::{fmt, io};

use super::compression::Compression;

/// Where in an archive something was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The archive, as the user named it, with the segment where it has several.
    pub archive: String,
    /// The entry, where its name is known.
    pub entry: Option<String>,
    /// Bytes from the start of the (decompressed) archive.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: offset {}", self.archive, self.offset)?;
        match &self.entry {
            Some(entry) => write!(formatter, ", entry {entry}"),
            None => Ok(()),
        }
    }
}

/// An archive that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A field holds what it must not.
    #[error("{place}: {field}: expected {expected}, found {found}")]
    Field {
        /// Where.
        place: Box<Place>,
        /// The field's name in the format's specification.
        field: &'static str,
        /// What the format allows there.
        expected: String,
        /// What was there.
        found: String,
    },
    /// The archive ends in the middle of something.
    #[error("{place}: the archive ends inside {what}")]
    Truncated {
        /// Where it ends.
        place: Box<Place>,
        /// What is incomplete.
        what: &'static str,
    },
    /// The format is legal but deliberately not read, since guessing would change files.
    #[error("{place}: {what} is not supported")]
    Unsupported {
        /// Where.
        place: Box<Place>,
        /// The feature.
        what: String,
    },
    /// A compression that this tool recognises but does not read.
    #[error("{archive}: {} compression is not supported", .compression.name())]
    Compression {
        /// The archive.
        archive: String,
        /// What it is compressed with.
        compression: Compression,
    },
    /// The file cannot be read, or its compressed stream is damaged.
    #[error("{place}: {source}")]
    Read {
        /// Where.
        place: Box<Place>,
        /// What the system or the decompressor says.
        source: io::Error,
    },
}
