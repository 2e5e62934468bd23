//! What keeps an image from being written.

use std::io;

/// What keeps an image from being written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Options that cannot be had.
    #[error("option {option}: expected {expected}, found {found}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Content of a file.
    #[error("read {name}: {source}; check that it exists and that nothing changes it")]
    Content {
        /// The content's name.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// The sink, or the temporary file for what lies inline.
    #[error("write {what}: {source}; check the free space")]
    Sink {
        /// What should be written.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// An inode that the format has no room for.
    #[error("{path}: {field}: expected {expected}, found {found}; leave it out")]
    Inode {
        /// The inode's path.
        path: String,
        /// What of it.
        field: &'static str,
        /// What there is room for.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The image has more blocks than its block numbers can count.
    #[error("the image: expected at most 4294967294 blocks of 4096 bytes; split the tree")]
    TooLarge,
    /// A compressor failed.
    #[error("compress {name}: {fact}; choose another compression")]
    Compress {
        /// The content's name.
        name: String,
        /// What the library says.
        fact: String,
    },
}
