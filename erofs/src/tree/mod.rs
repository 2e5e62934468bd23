//! What goes into an image: inodes, the names that lead to them, and handles of their content.

mod content;
mod error;
mod merge;
mod node;
mod overlay;
mod resolve;
pub mod rules;

use std::{collections::BTreeMap, sync::Arc};

pub(crate) use content::read_up_to;
pub use content::{Content, ContentReader, Extent, Region, Stamp};
pub use error::{Problem, TreeError, printable};
pub use node::{Device, Kind, Metadata, Node, Time, Xattrs};
pub use overlay::{OverlayError, overlay};
pub use resolve::{ResolveError, Resolved};

use crate::format::{directory::NAME_LIMIT, xattr};

/// The number of an inode in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(crate) u32);

impl InodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The longest target of a symbolic link in bytes: Linux' `PATH_MAX`, less the zero byte at its end.
pub const TARGET_LIMIT: usize = 4095;

/// A directory's entries, sorted by the bytes of their names.
pub type Entries = BTreeMap<Vec<u8>, InodeId>;

/// An inode in its tree.
#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) node: Node,
    pub(crate) entries: Entries,
    pub(crate) links: u32,
    pub(crate) parent: InodeId,
}

/// A tree of files.
///
/// Paths are bytes with names between single slashes, without a slash at either end; the empty path is the root. An
/// image does not depend on the order in which they were added.
#[derive(Debug, Clone)]
pub struct Tree {
    inodes: Vec<Inode>,
}

impl Tree {
    /// The root.
    pub const ROOT: InodeId = InodeId(0);

    /// Only a root directory.
    pub fn new(root: Metadata) -> Self {
        let node = Node::directory(root);
        Self { inodes: vec![Inode { node, entries: Entries::new(), links: 2, parent: Self::ROOT }] }
    }

    /// Adds `node` as `path`, whose directory must exist.
    ///
    /// # Errors
    /// A path or node that no image can hold, an existing name, or no directory to put it in.
    pub fn add(&mut self, path: &[u8], node: Node) -> Result<InodeId, TreeError> {
        let (parent, name) = self.place(path)?;
        self.add_child(parent, name, node).map_err(|problem| problem.of(path))
    }

    /// Adds `node` as `name` to a directory.
    ///
    /// # Errors
    /// As [`Tree::add`], without the path.
    pub fn add_child(&mut self, parent: InodeId, name: &[u8], node: Node) -> Result<InodeId, Problem> {
        check_node(&node)?;
        let id = InodeId(u32::try_from(self.inodes.len()).map_err(|_| Problem::TooManyInodes)?);
        self.insert(parent, name, id)?;
        let directory = matches!(node.kind, Kind::Directory);
        if directory {
            self.inodes[parent.index()].links += 1;
        }
        self.inodes.push(Inode { node, entries: Entries::new(), links: if directory { 2 } else { 1 }, parent });
        Ok(id)
    }

