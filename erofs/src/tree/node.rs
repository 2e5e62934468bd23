//! What an inode is.

use std::{collections::BTreeMap, sync::Arc};

use super::content::Content;
use crate::format::inode::*;

/// A time since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// Extended attributes: whole names to values, sorted.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What all inodes have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// The lower 12 bits of the mode: rights, set-id and sticky bits.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When the content was changed.
    pub mtime: Time,
    /// Extended attributes, among them capabilities and access control lists.
    pub xattrs: Xattrs,
}

impl Metadata {
    /// Root's, of 1970.
    pub fn with_mode(mode: u16) -> Self {
        Self { mode, ..Self::default() }
    }
}

/// A device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Device {
    /// The driver: 12 bits.
    pub major: u32,
    /// The device of the driver: 20 bits.
    pub minor: u32,
}

impl Device {
    /// Linux' `new_encode_dev`; `None` for numbers that it has no bits for.
    pub fn encode(self) -> Option<u32> {
        let fits = self.major < 1 << 12 && self.minor < 1 << 20;
        fits.then_some(self.minor & 0xff | self.major << 8 | (self.minor & !0xff) << 12)
    }

    /// Linux' `new_decode_dev`.
    pub fn decode(number: u32) -> Self {
        Self { major: number >> 8 & 0xfff, minor: number & 0xff | number >> 12 & 0xf_ff00 }
    }
}

/// What an inode is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A directory; its entries are in the tree.
    Directory,
    /// A regular file.
    File(Arc<dyn Content>),
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A character device. An overlay's whiteout is one with the numbers 0 and 0.
    CharacterDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Kind {
    /// The file type in `i_mode`.
    pub(crate) fn mode(&self) -> u16 {
        match self {
            Self::Directory => MODE_DIRECTORY,
            Self::File(_) => MODE_FILE,
            Self::Symlink(_) => MODE_SYMLINK,
            Self::CharacterDevice(_) => MODE_CHARACTER,
            Self::BlockDevice(_) => MODE_BLOCK,
            Self::Fifo => MODE_FIFO,
            Self::Socket => MODE_SOCKET,
        }
    }
}

/// An inode without its names.
#[derive(Debug, Clone)]
pub struct Node {
    /// What all have.
    pub metadata: Metadata,
    /// What it is.
    pub kind: Kind,
}

impl Node {
    /// An empty directory.
    pub fn directory(metadata: Metadata) -> Self {
        Self { metadata, kind: Kind::Directory }
    }

    /// A regular file.
    pub fn file(metadata: Metadata, content: impl Content + 'static) -> Self {
        Self { metadata, kind: Kind::File(Arc::new(content)) }
    }

    /// A symbolic link.
    pub fn symlink(metadata: Metadata, target: &[u8]) -> Self {
        Self { metadata, kind: Kind::Symlink(target.to_vec()) }
    }

    /// Anything else.
    pub fn other(metadata: Metadata, kind: Kind) -> Self {
        Self { metadata, kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_encoding() {
        for (major, minor) in [(1, 3), (259, 1_048_575), (0, 0), (4095, 255), (8, 256)] {
            let device = Device { major, minor };
            assert_eq!(Device::decode(device.encode().unwrap()), device);
        }
        assert_eq!(Device { major: 1, minor: 3 }.encode(), Some(0x103));
        assert_eq!(Device { major: 4096, minor: 0 }.encode(), None);
        assert_eq!(Device { major: 0, minor: 1 << 20 }.encode(), None);
    }
}
