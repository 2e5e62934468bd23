//! What is in an archive or image, one line each, and as files.

use std::{fs, io, path::Path};

use erofs_image::{ExtractError, Tree};
use serde::Serialize;

use crate::report::{ExitStatus, Failure};

/// What is in an archive or image, in order.
pub type Listing = Vec<ListedEntry>;

/// A file of an archive or image.
#[derive(Debug, Serialize)]
pub struct ListedEntry {
    /// Of an initramfs, the archive that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<usize>,
    /// Its name, printable.
    pub name: String,
    /// File type and permissions, as `ls` writes them.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Where a symbolic link points to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Type and permissions as `ls -l` writes them.
pub(super) fn mode_text(kind: char, mode: u32) -> String {
    let bit = |mask: u32, letter: char| if mode & mask != 0 { letter } else { '-' };
    let execute = |mask: u32, special: u32, letter: char| match (mode & mask != 0, mode & special != 0) {
        (true, true) => letter,
        (false, true) => letter.to_ascii_uppercase(),
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        kind,
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        execute(0o100, 0o4000, 's'),
        bit(0o40, 'r'),
        bit(0o20, 'w'),
        execute(0o10, 0o2000, 's'),
        bit(0o4, 'r'),
        bit(0o2, 'w'),
        execute(0o1, 0o1000, 't'),
    ]
    .into_iter()
    .collect()
}

pub(super) fn refuse_existing(directory: &Path) -> Result<(), Failure> {
    if directory.symlink_metadata().is_err() {
        return Ok(());
    }
    Err(Failure::new(ExitStatus::Usage, format!("{} exists already", directory.display()))
        .next("name a directory that does not exist"))
}

/// Makes the files of a tree in a new directory, which appears whole or not at all. Returns what was left out, for people.
pub(super) fn extract_tree(tree: &Tree, directory: &Path) -> Result<Vec<String>, Failure> {
    let failed = |error: ExtractError| Failure::new(ExitStatus::System, error.to_string());
    let moved = |error: io::Error| Failure::io(format_args!("make {}", directory.display()), &error);
    let place = tempfile::tempdir_in(crate::atomic::parent(directory)).map_err(moved)?;
    let staged = place.path().join("tree");
    let left_out = erofs_image::extract(tree, &staged).map_err(failed)?;
    fs::rename(&staged, directory).map_err(moved)?;
    Ok(left_out)
}
