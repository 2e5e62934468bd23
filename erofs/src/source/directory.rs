//! A tree from a directory.

mod scan;

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{File, OpenOptions},
    io,
    num::NonZeroUsize,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{OFlags, SeekFrom, lgetxattr, llistxattr, major, minor, seek},
    io::Errno,
};

use self::scan::{Listed, Scan};
use crate::tree::{
    self, Content, ContentReader, Device, Extent, InodeId, Kind, Metadata, Node, Problem, Stamp, Time, Tree, TreeError,
    Xattrs, read_up_to, rules::Graft,
};

/// A directory that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A call failed.
    #[error("{call} {}: {source}; check that it exists and may be read", .path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// An entry cannot be in an image.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// An entry is of a kind that images do not have.
    #[error("{}: expected a file, directory, link, device, pipe or socket; found another kind; remove it", .path.display())]
    UnknownKind {
        /// The entry.
        path: PathBuf,
    },
}

/// Takes `root` as it is: owners, modes, times, attributes, hard links and holes, following no link. What the caller may
/// not see, such as `trusted.` attributes without root's rights, is not there.
///
/// # Errors
/// When something cannot be read, or no image can hold it.
pub fn load(root: &Path) -> Result<Tree, DirectoryError> {
    load_on(root, NonZeroUsize::MIN)
}

/// As [`load`], listing on up to `threads` threads. The tree is the same.
///
/// # Errors
/// As [`load`].
pub fn load_on(root: &Path, threads: NonZeroUsize) -> Result<Tree, DirectoryError> {
    let metadata = root.symlink_metadata().map_err(|source| io_error("stat", root, source))?;
    let mut xattrs = XattrReader::new();
    let tree = Tree::new(common(root, &metadata, &mut xattrs)?);
    scan::scan(root, threads, |scan| Loader { tree, seen: HashMap::new(), scan, xattrs }.load())
}

/// Takes whatever is at `path`, to be put into another tree: a directory as [`load`] takes it, anything else alone. A symbolic
/// link stays one.
///
/// # Errors
/// As [`load`].
pub fn graft(path: &Path) -> Result<Graft, DirectoryError> {
    let metadata = path.symlink_metadata().map_err(|source| io_error("stat", path, source))?;
    if metadata.is_dir() {
        return load(path).map(Graft::Tree);
    }
    let common = common(path, &metadata, &mut XattrReader::new())?;
    Ok(Graft::Node(Node { metadata: common, kind: kind(path, &metadata)? }))
}

fn io_error(call: &'static str, path: &Path, source: io::Error) -> DirectoryError {
    DirectoryError::Io { call, path: path.to_owned(), source }
}

/// A directory's number, its path in the tree, and its inode.
type Waiting = (usize, Vec<u8>, InodeId);

struct Loader<'a> {
    tree: Tree,
    /// Inodes with several names, by device and number.
    seen: HashMap<(u64, u64), InodeId>,
    scan: &'a Scan,
    xattrs: XattrReader,
}

impl Loader<'_> {
    fn load(mut self) -> Result<Tree, DirectoryError> {
        let mut waiting = vec![(0, Vec::new(), Tree::ROOT)];
        while let Some((number, inside, id)) = waiting.pop() {
            // Depth first, and the first name first.
            waiting.extend(self.directory(number, &inside, id)?.into_iter().rev());
        }
        Ok(self.tree)
    }

    /// Adds what is in a directory, and returns the directories among it.
    fn directory(&mut self, number: usize, inside: &[u8], id: InodeId) -> Result<Vec<Waiting>, DirectoryError> {
        let mut directories = Vec::new();
        for Listed { name, metadata, node, below } in self.scan.listing(number, &mut self.xattrs)? {
            let inside = tree::below(inside, &name);
            let refused = |problem: Problem| problem.of(&inside);
            let key = (metadata.dev(), metadata.ino());
            let several = metadata.nlink() > 1 && !metadata.is_dir();
            if let Some(first) = self.seen.get(&key).filter(|_| several) {
                self.tree.link_child(id, &name, *first).map_err(refused)?;
                continue;
            }
            let added = self.tree.add_child(id, &name, node).map_err(refused)?;
            if several {
                self.seen.insert(key, added);
            }
            directories.extend(below.map(|number| (number, inside, added)));
        }
        Ok(directories)
    }
}

fn common(path: &Path, metadata: &std::fs::Metadata, xattrs: &mut XattrReader) -> Result<Metadata, DirectoryError> {
    Ok(Metadata {
        mode: (metadata.mode() & 0o7777) as u16,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: mtime(metadata),
        xattrs: xattrs.read(path)?,
    })
}

