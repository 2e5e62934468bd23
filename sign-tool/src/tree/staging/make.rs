//! Making files of each kind with all their metadata.

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::Arc,
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat, fchmod,
        fchown, fsetxattr, fstat, ftruncate, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, symlinkat,
        unlinkat, utimensat,
    },
    io::Errno,
};

use super::{Directory, Inode, Staging, StagingError, parents::kind_at};
use crate::archive::{
    acl::{self, Accounts},
    entry::{Content, Device, Entry, Extent, Kind, Metadata, Timestamp, Xattr, printable},
    name::{self, split},
};

const COPY_SIZE: usize = 256 * 1024;

impl Staging {
    /// A directory's metadata waits for the end.
    pub(super) fn add_directory(&mut self, entry: &Entry, name: &[u8]) -> Result<(), StagingError> {
        let fail = |errno| StagingError::call("mkdir", &entry.name, errno);
        let opened = if name.is_empty() {
            rustix::io::fcntl_dupfd_cloexec(&self.root, 0).map_err(fail)?
        } else {
            let (parent, last) = self.parent(name, entry.metadata.mtime)?;
            if kind_at(parent.as_fd(), &last).map_err(fail)?.is_some_and(|kind| kind != FileType::Directory) {
                self.clear(entry, parent.as_fd(), &last)?;
            }
            match mkdirat(&*parent, &*last, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(fail(errno)),
            }
            open_directory_at(parent.as_fd(), &last).map_err(fail)?
        };
        self.note_directory(opened.as_fd(), name, entry.metadata.clone())
    }

    fn note_directory(&mut self, opened: BorrowedFd<'_>, name: &[u8], metadata: Metadata) -> Result<(), StagingError> {
        let inode = inode(opened).map_err(|errno| StagingError::call("stat", name, errno))?;
        let true_name = self.parents.true_name(opened).map_err(|errno| StagingError::call("readlink", name, errno))?;
        self.directories.insert(inode, Directory { name: true_name, metadata });
        Ok(())
    }

    pub(super) fn add_hard_link(&mut self, entry: &Entry, name: &[u8], target: &[u8]) -> Result<(), StagingError> {
        let found = name::normalise(target).map_err(|source| StagingError::at(entry, source))?;
        self.link(entry, name, &found)
    }

    fn link(&mut self, entry: &Entry, name: &[u8], target: &[u8]) -> Result<(), StagingError> {
        let fail = |source: Errno| StagingError::HardLink {
            entry: entry.display_name(),
            target: printable(target),
            source: source.into(),
        };
        let target_last = split(target).1;
        if target_last.is_empty() {
            return Err(fail(Errno::ISDIR));
        }
        let old = self.parents.open_existing(target)?.0;
        let kind = kind_at(old.as_fd(), target_last).map_err(fail)?;
        if kind.is_none_or(|kind| kind == FileType::Directory) {
            return Err(fail(if kind.is_none() { Errno::NOENT } else { Errno::ISDIR }));
        }
        let (parent, last) = self.parent(name, entry.metadata.mtime)?;
        if same_name(old.as_fd(), target_last, parent.as_fd(), &last).map_err(fail)? {
            return Ok(());
        }
        self.clear(entry, parent.as_fd(), &last)?;
        linkat(&old, target_last, &*parent, &*last, AtFlags::empty()).map_err(fail)
    }

