//! The whole tree of an image.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Image, Inode, ReadAt, ReadError};
use crate::{
    format::{
        directory::{ENTRY_SIZE, file_type},
        inode::*,
        units::Nid,
    },
    tree::{self, Content, ContentReader, InodeId, Kind, Metadata, Node, Problem, Tree, printable},
};

/// Sixteen times what Linux takes in one call.
const PATH_LIMIT: usize = 1 << 16;

/// What a check has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Inodes that are reached.
    pub inodes: u64,
    /// Names that lead to them, without `.` and `..`.
    pub names: u64,
    /// Bytes of files, directories and links.
    pub bytes: u64,
}

impl<R: ReadAt> Image<R> {
    /// Visits everything that can be reached, each name once: directories before what is in them. `visit` gets the path
    /// and what is there.
    ///
    /// # Errors
    /// When something is damaged: among others a directory that has several parents or contains itself.
    pub fn walk(&self, mut visit: impl FnMut(&[u8], &Inode) -> Result<(), ReadError>) -> Result<(), ReadError> {
        let root = self.root()?;
        visit(b"", &root)?;
        let mut seen = HashSet::from([root.nid]);
        let mut names = 0;
        let mut waiting = vec![(Vec::new(), root.clone(), root.nid)];
        while let Some((path, directory, parent)) = waiting.pop() {
            let mut below = Vec::new();
            for entry in self.entries(&directory)? {
                if entry.name == b"." || entry.name == b".." {
                    let expected = if entry.name == b"." { directory.nid } else { parent };
                    check_dot(directory.nid, expected, entry.nid)?;
                    continue;
                }
                let inode = self.inode(entry.nid)?;
                if entry.file_type != 0 && entry.file_type != file_type(inode.mode) {
                    let expected = format!("{} for '{}'", file_type(inode.mode), printable(&entry.name));
                    return Err(ReadError::inode(directory.nid, "file_type", expected, entry.file_type));
                }
                let path = tree::below(&path, &entry.name);
                names += 1;
                self.check_bounds(directory.nid, names, path.len())?;
                visit(&path, &inode)?;
                if inode.is_directory() {
                    if !seen.insert(inode.nid) {
                        let found = format!("another at {}", printable(&path));
                        return Err(ReadError::inode(inode.nid, "name", "one name for a directory", found));
                    }
                    below.push((path, inode, directory.nid));
                }
            }
            waiting.extend(below.into_iter().rev());
        }
        Ok(())
    }

    /// Reads everything that can be reached, to its last byte.
    ///
    /// # Errors
    /// When anything is damaged.
    pub fn check(&self) -> Result<Summary, ReadError> {
        let mut summary = Summary::default();
        let mut links: HashMap<Nid, (u32, u32)> = HashMap::new();
        self.walk(|path, inode| {
            summary.names += u64::from(!path.is_empty());
            let seen = links.entry(inode.nid).or_insert((inode.links, 0));
            seen.1 += 1;
            if seen.1 > 1 {
                return Ok(());
            }
            summary.inodes += 1;
            summary.bytes = summary.bytes.saturating_add(inode.size);
            self.xattrs(inode)?;
            self.check_content(inode)
        })?;
        Ok(summary)
    }

    /// Each name takes its own bytes of the image, so that there cannot be more of them.
    fn check_bounds(&self, nid: Nid, names: u64, path: usize) -> Result<(), ReadError> {
        let most = self.size / ENTRY_SIZE as u64;
        if names > most {
            return Err(ReadError::inode(nid, "names", format!("at most {most} in the image"), names));
        }
        if path > PATH_LIMIT {
            return Err(ReadError::inode(nid, "path", format!("at most {PATH_LIMIT} bytes"), path));
        }
        Ok(())
    }

    fn check_content(&self, inode: &Inode) -> Result<(), ReadError> {
        match inode.file_type() {
            MODE_FILE => self.file(inode)?.check(),
            MODE_SYMLINK => self.link_target(inode).map(|_| ()),
            _ => Ok(()),
        }
    }
}

fn check_dot(nid: Nid, expected: Nid, found: Nid) -> Result<(), ReadError> {
    if expected == found {
        return Ok(());
    }
    Err(ReadError::inode(nid, "nid of '.' or '..'", expected.to_string(), found))
}

impl<R: ReadAt + std::fmt::Debug + Send + Sync + 'static> Image<R> {
    /// The image as a tree, to be written anew or compared. Content is read when it is asked for.
    ///
    /// # Errors
    /// When something is damaged.
    pub fn tree(self: &Arc<Self>) -> Result<Tree, ReadError> {
        let mut tree = Tree::new(self.metadata(&self.root()?)?);
        let mut known: HashMap<Nid, InodeId> = HashMap::new();
        self.walk(|path, inode| {
            if path.is_empty() {
                return Ok(());
            }
            let slash = path.iter().rposition(|byte| *byte == b'/');
            let (directory, name) = slash.map_or((&[][..], path), |at| (&path[..at], &path[at + 1..]));
            let parent = tree.find(directory).unwrap_or(Tree::ROOT);
            let refused = |problem: Problem| ReadError::inode(inode.nid, "inode", "what a tree can hold", problem);
            if let Some(first) = known.get(&inode.nid) {
                return tree.link_child(parent, name, *first).map_err(refused);
            }
            let node = Node { metadata: self.metadata(inode)?, kind: self.kind(inode)? };
            known.insert(inode.nid, tree.add_child(parent, name, node).map_err(refused)?);
            Ok(())
        })?;
        Ok(tree)
    }

    fn metadata(&self, inode: &Inode) -> Result<Metadata, ReadError> {
        let (uid, gid, mtime) = (inode.uid, inode.gid, inode.mtime);
        Ok(Metadata { mode: inode.mode & 0o7777, uid, gid, mtime, xattrs: self.xattrs(inode)? })
    }

    fn kind(self: &Arc<Self>, inode: &Inode) -> Result<Kind, ReadError> {
        let device = inode.device().unwrap_or_default();
        Ok(match inode.file_type() {
            MODE_DIRECTORY => Kind::Directory,
            MODE_SYMLINK => Kind::Symlink(self.link_target(inode)?),
            MODE_CHARACTER => Kind::CharacterDevice(device),
            MODE_BLOCK => Kind::BlockDevice(device),
            MODE_FIFO => Kind::Fifo,
            MODE_SOCKET => Kind::Socket,
            _ => {
                let content = FileInImage { image: Arc::clone(self), inode: inode.clone() };
                Node::file(Metadata::default(), content).kind
            }
        })
    }
}

/// A file of an image as content of a tree.
#[derive(Debug)]
struct FileInImage<R> {
    image: Arc<Image<R>>,
    inode: Inode,
}

impl<R: ReadAt + std::fmt::Debug + Send + Sync> Content for FileInImage<R> {
    fn size(&self) -> u64 {
        self.inode.size
    }

    fn open(&self) -> io::Result<Box<dyn ContentReader + '_>> {
        let file = self.image.file(&self.inode).map_err(io::Error::other)?;
        Ok(Box::new(Opened(Mutex::new(file))))
    }

    fn name(&self) -> String {
        format!("{} of an image", self.inode.nid)
    }
}

struct Opened<'a, R>(Mutex<super::File<'a, R>>);

impl<R: ReadAt + Send + Sync> ContentReader for Opened<'_, R> {
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.read_exact_at(target, offset).map_err(io::Error::other)
    }
}
