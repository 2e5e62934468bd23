//! What archives of all kinds become: a tree that grows entry by entry.

mod error;
mod lists;
mod place;
mod store;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

pub use self::error::{EntryProblem, UnpackError};
pub use self::store::Keep;
pub(super) use self::store::{Kept, Store};
use crate::{
    archive::{
        entry::{self, Entry, LinkIdentity, TextAcl},
        name,
    },
    tree::{InodeId, Kind, Metadata, Node, Time, Tree},
};

/// What archives gave.
#[derive(Debug)]
pub struct Unpacked {
    /// The tree.
    pub tree: Tree,
    /// What the user should know although all went well, such as entries left out.
    pub remarks: Vec<String>,
}

/// A tree that grows entry by entry.
pub(super) struct Builder {
    pub(super) tree: Tree,
    /// The first names of cpio's hard links in the current archive, by the kind of file.
    links: HashMap<(LinkIdentity, std::mem::Discriminant<entry::Kind>), InodeId>,
    /// Access control lists in text, whose names only the finished tree tells.
    lists: BTreeMap<InodeId, (String, Vec<TextAcl>)>,
    root_is_listed: bool,
    newest: Time,
    /// What takes a directory's place removes all that is below, as between an image's layers.
    pub(super) replaces_directories: bool,
    pub(super) remarks: Vec<String>,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            tree: Tree::new(Metadata::with_mode(0o755)),
            links: HashMap::new(),
            lists: BTreeMap::new(),
            root_is_listed: false,
            newest: Time::default(),
            replaces_directories: false,
            remarks: Vec::new(),
        }
    }

    /// Hard links of cpio do not cross the border between two archives.
    pub(super) fn forget_links(&mut self) {
        self.links.clear();
    }

    /// Adds what an archive says next; `content` is of no account unless it is a file.
    pub(super) fn add(&mut self, entry: &Entry, content: &Kept) -> Result<(), UnpackError> {
        self.newest = self.newest.max(entry.metadata.mtime);
        let name = name::normalise(&entry.name).map_err(|found| EntryProblem::Name { found }.of(entry))?;
        match &entry.kind {
            entry::Kind::Directory => self.directory(entry, &name)?,
            _ if name.is_empty() => return Err(EntryProblem::Root.of(entry)),
            entry::Kind::HardLink(target) => {
                let target = name::normalise(target).map_err(|found| EntryProblem::Name { found }.of(entry))?;
                let found = self.existing(&target).map_err(|problem| problem.of(entry))?;
                self.link(entry, &name, found)?;
            }
            _ => self.file(entry, &name, content)?,
        }
        Ok(())
    }

    fn directory(&mut self, entry: &Entry, name: &[u8]) -> Result<(), UnpackError> {
        if name.is_empty() {
            self.root_is_listed = true;
            self.describe(Tree::ROOT, entry);
            return Ok(());
        }
        let (parent, last) = self.parent(name, entry)?;
        let found = self.tree.entries(parent).get(last).copied();
        let id = match found.filter(|id| matches!(self.tree.node(*id).kind, Kind::Directory)) {
            Some(id) => id,
            None => self.put(entry, parent, last, Kind::Directory)?,
        };
        self.describe(id, entry);
        Ok(())
    }

    /// Everything but directories and tar's hard links.
    fn file(&mut self, entry: &Entry, name: &[u8], content: &Kept) -> Result<(), UnpackError> {
        // A further name of a cpio file may come without data, which must not empty the file.
        if let Some(first) = self.first_name(entry) {
            self.link(entry, name, first)?;
            return self.rewrite(entry, first, content);
        }
        let (parent, last) = self.parent(name, entry)?;
        if let Some(found) =
            self.tree.entries(parent).get(last).copied().filter(|found| self.is_rewritten(entry, *found))
        {
            self.remember(entry, found);
            self.tree.set_content(found, Arc::new(Vec::new()));
            return self.rewrite(entry, found, content);
        }
        let kind = match &entry.kind {
            entry::Kind::Symlink(target) => Kind::Symlink(target.clone()),
            entry::Kind::CharDevice(device) => Kind::CharacterDevice(*device),
            entry::Kind::BlockDevice(device) => Kind::BlockDevice(*device),
            entry::Kind::Fifo => Kind::Fifo,
            entry::Kind::Socket => Kind::Socket,
            _ => Kind::File(Arc::clone(content)),
        };
        let id = self.put(entry, parent, last, kind)?;
        self.remember(entry, id);
        self.describe(id, entry);
        Ok(())
    }

    /// Gives a file of an earlier entry another content and metadata.
    fn rewrite(&mut self, entry: &Entry, id: InodeId, content: &Kept) -> Result<(), UnpackError> {
        if entry.size > 0 {
            self.tree.set_content(id, Arc::clone(content));
        }
        self.describe(id, entry);
        Ok(())
    }

    /// cpio's hard links, as the kernel finds them: entries of one inode number are one file.
    fn first_name(&self, entry: &Entry) -> Option<InodeId> {
        let link = entry.link.filter(|link| link.nlink >= 2)?;
        self.links.get(&(link, std::mem::discriminant(&entry.kind))).copied()
    }

    fn remember(&mut self, entry: &Entry, id: InodeId) {
        if let Some(link) = entry.link.filter(|link| link.nlink >= 2 && !matches!(entry.kind, entry::Kind::Symlink(_)))
        {
            self.links.insert((link, std::mem::discriminant(&entry.kind)), id);
        }
    }

    /// Whether a cpio entry finds a file of its own kind under its name. The kernel replaces only what is of another kind, and
    /// writes to the rest in place: further names of it change too, and a device keeps its number (Linux `init/initramfs.c`,
    /// `clean_path` and `do_name`).
    fn is_rewritten(&self, entry: &Entry, found: InodeId) -> bool {
        entry.link.is_some()
            && matches!(
                (&entry.kind, &self.tree.node(found).kind),
                (entry::Kind::File, Kind::File(_))
                    | (entry::Kind::CharDevice(_), Kind::CharacterDevice(_))
                    | (entry::Kind::BlockDevice(_), Kind::BlockDevice(_))
                    | (entry::Kind::Fifo, Kind::Fifo)
                    | (entry::Kind::Socket, Kind::Socket)
            )
    }

    fn link(&mut self, entry: &Entry, name: &[u8], target: InodeId) -> Result<(), UnpackError> {
        if matches!(self.tree.node(target).kind, Kind::Directory) {
            return Err(EntryProblem::LinkToDirectory.of(entry));
        }
        let (parent, last) = self.parent(name, entry)?;
        if self.tree.entries(parent).get(last) == Some(&target) {
            return Ok(());
        }
        self.clear(entry, parent, last)?;
        self.tree.link_child(parent, last, target).map_err(|problem| EntryProblem::Tree(problem).of(entry))
    }

    fn put(&mut self, entry: &Entry, parent: InodeId, last: &[u8], kind: Kind) -> Result<InodeId, UnpackError> {
        self.clear(entry, parent, last)?;
        let node = Node { metadata: metadata(entry), kind };
        self.tree.add_child(parent, last, node).map_err(|problem| EntryProblem::Tree(problem).of(entry))
    }

    /// Removes what is in the way.
    fn clear(&mut self, entry: &Entry, parent: InodeId, last: &[u8]) -> Result<(), UnpackError> {
        let found = self.tree.entries(parent).get(last);
        if !self.replaces_directories && found.is_some_and(|id| !self.tree.entries(*id).is_empty()) {
            return Err(EntryProblem::NotEmpty.of(entry));
        }
        self.tree.remove_child(parent, last);
        Ok(())
    }

    fn describe(&mut self, id: InodeId, entry: &Entry) {
        *self.tree.metadata_mut(id) = metadata(entry);
        self.lists.remove(&id);
        if !entry.metadata.acls.is_empty() {
            self.lists.insert(id, (entry.display_name(), entry.metadata.acls.clone()));
        }
    }

    pub(super) fn finish(mut self) -> Result<Unpacked, UnpackError> {
        if !self.root_is_listed {
            self.tree.metadata_mut(Tree::ROOT).mtime = self.newest;
        }
        self.resolve_lists()?;
        self.drop_plain_lists();
        Ok(Unpacked { tree: self.tree, remarks: self.remarks })
    }
}

fn metadata(entry: &Entry) -> Metadata {
    let found = &entry.metadata;
    let symlink = matches!(entry.kind, entry::Kind::Symlink(_));
    Metadata {
        // Links have all rights, whatever an archive says.
        mode: if symlink { 0o777 } else { (found.mode & 0o7777) as u16 },
        uid: found.uid,
        gid: found.gid,
        mtime: found.mtime,
        xattrs: found.xattrs.iter().map(|xattr| (xattr.name.clone(), xattr.value.clone())).collect(),
    }
}
