//! Everything that follows the data of files.

use std::collections::HashMap;

use super::{
    BlockSink, Options, WriteError, Written,
    contents::{Contents, Data, StoredContent},
    directory, index,
    inode::{Body, Context, Plan},
    output::Output,
    slots::Slots,
    superblock::{self, Facts},
    xattrs::SharedXattrs,
};
use crate::{
    format::units::{BLOCK_SIZE, Block, Nid, SLOT_SIZE},
    tree::{InodeId, Kind, Time, Tree},
};

/// Bytes of attributes' header, which fsck.erofs 1.5 reads behind each inode, also where there is none.
const XATTR_HEADER_SIZE: usize = 12;

/// Writes it. `stored` tells the content of each regular file.
pub(super) fn write<S: BlockSink>(
    tree: &Tree,
    stored: &[Option<StoredContent>],
    contents: &mut Contents,
    output: &mut Output<S>,
    options: &Options,
) -> Result<Written, WriteError> {
    let build_time = options.build_time.unwrap_or_else(|| most_common_time(tree));
    let context = Context { tree, build_time };
    let shared = SharedXattrs::of(tree);
    let mut plans = Vec::with_capacity(tree.len());
    for id in tree.ids() {
        let xattr_size = shared.body(&tree.node(id).metadata.xattrs).len();
        let content = stored[id.index()].and_then(|content| contents.get(content));
        plans.push(context.plan(id, xattr_size, content)?);
    }
    let mut hasher = Gathered::new("erofs-image: everything that an image holds");
    contents.all().for_each(|stored| hasher.update(&stored.checksum.to_le_bytes()));
    let mut writer = Writer { context, shared, plans, places: Vec::new(), output, hasher };
    writer.detach_long_links()?;
    writer.place();
    writer.directories()?;
    let xattrs = writer.shared_xattrs()?;
    let meta = writer.inodes(contents, superblock::algorithm(options.compression))?;
    writer.superblock(contents, options, meta, xattrs)
}

/// Most inodes of a packaged system have one of few times; those with the image's need half the space.
fn most_common_time(tree: &Tree) -> Time {
    let mut counts: HashMap<Time, u64> = HashMap::new();
    tree.ids().for_each(|id| *counts.entry(tree.node(id).metadata.mtime).or_default() += 1);
    let best = counts.into_iter().max_by_key(|(time, count)| (*count, std::cmp::Reverse(*time)));
    best.map_or_else(Time::default, |(time, _)| time)
}

struct Writer<'a, S> {
    context: Context<'a>,
    shared: SharedXattrs,
    plans: Vec<Plan>,
    /// The place of each inode from the start of the metadata area.
    places: Vec<usize>,
    output: &'a mut Output<S>,
    /// Of all that is written here, for the UUID.
    hasher: Gathered,
}

