//! Extended attributes.

use zerocopy::FromBytes;

use super::{Image, Inode, Place, ReadAt, ReadError};
use crate::{
    format::{
        units::Nid,
        xattr::{LONG_PREFIX, RawEntry, RawHeader, UNIT, join},
    },
    tree::Xattrs,
};

impl<R: ReadAt> Image<R> {
    /// An inode's attributes.
    ///
    /// # Errors
    /// When they are damaged.
    pub fn xattrs(&self, inode: &Inode) -> Result<Xattrs, ReadError> {
        let mut found = Xattrs::new();
        if inode.xattr_size == 0 {
            return Ok(found);
        }
        let nid = inode.nid;
        // 256 KiB at most, by the width of its count.
        let mut body = vec![0; inode.xattr_size as usize];
        self.bytes(nid, inode.xattr_offset(), &mut body)?;
        let cut = || ReadError::inode(nid, "i_xattr_icount", "room for all that it counts", inode.xattr_size);
        let (header, rest) = RawHeader::read_from_prefix(&body).map_err(|_| cut())?;
        let (numbers, mut inline) = rest.split_at_checked(usize::from(header.shared) * UNIT).ok_or_else(cut)?;
        for number in numbers.chunks_exact(UNIT) {
            let number = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
            let (name, value) = self.shared_xattr(nid, number)?;
            insert(nid, &mut found, name, value)?;
        }
        while !inline.is_empty() {
            let (name, value, size) = parse(nid, inline)?;
            insert(nid, &mut found, name, value)?;
            inline = inline.get(size..).unwrap_or_default();
        }
        Ok(found)
    }

    fn shared_xattr(&self, nid: Nid, number: u32) -> Result<(Vec<u8>, Vec<u8>), ReadError> {
        let area = self.superblock.xattrs.offset(self.superblock.block_bits);
        let offset = area + u64::from(number) * UNIT as u64;
        let header: RawEntry = self.structure(nid, offset)?;
        let size = entry_size(&header);
        let mut bytes = vec![0; size];
        self.bytes(nid, offset, &mut bytes)?;
        let (name, value, _) = parse(nid, &bytes)?;
        Ok((name, value))
    }
}

fn entry_size(header: &RawEntry) -> usize {
    size_of::<RawEntry>() + usize::from(header.name_size) + usize::from(header.value_size.get())
}

/// The first entry, and its size with padding.
fn parse(nid: Nid, bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>, usize), ReadError> {
    let cut = || ReadError::inode(nid, "e_value_size", "an entry within the attributes", bytes.len());
    let (header, rest) = RawEntry::read_from_prefix(bytes).map_err(|_| cut())?;
    let (rest_name, rest) = rest.split_at_checked(header.name_size.into()).ok_or_else(cut)?;
    let value = rest.get(..header.value_size.get().into()).ok_or_else(cut)?;
    if header.prefix & LONG_PREFIX != 0 {
        let feature = "an attribute with a long prefix".into();
        return Err(ReadError::Unsupported { place: Place::Inode(nid), feature });
    }
    let unknown = || ReadError::inode(nid, "e_name_index", "a known prefix", header.prefix);
    let name = join(header.prefix, rest_name).filter(|name| !name.contains(&0)).ok_or_else(unknown)?;
    Ok((name, value.to_vec(), entry_size(&header).next_multiple_of(UNIT)))
}

fn insert(nid: Nid, found: &mut Xattrs, name: Vec<u8>, value: Vec<u8>) -> Result<(), ReadError> {
    let printable = crate::tree::printable(&name);
    if found.insert(name, value).is_some() {
        return Err(ReadError::inode(nid, "e_name", "each attribute once", printable));
    }
    Ok(())
}
