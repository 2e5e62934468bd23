//! Reads images, without trust in anything that they say.
//!
//! Every number is checked against what is there before it is used; nothing recurses, and no buffer is larger than what
//! the image itself holds or a constant allows. Read are the layouts that the writer of this crate and `mkfs.erofs`
//! make by default, and those of its older versions. Not read are fragments, other devices, long prefixes of attributes,
//! LZMA and DEFLATE.

mod compressed;
mod data;
mod directory;
mod error;
mod index;
mod inode;
mod source;
mod superblock;
mod walk;
mod xattr;

pub(crate) use compressed::{decompress_lz4, decompress_zstd};
pub use data::File;
pub use directory::Entry;
pub use error::{Place, ReadError};
pub use inode::Inode;
pub use source::ReadAt;
pub use superblock::Superblock;
pub use walk::Summary;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::format::{inode::MODE_SYMLINK, units::Nid};

/// An image that is read.
#[derive(Debug)]
pub struct Image<R> {
    source: R,
    superblock: Superblock,
    /// Bytes: what the superblock says, which are all there.
    size: u64,
}

impl<R: ReadAt> Image<R> {
    /// Reads and checks the superblock.
    ///
    /// # Errors
    /// Something that is no erofs, is damaged or cut, or has features that are not read here.
    pub fn open(source: R) -> Result<Self, ReadError> {
        let there = source.size().map_err(|source| ReadError::Io { offset: 0, length: 0, source })?;
        let superblock = superblock::read(&source, there)?;
        let size = u64::from(superblock.blocks) << superblock.block_bits;
        Ok(Self { source, superblock, size })
    }

    /// What the image says about itself.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The root directory.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn root(&self) -> Result<Inode, ReadError> {
        let root = self.inode(self.superblock.root)?;
        if !root.is_directory() {
            return Err(ReadError::inode(root.nid, "i_mode", "a directory as the root", format!("{:#o}", root.mode)));
        }
        Ok(root)
    }

    /// What is at a path of names between single slashes, following no link; `None` if nothing is.
    ///
    /// # Errors
    /// When something on the way is damaged.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<Inode>, ReadError> {
        let mut at = self.root()?;
        for name in path.split(|byte| *byte == b'/').filter(|_| !path.is_empty()) {
            if !at.is_directory() {
                return Ok(None);
            }
            let entries = self.entries(&at)?;
            let Ok(number) = entries.binary_search_by(|entry| entry.name.as_slice().cmp(name)) else { return Ok(None) };
            at = self.inode(entries[number].nid)?;
        }
        Ok(Some(at))
    }

    /// Up to `length` bytes of a file or link from `offset` on, fewer at its end.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn read(&self, inode: &Inode, offset: u64, length: usize) -> Result<Vec<u8>, ReadError> {
        let rest = inode.size.saturating_sub(offset);
        let length = usize::try_from(rest).map_or(length, |rest| rest.min(length));
        let mut bytes = vec![0; length];
        self.file(inode)?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// When it is none, or damaged.
    pub fn link_target(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        if inode.file_type() != MODE_SYMLINK {
            return Err(ReadError::inode(inode.nid, "i_mode", "a symbolic link", format!("{:#o}", inode.mode)));
        }
        let limit = crate::tree::TARGET_LIMIT as u64;
        if inode.size == 0 || inode.size > limit {
            return Err(ReadError::inode(inode.nid, "i_size", format!("1 to {limit} for a link"), inode.size));
        }
        self.read(inode, 0, inode.size as usize)
    }

    /// Bytes of a block.
    pub(crate) fn block_size(&self) -> u64 {
        1 << self.superblock.block_bits
    }

    fn bytes(&self, nid: Nid, offset: u64, target: &mut [u8]) -> Result<(), ReadError> {
        let end = offset.checked_add(target.len() as u64).filter(|end| *end <= self.size);
        if end.is_none() {
            let found = format!("{} bytes at byte {offset}", target.len());
            return Err(ReadError::inode(nid, "place", format!("within the image's {} bytes", self.size), found));
        }
        let length = target.len();
        self.source.read_exact_at(target, offset).map_err(|source| ReadError::Io { offset, length, source })
    }

    fn structure<T: FromBytes + IntoBytes + FromZeros>(&self, nid: Nid, offset: u64) -> Result<T, ReadError> {
        let mut value = T::new_zeroed();
        self.bytes(nid, offset, value.as_mut_bytes())?;
        Ok(value)
    }
}
