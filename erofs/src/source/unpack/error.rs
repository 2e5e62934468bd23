//! What can go wrong while archives become a tree.

use std::{io, path::PathBuf};

use crate::{
    archive::{acl::AclError, entry::Entry, error::ArchiveError},
    tree::{Problem, ResolveError},
    write::WriteError,
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
    #[error("{archive}: entry {entry} at offset {offset}: {problem}")]
    Entry {
        /// The archive.
        archive: String,
        /// Its name.
        entry: String,
        /// Where its header starts, in the decompressed archive.
        offset: u64,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// An access control list that cannot be understood.
    #[error("{archive}: entry {entry}: access control list: expected {}, found {}", .error.expected, .error.found)]
    Acl {
        /// The archive.
        archive: String,
        /// The entry.
        entry: String,
        /// What is wrong with it.
        error: AclError,
    },
    /// Content of a compressed archive cannot be packed.
    #[error(transparent)]
    Pack(#[from] WriteError),
    /// The temporary file that keeps the content of compressed archives.
    #[error("a temporary file: {0}; name a directory with more room by TMPDIR")]
    Store(#[source] io::Error),
}

impl UnpackError {
    /// Says in which archive it is.
    pub(in crate::source) fn in_archive(mut self, name: &str) -> Self {
        if let Self::Entry { archive, .. } | Self::Acl { archive, .. } = &mut self {
            name.clone_into(archive);
        }
        self
    }
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
    /// Its name leads to no directory.
    #[error("its directory: {0}")]
    Directory(#[from] ResolveError),
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
        UnpackError::Entry { archive: String::new(), entry: entry.display_name(), offset: entry.offset, problem: self }
    }
}