fn kind(path: &Path, metadata: &std::fs::Metadata) -> Result<Kind, DirectoryError> {
    let kind = metadata.file_type();
    let device = Device { major: major(metadata.rdev()), minor: minor(metadata.rdev()) };
    Ok(if kind.is_dir() {
        Kind::Directory
    } else if kind.is_file() {
        let sparse = metadata.blocks().saturating_mul(512) < metadata.len();
        let content = FileInDirectory { path: path.to_owned(), stamp: stamp(metadata), sparse };
        return Ok(Node::file(Metadata::default(), content).kind);
    } else if kind.is_symlink() {
        let target = path.read_link().map_err(|source| io_error("read the link", path, source))?;
        Kind::Symlink(target.as_os_str().as_bytes().to_vec())
    } else if kind.is_char_device() {
        Kind::CharacterDevice(device)
    } else if kind.is_block_device() {
        Kind::BlockDevice(device)
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else {
        return Err(DirectoryError::UnknownKind { path: path.to_owned() });
    })
}

fn stamp(metadata: &std::fs::Metadata) -> Stamp {
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.len(),
        mtime: mtime(metadata),
        changed: Time { seconds: metadata.ctime(), nanoseconds: metadata.ctime_nsec() as u32 },
    }
}

fn mtime(metadata: &std::fs::Metadata) -> Time {
    Time { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() as u32 }
}

/// Linux' `XATTR_LIST_MAX` and `XATTR_SIZE_MAX`: no list and no value is longer.
const XATTR_LIMIT: usize = 65536;

/// Reads attributes, into buffers that serve for all files.
struct XattrReader {
    list: Vec<u8>,
    value: Vec<u8>,
}

impl XattrReader {
    fn new() -> Self {
        Self { list: vec![0; XATTR_LIMIT], value: vec![0; XATTR_LIMIT] }
    }

    fn read(&mut self, path: &Path) -> Result<Xattrs, DirectoryError> {
        let fail = |call| move |errno: Errno| io_error(call, path, errno.into());
        // Not by an empty buffer, which tells the size: not all systems answer it.
        let length = match llistxattr(path, &mut self.list[..]) {
            Err(Errno::OPNOTSUPP) => return Ok(Xattrs::new()),
            other => other.map_err(fail("list the attributes of"))?,
        };
        let mut found = Xattrs::new();
        for name in self.list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let length = lgetxattr(path, OsStr::from_bytes(name), &mut self.value[..]);
            let length = length.map_err(fail("read an attribute of"))?;
            found.insert(name.to_vec(), self.value[..length].to_vec());
        }
        Ok(found)
    }
}

/// A file where it lies.
#[derive(Debug)]
struct FileInDirectory {
    path: PathBuf,
    stamp: Stamp,
    /// It has fewer blocks than its size, so that holes are worth asking for.
    sparse: bool,
}

impl FileInDirectory {
    /// Refuses links, and files that another program has changed since they were listed.
    fn open_file(&self) -> io::Result<File> {
        let file = self.open_unchecked()?;
        let found = file.metadata()?;
        if found.is_file() && found.len() == self.size() { Ok(file) } else { Err(self.changed(found.len())) }
    }

    fn open_unchecked(&self) -> io::Result<File> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(&self.path)
    }

    fn changed(&self, found: u64) -> io::Error {
        let text = format!("expected a file of {} bytes as listed before, found {found}", self.size());
        io::Error::other(text + "; let nothing change the tree meanwhile")
    }
}

impl Content for FileInDirectory {
    fn size(&self) -> u64 {
        self.stamp.size
    }

    fn stamp(&self) -> Option<Stamp> {
        Some(self.stamp)
    }

    fn data(&self) -> io::Result<Vec<Extent>> {
        if !self.sparse {
            return Ok(vec![Extent { start: 0, length: self.size() }]);
        }
        data_extents(&self.open_file()?, self.size())
    }

    fn open(&self) -> io::Result<Box<dyn ContentReader + '_>> {
        Ok(Box::new(self.open_file()?))
    }

    /// That it ends where it did is seen by asking for one byte more, which spares calls for each of many small files.
    fn read_all(&self) -> io::Result<Vec<u8>> {
        let file = self.open_unchecked()?;
        let bytes = read_up_to(&file, Extent { start: 0, length: self.size() }, 1)?;
        if bytes.len() as u64 == self.size() { Ok(bytes) } else { Err(self.changed(file.metadata()?.len())) }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

fn data_extents(file: &File, size: u64) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other?.min(size),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        if end <= start {
            break;
        }
        extents.push(Extent { start, length: end - start });
        at = end;
    }
    Ok(extents)
}
