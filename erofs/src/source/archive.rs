//! A tree from archives: what unpacking them as root would give, without unpacking.
//!
//! Archives are hostile: symbolic links in names are followed within the tree alone, `..` in a name is refused, and every
//! loop has an end. Later entries take the place of earlier ones.
//!
//! An archive that is not compressed is read where it lies, when the image is written. What comes out of a compressed one
//! is kept meanwhile in a temporary file without a name.

mod error;
mod place;
mod store;

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read, Seek},
    path::Path,
    sync::Arc,
};

pub use self::error::{EntryProblem, UnpackError};
use self::store::Store;
use crate::{
    archive::{
        acl::{self, ACCOUNTS_LIMIT, Accounts},
        compression::{Compression, MAGIC_SIZE},
        entry::{self, Entry, EntryReader, LinkIdentity, TextAcl},
        initramfs::{self, Segment, Visitor},
        input::Input,
        name,
        tar::TarReader,
    },
    tree::{FileContent, InodeId, Kind, Metadata, Node, Time, Tree},
};

/// What archives gave.
#[derive(Debug)]
pub struct Unpacked {
    /// The tree.
    pub tree: Tree,
    /// What the user should know although all went well, such as entries left out.
    pub remarks: Vec<String>,
}

/// Takes a tar archive, compressed or not.
///
/// # Errors
/// A bad archive, or an entry that no tree can hold.
pub fn tar(path: &Path) -> Result<Unpacked, UnpackError> {
    let mut file = open(path)?;
    let mut magic = Vec::new();
    let fail = |source| UnpackError::Open { path: path.to_owned(), source };
    (&mut file).take(MAGIC_SIZE as u64).read_to_end(&mut magic).map_err(fail)?;
    file.rewind().map_err(fail)?;
    let name = path.display().to_string();
    let compression = Compression::detect(&magic);
    if compression == Compression::None {
        let store = Store::of(&file)?;
        return entries(Builder::new(store), Input::new(BufReader::with_capacity(1 << 16, file), name));
    }
    let stream = compression.reader(BufReader::with_capacity(1 << 16, file)).map_err(fail)?;
    entries(Builder::new(Store::default()), Input::new(stream, name))
}

/// Takes a tar archive that is not compressed from wherever it comes; `name` is what messages call it.
///
/// # Errors
/// As [`tar`].
pub fn tar_stream(name: &str, stream: impl Read) -> Result<Unpacked, UnpackError> {
    entries(Builder::new(Store::default()), Input::new(stream, name))
}

fn entries<R: Read>(mut builder: Builder, input: Input<R>) -> Result<Unpacked, UnpackError> {
    let mut reader = TarReader::new(input);
    while let Some(entry) = reader.next_entry()? {
        builder.add(&entry, &mut reader)?;
    }
    builder.finish()
}

/// Takes an initramfs: cpio archives in a row, each compressed in its own way.
///
/// # Errors
/// As [`tar`].
pub fn initramfs(path: &Path) -> Result<Unpacked, UnpackError> {
    let file = open(path)?;
    let visitor = Archives { builder: Builder::new(Store::of(&file)?), archive: None, in_place: true };
    visitor.walk(&mut Input::new(file, path.display().to_string()))
}

/// The same from wherever it comes; `name` is what messages call it.
///
/// # Errors
/// As [`tar`].
pub fn initramfs_stream(name: &str, stream: impl Read) -> Result<Unpacked, UnpackError> {
    let visitor = Archives { builder: Builder::new(Store::default()), archive: None, in_place: false };
    visitor.walk(&mut Input::new(stream, name))
}

fn open(path: &Path) -> Result<File, UnpackError> {
    File::open(path).map_err(|source| UnpackError::Open { path: path.to_owned(), source })
}

struct Archives {
    builder: Builder,
    archive: Option<u64>,
    /// What is not compressed can be read later where it lies.
    in_place: bool,
}

impl Archives {
    fn walk<R: Read>(mut self, input: &mut Input<R>) -> Result<Unpacked, UnpackError> {
        initramfs::walk(input, &mut self)?;
        self.builder.finish()
    }
}

impl Visitor for Archives {
    type Error = UnpackError;

    fn entry(
        &mut self,
        segment: &Segment,
        archive: u64,
        entry: &Entry,
        content: &mut dyn entry::Content,
    ) -> Result<(), UnpackError> {
        if self.archive.replace(archive) != Some(archive) {
            // Hard links do not cross this border.
            self.builder.links.clear();
        }
        self.builder.store.in_place = self.in_place && segment.compression == Compression::None;
        self.builder.add(entry, content)
    }
}

