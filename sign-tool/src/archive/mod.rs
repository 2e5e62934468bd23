//! Reading what others packed: compressed streams, tar, and cpio initramfs archives.

pub mod compression;
