//! What can go wrong while archives become a tree.

use std::{io, path::PathBuf};

use crate::{
    archive::{acl::AclError, entry::Entry, error::ArchiveError},
    tree::Problem,
};

/// Archives that become no tree.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The file cannot be opened, or is compressed in a way that is not read.
    #[error("{}: {source}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The archive is bad.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An entry is.
    #[error("entry {entry} at offset {offset}: {problem}")]
    Entry {
        /// Its name.
        entry: String,
        /// Where its header starts, in the decompressed archive.
        offset: u64,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// An access control list that cannot be understood.
    #[error("entry {entry}: access control list: expected {}, found {}", .error.expected, .error.found)]
    Acl {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        error: AclError,
    },
    /// The temporary file that keeps the content of compressed archives.
    #[error("a temporary file: {0}; name a directory with more room by TMPDIR")]
    Store(#[source] io::Error),
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryProblem {
    /// A name that no honest archive has.
    #[error("name: expected a path below the root, found {found}")]
    Name {
        /// What is wrong with it.
        found: String,
    },
    /// The root as something else than a directory.
    #[error("expected a directory as the root of the tree, found another kind of file")]
    Root,
    /// A directory that is not empty stands in the way.
    #[error("an earlier entry made a directory of that name that is not empty")]
    NotEmpty,
    /// A hard link to nothing.
    #[error("hard link: expected an earlier file as target, found none")]
    NoTarget,
    /// A hard link to a directory.
    #[error("hard link: expected an earlier file as target, found a directory")]
    LinkToDirectory,
    /// Its directory is a link to nothing.
    #[error("its directory is a symbolic link to nothing")]
    Dangling,
    /// Links in its name lead to each other.
    #[error("symbolic links in its name lead in a circle")]
    Circle,
    /// What should be its directory is none.
    #[error("what should be its directory is a file")]
    ThroughFile,
    /// A layer's sign that something is removed, which names nothing.
    #[error("name: expected `.wh.` and the name of what the layer removes, as a file, found {found}")]
    Whiteout {
        /// What is there instead.
        found: String,
    },
    /// More entries than any real layer has.
    #[error("expected at most {limit} entries in a layer, found more")]
    TooMany {
        /// How many there may be.
        limit: usize,
    },
    /// No tree can hold it.
    #[error(transparent)]
    Tree(Problem),
}

impl EntryProblem {
    pub(in crate::source) fn of(self, entry: &Entry) -> UnpackError {
        UnpackError::Entry { entry: entry.display_name(), offset: entry.offset, problem: self }
    }
}
