//! Reading what others packed: compressed streams, tar, and cpio initramfs archives.
//!
//! [`tar::TarReader`] and [`cpio::CpioReader`] are pulled entry by entry and yield the same [`entry::Entry`], so that
//! unpacking, listing and extraction are written once. [`initramfs::walk`] goes through all archives of an initramfs.

pub mod acl;
pub mod compression;
pub mod cpio;
pub mod entry;
pub mod error;
pub mod initramfs;
pub mod input;
mod lz4;
pub mod name;
pub mod tar;
