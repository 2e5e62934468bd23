//! From names in an archive to directories of the tree, without a way out.

use super::{Builder, EntryProblem, UnpackError};
use crate::{
    archive::{entry::Entry, name::split},
    tree::{InodeId, Kind, Metadata, Node, ResolveError, Resolved},
};

impl Builder {
    /// The directory of an entry, and its last part. Directories that the archive does not list are root's, as old as their
    /// first entry.
    pub(super) fn parent<'n>(&mut self, name: &'n [u8], entry: &Entry) -> Result<(InodeId, &'n [u8]), UnpackError> {
        let (directory, last) = split(name);
        loop {
            match self.directory_at(directory).map_err(|problem| problem.of(entry))? {
                Resolved::Found(found) => return Ok((found, last)),
                Resolved::Missing { parent, name } => {
                    let metadata = Metadata { mtime: entry.metadata.mtime, ..Metadata::with_mode(0o755) };
                    let added = self.tree.add_child(parent, &name, Node::directory(metadata));
                    added.map_err(|problem| EntryProblem::Tree(problem).of(entry))?;
                }
            }
        }
    }

    /// What a normalised name leads to; a link in its last part is not followed.
    pub(super) fn existing(&self, name: &[u8]) -> Result<InodeId, EntryProblem> {
        let (directory, last) = split(name);
        let Resolved::Found(parent) = self.directory_at(directory)? else { return Err(EntryProblem::NoTarget) };
        self.tree.entries(parent).get(last).copied().ok_or(EntryProblem::NoTarget)
    }

    fn directory_at(&self, path: &[u8]) -> Result<Resolved, EntryProblem> {
        let found = self.tree.resolve(path)?;
        match found {
            Resolved::Found(id) if !matches!(self.tree.node(id).kind, Kind::Directory) => {
                Err(EntryProblem::Directory(ResolveError::ThroughFile))
            }
            found => Ok(found),
        }
    }
}
