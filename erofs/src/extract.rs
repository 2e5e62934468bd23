//! A tree becomes files again.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat, chownat,
        ftruncate, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, symlinkat, utimensat,
    },
    io::Errno,
};

use crate::tree::{Content, Device, InodeId, Kind, Metadata, Tree, below, printable};

/// So many bytes are copied at once.
const COPY_SIZE: u64 = 1 << 20;

/// Why a tree did not become files.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The directory cannot be made.
    #[error("make {}: {source}; name a directory that does not exist, in one that does", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// An entry cannot be made.
    #[error("{call} {entry}: {source}; check the free space, and that the file system has owners and attributes")]
    Entry {
        /// What was tried.
        call: &'static str,
        /// The entry's path.
        entry: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Makes the directory `root`, which must not exist, and everything of the tree in it. Without root's rights, what only root
/// can make is left out: owners, devices, and attributes of the system. Returns what was left out, for people.
///
/// Nobody else should be able to write to the directory in which `root` is made.
///
/// # Errors
/// A file that cannot be made; what was made before stays.
pub fn extract(tree: &Tree, root: &Path) -> Result<Vec<String>, ExtractError> {
    let fail = |errno: Errno| ExtractError::Directory { path: root.to_owned(), source: errno.into() };
    mkdirat(CWD, root, Mode::RWXU).map_err(fail)?;
    let opened = openat(CWD, root, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let privileged = rustix::process::geteuid().is_root();
    let mut maker =
        Maker { tree, root: opened.map_err(fail)?, privileged, first: vec![None; tree.len()], left: Left::default() };
    let mut waiting = vec![(Vec::new(), Tree::ROOT)];
    let mut directories = Vec::new();
    while let Some((path, id)) = waiting.pop() {
        for (name, child) in tree.entries(id) {
            let path = below(&path, name);
            if maker.entry(&path, *child)? {
                waiting.push((path, *child));
            }
        }
        directories.push((path, id));
    }
    // What is made in a directory changes its time, and its rights may forbid to make anything.
    for (path, id) in directories.into_iter().rev() {
        maker.describe(if path.is_empty() { b"." } else { &path }, &tree.node(id).metadata, false)?;
    }
    Ok(maker.left.remarks())
}

struct Maker<'a> {
    tree: &'a Tree,
    root: OwnedFd,
    privileged: bool,
    /// The first name of each inode.
    first: Vec<Option<Vec<u8>>>,
    left: Left,
}

/// What only root can make.
#[derive(Default)]
struct Left {
    devices: u64,
    attributes: u64,
    owners: u64,
}

impl Left {
    fn remarks(&self) -> Vec<String> {
        let kinds = [("device", self.devices), ("attribute", self.attributes), ("owner", self.owners)];
        let some = kinds.into_iter().filter(|(_, count)| *count > 0);
        some.map(|(kind, count)| format!("{kind}s left out, which only root can make: {count}")).collect()
    }
}

impl Maker<'_> {
    /// Whether it is a directory.
    fn entry(&mut self, path: &[u8], id: InodeId) -> Result<bool, ExtractError> {
        let (node, rights) = (self.tree.node(id), Mode::RUSR | Mode::WUSR);
        if let Some(first) = &self.first[id.index()] {
            let made = linkat(&self.root, &**first, &self.root, path, AtFlags::empty());
            made.map_err(failed("link", path))?;
            return Ok(false);
        }
        match &node.kind {
            Kind::Directory => {
                mkdirat(&self.root, path, Mode::RWXU).map_err(failed("make the directory", path))?;
                return Ok(true);
            }
            Kind::File(content) => self.file(path, &**content)?,
            Kind::Symlink(target) => {
                symlinkat(&**target, &self.root, path).map_err(failed("make the link", path))?;
            }
            Kind::Fifo => {
                mknodat(&self.root, path, FileType::Fifo, rights, 0).map_err(failed("make the pipe", path))?;
            }
            Kind::Socket => {
                mknodat(&self.root, path, FileType::Socket, rights, 0).map_err(failed("make the socket", path))?;
            }
            Kind::CharacterDevice(device) => return self.device(path, id, FileType::CharacterDevice, *device),
            Kind::BlockDevice(device) => return self.device(path, id, FileType::BlockDevice, *device),
        }
        self.first[id.index()] = Some(path.to_vec());
        self.describe(path, &node.metadata, matches!(node.kind, Kind::Symlink(_)))?;
        Ok(false)
    }

    fn device(&mut self, path: &[u8], id: InodeId, kind: FileType, device: Device) -> Result<bool, ExtractError> {
        let number = makedev(device.major, device.minor);
        match mknodat(&self.root, path, kind, Mode::RUSR | Mode::WUSR, number) {
            Err(Errno::PERM) if !self.privileged => self.left.devices += 1,
            made => {
                made.map_err(failed("make the device", path))?;
                self.first[id.index()] = Some(path.to_vec());
                self.describe(path, &self.tree.node(id).metadata, false)?;
            }
        }
        Ok(false)
    }

    fn file(&self, path: &[u8], content: &dyn Content) -> Result<(), ExtractError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(&self.root, path, flags, Mode::RUSR | Mode::WUSR).map_err(failed("create", path))?;
        ftruncate(&made, content.size()).map_err(failed("set the size of", path))?;
        copy(content, &File::from(made)).map_err(|source| ExtractError::Entry {
            call: "write",
            entry: printable(path),
            source,
        })
    }

    /// Owner, attributes, mode, time: the owner first, since a change of it drops set-user-ID bits and capabilities.
    fn describe(&mut self, path: &[u8], metadata: &Metadata, is_link: bool) -> Result<(), ExtractError> {
        if self.privileged {
            let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
            chownat(&self.root, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed("set the owner of", path))?;
        } else if metadata.uid != rustix::process::geteuid().as_raw() {
            self.left.owners += 1;
        }
        for (name, value) in &metadata.xattrs {
            // There is no setxattrat before Linux 6.13; the link in /proc stands for the directory that is open.
            let place = [format!("/proc/self/fd/{}/", self.root.as_fd().as_raw_fd()).as_bytes(), path].concat();
            match lsetxattr(&*place, &**name, value, XattrFlags::empty()) {
                Err(Errno::PERM) if !self.privileged => self.left.attributes += 1,
                set => set.map_err(failed("set an attribute of", path))?,
            }
        }
        if !is_link {
            let mode = Mode::from_raw_mode(metadata.mode.into());
            chmodat(&self.root, path, mode, AtFlags::empty()).map_err(failed("set the mode of", path))?;
        }
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: metadata.mtime.seconds, tv_nsec: metadata.mtime.nanoseconds.into() },
        };
        utimensat(&self.root, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set the time of", path))
    }
}

fn failed(call: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> ExtractError {
    move |errno| ExtractError::Entry { call, entry: printable(path), source: errno.into() }
}

/// Holes stay holes.
fn copy(content: &dyn Content, target: &File) -> io::Result<()> {
    let reader = content.open()?;
    let mut buffer = Vec::new();
    for extent in content.data()? {
        let end = extent.start + extent.length;
        for start in (extent.start..end).step_by(COPY_SIZE as usize) {
            buffer.resize((end - start).min(COPY_SIZE) as usize, 0);
            reader.read_exact_at(&mut buffer, start)?;
            target.write_all_at(&buffer, start)?;
        }
    }
    Ok(())
}
