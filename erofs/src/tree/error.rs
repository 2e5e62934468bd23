//! Entries that are refused.

use super::TARGET_LIMIT;
use crate::format::directory::NAME_LIMIT;

/// An entry that no image can hold, with its path.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", printable(.path))]
pub struct TreeError {
    /// The path as it was given.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Problem {
    /// It begins with a slash.
    #[error("expected a path relative to the root, found an absolute one; strip the slash")]
    Absolute,
    /// A name is empty.
    #[error("expected a name between slashes, found an empty one")]
    EmptyName,
    /// A name has a meaning of its own.
    #[error("expected a name, found '.' or '..'; pass paths without them")]
    DotName,
    /// A name is too long.
    #[error("expected a name of at most {NAME_LIMIT} bytes, found {length}; shorten it")]
    LongName {
        /// Its bytes.
        length: usize,
    },
    /// A name has what names cannot have.
    #[error("expected a name without a slash and without a zero byte")]
    ForbiddenByte,
    /// There is such a name.
    #[error("the name exists already in its directory; each may be added once")]
    Duplicate,
    /// What should hold it cannot.
    #[error("what should hold it is not a directory")]
    ParentNotDirectory,
    /// There is nothing that should hold it.
    #[error("there is no directory '{}'; add it first", printable(.directory))]
    NoDirectory {
        /// Its path.
        directory: Vec<u8>,
    },
    /// A hard link to nothing.
    #[error("the target '{}' does not exist; add it first", printable(.target))]
    NoTarget {
        /// The path that was given.
        target: Vec<u8>,
    },
    /// A hard link to a directory.
    #[error("the target of a hard link must not be a directory")]
    LinkToDirectory,
    /// A symbolic link to nothing, or too far.
    #[error("expected the target of a symbolic link with 1 to {TARGET_LIMIT} bytes, none of them zero; found {length}")]
    LinkTarget {
        /// Its bytes.
        length: usize,
    },
    /// erofs has no number for the attribute's prefix.
    #[error(
        "the attribute '{}': erofs stores user., trusted., security. and access control lists; remove it",
        printable(.name)
    )]
    XattrName {
        /// The attribute.
        name: Vec<u8>,
    },
    /// An attribute is too long.
    #[error("the attribute '{}': expected at most 65535 bytes, found {size}; remove it", printable(.name))]
    XattrSize {
        /// The attribute.
        name: Vec<u8>,
        /// Bytes of its value.
        size: usize,
    },
    /// The tree is full.
    #[error("the tree has as many inodes or links as can be counted")]
    TooManyInodes,
}

impl Problem {
    /// With the path that has it.
    pub fn of(self, path: &[u8]) -> TreeError {
        TreeError { path: path.to_vec(), problem: self }
    }
}

/// A path for people: what is not printable is escaped.
pub fn printable(path: &[u8]) -> String {
    if path.is_empty() {
        return "the root".into();
    }
    path.utf8_chunks()
        .flat_map(|chunk| {
            let valid = chunk.valid().chars().map(|letter| {
                if letter.is_control() || letter == '\\' { letter.escape_default().to_string() } else { letter.into() }
            });
            valid.chain(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")))
        })
        .collect()
}
