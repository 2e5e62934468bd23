//! Where everything that follows the data of files will lie, down to the last block: known before any of it is written.

use super::{
    WriteError,
    inode::{Body, Plan},
    output,
    slots::Slots,
};
use crate::{
    format::units::{BLOCK_SIZE, Block, Nid, SLOT_SIZE},
    tree::InodeId,
};

/// Bytes of attributes' header, which fsck.erofs 1.5 reads behind each inode, also where there is none.
const XATTR_HEADER_SIZE: usize = 12;

/// Places of all parts.
#[derive(Debug)]
pub(super) struct Layout {
    /// Of each inode, in the tree's order.
    pub(super) plans: Vec<Plan>,
    /// The place of each inode from the start of the metadata area.
    places: Vec<usize>,
    /// The first block of shared attributes; 0 without any.
    pub(super) xattrs: Block,
    /// The first block of the metadata area.
    pub(super) meta: Block,
    /// Bytes of the metadata area that are more than filling.
    pub(super) meta_size: usize,
    /// Behind the last block.
    pub(super) end: Block,
}

impl Layout {
    /// Lays out inodes and `xattr_size` bytes of shared attributes from block `first` on.
    pub(super) fn new(mut plans: Vec<Plan>, xattr_size: usize, first: Block) -> Result<Self, WriteError> {
        let mut next = Next(first.0.into());
        for plan in &mut plans {
            next.detach_long_link(plan)?;
        }
        let places = places(&plans);
        for plan in &mut plans {
            next.place_directory(plan)?;
        }
        let xattrs = if xattr_size > 0 { next.take(xattr_size)? } else { Block(0) };
        let ends = plans.iter().zip(&places).map(|(plan, place)| place + plan.extent().0);
        let mut meta_size = ends.max().unwrap_or(0);
        if meta_size.next_multiple_of(BLOCK_SIZE) - meta_size < XATTR_HEADER_SIZE {
            meta_size += XATTR_HEADER_SIZE;
        }
        let meta = next.take(meta_size)?;
        Ok(Self { plans, places, xattrs, meta, meta_size, end: next.take(0)? })
    }

    pub(super) fn plan(&self, id: InodeId) -> &Plan {
        &self.plans[id.index()]
    }

    /// Bytes from the start of the metadata area.
    pub(super) fn place(&self, id: InodeId) -> usize {
        self.places[id.index()]
    }

    pub(super) fn nid(&self, id: InodeId) -> Nid {
        Nid((self.place(id) / SLOT_SIZE) as u64)
    }
}

fn places(plans: &[Plan]) -> Vec<usize> {
    let mut slots = Slots::new();
    let places = plans.iter().map(|plan| {
        let (length, fit) = plan.extent();
        slots.place(length, fit)
    });
    places.collect()
}

/// The number of the next block.
struct Next(u64);

impl Next {
    /// Whole blocks for so many bytes.
    fn take(&mut self, bytes: usize) -> Result<Block, WriteError> {
        let first = output::number(self.0)?;
        self.0 += bytes.div_ceil(BLOCK_SIZE) as u64;
        output::number(self.0)?;
        Ok(first)
    }

    /// The target of a symbolic link that does not fit into a block with its inode.
    fn detach_long_link(&mut self, plan: &mut Plan) -> Result<(), WriteError> {
        if matches!(plan.body, Body::Symlink { .. }) && plan.extent().0 > BLOCK_SIZE {
            plan.body = Body::Symlink { block: Some(self.take(plan.size as usize)?) };
        }
        Ok(())
    }

    /// The blocks of a directory that do not lie behind its inode.
    fn place_directory(&mut self, plan: &mut Plan) -> Result<(), WriteError> {
        if let Body::Directory { blocks, first, inline } = &mut plan.body {
            *first = self.take((blocks.len() - usize::from(*inline)) * BLOCK_SIZE)?;
        }
        Ok(())
    }
}