    /// Gives what is at `target` a further name.
    ///
    /// # Errors
    /// As [`Tree::add`]; and when `target` does not exist, or is a directory.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let no_target = || Problem::NoTarget { target: target.to_vec() }.of(path);
        let id = self.find(target).ok_or_else(no_target)?;
        let (parent, name) = self.place(path)?;
        self.link_child(parent, name, id).map_err(|problem| problem.of(path))
    }

    /// Gives an inode a further name in a directory.
    ///
    /// # Errors
    /// As [`Tree::link`], without the path.
    pub fn link_child(&mut self, parent: InodeId, name: &[u8], id: InodeId) -> Result<(), Problem> {
        if matches!(self.inodes[id.index()].node.kind, Kind::Directory) {
            return Err(Problem::LinkToDirectory);
        }
        let links = self.inodes[id.index()].links.checked_add(1).ok_or(Problem::TooManyInodes)?;
        self.insert(parent, name, id)?;
        self.inodes[id.index()].links = links;
        Ok(())
    }

    /// Takes a name away from a directory, with all that only it led to. Returns what it named.
    pub fn remove_child(&mut self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        let id = self.inodes[parent.index()].entries.remove(name)?;
        if matches!(self.inodes[id.index()].node.kind, Kind::Directory) {
            self.inodes[parent.index()].links -= 1;
        }
        self.release(id);
        Some(id)
    }

    /// Counts one name less, of what is below a directory too.
    fn release(&mut self, first: InodeId) {
        let mut waiting = vec![first];
        while let Some(id) = waiting.pop() {
            let inode = &mut self.inodes[id.index()];
            inode.links = inode.links.saturating_sub(1);
            waiting.extend(std::mem::take(&mut inode.entries).into_values());
        }
    }

    /// The same tree with inodes in the one order in which a walk comes to them, sorted by name, each directory's before those
    /// below: without those that no name leads to, and whatever the order in which they were added.
    #[must_use]
    pub fn into_walked(self) -> Self {
        let order = self.walked();
        let mut numbers = vec![None; self.inodes.len()];
        for (number, id) in order.iter().enumerate() {
            numbers[id.index()] = Some(InodeId(number as u32));
        }
        let mut old: Vec<Option<Inode>> = self.inodes.into_iter().map(Some).collect();
        let renumbered = |id: InodeId| numbers[id.index()].unwrap_or(Self::ROOT);
        let inodes = order.iter().filter_map(|id| old[id.index()].take()).map(|mut inode| {
            inode.entries.values_mut().for_each(|id| *id = renumbered(*id));
            inode.parent = renumbered(inode.parent);
            inode
        });
        Self { inodes: inodes.collect() }
    }

    fn walked(&self) -> Vec<InodeId> {
        let (mut order, mut waiting) = (vec![Self::ROOT], vec![Self::ROOT]);
        let mut seen = vec![false; self.inodes.len()];
        while let Some(directory) = waiting.pop() {
            let mut below = Vec::new();
            for id in self.entries(directory).values().copied() {
                if std::mem::replace(&mut seen[id.index()], true) {
                    continue;
                }
                order.push(id);
                if matches!(self.node(id).kind, Kind::Directory) {
                    below.push(id);
                }
            }
            waiting.extend(below.into_iter().rev());
        }
        order
    }

    /// What is at a path, following no symbolic link.
    pub fn find(&self, path: &[u8]) -> Option<InodeId> {
        if path.is_empty() {
            return Some(Self::ROOT);
        }
        path.split(|byte| *byte == b'/').try_fold(Self::ROOT, |at, name| self.entries(at).get(name).copied())
    }

    /// An inode's kind, metadata and content.
    pub fn node(&self, id: InodeId) -> &Node {
        &self.inodes[id.index()].node
    }

    /// An inode's attributes and metadata, to be changed.
    pub fn metadata_mut(&mut self, id: InodeId) -> &mut Metadata {
        &mut self.inodes[id.index()].node.metadata
    }

    /// Gives a regular file another content; anything else stays as it is.
    pub fn set_content(&mut self, id: InodeId, content: Arc<dyn Content>) {
        if let Kind::File(found) = &mut self.inodes[id.index()].node.kind {
            *found = content;
        }
    }

    /// The directory that holds a directory; the root holds itself. Of anything else, the first that held it.
    pub fn parent(&self, id: InodeId) -> InodeId {
        self.inodes[id.index()].parent
    }

    /// A directory's entries; none of anything else.
    pub fn entries(&self, id: InodeId) -> &Entries {
        &self.inodes[id.index()].entries
    }

    /// How many names lead to an inode; for a directory also those within it.
    pub fn links(&self, id: InodeId) -> u32 {
        self.inodes[id.index()].links
    }

    /// How many inodes there are.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// False: there is a root.
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }

    /// All inodes in the order in which they were added, the root first.
    pub fn ids(&self) -> impl Iterator<Item = InodeId> + use<> {
        (0..self.inodes.len() as u32).map(InodeId)
    }

    pub(crate) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// A path to an inode, for people: of several names, one.
    pub(crate) fn path(&self, id: InodeId) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = id;
        while at != Self::ROOT {
            let parent = self.inodes[at.index()].parent;
            let name = self.entries(parent).iter().find(|(_, child)| **child == at);
            names.push(name.map_or(&b"?"[..], |(name, _)| name));
            at = parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    fn place<'a>(&self, path: &'a [u8]) -> Result<(InodeId, &'a [u8]), TreeError> {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (directory, name) = slash.map_or((&[][..], path), |at| (&path[..at], &path[at + 1..]));
        if slash == Some(0) {
            return Err(Problem::Absolute.of(path));
        }
        for part in directory.split(|byte| *byte == b'/').filter(|_| !directory.is_empty()) {
            check_name(part).map_err(|problem| problem.of(path))?;
        }
        let no_directory = || Problem::NoDirectory { directory: directory.to_vec() }.of(path);
        Ok((self.find(directory).ok_or_else(no_directory)?, name))
    }

    fn insert(&mut self, parent: InodeId, name: &[u8], id: InodeId) -> Result<(), Problem> {
        check_name(name)?;
        let directory = &mut self.inodes[parent.index()];
        if !matches!(directory.node.kind, Kind::Directory) {
            return Err(Problem::ParentNotDirectory);
        }
        match directory.entries.entry(name.to_vec()) {
            std::collections::btree_map::Entry::Occupied(_) => Err(Problem::Duplicate),
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(id);
                Ok(())
            }
        }
    }
}

