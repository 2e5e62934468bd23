//! Blocks of directories.

use std::ops::Range;

use zerocopy::IntoBytes;

use crate::{
    format::{
        directory::{ENTRY_SIZE, RawEntry, file_type},
        units::{BLOCK_SIZE, Nid},
    },
    tree::{InodeId, Tree},
};

/// All names of a directory with those of itself and its parent, sorted by bytes.
pub(super) fn listing(tree: &Tree, id: InodeId) -> Vec<(&[u8], InodeId)> {
    let entries = tree.entries(id).iter().map(|(name, child)| (name.as_slice(), *child));
    let own = [(&b"."[..], id), (&b".."[..], tree.inode(id).parent)];
    let mut all: Vec<_> = entries.chain(own).collect();
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

/// Which entries go into which block, and the bytes that each fills.
pub(super) fn split(listing: &[(&[u8], InodeId)]) -> Vec<(Range<usize>, usize)> {
    let mut blocks = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (number, (name, _)) in listing.iter().enumerate() {
        let needed = ENTRY_SIZE + name.len();
        if used + needed > BLOCK_SIZE {
            blocks.push((start..number, used));
            (start, used) = (number, 0);
        }
        used += needed;
    }
    blocks.push((start..listing.len(), used));
    blocks
}

/// One block, not filled up.
pub(super) fn render(tree: &Tree, entries: &[(&[u8], InodeId)], nid: impl Fn(InodeId) -> Nid, target: &mut Vec<u8>) {
    let mut offset = entries.len() * ENTRY_SIZE;
    for (name, id) in entries {
        let entry = RawEntry {
            nid: nid(*id).0.into(),
            name_offset: (offset as u16).into(),
            file_type: file_type(tree.node(*id).kind.mode()),
            reserved: 0,
        };
        target.extend_from_slice(entry.as_bytes());
        offset += name.len();
    }
    entries.iter().for_each(|(name, _)| target.extend_from_slice(name));
}
