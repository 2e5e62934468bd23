//! Images of the read-only file system erofs, made from any tree and read back, by code of its own.
//!
//! - **No root.** Owners, devices and attributes are only numbers and bytes in the image.
//! - **Reproducible.** Bytes follow from the tree and the options alone: not from the number of threads, the order in
//!   which a directory lists its entries, or where and when the image is made. Its UUID follows from its content.
//! - **A stream of blocks.** Each block leaves through a [`BlockSink`] once, so that its caller can hash it on the way.
//!   Content is never all in memory.
//! - **Compressed** with LZ4 or Zstandard in big physical clusters with the compacted index, on all processors.
//! - **Read** by a bounded [`Image`] that expects lies in every field, and shares only the structures of the format with
//!   the writer.
//!
//! ```
//! use erofs_image::{Compression, Image, ImageWriter, Metadata, Node, Options, Tree};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut tree = Tree::new(Metadata::with_mode(0o755));
//! tree.add(b"etc", Node::directory(Metadata::with_mode(0o755)))?;
//! tree.add(b"etc/motd", Node::file(Metadata::with_mode(0o644), b"Welcome!\n".to_vec()))?;
//!
//! let mut bytes = Vec::new();
//! let options = Options { compression: Compression::Lz4, ..Options::default() };
//! let written = ImageWriter::new(options, &mut bytes)?.finish(tree)?;
//! assert_eq!(bytes.len(), written.blocks as usize * 4096);
//!
//! let image = Image::open(bytes)?;
//! let file = image.lookup(b"etc/motd")?.expect("it was added");
//! assert_eq!(image.read(&file, 0, 100)?, b"Welcome!\n");
//! # Ok(())
//! # }
//! ```
//!
//! A directory becomes a tree by [`source::directory::load`], a tar archive or an initramfs by [`source::archive`], a
//! container image by [`source::oci`], without being unpacked. [`tree::overlay`] puts a tree over another, and
//! [`tree::rules`] say what a tree shall have, and how; and
//! [`extract()`] makes files of a tree.

pub mod archive;
mod extract;
pub mod format;
pub mod read;
pub mod source;
pub mod tree;
pub mod write;

pub use extract::{ExtractError, extract};
pub use read::{Image, ReadAt, ReadError};
pub use tree::{Metadata, Node, Time, Tree, TreeError};
pub use write::{BlockSink, Compression, ImageWriter, Options, WriteError, Written};
