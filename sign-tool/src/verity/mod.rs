//! Hash trees on disk: writing them as `veritysetup format` does, and checking them against a root hash.
//!
//! Both operations read and write at positions, so that any number of threads shares one open file, and hold a few
//! buffers a thread whatever the size of the device. Results do not depend on the number of threads. Where the
//! files' own positions are afterwards is unspecified.

mod engine;
mod failure;
mod format;
mod hasher;
mod leaves;
mod media;
mod tree;
mod verify;

pub use engine::{Engine, EngineError};
pub use format::{FormatError, FormatJob, format};
pub use leaves::Leaves;
pub use media::{MediaError, count_blocks, read_superblock};
pub(crate) use media::{in_parallel, same, size};
pub use tree::Tree;
pub use verify::{Artifact, Fault, Mismatch, Verified, VerifyError, VerifyJob, verify};