/// The path of what a directory has under a name; the root's is empty.
pub(crate) fn below(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, name].join(&b'/') }
}

fn check_name(name: &[u8]) -> Result<(), Problem> {
    match name {
        b"" => Err(Problem::EmptyName),
        b"." | b".." => Err(Problem::DotName),
        _ if name.len() > NAME_LIMIT => Err(Problem::LongName { length: name.len() }),
        _ if name.contains(&b'/') || name.contains(&0) => Err(Problem::ForbiddenByte),
        _ => Ok(()),
    }
}

fn check_node(node: &Node) -> Result<(), Problem> {
    for (name, value) in &node.metadata.xattrs {
        let rest = xattr::split(name).ok_or_else(|| Problem::XattrName { name: name.clone() })?.1;
        if rest.len() > NAME_LIMIT || rest.contains(&0) {
            return Err(Problem::XattrName { name: name.clone() });
        }
        if value.len() > usize::from(u16::MAX) {
            return Err(Problem::XattrSize { name: name.clone(), size: value.len() });
        }
    }
    match &node.kind {
        Kind::Symlink(target) if target.is_empty() || target.len() > TARGET_LIMIT || target.contains(&0) => {
            Err(Problem::LinkTarget { length: target.len() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::new(Metadata::default());
        tree.add(b"d", Node::directory(Metadata::default())).unwrap();
        tree.add(b"d/f", Node::file(Metadata::default(), b"x".to_vec())).unwrap();
        tree
    }

    fn problem(path: &[u8]) -> String {
        tree().add(path, Node::file(Metadata::default(), Vec::new())).unwrap_err().to_string()
    }

    #[test]
    fn what_no_image_can_hold_is_refused_by_name() {
        assert!(problem(b"/f").starts_with("/f: expected a path relative to the root"));
        assert!(problem(b"d/../f").starts_with("d/../f: expected a name, found '.' or '..'"));
        assert!(problem(b"d/..").contains("'..'"));
        assert!(problem(b"d//f").contains("empty"));
        assert!(problem(b"d/f").contains("already"));
        assert!(problem(b"d/f/g").contains("not a directory"));
        assert!(problem(b"no/f").contains("no directory 'no'"));
        assert!(problem(&[b'n'; 256]).contains("at most 255 bytes"));
        assert!(problem(b"a\0b").contains("zero byte"));
    }

    #[test]
    fn links_lead_to_what_exists_and_is_no_directory() {
        let mut tree = tree();
        assert!(tree.link(b"l", b"nothing").unwrap_err().to_string().contains("'nothing' does not exist"));
        assert!(tree.link(b"l", b"d").unwrap_err().to_string().contains("directory"));
        tree.link(b"l", b"d/f").unwrap();
        let id = tree.find(b"l").unwrap();
        assert_eq!((tree.links(id), tree.find(b"d/f")), (2, Some(id)));
    }

    #[test]
    fn directories_count_their_subdirectories() {
        let tree = tree();
        assert_eq!((tree.links(Tree::ROOT), tree.links(tree.find(b"d").unwrap())), (3, 2));
    }

    #[test]
    fn a_name_that_is_removed_takes_along_what_is_below_and_its_links() {
        let mut tree = tree();
        tree.link(b"l", b"d/f").unwrap();
        assert_eq!(tree.remove_child(Tree::ROOT, b"d"), Some(InodeId(1)));
        assert_eq!((tree.find(b"d"), tree.links(tree.find(b"l").unwrap()), tree.links(Tree::ROOT)), (None, 1, 2));
        assert_eq!(tree.remove_child(Tree::ROOT, b"d"), None);
        let tree = tree.into_walked();
        assert_eq!((tree.len(), tree.find(b"l")), (2, Some(InodeId(1))));
    }

    #[test]
    fn a_walked_tree_does_not_depend_on_the_order_in_which_it_was_made() {
        let made = |order: &[&[u8]]| {
            let mut tree = Tree::new(Metadata::default());
            tree.add(b"d", Node::directory(Metadata::default())).unwrap();
            for name in order {
                tree.add(name, Node::file(Metadata::with_mode(name.len() as u16), Vec::new())).unwrap();
            }
            tree.link(b"d/a", b"z").unwrap();
            let tree = tree.into_walked();
            let modes: Vec<_> = tree.ids().map(|id| (tree.node(id).metadata.mode, tree.path(id))).collect();
            (modes, tree.links(tree.find(b"d/a").unwrap()))
        };
        let first = made(&[b"z", b"d/bb", b"ccc"]);
        assert_eq!(first, made(&[b"ccc", b"z", b"d/bb"]));
        assert_eq!(first.1, 2);
    }
}