impl<S: BlockSink> Writer<'_, S> {
    fn push(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.hasher.update(bytes);
        self.output.push(bytes)
    }

    /// Targets of symbolic links that do not fit into a block with their inode.
    fn detach_long_links(&mut self) -> Result<(), WriteError> {
        for id in self.context.tree.ids() {
            let Kind::Symlink(target) = &self.context.tree.node(id).kind else { continue };
            if self.plans[id.index()].extent().0 > BLOCK_SIZE {
                self.plans[id.index()].body = Body::Symlink { block: Some(self.output.next()?) };
                self.push(target)?;
                self.output.pad()?;
            }
        }
        Ok(())
    }

    fn place(&mut self) {
        let mut slots = Slots::new();
        let places = self.plans.iter().map(|plan| {
            let (length, fit) = plan.extent();
            slots.place(length, fit)
        });
        self.places = places.collect();
    }

    /// The blocks of directories that do not lie behind inodes.
    fn directories(&mut self) -> Result<(), WriteError> {
        let tree = self.context.tree;
        for id in tree.ids() {
            let next = self.output.next()?;
            let Body::Directory { blocks, first, inline } = &mut self.plans[id.index()].body else { continue };
            *first = next;
            let apart = blocks.len() - usize::from(*inline);
            let ranges: Vec<_> = blocks[..apart].iter().map(|(range, _)| range.clone()).collect();
            if ranges.is_empty() {
                continue;
            }
            let listing = directory::listing(tree, id);
            for range in ranges {
                let mut bytes = Vec::with_capacity(BLOCK_SIZE);
                directory::render(tree, &listing[range], |id| self.nid(id), &mut bytes);
                bytes.resize(BLOCK_SIZE, 0);
                self.push(&bytes)?;
            }
        }
        Ok(())
    }

    fn shared_xattrs(&mut self) -> Result<Block, WriteError> {
        let first = self.output.next()?;
        let bytes = std::mem::take(&mut self.shared.bytes);
        if bytes.is_empty() {
            return Ok(Block(0));
        }
        self.push(&bytes)?;
        self.output.pad()?;
        Ok(first)
    }

    /// The metadata area, in the order of places.
    fn inodes(&mut self, contents: &Contents, algorithm: u8) -> Result<Block, WriteError> {
        let meta = self.output.next()?;
        let mut order: Vec<InodeId> = self.context.tree.ids().collect();
        order.sort_unstable_by_key(|id| self.places[id.index()]);
        let mut written = 0;
        let mut bytes = Vec::new();
        for id in order {
            let place = self.places[id.index()];
            bytes.clear();
            bytes.resize(place - written, 0);
            let inode = self.inode(id, contents, algorithm)?;
            bytes.extend_from_slice(&inode);
            self.push(&bytes)?;
            written = place + inode.len();
        }
        if written.next_multiple_of(BLOCK_SIZE) - written < XATTR_HEADER_SIZE {
            self.push(&[0; XATTR_HEADER_SIZE])?;
        }
        self.output.pad()?;
        Ok(meta)
    }

    fn inode(&self, id: InodeId, contents: &Contents, algorithm: u8) -> Result<Vec<u8>, WriteError> {
        let plan = &self.plans[id.index()];
        let tree = self.context.tree;
        let mut bytes = self.context.render(id, plan, id.0 + 1);
        bytes.extend_from_slice(&self.shared.body(&tree.node(id).metadata.xattrs));
        match (&plan.body, &tree.node(id).kind) {
            (Body::Symlink { block: None }, Kind::Symlink(target)) => bytes.extend_from_slice(target),
            (Body::Directory { blocks, inline: true, .. }, _) => {
                let listing = directory::listing(tree, id);
                if let Some((range, _)) = blocks.last() {
                    directory::render(tree, &listing[range.clone()], |id| self.nid(id), &mut bytes);
                }
            }
            (Body::File(stored), _) => match &stored.data {
                Data::Flat { tail, .. } => {
                    let sink = |source| WriteError::Sink { what: "a temporary file".into(), source };
                    contents.tails.append(*tail, &mut bytes).map_err(sink)?;
                }
                Data::Chunks { blocks, .. } => bytes.extend(blocks.iter().flat_map(|block| block.to_le_bytes())),
                Data::Compressed { first, clusters } => {
                    index::append(&mut bytes, stored.size, algorithm, *first, clusters);
                }
            },
            _ => {}
        }
        Ok(bytes)
    }

    fn nid(&self, id: InodeId) -> Nid {
        Nid((self.places[id.index()] / SLOT_SIZE) as u64)
    }

    fn superblock(
        self,
        contents: &Contents,
        options: &Options,
        meta: Block,
        xattrs: Block,
    ) -> Result<Written, WriteError> {
        let files = || {
            self.plans.iter().filter_map(|plan| match &plan.body {
                Body::File(stored) => Some(&stored.data),
                _ => None,
            })
        };
        let compressed = files().filter(|data| matches!(data, Data::Compressed { .. })).count() as u64;
        let mut facts = Facts {
            blocks: self.output.next()?,
            inodes: self.plans.len() as u64,
            root_nid: self.nid(Tree::ROOT).0 as u16,
            meta,
            xattrs,
            build_time: self.context.build_time,
            uuid: [0; 16],
            compressed: compressed > 0,
            chunked: files().any(|data| matches!(data, Data::Chunks { .. })),
        };
        let mut hasher = self.hasher;
        hasher.update(&superblock::render(&facts, options));
        facts.uuid = uuid(&hasher.finalize());
        self.output.finish(&superblock::render(&facts, options))?;
        Ok(Written {
            blocks: facts.blocks.0,
            inodes: facts.inodes,
            uuid: facts.uuid,
            duplicates: contents.duplicates,
            compressed,
        })
    }
}

/// Small parts, hashed many at once: BLAKE3 is several times as fast then.
struct Gathered {
    hasher: blake3::Hasher,
    parts: Vec<u8>,
}

impl Gathered {
    const ENOUGH: usize = 64 << 10;

    fn new(context: &str) -> Self {
        Self { hasher: blake3::Hasher::new_derive_key(context), parts: Vec::with_capacity(2 * Self::ENOUGH) }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.parts.extend_from_slice(bytes);
        if self.parts.len() >= Self::ENOUGH {
            self.hasher.update(&self.parts);
            self.parts.clear();
        }
    }

    fn finalize(mut self) -> blake3::Hash {
        self.hasher.update(&self.parts).finalize()
    }
}

/// RFC 9562's version 8, whose bits are anyone's own.
fn uuid(digest: &blake3::Hash) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.as_bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
