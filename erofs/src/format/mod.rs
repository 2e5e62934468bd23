//! The on-disk format, shared by writer and reader: structures and constants, no behaviour.
//!
//! Source of all of it: Linux `fs/erofs/erofs_fs.h`, whose names the comments give.

pub mod compressed;
pub mod directory;
pub mod inode;
pub mod superblock;
pub mod units;
pub mod xattr;
