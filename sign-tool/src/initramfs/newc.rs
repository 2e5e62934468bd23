//! The cpio format that the kernel unpacks ("newc", Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The same entries give the same bytes: sorted, numbered from one, owned by root, with one timestamp.

use std::{borrow::Cow, collections::BTreeMap};

/// Archives end on a multiple of this, as cpio(1) has it.
const BLOCK: usize = 512;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// What one entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node<'a> {
    Directory,
    File(Cow<'a, [u8]>),
    Device { major: u32, minor: u32 },
}

/// An archive in the making. Paths are relative to the root, without leading slash.
#[derive(Debug, Default)]
pub struct Archive<'a> {
    entries: BTreeMap<String, (u32, Node<'a>)>,
}

/// A path that an archive of ours does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no clean relative path, or is there twice")]
pub struct PathError(pub String);

impl<'a> Archive<'a> {
    /// Adds a directory of mode 0755 and those above it. One that is there already is fine.
    ///
    /// # Errors
    /// If the path is not clean or something else is there.
    pub fn directory(&mut self, path: &str) -> Result<(), PathError> {
        check(path)?;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let entry = self.entries.entry(path[..end].to_owned()).or_insert((DIRECTORY | 0o755, Node::Directory));
            if entry.1 != Node::Directory {
                return Err(PathError(path.to_owned()));
            }
        }
        Ok(())
    }

    /// Adds a file with its permission bits, and the directories above it.
    ///
    /// # Errors
    /// If the path is not clean or is there already.
    pub fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Cow<'a, [u8]>>) -> Result<(), PathError> {
        self.insert(path, REGULAR | (mode & 0o7777), Node::File(bytes.into()))
    }

    /// Adds a character device of mode 0600.
    ///
    /// # Errors
    /// If the path is not clean or is there already.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<(), PathError> {
        self.insert(path, CHARACTER | 0o600, Node::Device { major, minor })
    }

    /// Paths and sizes in bytes of the files, in the archive's order.
    pub fn files(&self) -> impl Iterator<Item = (&str, usize)> {
        self.entries.iter().filter_map(|(path, (_, node))| match node {
            Node::File(bytes) => Some((path.as_str(), bytes.len())),
            _ => None,
        })
    }

    /// The archive's bytes; `mtime` in seconds since 1970.
    pub fn to_bytes(&self, mtime: u32) -> Vec<u8> {
        let mut out = Vec::new();
        // A path sorts before all that it is a prefix of, so parents come first.
        for (number, (path, (mode, node))) in (1..).zip(&self.entries) {
            write_entry(&mut out, path, number, *mode, mtime, node);
        }
        write_entry(&mut out, "TRAILER!!!", 0, 0, 0, &Node::File(Cow::Borrowed(&[])));
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out
    }

    fn insert(&mut self, path: &str, mode: u32, node: Node<'a>) -> Result<(), PathError> {
        check(path)?;
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        match self.entries.insert(path.to_owned(), (mode, node)) {
            None => Ok(()),
            Some(_) => Err(PathError(path.to_owned())),
        }
    }
}

/// Refuses what the kernel or a tool would unpack elsewhere, or would take for the end.
fn check(path: &str) -> Result<(), PathError> {
    let clean = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if path.split('/').all(clean) && path != "TRAILER!!!" { Ok(()) } else { Err(PathError(path.to_owned())) }
}

fn write_entry(out: &mut Vec<u8>, path: &str, number: u32, mode: u32, mtime: u32, node: &Node<'_>) {
    let (bytes, major, minor): (&[u8], u32, u32) = match node {
        Node::Directory => (&[], 0, 0),
        Node::File(bytes) => (bytes, 0, 0),
        Node::Device { major, minor } => (&[], *major, *minor),
    };
    let links = if *node == Node::Directory { 2 } else { 1 };
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let size = u32::try_from(bytes.len()).expect("contents are bounded by their readers");
    let fields = [number, mode, 0, 0, links, mtime, size, 0, 0, major, minor, path.len() as u32 + 1, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(bytes);
    pad(out);
}

/// Headers and contents begin on multiples of four bytes.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_adding_does_not_matter_and_parents_come_first() {
        let mut one = Archive::default();
        one.file("etc/iofs/b", 0o644, &b"b"[..]).unwrap();
        one.file("etc-x", 0o600, &b"x"[..]).unwrap();
        one.device("dev/console", 5, 1).unwrap();
        let mut two = Archive::default();
        two.device("dev/console", 5, 1).unwrap();
        two.directory("etc/iofs").unwrap();
        two.file("etc-x", 0o600, &b"x"[..]).unwrap();
        two.file("etc/iofs/b", 0o644, &b"b"[..]).unwrap();
        assert_eq!(one.to_bytes(7), two.to_bytes(7));
        let order: Vec<_> = one.entries.keys().cloned().collect();
        assert_eq!(order, ["dev", "dev/console", "etc", "etc-x", "etc/iofs", "etc/iofs/b"]);
    }

    #[test]
    fn unclean_and_repeated_paths_are_refused() {
        let mut archive = Archive::default();
        for path in ["", "/a", "a/", "a//b", "../a", "a/./b", "TRAILER!!!", "a\0b"] {
            assert!(archive.file(path, 0o644, &b""[..]).is_err(), "{path:?}");
        }
        archive.file("a", 0o644, &b""[..]).unwrap();
        assert!(archive.file("a", 0o644, &b""[..]).is_err());
        assert!(archive.file("a/b", 0o644, &b""[..]).is_err());
    }

    #[test]
    fn the_header_is_what_the_kernel_documents() {
        let mut archive = Archive::default();
        archive.file("a", 0o755, &b"hello"[..]).unwrap();
        let bytes = archive.to_bytes(0x10);
        let numbers = "00000001000081ed000000000000000000000001000000100000000500000000000000000000000000000000";
        let expected = format!("070701{numbers}0000000200000000a\0hello\0\0\0070701");
        assert!(bytes.starts_with(expected.as_bytes()));
        assert_eq!(bytes.len() % BLOCK, 0);
    }
}
