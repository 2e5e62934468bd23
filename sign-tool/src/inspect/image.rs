//! An erofs image: what is in it, whether it is whole, and taking it out.

use std::{fs::File, io::Write, path::Path, sync::Arc};

use erofs_image::{
    Image, ReadError,
    format::inode::{MODE_FILE, MODE_SYMLINK},
    read::Inode,
    tree::printable,
};
use serde::Serialize;

use super::{ListedEntry, Listing, mode_text};
use crate::{
    erofs::{self, Algorithm, damaged, open, superblock::Superblock},
    report::{ExitStatus, Failure},
};

/// So many bytes of a file are taken out at once.
const PIECE_SIZE: usize = 1 << 20;

/// An erofs superblock with what follows from it, and what is in the image where that was asked for.
#[derive(Debug, Serialize)]
pub struct InspectedErofs {
    /// What the superblock says.
    pub superblock: Superblock,
    /// The compression algorithms in use.
    pub algorithms: Vec<&'static str>,
    /// The oldest kernel that reads it.
    pub least_kernel: String,
    /// Everything in it, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<Vec<ListedEntry>>,
    /// What was read, to the last byte of each file, and found whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked: Option<Checked>,
}

/// What a check has read.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// Inodes.
    pub inodes: u64,
    /// Names that lead to them.
    pub names: u64,
    /// Bytes of files, directories and links.
    pub bytes: u64,
}

/// What to look for beyond the superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Detail {
    /// List everything in it.
    pub list: bool,
    /// Read everything in it.
    pub check: bool,
}

/// Looks at an image.
///
/// # Errors
/// It is no image, or damaged: the failure names the structure and the field.
pub fn inspect(path: &Path, detail: Detail) -> Result<InspectedErofs, Failure> {
    let superblock = erofs::superblock::read(path)?;
    let (mut entries, mut checked) = (None, None);
    if detail.list || detail.check {
        let image = open(path)?;
        entries = detail.list.then(|| list(&image)).transpose().map_err(damaged(path))?;
        let summary = detail.check.then(|| image.check()).transpose().map_err(damaged(path))?;
        checked = summary.map(|found| Checked { inodes: found.inodes, names: found.names, bytes: found.bytes });
    }
    Ok(InspectedErofs {
        algorithms: superblock.algorithms().into_iter().map(Algorithm::name).collect(),
        least_kernel: superblock.least_kernel().0.to_string(),
        superblock,
        entries,
        checked,
    })
}

fn list(image: &Image<File>) -> Result<Listing, ReadError> {
    let mut found = Listing::new();
    image.walk(|path, inode| {
        let is_link = inode.file_type() == MODE_SYMLINK;
        found.push(ListedEntry {
            segment: None,
            name: if path.is_empty() { ".".to_owned() } else { printable(path) },
            mode: mode_text(letter(inode), inode.mode.into()),
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            target: is_link.then(|| image.link_target(inode).map(|target| printable(&target))).transpose()?,
        });
        Ok(())
    })?;
    Ok(found)
}

fn letter(inode: &Inode) -> char {
    match inode.file_type() >> 12 {
        1 => 'p',
        2 => 'c',
        4 => 'd',
        6 => 'b',
        8 => '-',
        10 => 'l',
        _ => 's',
    }
}

/// Writes the content of one file. Symbolic links are not followed.
///
/// # Errors
/// There is no such regular file, the image is damaged, or `output` takes no more.
pub fn extract(path: &Path, name: &str, output: &mut impl Write) -> Result<u64, Failure> {
    let image = open(path)?;
    let found = image.lookup(name.trim_matches('/').as_bytes()).map_err(damaged(path))?;
    let file = found.filter(|inode| inode.file_type() == MODE_FILE).ok_or_else(|| {
        Failure::new(ExitStatus::BadInput, format!("{}: no regular file {name:?} in it", path.display()))
            .next(format!("list what is there: iofs-sign inspect --list {}", path.display()))
    })?;
    for offset in (0..file.size).step_by(PIECE_SIZE) {
        let bytes = image.read(&file, offset, PIECE_SIZE).map_err(damaged(path))?;
        output.write_all(&bytes).map_err(|error| Failure::io(format_args!("write {name}"), &error))?;
    }
    Ok(file.size)
}

/// Makes files of a whole image in a new directory. Returns what was left out, for people.
///
/// # Errors
/// The directory exists, the image is damaged, or a file cannot be made.
pub fn extract_all(path: &Path, directory: &Path) -> Result<Vec<String>, Failure> {
    super::refuse_existing(directory)?;
    let tree = Arc::new(open(path)?).tree().map_err(damaged(path))?;
    super::extract_tree(&tree, directory)
}
