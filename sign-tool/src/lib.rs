//! Everything that an administrator or a build server runs: seal a root tree, sign it, check it, look into it.

pub mod archive;
pub mod erofs;
pub mod initramfs;
pub mod report;
pub mod tree;
pub mod verity;