    /// Everything but directories and tar's hard links.
    pub(super) fn add_file(
        &mut self,
        entry: &Entry,
        name: &[u8],
        content: &mut dyn Content,
    ) -> Result<(), StagingError> {
        // A further name of a cpio file may come without data, which must not empty the file.
        if self.is_further_name(entry, name)? {
            return self.rewrite(entry, name, content, OFlags::empty());
        }
        let (parent, last) = self.parent(name, entry.metadata.mtime)?;
        if self.is_rewritten(entry, parent.as_fd(), &last)? {
            return self.rewrite(entry, name, content, OFlags::TRUNC);
        }
        self.clear(entry, parent.as_fd(), &last)?;
        match &entry.kind {
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&*parent, &*last, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(|errno| StagingError::call("create", name, errno))?;
                self.fill(&File::from(file), entry, content)?;
            }
            Kind::Symlink(target) => {
                symlinkat(&**target, &*parent, &*last).map_err(|errno| StagingError::call("symlink", name, errno))?;
                self.parents.forget();
                finish_special(parent.as_fd(), &last, entry)?;
            }
            Kind::CharDevice(device) => {
                make_node(parent.as_fd(), &last, entry, FileType::CharacterDevice, *device)?;
            }
            Kind::BlockDevice(device) => {
                make_node(parent.as_fd(), &last, entry, FileType::BlockDevice, *device)?;
            }
            _ => make_node(parent.as_fd(), &last, entry, FileType::Fifo, Device { major: 0, minor: 0 })?,
        }
        if !entry.metadata.acls.is_empty() {
            self.lists.push((name.to_vec(), entry.metadata.clone()));
        }
        Ok(())
    }

    /// cpio's hard links, as the kernel finds them: the first of them makes the file, whichever carries the data
    /// (in fact the last) fills it.
    fn is_further_name(&mut self, entry: &Entry, name: &[u8]) -> Result<bool, StagingError> {
        let Some(link) = entry.link.filter(|link| link.nlink >= 2) else { return Ok(false) };
        let kind = match entry.kind {
            Kind::File => 0,
            Kind::CharDevice(_) => 1,
            Kind::BlockDevice(_) => 2,
            Kind::Fifo => 3,
            _ => return Ok(false),
        };
        match self.links.entry((link, kind)) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(name.to_vec());
                Ok(false)
            }
            std::collections::hash_map::Entry::Occupied(first) => {
                let first = first.get().clone();
                self.link(entry, name, &first)?;
                Ok(true)
            }
        }
    }

    /// Whether a cpio entry finds a file of its own kind under its name. The kernel replaces only what is of another
    /// kind, and writes to the rest in place: further names of it change too, and a device keeps its number
    /// (Linux `init/initramfs.c`, `clean_path` and `do_name`).
    fn is_rewritten(&self, entry: &Entry, parent: BorrowedFd<'_>, last: &[u8]) -> Result<bool, StagingError> {
        let kind = match entry.kind {
            _ if entry.link.is_none() => return Ok(false),
            Kind::File => FileType::RegularFile,
            Kind::CharDevice(_) => FileType::CharacterDevice,
            Kind::BlockDevice(_) => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            _ => return Ok(false),
        };
        let found = kind_at(parent, last).map_err(|errno| StagingError::call("stat", &entry.name, errno))?;
        Ok(found == Some(kind))
    }

    /// Gives an existing file another content and metadata.
    fn rewrite(
        &mut self,
        entry: &Entry,
        name: &[u8],
        content: &mut dyn Content,
        truncate: OFlags,
    ) -> Result<(), StagingError> {
        let (parent, last) = self.parents.open_existing(name)?;
        if entry.kind != Kind::File {
            return finish_special(parent.as_fd(), &last, entry);
        }
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | truncate;
        let file =
            openat(&parent, &*last, flags, Mode::empty()).map_err(|errno| StagingError::call("open", name, errno))?;
        self.fill(&File::from(file), entry, content)
    }

    fn fill(&mut self, file: &File, entry: &Entry, content: &mut dyn Content) -> Result<(), StagingError> {
        let whole = [Extent { offset: 0, length: entry.size }];
        let mut buffer = vec![0; COPY_SIZE.min(usize::try_from(entry.size).unwrap_or(COPY_SIZE)).max(1)];
        for extent in entry.extents.as_deref().unwrap_or(&whole) {
            let mut done = 0;
            while done < extent.length {
                let want = buffer.len().min(usize::try_from(extent.length - done).unwrap_or(usize::MAX));
                let count = content.read_content(&mut buffer[..want])?;
                debug_assert!(count > 0, "readers check extents against what is stored");
                file.write_all_at(&buffer[..count], extent.offset + done).map_err(|source| StagingError::Call {
                    entry: entry.display_name(),
                    call: "write",
                    source,
                })?;
                done += count as u64;
            }
            self.bytes += extent.length;
        }
        if entry.size > 0 || entry.link.is_none() {
            ftruncate(file, entry.size).map_err(|errno| StagingError::call("truncate", &entry.name, errno))?;
        }
        finish_opened(file.as_fd(), &entry.name, &entry.metadata)
    }

    /// The directory of an entry. Those that the archive does not list are root's, as old as their first entry.
    fn parent(&mut self, name: &[u8], mtime: Timestamp) -> Result<(Arc<OwnedFd>, Vec<u8>), StagingError> {
        let (parent, last, made) = self.parents.open(name)?;
        for (name, opened) in made {
            let metadata = Metadata { mode: 0o755, mtime, ..Metadata::default() };
            self.note_directory(opened.as_fd(), &name, metadata)?;
        }
        Ok((parent, last))
    }

    /// Removes what an earlier entry made of the same name.
    fn clear(&mut self, entry: &Entry, parent: BorrowedFd<'_>, last: &[u8]) -> Result<(), StagingError> {
        let fail = |errno| StagingError::call("replace", &entry.name, errno);
        let Some(kind) = kind_at(parent, last).map_err(fail)? else { return Ok(()) };
        self.parents.forget();
        if kind != FileType::Directory {
            return unlinkat(parent, last, AtFlags::empty()).map_err(fail);
        }
        let opened = open_directory_at(parent, last).map_err(fail)?;
        self.directories.remove(&inode(opened.as_fd()).map_err(fail)?);
        match unlinkat(parent, last, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => Err(StagingError::NotEmpty { entry: entry.display_name() }),
            other => other.map_err(fail),
        }
    }
}

/// Whether both names are one directory entry, which a link to itself would remove.
fn same_name(old: BorrowedFd<'_>, old_last: &[u8], new: BorrowedFd<'_>, new_last: &[u8]) -> rustix::io::Result<bool> {
    Ok(old_last == new_last && inode(old)? == inode(new)?)
}

