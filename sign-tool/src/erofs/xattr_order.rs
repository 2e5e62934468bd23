//! Puts each file's extended attributes in the order of their names.
//!
//! `mkfs.erofs` stores them as the file system lists them, which follows their creation, so the same tree would give
//! other bytes after a copy. Entries stand for themselves, and their order means nothing: they are permuted in place.
//! Layouts are from Linux `fs/erofs/erofs_fs.h`.

use std::{collections::HashSet, fs::File, io, os::unix::fs::FileExt, path::Path};

use super::{ImageError, superblock::Superblock};

const NID_SIZE: u64 = 32;
const DIRENT_SIZE: usize = 12;
const XATTR_HEADER: usize = 12;
const MODE_TYPE: u16 = 0o170_000;
const MODE_DIRECTORY: u16 = 0o040_000;
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
/// Directories of more bytes than this are not made by anyone.
const DIRECTORY_LIMIT: u64 = 1 << 32;

/// Sorts all attributes in an image that was just written. The superblock's checksum must be made anew afterwards.
pub(super) fn sort(file: &File, image: &Path, found: &Superblock) -> Result<(), ImageError> {
    let walk = Walk {
        file,
        image,
        block_size: found.block_size.into(),
        meta: u64::from(found.meta_block) * u64::from(found.block_size),
    };
    let mut seen = HashSet::from([found.root_nid]);
    let mut waiting = vec![found.root_nid];
    while let Some(nid) = waiting.pop() {
        let inode = walk.inode(nid)?;
        walk.sort_attributes(&inode)?;
        if inode.mode & MODE_TYPE == MODE_DIRECTORY {
            waiting.extend(walk.children(&inode)?.into_iter().filter(|child| seen.insert(*child)));
        }
    }
    Ok(())
}

struct Walk<'a> {
    file: &'a File,
    image: &'a Path,
    block_size: u64,
    meta: u64,
}

struct Inode {
    /// Where its attributes start: bytes from the image's start.
    attributes: u64,
    attributes_size: usize,
    layout: u16,
    mode: u16,
    size: u64,
    block: u32,
}

impl Walk<'_> {
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, ImageError> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset).map_err(|source| self.io("read", source))?;
        Ok(bytes)
    }

    fn io(&self, doing: &'static str, source: io::Error) -> ImageError {
        ImageError::Io { doing, path: self.image.to_owned(), source }
    }

    fn bad(&self, field: &'static str, expected: &str, found: &dyn ToString) -> ImageError {
        let (expected, found) = (expected.to_owned(), found.to_string());
        ImageError::Format { path: self.image.to_owned(), field, expected, found }
    }

    fn inode(&self, nid: u64) -> Result<Inode, ImageError> {
        let offset = nid.checked_mul(NID_SIZE).and_then(|offset| offset.checked_add(self.meta));
        let offset = offset.ok_or_else(|| self.bad("nid", "an inode inside the image", &nid))?;
        let bytes = self.read(offset, 32)?;
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let format = short(0);
        let extended = format & 1 != 0;
        let size = if extended { u64::from(word(8)) | u64::from(word(12)) << 32 } else { word(8).into() };
        let count = usize::from(short(2));
        Ok(Inode {
            attributes: offset + if extended { 64 } else { 32 },
            attributes_size: if count == 0 { 0 } else { XATTR_HEADER + (count - 1) * 4 },
            layout: format >> 1 & 7,
            mode: short(4),
            size,
            block: word(16),
        })
    }

    fn sort_attributes(&self, inode: &Inode) -> Result<(), ImageError> {
        if inode.attributes_size == 0 {
            return Ok(());
        }
        let old = self.read(inode.attributes, inode.attributes_size)?;
        let start = XATTR_HEADER + 4 * usize::from(old[4]);
        let mut entries = self.entries(old.get(start..).unwrap_or_default())?;
        if entries.is_sorted() {
            return Ok(());
        }
        entries.sort_unstable();
        let sorted: Vec<u8> = entries.into_iter().flat_map(|entry| entry.bytes).copied().collect();
        let offset = inode.attributes + start as u64;
        self.file.write_all_at(&sorted, offset).map_err(|source| self.io("write", source))
    }

    fn entries<'a>(&self, mut bytes: &'a [u8]) -> Result<Vec<Entry<'a>>, ImageError> {
        let mut entries = Vec::new();
        // A zero length of name and value with prefix 0 would be padding at the end.
        while bytes.len() >= 4 && bytes[..4] != [0; 4] {
            let name = usize::from(bytes[0]);
            let size = (4 + name + usize::from(u16::from_le_bytes([bytes[2], bytes[3]]))).next_multiple_of(4);
            let (entry, rest) = bytes
                .split_at_checked(size)
                .ok_or_else(|| self.bad("e_value_size", "an attribute inside its inode", &size))?;
            entries.push(Entry { prefix: entry[1], name: &entry[4..4 + name], bytes: entry });
            bytes = rest;
        }
        Ok(entries)
    }

    /// The inodes that a directory lists, itself and its parent among them.
    fn children(&self, inode: &Inode) -> Result<Vec<u64>, ImageError> {
        if !matches!(inode.layout, FLAT_PLAIN | FLAT_INLINE) || inode.size > DIRECTORY_LIMIT {
            return Err(self.bad("i_format", "a directory in plain blocks", &inode.layout));
        }
        let mut children = Vec::new();
        let blocks = inode.size.div_ceil(self.block_size);
        for block in 0..blocks {
            let length = self.block_size.min(inode.size - block * self.block_size) as usize;
            let offset = if inode.layout == FLAT_INLINE && block + 1 == blocks {
                inode.attributes + inode.attributes_size as u64
            } else {
                (u64::from(inode.block) + block) * self.block_size
            };
            self.block_children(&self.read(offset, length)?, &mut children)?;
        }
        Ok(children)
    }

    fn block_children(&self, block: &[u8], children: &mut Vec<u64>) -> Result<(), ImageError> {
        let names = block.get(8..10).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
        if names < DIRENT_SIZE || !names.is_multiple_of(DIRENT_SIZE) || names > block.len() {
            return Err(self.bad("nameoff", "a multiple of 12 inside the block", &names));
        }
        let numbers = block[..names].chunks_exact(DIRENT_SIZE);
        children.extend(numbers.map(|entry| u64::from_le_bytes(entry[..8].try_into().expect("8 bytes"))));
        Ok(())
    }
}

/// Compared by prefix and name.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entry<'a> {
    prefix: u8,
    name: &'a [u8],
    bytes: &'a [u8],
}
