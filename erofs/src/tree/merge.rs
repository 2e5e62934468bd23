//! A tree over another.

use std::collections::HashMap;

use super::{InodeId, Kind, Tree, TreeError};

/// What an inode of the upper tree does to what is below its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// A directory joins one of that name; all else replaces what is there.
    Join,
    /// It replaces whatever is there.
    Replace,
    /// It removes what is there, and is not seen itself.
    Remove,
}

/// Puts `upper` over what is at `at`, a directory that takes the metadata of the upper root. Returns how many names came from
/// above.
///
/// Hard links within `upper` stay such. The upper tree must be a walked one.
pub(super) fn merge(
    base: &mut Tree,
    at: InodeId,
    upper: &Tree,
    effect: impl Fn(InodeId) -> Effect,
) -> Result<usize, TreeError> {
    *base.metadata_mut(at) = upper.node(Tree::ROOT).metadata.clone();
    let mut merge = Merge { base, upper, copies: HashMap::new() };
    let mut waiting = vec![(at, Tree::ROOT)];
    let mut names = 0;
    while let Some((below, above)) = waiting.pop() {
        for (name, id) in upper.entries(above) {
            let placed = merge.place(below, name, *id, effect(*id))?;
            names += usize::from(placed.is_some());
            waiting.extend(placed.filter(|_| merge.is_directory(*id)).map(|placed| (placed, *id)));
        }
    }
    Ok(names)
}

struct Merge<'a> {
    base: &'a mut Tree,
    upper: &'a Tree,
    /// Upper inodes with several names, and what they are in the base.
    copies: HashMap<InodeId, InodeId>,
}

impl Merge<'_> {
    fn is_directory(&self, id: InodeId) -> bool {
        matches!(self.upper.node(id).kind, Kind::Directory)
    }

    /// Gives a name in `below` its meaning from above: the inode, unless there is none any more.
    fn place(
        &mut self,
        below: InodeId,
        name: &[u8],
        id: InodeId,
        effect: Effect,
    ) -> Result<Option<InodeId>, TreeError> {
        if effect == Effect::Join
            && let Some(found) = self.joined(below, name, id)
        {
            *self.base.metadata_mut(found) = self.upper.node(id).metadata.clone();
            return Ok(Some(found));
        }
        self.base.remove_child(below, name);
        if effect == Effect::Remove {
            return Ok(None);
        }
        self.copy(below, name, id).map(Some)
    }

    /// The directory of the base that an upper one becomes part of.
    fn joined(&self, below: InodeId, name: &[u8], id: InodeId) -> Option<InodeId> {
        let found = self.base.entries(below).get(name).copied()?;
        (self.is_directory(id) && matches!(self.base.node(found).kind, Kind::Directory)).then_some(found)
    }

    fn copy(&mut self, below: InodeId, name: &[u8], id: InodeId) -> Result<InodeId, TreeError> {
        if let Some(first) = self.copies.get(&id).copied() {
            let linked = self.base.link_child(below, name, first);
            return linked.map(|()| first).map_err(|problem| problem.of(&self.upper.path(id)));
        }
        let added = self.base.add_child(below, name, self.upper.node(id).clone());
        let added = added.map_err(|problem| problem.of(&self.upper.path(id)))?;
        if self.upper.links(id) > 1 && !self.is_directory(id) {
            self.copies.insert(id, added);
        }
        Ok(added)
    }
}