/// A tree that grows entry by entry.
struct Builder {
    tree: Tree,
    store: Store,
    /// The first names of cpio's hard links in the current archive, by the kind of file.
    links: HashMap<(LinkIdentity, std::mem::Discriminant<entry::Kind>), InodeId>,
    /// Access control lists in text, whose names only the finished tree tells.
    lists: Vec<(InodeId, String, Vec<TextAcl>)>,
    root_is_listed: bool,
    newest: Time,
    remarks: Vec<String>,
}

impl Builder {
    fn new(store: Store) -> Self {
        Self {
            tree: Tree::new(Metadata::with_mode(0o755)),
            store,
            links: HashMap::new(),
            lists: Vec::new(),
            root_is_listed: false,
            newest: Time::default(),
            remarks: Vec::new(),
        }
    }

    fn add(&mut self, entry: &Entry, content: &mut dyn entry::Content) -> Result<(), UnpackError> {
        self.newest = self.newest.max(entry.metadata.mtime);
        let name = name::normalise(&entry.name).map_err(|found| EntryProblem::Name { found }.of(entry))?;
        match &entry.kind {
            entry::Kind::Socket => self.remarks.push(format!("{}: a socket, left out", entry.display_name())),
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
    fn file(&mut self, entry: &Entry, name: &[u8], content: &mut dyn entry::Content) -> Result<(), UnpackError> {
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
            self.tree.set_content(found, FileContent::Source(Arc::new(Vec::new())));
            return self.rewrite(entry, found, content);
        }
        let kind = match &entry.kind {
            entry::Kind::Symlink(target) => Kind::Symlink(target.clone()),
            entry::Kind::CharDevice(device) => Kind::CharacterDevice(*device),
            entry::Kind::BlockDevice(device) => Kind::BlockDevice(*device),
            entry::Kind::Fifo => Kind::Fifo,
            _ => Kind::File(FileContent::Source(self.store.keep(entry, content)?)),
        };
        let id = self.put(entry, parent, last, kind)?;
        self.remember(entry, id);
        self.describe(id, entry);
        Ok(())
    }

    /// Gives a file of an earlier entry another content and metadata.
    fn rewrite(&mut self, entry: &Entry, id: InodeId, content: &mut dyn entry::Content) -> Result<(), UnpackError> {
        if entry.size > 0 {
            let content = FileContent::Source(self.store.keep(entry, content)?);
            self.tree.set_content(id, content);
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
        if found.is_some_and(|id| !self.tree.entries(*id).is_empty()) {
            return Err(EntryProblem::NotEmpty.of(entry));
        }
        self.tree.remove_child(parent, last);
        Ok(())
    }

    fn describe(&mut self, id: InodeId, entry: &Entry) {
        *self.tree.metadata_mut(id) = metadata(entry);
        self.lists.retain(|(listed, ..)| *listed != id);
        if !entry.metadata.acls.is_empty() {
            self.lists.push((id, entry.display_name(), entry.metadata.acls.clone()));
        }
    }

    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        if !self.root_is_listed {
            self.tree.metadata_mut(Tree::ROOT).mtime = self.newest;
        }
        self.resolve_lists()?;
        self.drop_plain_lists();
        Ok(Unpacked { tree: self.tree, remarks: self.remarks })
    }

    /// Turns lists in text into the attributes that the kernel stores, unless those are there.
    fn resolve_lists(&mut self) -> Result<(), UnpackError> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let text = |path| self.tree.read_file(path, ACCOUNTS_LIMIT as usize).unwrap_or_default();
        let accounts = Accounts::parse(&text(b"etc/passwd"), &text(b"etc/group"));
        for (id, entry, lists) in std::mem::take(&mut self.lists) {
            for list in lists {
                let kind = if list.is_default { acl::Kind::Default } else { acl::Kind::Access };
                let fail = |error| UnpackError::Acl { entry: entry.clone(), error };
                let value = acl::parse(&list.text, &accounts).map_err(fail)?;
                let xattrs = &mut self.tree.metadata_mut(id).xattrs;
                if let Some(value) = value.filter(|_| !xattrs.contains_key(kind.attribute())) {
                    xattrs.insert(kind.attribute().to_vec(), value);
                }
            }
        }
        Ok(())
    }

    /// Takes lists away that only say what the mode says, as the kernel does.
    fn drop_plain_lists(&mut self) {
        for id in self.tree.ids() {
            let metadata = self.tree.metadata_mut(id);
            let Some(mode) = metadata.xattrs.get(acl::Kind::Access.attribute()).and_then(|list| acl::as_mode(list))
            else {
                continue;
            };
            metadata.xattrs.remove(acl::Kind::Access.attribute());
            metadata.mode = metadata.mode & !0o777 | mode;
        }
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
