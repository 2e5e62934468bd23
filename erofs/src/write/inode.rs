//! One inode: how it is stored, and its bytes.

use std::{ops::Range, sync::Arc};

use zerocopy::IntoBytes;

use super::{
    WriteError,
    contents::{Data, Stored},
    directory, index,
    slots::Fit,
    xattrs,
};
use crate::{
    format::{
        inode::*,
        units::{BLOCK_SIZE, Block, SLOT_SIZE},
    },
    tree::{InodeId, Kind, Time, Tree, printable},
};

/// How an inode will be stored.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) extended: bool,
    pub(super) xattr_size: usize,
    pub(super) size: u64,
    pub(super) body: Body,
}

/// What an inode has besides metadata.
#[derive(Debug)]
pub(super) enum Body {
    /// Nothing, or a device's number.
    Number(u32),
    /// Entries in blocks; the last of them behind the inode, if `inline`.
    Directory { blocks: Vec<(Range<usize>, usize)>, first: Block, inline: bool },
    /// A link's target, in a block of its own unless it is short.
    Symlink { block: Option<Block> },
    /// Content.
    File(Arc<Stored>),
}

/// What is not an inode's own.
pub(super) struct Context<'a> {
    pub(super) tree: &'a Tree,
    pub(super) build_time: Time,
}

impl Context<'_> {
    /// Plans an inode whose attributes take `xattr_size` bytes. `content` is given for regular files.
    pub(super) fn plan(
        &self,
        id: InodeId,
        xattr_size: usize,
        content: Option<&Arc<Stored>>,
    ) -> Result<Plan, WriteError> {
        if xattrs::count(xattr_size).is_none() {
            return Err(self.refuse(id, "attributes", "at most 262144 bytes", xattr_size.to_string()));
        }
        let node = self.tree.node(id);
        let (size, body) = match &node.kind {
            Kind::Directory => directory_body(self.tree, id),
            Kind::Symlink(target) => (target.len() as u64, Body::Symlink { block: None }),
            Kind::CharacterDevice(device) | Kind::BlockDevice(device) => {
                let number = device.encode().ok_or_else(|| {
                    let found = format!("{}:{}", device.major, device.minor);
                    self.refuse(id, "device number", "12 bits and 20 bits", found)
                })?;
                (0, Body::Number(number))
            }
            Kind::Fifo | Kind::Socket => (0, Body::Number(0)),
            Kind::File(_) => {
                let missing = || self.refuse(id, "content", "what was stored", "nothing".into());
                let stored = content.ok_or_else(missing)?;
                (stored.size, Body::File(Arc::clone(stored)))
            }
        };
        Ok(Plan { extended: !self.fits_compact(id, size), xattr_size, size, body })
    }

    fn fits_compact(&self, id: InodeId, size: u64) -> bool {
        let metadata = &self.tree.node(id).metadata;
        metadata.mtime == self.build_time
            && u16::try_from(metadata.uid).is_ok()
            && u16::try_from(metadata.gid).is_ok()
            && u16::try_from(self.tree.links(id)).is_ok()
            && u32::try_from(size).is_ok()
    }

    pub(super) fn refuse(&self, id: InodeId, field: &'static str, expected: &str, found: String) -> WriteError {
        WriteError::Inode { path: printable(&self.tree.path(id)), field, expected: expected.into(), found }
    }

    /// The inode's own bytes.
    pub(super) fn render(&self, id: InodeId, plan: &Plan, number: u32) -> Vec<u8> {
        let node = self.tree.node(id);
        let (layout, data) = plan.layout();
        let mode = node.kind.mode() | node.metadata.mode & 0o7777;
        let xattr_count = xattrs::count(plan.xattr_size).unwrap_or(0).into();
        if plan.extended {
            let inode = ExtendedInode {
                format: (FORMAT_EXTENDED | layout.format()).into(),
                xattr_count,
                mode: mode.into(),
                size: plan.size.into(),
                data: data.into(),
                number: number.into(),
                uid: node.metadata.uid.into(),
                gid: node.metadata.gid.into(),
                mtime: (node.metadata.mtime.seconds as u64).into(),
                mtime_nanoseconds: node.metadata.mtime.nanoseconds.into(),
                links: self.tree.links(id).into(),
                ..ExtendedInode::default()
            };
            return inode.as_bytes().to_vec();
        }
        let inode = CompactInode {
            format: layout.format().into(),
            xattr_count,
            mode: mode.into(),
            links: (self.tree.links(id) as u16).into(),
            size: (plan.size as u32).into(),
            data: data.into(),
            number: number.into(),
            uid: (node.metadata.uid as u16).into(),
            gid: (node.metadata.gid as u16).into(),
            ..CompactInode::default()
        };
        inode.as_bytes().to_vec()
    }
}

/// The last block goes behind the inode where it leaves room for it.
fn directory_body(tree: &Tree, id: InodeId) -> (u64, Body) {
    let blocks = directory::split(&directory::listing(tree, id));
    let last = blocks.last().map_or(0, |(_, used)| *used);
    let size = ((blocks.len() - 1) * BLOCK_SIZE + last) as u64;
    (size, Body::Directory { inline: last <= BLOCK_SIZE - SLOT_SIZE, blocks, first: Block(0) })
}

impl Plan {
    /// Bytes of inode and attributes.
    pub(super) fn before(&self) -> usize {
        let own = if self.extended { size_of::<ExtendedInode>() } else { size_of::<CompactInode>() };
        own + self.xattr_size
    }

    /// Bytes of everything, and what of it must lie within a block.
    pub(super) fn extent(&self) -> (usize, Fit) {
        let (after, fit) = match &self.body {
            Body::Number(_) | Body::Symlink { block: Some(_) } => (0, Fit::Anywhere),
            Body::Symlink { block: None } => (self.size as usize, Fit::Whole),
            Body::Directory { inline: false, .. } => (0, Fit::Anywhere),
            Body::Directory { blocks, .. } => tail(blocks.last().map_or(0, |(_, used)| *used)),
            Body::File(stored) => match &stored.data {
                Data::Flat { tail: kept, .. } => tail(kept.length.into()),
                Data::Chunks { blocks, .. } => (4 * blocks.len(), Fit::Anywhere),
                Data::Compressed { .. } => (index::size(self.before(), self.size), Fit::Anywhere),
            },
        };
        (self.before() + after, fit)
    }

    /// The layout, and the field whose meaning depends on it.
    fn layout(&self) -> (Layout, u32) {
        match &self.body {
            Body::Number(number) => (Layout::FlatPlain, *number),
            Body::Symlink { block } => block.map_or((Layout::FlatInline, 0), |block| (Layout::FlatPlain, block.0)),
            Body::Directory { inline: true, first, .. } => (Layout::FlatInline, first.0),
            Body::Directory { first, .. } => (Layout::FlatPlain, first.0),
            Body::File(stored) => match &stored.data {
                Data::Flat { first, tail } if tail.length == 0 => (Layout::FlatPlain, first.0),
                Data::Flat { first, .. } => (Layout::FlatInline, first.0),
                Data::Chunks { bits, .. } => (Layout::ChunkBased, (*bits).into()),
                Data::Compressed { clusters, .. } => {
                    let blocks = clusters.iter().map(|cluster| u32::from(cluster.blocks)).sum();
                    (Layout::CompressedCompact, blocks)
                }
            },
        }
    }
}

fn tail(length: usize) -> (usize, Fit) {
    (length, if length == 0 { Fit::Anywhere } else { Fit::Tail(length) })
}