pub(super) fn inode(opened: BorrowedFd<'_>) -> rustix::io::Result<Inode> {
    fstat(opened).map(|stat| (stat.st_dev, stat.st_ino))
}

pub(super) fn open_directory_at(parent: BorrowedFd<'_>, last: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, last, flags, Mode::empty())
}

fn make_node(
    parent: BorrowedFd<'_>,
    last: &[u8],
    entry: &Entry,
    kind: FileType,
    device: Device,
) -> Result<(), StagingError> {
    let number = makedev(device.major, device.minor);
    match mknodat(parent, last, kind, Mode::RUSR | Mode::WUSR, number) {
        Ok(()) => finish_special(parent, last, entry),
        Err(Errno::PERM) if kind != FileType::Fifo => Err(StagingError::Device { entry: entry.display_name() }),
        Err(errno) => Err(StagingError::call("mknod", &entry.name, errno)),
    }
}

/// Owner, attributes, mode, time: the owner first, since a change of it drops set-user-ID bits and capabilities.
fn finish_opened(file: BorrowedFd<'_>, name: &[u8], metadata: &Metadata) -> Result<(), StagingError> {
    let (uid, gid) = owner(metadata);
    fchown(file, Some(uid), Some(gid)).map_err(|errno| StagingError::call("chown", name, errno))?;
    for xattr in &metadata.xattrs {
        fsetxattr(file, &*xattr.name, &xattr.value, XattrFlags::empty())
            .map_err(|errno| xattr_error(name, xattr, errno))?;
    }
    fchmod(file, Mode::from_raw_mode(metadata.mode)).map_err(|errno| StagingError::call("chmod", name, errno))?;
    futimens(file, &times(metadata)).map_err(|errno| StagingError::call("set times", name, errno))
}

pub(super) fn finish_directory(file: BorrowedFd<'_>, name: &[u8], metadata: &Metadata) -> Result<(), StagingError> {
    finish_opened(file, name, metadata)
}

/// The same for what must not be opened: symlinks, devices, fifos.
fn finish_special(parent: BorrowedFd<'_>, last: &[u8], entry: &Entry) -> Result<(), StagingError> {
    let (name, metadata) = (&entry.name, &entry.metadata);
    let (uid, gid) = owner(metadata);
    chownat(parent, last, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| StagingError::call("chown", name, errno))?;
    for xattr in &metadata.xattrs {
        set_xattr_at(parent, last, xattr).map_err(|errno| xattr_error(name, xattr, errno))?;
    }
    if !matches!(entry.kind, Kind::Symlink(_)) {
        rustix::fs::chmodat(parent, last, Mode::from_raw_mode(metadata.mode), AtFlags::empty())
            .map_err(|errno| StagingError::call("chmod", name, errno))?;
    }
    utimensat(parent, last, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| StagingError::call("set times", name, errno))
}

/// There is no setxattrat before Linux 6.13; the link in /proc stands for the directory that we hold.
fn set_xattr_at(parent: BorrowedFd<'_>, last: &[u8], xattr: &Xattr) -> rustix::io::Result<()> {
    let path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), last].concat();
    lsetxattr(path, &*xattr.name, &xattr.value, XattrFlags::empty())
}

/// Sets the access control lists of a file whose other metadata is complete.
pub(super) fn apply_lists(
    parent: BorrowedFd<'_>,
    last: &[u8],
    name: &[u8],
    metadata: &Metadata,
    accounts: &Accounts,
) -> Result<(), StagingError> {
    for xattr in resolve_lists(name, metadata, accounts)? {
        set_xattr_at(parent, last, &xattr).map_err(|errno| xattr_error(name, &xattr, errno))?;
    }
    Ok(())
}

/// Turns lists in text into the attributes that the kernel stores.
pub(super) fn resolve_lists(name: &[u8], metadata: &Metadata, accounts: &Accounts) -> Result<Vec<Xattr>, StagingError> {
    let given = |list: &acl::Kind| metadata.xattrs.iter().any(|xattr| xattr.name == list.attribute());
    let mut xattrs = Vec::new();
    for list in &metadata.acls {
        let kind = if list.is_default { acl::Kind::Default } else { acl::Kind::Access };
        if given(&kind) {
            continue;
        }
        let value = acl::parse(&list.text, accounts).map_err(|error| StagingError::Acl {
            entry: printable(name),
            expected: error.expected,
            found: error.found,
        })?;
        if let Some(value) = value {
            xattrs.push(Xattr { name: kind.attribute().to_vec(), value });
        }
    }
    Ok(xattrs)
}

fn xattr_error(name: &[u8], xattr: &Xattr, errno: Errno) -> StagingError {
    StagingError::Xattr { entry: printable(name), name: printable(&xattr.name), source: errno.into() }
}

fn owner(metadata: &Metadata) -> (Uid, Gid) {
    (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid))
}

fn times(metadata: &Metadata) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: metadata.mtime.seconds, tv_nsec: metadata.mtime.nanoseconds.into() },
    }
}
