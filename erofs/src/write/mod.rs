//! Writes a tree as an image, block by block.
//!
//! The layout is made for streaming: block 0 with the superblock; the data of files in the order of a walk; full blocks of directories and long links; shared attributes; inodes with what lies inline. So content
//! is stored before the inodes that speak of it are known. Block 0 leaves between the two: whoever goes through the image from its first
//! byte on, for a digest, can begin while the rest is still being written.

mod clusters;
mod contents;
mod directory;
mod earlier;
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

pub use earlier::{Earlier, Record, RecordError};
pub use error::WriteError;
pub use options::{Compression, KernelRelease, Options};
pub use output::{BlockSink, FileSink};
pub use packed::Packed;
pub(crate) use packed::Packer;

use self::{contents::Contents, layout::Layout, output::Output};
use crate::tree::Tree;

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
    /// Files that were not read, since an earlier image has them.
    pub unchanged: u64,
}

/// Writes one image to a sink.
#[derive(Debug)]
pub struct ImageWriter<S> {
    options: Options,
    output: Output<S>,
}

impl<S: BlockSink> ImageWriter<S> {
    /// Begins an image.
    ///
    /// # Errors
    /// Options that contradict each other, or that the target kernel does not know.
    pub fn new(options: Options, sink: S) -> Result<Self, WriteError> {
        options.check()?;
        Ok(Self { output: Output::new(sink), options })
    }

    /// Writes it: content of files, the superblock, then directories and inodes.
    ///
    /// # Errors
    /// When content cannot be read, something does not fit into the format, or the sink fails.
    pub fn finish(self, tree: Tree) -> Result<Written, WriteError> {
        let tree = tree.into_walked();
        let mut contents = Contents::new(&tree, &self.options);
        self.write(tree, &mut contents).map(|(written, ..)| written)
    }

    /// As [`Self::finish`], and records the files, so that the next image need not read those that look as they did. `earlier` is
    /// what was recorded before. The bytes are the same as without it.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_recorded(self, tree: Tree, earlier: Option<Earlier>) -> Result<(Written, Record), WriteError> {
        let (tree, options) = (tree.into_walked(), self.options.clone());
        let mut contents = Contents::new(&tree, &options).recorded(earlier);
        let (written, tree, layout) = self.write(tree, &mut contents)?;
        let kept = contents.kept.take().unwrap_or_default();
        let record = Record::new(&tree, &layout, kept, &options, written.uuid);
        Ok((written, record))
    }

    fn write(mut self, mut tree: Tree, contents: &mut Contents) -> Result<(Written, Tree, Layout), WriteError> {
        contents.store_all(&tree, &mut self.output)?;
        if let Some(time) = self.options.same_time {
            tree.ids().for_each(|id| tree.metadata_mut(id).mtime = time);
        }
        let (written, layout) = metadata::write(&tree, contents, &mut self.output, &self.options)?;
        Ok((written, tree, layout))
    }
}
