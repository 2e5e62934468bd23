//! From names in an archive to directories of the tree, without a way out.

use std::collections::VecDeque;

use super::{Builder, EntryProblem, UnpackError};
use crate::{
    archive::{entry::Entry, name::split},
    tree::{InodeId, Kind, Metadata, Node, Tree},
};

/// As many symbolic links as Linux follows for one name.
const LINK_LIMIT: usize = 40;

impl Builder {
    /// The directory of an entry, and its last part. Directories that the archive does not list are root's, as old as their
    /// first entry.
    pub(super) fn parent<'n>(&mut self, name: &'n [u8], entry: &Entry) -> Result<(InodeId, &'n [u8]), UnpackError> {
        let (directory, last) = split(name);
        loop {
            match self.walk(directory).map_err(|problem| problem.of(entry))? {
                Ok(found) => return Ok((found, last)),
                Err((parent, missing)) => {
                    let metadata = Metadata { mtime: entry.metadata.mtime, ..Metadata::with_mode(0o755) };
                    let added = self.tree.add_child(parent, &missing, Node::directory(metadata));
                    added.map_err(|problem| EntryProblem::Tree(problem).of(entry))?;
                }
            }
        }
    }

    /// What a normalised name leads to; a link in its last part is not followed.
    pub(super) fn existing(&self, name: &[u8]) -> Result<InodeId, EntryProblem> {
        let (directory, last) = split(name);
        let parent = self.walk(directory)?.map_err(|_| EntryProblem::NoTarget)?;
        self.tree.entries(parent).get(last).copied().ok_or(EntryProblem::NoTarget)
    }

    /// Follows a path as if the tree were all there is. Where something is missing, where it should be.
    #[allow(clippy::type_complexity)]
    pub(in crate::source) fn walk(&self, path: &[u8]) -> Result<Result<InodeId, (InodeId, Vec<u8>)>, EntryProblem> {
        let (mut at, mut links) = (Tree::ROOT, 0);
        let parts = |path: &[u8]| path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<VecDeque<_>>();
        let mut waiting = parts(path);
        // Parts that a link brought: what it leads to must exist.
        let mut of_link = 0_usize;
        while let Some(part) = waiting.pop_front() {
            let linked = of_link > 0;
            of_link = of_link.saturating_sub(1);
            match &*part {
                b"" | b"." => continue,
                b".." => {
                    at = self.tree.parent(at);
                    continue;
                }
                _ => {}
            }
            let Some(found) = self.tree.entries(at).get(&part).copied() else {
                return if linked { Err(EntryProblem::Dangling) } else { Ok(Err((at, part))) };
            };
            match &self.tree.node(found).kind {
                Kind::Directory => at = found,
                Kind::Symlink(target) => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(EntryProblem::Circle);
                    }
                    if target.starts_with(b"/") {
                        at = Tree::ROOT;
                    }
                    let target = parts(target);
                    of_link += target.len();
                    target.into_iter().rev().for_each(|part| waiting.push_front(part));
                }
                _ => return Err(EntryProblem::ThroughFile),
            }
        }
        Ok(Ok(at))
    }
}
