//! Directories.

use zerocopy::FromBytes;

use super::{Image, Inode, ReadAt, ReadError};
use crate::format::{
    directory::{ENTRY_SIZE, NAME_LIMIT, RawEntry},
    units::Nid,
};

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name, without a slash or zero byte. `.` and `..` are among them.
    pub name: Vec<u8>,
    /// What it leads to.
    pub nid: Nid,
    /// `EROFS_FT_*` of that.
    pub file_type: u8,
}

impl<R: ReadAt> Image<R> {
    /// All entries, in the order of their names' bytes, each name once.
    ///
    /// # Errors
    /// When it is no directory, or damaged.
    pub fn entries(&self, directory: &Inode) -> Result<Vec<Entry>, ReadError> {
        let nid = directory.nid;
        if !directory.is_directory() {
            return Err(ReadError::inode(nid, "i_mode", "a directory", format!("{:#o}", directory.mode)));
        }
        if directory.size > self.size {
            let expected = format!("at most the image's {} bytes", self.size);
            return Err(ReadError::inode(nid, "i_size", expected, directory.size));
        }
        let mut file = self.file(directory)?;
        let mut entries: Vec<Entry> = Vec::new();
        let mut block = vec![0; self.block_size() as usize];
        let mut at = 0;
        while at < directory.size {
            let length = (directory.size - at).min(self.block_size()) as usize;
            file.read_exact_at(&mut block[..length], at)?;
            parse(nid, &block[..length], &mut entries)?;
            at += length as u64;
        }
        Ok(entries)
    }
}

/// Adds a block's entries.
fn parse(nid: Nid, block: &[u8], entries: &mut Vec<Entry>) -> Result<(), ReadError> {
    let raw = |number: usize| {
        block.get(number * ENTRY_SIZE..).and_then(|rest| RawEntry::read_from_prefix(rest).ok()).map(|(raw, _)| raw)
    };
    let first = raw(0).map_or(0, |entry| usize::from(entry.name_offset.get()));
    if first == 0 || !first.is_multiple_of(ENTRY_SIZE) || first > block.len() {
        let expected = format!("a multiple of {ENTRY_SIZE} up to {} for the first name", block.len());
        return Err(ReadError::inode(nid, "nameoff", expected, first));
    }
    let count = first / ENTRY_SIZE;
    for number in 0..count {
        let Some(entry) = raw(number) else { break };
        let start = usize::from(entry.name_offset.get());
        let end = if number + 1 == count { None } else { raw(number + 1) };
        let end = end.map_or(block.len(), |next| next.name_offset.get().into());
        let Some(name) = block.get(start..end).filter(|_| start >= first) else {
            return Err(ReadError::inode(nid, "nameoff", format!("ascending, within {} bytes", block.len()), start));
        };
        let name = if number + 1 == count { until_zero(name) } else { name };
        check_name(nid, name, entries.last())?;
        entries.push(Entry { name: name.to_vec(), nid: Nid(entry.nid.get()), file_type: entry.file_type });
    }
    Ok(())
}

/// The block's last name ends at a zero, or at its end.
fn until_zero(name: &[u8]) -> &[u8] {
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn check_name(nid: Nid, name: &[u8], before: Option<&Entry>) -> Result<(), ReadError> {
    let printable = || crate::tree::printable(name);
    if name.is_empty() || name.len() > NAME_LIMIT || name.contains(&b'/') || name.contains(&0) {
        let expected = format!("a name of 1 to {NAME_LIMIT} bytes without slash and zero");
        return Err(ReadError::inode(nid, "name", expected, printable()));
    }
    // Lookups search by halves: what is out of order is found by some and not by others.
    if before.is_some_and(|before| before.name.as_slice() >= name) {
        return Err(ReadError::inode(nid, "name", "names in ascending order", printable()));
    }
    Ok(())
}
