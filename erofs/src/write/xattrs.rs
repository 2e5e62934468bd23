//! Extended attributes as they are stored. What many inodes have, such as labels, is stored once.

use std::collections::{BTreeMap, HashMap};

use zerocopy::IntoBytes;

use crate::{
    format::xattr::{RawEntry, RawHeader, UNIT, split},
    tree::{Tree, Xattrs},
};

/// `h_shared_count` is a byte.
const SHARED_LIMIT: usize = 255;

/// The attributes that inodes share.
#[derive(Debug, Default)]
pub(super) struct SharedXattrs {
    numbers: HashMap<(Vec<u8>, Vec<u8>), u32>,
    /// The area that holds them.
    pub(super) bytes: Vec<u8>,
}

impl SharedXattrs {
    /// Shares what takes less space so.
    pub(super) fn of(tree: &Tree) -> Self {
        let mut uses: BTreeMap<(&[u8], &[u8]), usize> = BTreeMap::new();
        for id in tree.ids() {
            for (name, value) in &tree.node(id).metadata.xattrs {
                *uses.entry((name, value)).or_default() += 1;
            }
        }
        let mut shared = Self::default();
        for ((name, value), count) in uses {
            let entry = entry(name, value);
            if count * entry.len() > entry.len() + count * UNIT {
                let number = (shared.bytes.len() / UNIT) as u32;
                shared.numbers.insert((name.to_vec(), value.to_vec()), number);
                shared.bytes.extend_from_slice(&entry);
            }
        }
        shared
    }

    /// What follows an inode; nothing without attributes.
    pub(super) fn body(&self, xattrs: &Xattrs) -> Vec<u8> {
        if xattrs.is_empty() {
            return Vec::new();
        }
        let (mut numbers, mut inline) = (Vec::new(), Vec::new());
        for (name, value) in xattrs {
            match self.numbers.get(&(name.clone(), value.clone())) {
                Some(number) if numbers.len() < SHARED_LIMIT => numbers.push(*number),
                _ => inline.extend_from_slice(&entry(name, value)),
            }
        }
        let header = RawHeader { shared: numbers.len() as u8, ..RawHeader::default() };
        let numbers = numbers.into_iter().flat_map(u32::to_le_bytes);
        header.as_bytes().iter().copied().chain(numbers).chain(inline).collect()
    }
}

/// `i_xattr_icount` for a body of so many bytes; `None` if it is too large to be counted.
pub(super) fn count(size: usize) -> Option<u16> {
    match size.checked_sub(size_of::<RawHeader>()) {
        None => Some(0),
        Some(rest) => u16::try_from(rest / UNIT + 1).ok(),
    }
}

fn entry(name: &[u8], value: &[u8]) -> Vec<u8> {
    // The tree refuses names without a prefix.
    let (prefix, rest) = split(name).unwrap_or((0, name));
    let header = RawEntry { name_size: rest.len() as u8, prefix, value_size: (value.len() as u16).into() };
    let mut bytes = [header.as_bytes(), rest, value].concat();
    bytes.resize(bytes.len().next_multiple_of(UNIT), 0);
    bytes
}
