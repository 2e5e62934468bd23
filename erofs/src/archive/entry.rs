//! What an archive says about one file, whatever the archive's format.

use super::error::ArchiveError;
pub use crate::tree::{Device, Time as Timestamp};

/// What kind of file an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file with the entry's content.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to the given target.
    Symlink(Vec<u8>),
    /// Another name of the earlier entry with the given name (tar).
    HardLink(Vec<u8>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A socket: archived by some tools, of no use in an image.
    Socket,
}

/// An extended attribute: its full name (`user.x`) and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// With the namespace in front, without NUL.
    pub name: Vec<u8>,
    /// Any bytes.
    pub value: Vec<u8>,
}

/// An access control list as text (`SCHILY.acl.*`), whose names only the tree's own account files can resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextAcl {
    /// The default list of a directory rather than the access list.
    pub is_default: bool,
    /// Entries separated by commas or newlines.
    pub text: Vec<u8>,
}

/// Owner, permissions and times.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// The 12 permission bits, without the file type.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The last modification of the content.
    pub mtime: Timestamp,
    /// Extended attributes, each name once.
    pub xattrs: Vec<Xattr>,
    /// Access control lists given as text.
    pub acls: Vec<TextAcl>,
}

/// What cpio stores to tell hard links: entries that agree in all of this are one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkIdentity {
    /// The number of names that the file had.
    pub nlink: u32,
    /// Its inode number.
    pub ino: u32,
    /// The device it lived on.
    pub device: Device,
}

/// A stretch of a sparse file that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the file's start.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// One file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as archived: relative, any bytes but NUL.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Owner, permissions, times, attributes.
    pub metadata: Metadata,
    /// The file's size in bytes, holes included.
    pub size: u64,
    /// Where the data lies in a sparse file, in order; the content is then those stretches one after the other.
    /// `None`: the content is the whole file.
    pub extents: Option<Vec<Extent>>,
    /// What cpio knows about hard links.
    pub link: Option<LinkIdentity>,
    /// Where the entry's header starts: bytes from the start of the (decompressed) archive.
    pub offset: u64,
}

impl Entry {
    /// The name for people: printable, in one line.
    pub fn display_name(&self) -> String {
        printable(&self.name)
    }
}

/// Bytes for people: what is not printable ASCII or UTF-8 is escaped.
pub fn printable(bytes: &[u8]) -> String {
    bytes.utf8_chunks().fold(String::new(), |mut text, chunk| {
        for character in chunk.valid().chars() {
            if character.is_control() {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
        text
    })
}

/// What people see of bytes that may be too many: how many, and how they begin.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const SHOWN: usize = 40;
    match bytes.get(..SHOWN) {
        Some(start) if bytes.len() > 2 * SHOWN => format!("{} bytes that begin with {}", bytes.len(), printable(start)),
        _ => printable(bytes),
    }
}

/// The content of the entry that was read last.
pub trait Content {
    /// Where the rest of the content begins: bytes from the start of the (decompressed) archive.
    fn content_offset(&self) -> u64;

    /// Reads the next bytes of the content; 0 at its end.
    ///
    /// # Errors
    /// A damaged archive, or one that cannot be read.
    fn read_content(&mut self, target: &mut [u8]) -> Result<usize, ArchiveError>;
}

/// An archive, pulled entry by entry. Content that was not read is passed over.
pub trait EntryReader: Content {
    /// The next entry, or `None` at the archive's end.
    ///
    /// # Errors
    /// A malformed or damaged archive, or one that cannot be read.
    fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError>;
}
