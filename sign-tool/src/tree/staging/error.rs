//! What can go wrong while a tree is unpacked.

use std::{io, path::PathBuf};

use rustix::io::Errno;

use crate::{
    archive::{
        entry::{Entry, printable},
        error::ArchiveError,
    },
    report::{ExitStatus, Failure},
};

/// A tree that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// The archive is bad.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The staging directory cannot be made.
    #[error("make a private directory in {}: {source}", .place.display())]
    Place {
        /// Where.
        place: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A name that no honest archive has.
    #[error("entry {entry} at offset {offset}: name: expected a path below the root, found {found}")]
    Name {
        /// The entry.
        entry: String,
        /// Where its header starts, in the decompressed archive.
        offset: u64,
        /// What is wrong with the name.
        found: String,
    },
    /// The root itself as something else than a directory.
    #[error("entry {entry}: expected a directory as the root of the tree, found another kind of file")]
    Root {
        /// The entry.
        entry: String,
    },
    /// An entry stands in the way of a later one.
    #[error("entry {entry}: an earlier entry made a directory of that name that is not empty")]
    NotEmpty {
        /// The entry.
        entry: String,
    },
    /// A hard link to nothing.
    #[error("entry {entry}: hard link: expected an earlier file as target, found {target} ({source})")]
    HardLink {
        /// The entry.
        entry: String,
        /// What it links to.
        target: String,
        /// What the system says.
        source: io::Error,
    },
    /// Device nodes need the rights of the real root.
    #[error("entry {entry}: a device node, which only root may make (in a user namespace nobody may)")]
    Device {
        /// The entry.
        entry: String,
    },
    /// The staging file system cannot hold an attribute.
    #[error("entry {entry}: extended attribute {name}: {source}")]
    Xattr {
        /// The entry.
        entry: String,
        /// The attribute.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// An access control list that cannot be understood.
    #[error("entry {entry}: access control list: expected {expected}, found {found}")]
    Acl {
        /// The entry.
        entry: String,
        /// What can be understood.
        expected: &'static str,
        /// The entry of the list.
        found: String,
    },
    /// A call of the system failed.
    #[error("entry {entry}: {call}: {source}")]
    Call {
        /// The entry.
        entry: String,
        /// The call.
        call: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

impl StagingError {
    pub(super) fn call(call: &'static str, name: &[u8], errno: Errno) -> Self {
        Self::Call { entry: printable(name), call, source: errno.into() }
    }

    pub(super) fn at(entry: &Entry, found: String) -> Self {
        Self::Name { entry: entry.display_name(), offset: entry.offset, found }
    }
}

impl From<StagingError> for Failure {
    fn from(error: StagingError) -> Self {
        let fact = error.to_string();
        let failure = |status| Self::new(status, fact);
        match error {
            StagingError::Archive(error) => error.into(),
            StagingError::Place { .. } => {
                failure(ExitStatus::System).next("name a directory with room by --staging or TMPDIR")
            }
            StagingError::Name { .. }
            | StagingError::Root { .. }
            | StagingError::NotEmpty { .. }
            | StagingError::HardLink { .. } => {
                failure(ExitStatus::BadInput).next("make the archive anew, or unpack it and pass the directory")
            }
            StagingError::Device { .. } => failure(ExitStatus::System)
                .next("run as root, or leave the nodes out (`mmdebstrap --skip=output/dev`): devtmpfs has them anyway"),
            StagingError::Xattr { .. } => failure(ExitStatus::System)
                .next("run as root, and name a directory on a file system that holds such attributes by --staging"),
            StagingError::Acl { .. } => failure(ExitStatus::BadInput)
                .next("archive with numeric ids, or with `tar --xattrs --xattrs-include='*'` instead of --acls"),
            StagingError::Call { source, .. } if source.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) => {
                failure(ExitStatus::System).next("name a directory with more room by --staging or TMPDIR")
            }
            StagingError::Call { source, .. } if is_about_names(&source) => failure(ExitStatus::BadInput)
                .next("make the archive anew: its names contradict each other, or are too long"),
            StagingError::Call { .. } => failure(ExitStatus::System).next("check the staging directory's file system"),
        }
    }
}

/// A name that leads through a file, in circles, over what is in the way, or is too long: the archive's fault.
fn is_about_names(error: &io::Error) -> bool {
    [Errno::NOTDIR, Errno::LOOP, Errno::NAMETOOLONG, Errno::EXIST, Errno::NOENT]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
