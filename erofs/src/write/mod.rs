//! Writes a tree as an image, block by block.
//!
//! The layout is made for streaming: block 0 with the superblock; the data of files that were stored before, in that order, then of all
//! others in the order of a walk; full blocks of directories and long links; shared attributes; inodes with what lies inline. So content
//! is stored before the inodes that speak of it are known. Block 0 leaves between the two: whoever goes through the image from its first
//! byte on, for a digest, can begin while the rest is still being written.

mod clusters;
mod contents;
mod directory;
mod encoder;
mod error;
mod holes;
mod identity;
mod index;
mod inode;
mod layout;
mod metadata;
mod options;
mod output;
mod packed;
mod pipeline;
mod pool;
mod slots;
mod superblock;
mod tails;
mod xattrs;

use std::io::Read;

pub use contents::StoredContent;
pub use error::WriteError;
pub use options::{Compression, KernelRelease, Options};
pub use output::{BlockSink, FileSink};
pub use packed::Packed;
pub(crate) use packed::Packer;

use self::{contents::Contents, output::Output};
use crate::tree::{FileContent, InodeId, Kind, Tree};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Blocks of the image, all of which went to the sink.
    pub blocks: u32,
    /// Inodes.
    pub inodes: u64,
    /// The image's UUID, which follows from all that is in it.
    pub uuid: [u8; 16],
    /// Files whose content was there before, so that it was stored once.
    pub duplicates: u64,
    /// Files of which some part is compressed.
    pub compressed: u64,
}

/// Writes one image to a sink.
#[derive(Debug)]
pub struct ImageWriter<S> {
    options: Options,
    output: Output<S>,
    contents: Contents,
}

impl<S: BlockSink> ImageWriter<S> {
    /// Begins an image.
    ///
    /// # Errors
    /// Options that contradict each other, or that the target kernel does not know.
    pub fn new(options: Options, sink: S) -> Result<Self, WriteError> {
        options.check()?;
        Ok(Self { contents: Contents::new(&options), output: Output::new(sink), options })
    }

    /// Stores the content of a file before its inode is known, as archives tell it: `size` bytes of `content`, which
    /// `name` names in messages.
    ///
    /// # Errors
    /// When `content` ends early or cannot be read, or the sink fails.
    pub fn store(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<StoredContent, WriteError> {
        self.contents.store_stream(name, size, content, &mut self.output)
    }

    /// Writes everything else: content of files that is not stored yet, the superblock, then directories and inodes.
    ///
    /// # Errors
    /// When content cannot be read, something does not fit into the format, or the sink fails.
    pub fn finish(mut self, tree: Tree) -> Result<Written, WriteError> {
        let mut tree = tree.into_walked();
        let files: Vec<(InodeId, FileContent)> = tree
            .ids()
            .filter_map(|id| match &tree.node(id).kind {
                Kind::File(content) => Some((id, content.clone())),
                _ => None,
            })
            .collect();
        // What was stored before must be known by then.
        self.contents.drain(&mut self.output)?;
        self.contents.announce(files.iter().filter_map(|(_, content)| match content {
            FileContent::Source(content) => Some(content.size()),
            FileContent::Stored(_) => None,
        }));
        let mut stored = vec![None; tree.len()];
        for (id, content) in files {
            stored[id.index()] = Some(match content {
                FileContent::Source(content) => self.contents.store(&content, &mut self.output)?,
                FileContent::Stored(content) => content,
            });
        }
        self.contents.drain(&mut self.output)?;
        if let Some(time) = self.options.same_time {
            tree.ids().for_each(|id| tree.metadata_mut(id).mtime = time);
        }
        metadata::write(&tree, &stored, &mut self.contents, &mut self.output, &self.options)
    }
}
