//! An initramfs: what is in it, and taking it out.

use std::{
    fs::File,
    io::{self, BufReader, Write},
    path::Path,
};

use erofs_image::{ExtractError, source::archive};
use serde::Serialize;

use crate::{
    archive::{
        entry::{Content, Entry, Kind, printable},
        error::ArchiveError,
        initramfs::{Segment, Visitor, walk},
        input::Input,
    },
    report::{ExitStatus, Failure},
};

/// An initramfs, listed.
#[derive(Debug, Serialize)]
pub struct InspectedInitramfs {
    /// The archives in it, in order.
    pub segments: Vec<Segment>,
    /// The files, in order. A later one replaces an earlier one of the same name.
    pub entries: Vec<ListedEntry>,
}

/// A file of an initramfs.
#[derive(Debug, Serialize)]
pub struct ListedEntry {
    /// The archive that it is in.
    pub segment: usize,
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

/// Lists an initramfs.
pub fn inspect(path: &Path) -> Result<InspectedInitramfs, Failure> {
    let mut lister = Lister(Vec::new());
    let segments = walk(&mut open(path)?, &mut lister)?;
    Ok(InspectedInitramfs { segments, entries: lister.0 })
}

/// Writes the content of one file of an initramfs: of the last one with that name, which is the one that counts.
///
/// # Errors
/// There is no such regular file, the archive is damaged, or `output` takes no more.
pub fn extract(path: &Path, name: &str, output: &mut impl Write) -> Result<u64, Failure> {
    let mut extractor = Extractor { name: name.trim_start_matches('/').as_bytes(), found: None };
    walk(&mut open(path)?, &mut extractor)?;
    let content = extractor.found.ok_or_else(|| {
        Failure::new(ExitStatus::BadInput, format!("{}: no regular file {name:?} in it", path.display()))
            .next(format!("list what is there: iofs-sign inspect {}", path.display()))
    })?;
    output.write_all(&content).map_err(|error| Failure::io(format_args!("write {name}"), &error))?;
    Ok(content.len() as u64)
}

fn open(path: &Path) -> Result<Input<BufReader<File>>, Failure> {
    let file = File::open(path).map_err(|error| Failure::io(format_args!("open {}", path.display()), &error))?;
    Ok(Input::new(BufReader::new(file), path.display().to_string()))
}

struct Lister(Vec<ListedEntry>);

impl Visitor for Lister {
    type Error = ArchiveError;

    fn entry(&mut self, segment: &Segment, _: u64, entry: &Entry, _: &mut dyn Content) -> Result<(), ArchiveError> {
        let target = match &entry.kind {
            Kind::Symlink(target) | Kind::HardLink(target) => Some(printable(target)),
            _ => None,
        };
        self.0.push(ListedEntry {
            segment: segment.index,
            name: entry.display_name(),
            mode: mode_text(entry),
            uid: entry.metadata.uid,
            gid: entry.metadata.gid,
            size: entry.size,
            target,
        });
        Ok(())
    }
}

/// Type and permissions as `ls -l` writes them.
fn mode_text(entry: &Entry) -> String {
    let kind = match entry.kind {
        Kind::File | Kind::HardLink(_) => '-',
        Kind::Directory => 'd',
        Kind::Symlink(_) => 'l',
        Kind::CharDevice(_) => 'c',
        Kind::BlockDevice(_) => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    };
    let mode = entry.metadata.mode;
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

struct Extractor<'a> {
    name: &'a [u8],
    found: Option<Vec<u8>>,
}

impl Visitor for Extractor<'_> {
    type Error = Failure;

    fn entry(&mut self, _: &Segment, _: u64, entry: &Entry, content: &mut dyn Content) -> Result<(), Failure> {
        let name = entry.name.strip_prefix(b"./").unwrap_or(&entry.name);
        if name != self.name || entry.kind != Kind::File {
            return Ok(());
        }
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match content.read_content(&mut buffer)? {
                0 => break,
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
        self.found = Some(bytes);
        Ok(())
    }
}

/// Unpacks a whole initramfs into a new directory, with all its metadata. Returns what was left out, for people.
///
/// # Errors
/// The directory exists, the archive is damaged, or a file cannot be made.
pub fn extract_all(path: &Path, directory: &Path) -> Result<Vec<String>, Failure> {
    if directory.symlink_metadata().is_ok() {
        return Err(Failure::new(ExitStatus::Usage, format!("{} exists already", directory.display()))
            .next("name a directory that does not exist"));
    }
    let mut found = archive::initramfs(path)?;
    let failed = |error: ExtractError| Failure::new(ExitStatus::System, error.to_string());
    let moved = |error: io::Error| Failure::io(format_args!("make {}", directory.display()), &error);
    // It appears whole or not at all.
    let place = tempfile::tempdir_in(crate::atomic::parent(directory)).map_err(moved)?;
    let staged = place.path().join("tree");
    found.remarks.extend(erofs_image::extract(&found.tree, &staged).map_err(failed)?);
    std::fs::rename(&staged, directory).map_err(moved)?;
    Ok(found.remarks)
}
