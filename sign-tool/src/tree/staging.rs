//! Unpacking into a private directory, the one place where archived files are made.
//!
//! Archives are hostile: every name is resolved by the kernel with `RESOLVE_IN_ROOT`, so that neither `..` nor symlinks
//! lead out of the directory. Later entries replace earlier ones. Directories get their metadata at the end, since
//! each entry in them changes their times, and a default access control list would change what is made in them.

mod error;
mod make;
mod parents;

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use tempfile::TempDir;

pub use self::error::StagingError;
use self::parents::Parents;
use crate::archive::{
    acl::{ACCOUNTS_LIMIT, Accounts},
    entry::{Content, Entry, EntryReader, Kind, LinkIdentity, Metadata, Timestamp},
    name,
};

/// A private directory that is filled with a tree, and gone when dropped.
#[derive(Debug)]
pub struct Staging {
    // Dropped last: removes everything, also after an error.
    directory: TempDir,
    root: OwnedFd,
    parents: Parents,
    /// Metadata to apply at the end, by device and inode.
    directories: HashMap<Inode, Directory>,
    /// The first names of cpio's hard links in the current archive.
    links: HashMap<(LinkIdentity, u32), Vec<u8>>,
    /// Access control lists whose names wait for the tree's account files.
    lists: Vec<(Vec<u8>, Metadata)>,
    newest: Option<Timestamp>,
    remarks: Vec<String>,
    entries: u64,
    bytes: u64,
}

type Inode = (u64, u64);

#[derive(Debug)]
struct Directory {
    /// Its name without symlinks in it, which may be another than the archive's.
    name: Vec<u8>,
    metadata: Metadata,
}

/// What was unpacked.
#[derive(Debug)]
pub struct StagedTree {
    directory: TempDir,
    /// What the user should know although all went well, such as entries left out.
    pub remarks: Vec<String>,
    /// The number of entries.
    pub entries: u64,
    /// Bytes of content, without holes.
    pub bytes: u64,
}

impl StagedTree {
    /// The tree's root.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("root")
    }
}

impl Staging {
    /// Makes an empty one in `place` (default: the system's directory for temporary files).
    ///
    /// # Errors
    /// When it cannot be made there.
    pub fn new(place: Option<&Path>) -> Result<Self, StagingError> {
        let place = place.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let fail = |source| StagingError::Place { place: place.clone(), source };
        // Mode 0700 on the outer directory keeps the set-user-ID programs in the tree from other users. The root
        // itself needs its own mode.
        let directory = tempfile::Builder::new().prefix("iofs-tree-").tempdir_in(&place).map_err(fail)?;
        let path = directory.path().join("root");
        std::fs::create_dir(&path).map_err(fail)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(CWD, &path, flags, Mode::empty()).map_err(|errno| fail(errno.into()))?;
        let parents = Parents::new(root.as_fd()).map_err(|errno| fail(errno.into()))?;
        Ok(Self {
            directory,
            root,
            parents,
            directories: HashMap::new(),
            links: HashMap::new(),
            lists: Vec::new(),
            newest: None,
            remarks: Vec::new(),
            entries: 0,
            bytes: 0,
        })
    }

    /// Unpacks all entries of one archive.
    ///
    /// # Errors
    /// A bad archive, or an entry that cannot be made.
    pub fn unpack(&mut self, reader: &mut impl EntryReader) -> Result<(), StagingError> {
        self.new_archive();
        while let Some(entry) = reader.next_entry()? {
            self.add(&entry, reader)?;
        }
        Ok(())
    }

    /// Hard links do not cross this border.
    pub fn new_archive(&mut self) {
        self.links.clear();
    }

    /// Makes one entry.
    ///
    /// # Errors
    /// A bad archive, or an entry that cannot be made.
    pub fn add(&mut self, entry: &Entry, content: &mut dyn Content) -> Result<(), StagingError> {
        self.entries += 1;
        self.newest = self.newest.max(Some(entry.metadata.mtime));
        let name = name::normalise(&entry.name).map_err(|source| StagingError::at(entry, source))?;
        if name.is_empty() && entry.kind != Kind::Directory {
            return Err(StagingError::Root { entry: entry.display_name() });
        }
        match &entry.kind {
            Kind::Socket => self.remarks.push(format!("{}: a socket, left out", entry.display_name())),
            Kind::Directory => self.add_directory(entry, &name)?,
            Kind::HardLink(target) => self.add_hard_link(entry, &name, target)?,
            _ => self.add_file(entry, &name, content)?,
        }
        Ok(())
    }

    /// Applies what had to wait, and hands the tree over.
    ///
    /// # Errors
    /// Metadata that the file system does not take, or access control lists with unknown names.
    pub fn finish(mut self) -> Result<StagedTree, StagingError> {
        self.apply_lists()?;
        self.apply_directories()?;
        Ok(StagedTree { directory: self.directory, remarks: self.remarks, entries: self.entries, bytes: self.bytes })
    }

    fn apply_lists(&mut self) -> Result<(), StagingError> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let accounts = accounts(self.root.as_fd());
        for (name, metadata) in std::mem::take(&mut self.lists) {
            let (parent, last) = self.parents.open_existing(&name)?;
            make::apply_lists(parent.as_fd(), &last, &name, &metadata, &accounts)?;
        }
        for directory in self.directories.values_mut() {
            let resolved = make::resolve_lists(&directory.name, &directory.metadata, &accounts)?;
            directory.metadata.acls.clear();
            directory.metadata.xattrs.extend(resolved);
        }
        Ok(())
    }

    fn apply_directories(&mut self) -> Result<(), StagingError> {
        let root_times = self.newest.unwrap_or_default();
        let directories = std::mem::take(&mut self.directories);
        let root = make::inode(self.root.as_fd()).map_err(|errno| StagingError::call("stat", b".", errno))?;
        if !directories.contains_key(&root) {
            let metadata = Metadata { mode: 0o755, mtime: root_times, ..Metadata::default() };
            make::finish_directory(self.root.as_fd(), b".", &metadata)?;
        }
        for directory in directories.into_values() {
            let opened = self.parents.open_directory(&directory.name)?;
            make::finish_directory(opened.as_fd(), &directory.name, &directory.metadata)?;
        }
        Ok(())
    }
}

/// The tree's accounts; missing files are empty ones.
fn accounts(root: BorrowedFd<'_>) -> Accounts {
    let read = |path: &str| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut text = Vec::new();
        // A device or directory gives an error or nothing: then no name is known, and using one is an error.
        let read = openat2(root, path, flags, Mode::empty(), resolve)
            .is_ok_and(|file| File::from(file).take(ACCOUNTS_LIMIT).read_to_end(&mut text).is_ok());
        if read { text } else { Vec::new() }
    };
    Accounts::parse(&read("etc/passwd"), &read("etc/group"))
}
