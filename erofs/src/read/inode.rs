//! Inodes.

use super::{Image, Place, ReadAt, ReadError};
use crate::{
    format::{
        inode::*,
        units::{Nid, SLOT_SIZE},
    },
    tree::{Device, Time},
};

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub nid: Nid,
    /// Its mode with the file type.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When its content was changed.
    pub mtime: Time,
    /// Its names, as it counts them.
    pub links: u32,
    /// Bytes of its content.
    pub size: u64,
    /// How its content is stored.
    pub layout: Layout,
    /// First block, compressed blocks, device number or chunk format.
    pub(super) data: u32,
    pub(super) xattr_size: u64,
    /// The bytes of the inode itself.
    own_size: u64,
    /// Where it lies.
    offset: u64,
}

impl Inode {
    /// The file type: `S_IFMT`.
    pub fn file_type(&self) -> u16 {
        self.mode & MODE_TYPE
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.file_type() == MODE_DIRECTORY
    }

    /// Whether it has content: a file, directory or link.
    pub fn has_data(&self) -> bool {
        matches!(self.file_type(), MODE_FILE | MODE_DIRECTORY | MODE_SYMLINK)
    }

    /// The number of the device that it is.
    pub fn device(&self) -> Option<Device> {
        matches!(self.file_type(), MODE_CHARACTER | MODE_BLOCK).then(|| Device::decode(self.data))
    }

    /// Where the attributes begin.
    pub(super) fn xattr_offset(&self) -> u64 {
        self.offset + self.own_size
    }

    /// Where what follows the attributes begins.
    pub(super) fn after(&self) -> u64 {
        self.offset + self.own_size + self.xattr_size
    }
}

impl<R: ReadAt> Image<R> {
    /// Reads an inode.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn inode(&self, nid: Nid) -> Result<Inode, ReadError> {
        let base = self.superblock.meta.offset(self.superblock.block_bits);
        let offset = nid.0.checked_mul(SLOT_SIZE as u64).and_then(|place| place.checked_add(base));
        let Some(offset) = offset.filter(|offset| *offset < self.size) else {
            return Err(ReadError::inode(nid, "nid", "a place within the image", nid.0));
        };
        let format: zerocopy::little_endian::U16 = self.structure(nid, offset)?;
        if format.get() & FORMAT_EXTENDED != 0 { self.extended(nid, offset) } else { self.compact(nid, offset) }
    }

    fn compact(&self, nid: Nid, offset: u64) -> Result<Inode, ReadError> {
        let raw: CompactInode = self.structure(nid, offset)?;
        check(Inode {
            nid,
            mode: raw.mode.get(),
            uid: raw.uid.get().into(),
            gid: raw.gid.get().into(),
            mtime: self.superblock.build_time,
            links: raw.links.get().into(),
            size: raw.size.get().into(),
            layout: layout(nid, raw.format.get())?,
            data: raw.data.get(),
            xattr_size: xattr_size(raw.xattr_count.get()),
            own_size: size_of::<CompactInode>() as u64,
            offset,
        })
    }

    fn extended(&self, nid: Nid, offset: u64) -> Result<Inode, ReadError> {
        let raw: ExtendedInode = self.structure(nid, offset)?;
        check(Inode {
            nid,
            mode: raw.mode.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            mtime: Time { seconds: raw.mtime.get() as i64, nanoseconds: raw.mtime_nanoseconds.get() },
            links: raw.links.get(),
            size: raw.size.get(),
            layout: layout(nid, raw.format.get())?,
            data: raw.data.get(),
            xattr_size: xattr_size(raw.xattr_count.get()),
            own_size: size_of::<ExtendedInode>() as u64,
            offset,
        })
    }
}

/// `erofs_xattr_ibody_size`
fn xattr_size(count: u16) -> u64 {
    if count == 0 { 0 } else { 12 + 4 * (u64::from(count) - 1) }
}

fn layout(nid: Nid, format: u16) -> Result<Layout, ReadError> {
    if format & !FORMAT_KNOWN != 0 {
        let feature = format!("i_format {format:#x}");
        return Err(ReadError::Unsupported { place: Place::Inode(nid), feature });
    }
    Layout::of_format(format)
        .ok_or_else(|| ReadError::inode(nid, "i_format", "a layout from 0 to 4", format >> FORMAT_LAYOUT_SHIFT))
}

fn check(inode: Inode) -> Result<Inode, ReadError> {
    let known = [MODE_DIRECTORY, MODE_FILE, MODE_SYMLINK, MODE_CHARACTER, MODE_BLOCK, MODE_FIFO, MODE_SOCKET];
    if !known.contains(&inode.file_type()) {
        return Err(ReadError::inode(inode.nid, "i_mode", "a known file type", format!("{:#o}", inode.mode)));
    }
    if inode.size > i64::MAX as u64 {
        return Err(ReadError::inode(inode.nid, "i_size", "less than 2^63", inode.size));
    }
    if inode.mtime.nanoseconds >= 1_000_000_000 {
        return Err(ReadError::inode(inode.nid, "i_mtime_nsec", "less than 1000000000", inode.mtime.nanoseconds));
    }
    Ok(inode)
}
