//! Everything that follows the data of files.

use std::collections::HashMap;

use super::{
    BlockSink, Options, WriteError, Written,
    contents::{Contents, Data},
    directory, identity, index,
    inode::{Body, Context},
    layout::Layout,
    output::Output,
    superblock::{self, Facts},
    xattrs::SharedXattrs,
};
use crate::{
    format::units::{BLOCK_SIZE, Block},
    tree::{InodeId, Kind, Time, Tree},
};

/// Writes it, block 0 first.
pub(super) fn write<S: BlockSink>(
    tree: &Tree,
    contents: &mut Contents,
    output: &mut Output<S>,
    options: &Options,
) -> Result<(Written, Layout), WriteError> {
    let build_time = options.build_time.unwrap_or_else(|| most_common_time(tree));
    let context = Context { tree, build_time };
    let shared = SharedXattrs::of(tree);
    let mut plans = Vec::with_capacity(tree.len());
    for id in tree.ids() {
        let xattr_size = shared.body(&tree.node(id).metadata.xattrs).len();
        plans.push(context.plan(id, xattr_size, contents.get(id))?);
    }
    let layout = Layout::new(plans, shared.bytes.len(), output.next()?)?;
    let mut facts = facts(&context, &layout);
    facts.uuid = identity::uuid(&context, &layout, &shared, &superblock::render(&facts, options));
    output.block_zero(&superblock::render(&facts, options))?;
    let algorithm = superblock::algorithm(options.compression);
    Writer { context, shared, layout: &layout, contents, output, algorithm }.write()?;
    let written = Written {
        blocks: facts.blocks.0,
        inodes: facts.inodes,
        uuid: facts.uuid,
        duplicates: contents.duplicates,
        compressed: facts.compressed,
        unchanged: contents.unchanged,
    };
    Ok((written, layout))
}

/// Most inodes of a packaged system have one of few times; those with the image's need half the space.
fn most_common_time(tree: &Tree) -> Time {
    let mut counts: HashMap<Time, u64> = HashMap::new();
    tree.ids().for_each(|id| *counts.entry(tree.node(id).metadata.mtime).or_default() += 1);
    let best = counts.into_iter().max_by_key(|(time, count)| (*count, std::cmp::Reverse(*time)));
    best.map_or_else(Time::default, |(time, _)| time)
}

/// What the superblock tells, still without the UUID.
fn facts(context: &Context<'_>, layout: &Layout) -> Facts {
    Facts {
        blocks: layout.end,
        inodes: layout.plans.len() as u64,
        root_nid: layout.nid(Tree::ROOT).0 as u16,
        meta: layout.meta,
        xattrs: layout.xattrs,
        build_time: context.build_time,
        uuid: [0; 16],
        compressed: files(layout).filter(|data| matches!(data, Data::Compressed { .. })).count() as u64,
        chunked: files(layout).any(|data| matches!(data, Data::Chunks { .. })),
    }
}

fn files(layout: &Layout) -> impl Iterator<Item = &Data> {
    layout.plans.iter().filter_map(|plan| match &plan.body {
        Body::File(stored) => Some(&stored.data),
        _ => None,
    })
}

struct Writer<'a, S> {
    context: Context<'a>,
    shared: SharedXattrs,
    layout: &'a Layout,
    contents: &'a Contents,
    output: &'a mut Output<S>,
    /// The number of the compression.
    algorithm: u8,
}

impl<S: BlockSink> Writer<'_, S> {
    fn write(&mut self) -> Result<(), WriteError> {
        self.long_links()?;
        self.directories()?;
        self.output.push(&self.shared.bytes)?;
        self.output.pad()?;
        self.inodes()?;
        self.expect(self.layout.end);
        self.output.finish()
    }

    /// Targets of symbolic links that do not fit into a block with their inode.
    fn long_links(&mut self) -> Result<(), WriteError> {
        let tree = self.context.tree;
        for id in tree.ids() {
            let (Body::Symlink { block: Some(block) }, Kind::Symlink(target)) =
                (&self.layout.plan(id).body, &tree.node(id).kind)
            else {
                continue;
            };
            self.expect(*block);
            self.output.push(target)?;
            self.output.pad()?;
        }
        Ok(())
    }

    /// The blocks of directories that do not lie behind inodes.
    fn directories(&mut self) -> Result<(), WriteError> {
        let tree = self.context.tree;
        for id in tree.ids() {
            let Body::Directory { blocks, first, inline } = &self.layout.plan(id).body else { continue };
            let apart = &blocks[..blocks.len() - usize::from(*inline)];
            if apart.is_empty() {
                continue;
            }
            self.expect(*first);
            let listing = directory::listing(tree, id);
            for (range, _) in apart {
                let mut bytes = Vec::with_capacity(BLOCK_SIZE);
                directory::render(tree, &listing[range.clone()], |id| self.layout.nid(id), &mut bytes);
                self.output.push(&bytes)?;
                self.output.pad()?;
            }
        }
        Ok(())
    }

    /// The metadata area, in the order of places.
    fn inodes(&mut self) -> Result<(), WriteError> {
        self.expect(self.layout.meta);
        let mut order: Vec<InodeId> = self.context.tree.ids().collect();
        order.sort_unstable_by_key(|id| self.layout.place(*id));
        let mut written = 0;
        let mut bytes = Vec::new();
        for id in order {
            let place = self.layout.place(id);
            bytes.clear();
            bytes.resize(place - written, 0);
            bytes.extend_from_slice(&self.inode(id)?);
            self.output.push(&bytes)?;
            written += bytes.len();
        }
        self.output.push(&vec![0; self.layout.meta_size.saturating_sub(written)])?;
        self.output.pad()
    }

    fn inode(&self, id: InodeId) -> Result<Vec<u8>, WriteError> {
        let (tree, plan) = (self.context.tree, self.layout.plan(id));
        let mut bytes = self.context.render(id, plan, id.0 + 1);
        bytes.extend_from_slice(&self.shared.body(&tree.node(id).metadata.xattrs));
        match (&plan.body, &tree.node(id).kind) {
            (Body::Symlink { block: None }, Kind::Symlink(target)) => bytes.extend_from_slice(target),
            (Body::Directory { blocks, inline: true, .. }, _) => {
                let listing = directory::listing(tree, id);
                if let Some((range, _)) = blocks.last() {
                    directory::render(tree, &listing[range.clone()], |id| self.layout.nid(id), &mut bytes);
                }
            }
            (Body::File(stored), _) => match &stored.data {
                Data::Flat { tail, .. } => {
                    let sink = |source| WriteError::Sink { what: "a temporary file".into(), source };
                    self.contents.tails.append(*tail, &mut bytes).map_err(sink)?;
                }
                Data::Chunks { blocks, .. } => bytes.extend(blocks.iter().flat_map(|block| block.to_le_bytes())),
                Data::Compressed { first, clusters } => {
                    index::append(&mut bytes, stored.size, self.algorithm, *first, clusters);
                }
            },
            _ => {}
        }
        Ok(bytes)
    }

    /// What comes next lies where the layout has it.
    fn expect(&self, block: Block) {
        debug_assert_eq!(self.output.next().ok(), Some(block));
    }
}
