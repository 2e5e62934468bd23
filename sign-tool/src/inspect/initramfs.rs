//! An initramfs: what is in it, and taking it out.

use std::{
    fs::File,
    io::{BufReader, Write},
    path::Path,
};

use erofs_image::source::archive::{self, Keep};
use serde::Serialize;

use super::{ListedEntry, Listing, extract_tree, mode_text, refuse_existing};
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
    pub entries: Listing,
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

struct Lister(Listing);

impl Visitor for Lister {
    type Error = ArchiveError;

    fn entry(&mut self, segment: &Segment, _: u64, entry: &Entry, _: &mut dyn Content) -> Result<(), ArchiveError> {
        let target = match &entry.kind {
            Kind::Symlink(target) | Kind::HardLink(target) => Some(printable(target)),
            _ => None,
        };
        self.0.push(ListedEntry {
            segment: Some(segment.index),
            name: entry.display_name(),
            mode: mode_text(letter(&entry.kind), entry.metadata.mode),
            uid: entry.metadata.uid,
            gid: entry.metadata.gid,
            size: entry.size,
            target,
        });
        Ok(())
    }
}

fn letter(kind: &Kind) -> char {
    match kind {
        Kind::File | Kind::HardLink(_) => '-',
        Kind::Directory => 'd',
        Kind::Symlink(_) => 'l',
        Kind::CharDevice(_) => 'c',
        Kind::BlockDevice(_) => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    }
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
    refuse_existing(directory)?;
    let mut found = archive::initramfs(path, &Keep::Plain)?;
    found.remarks.extend(extract_tree(&found.tree, directory)?);
    Ok(found.remarks)
}
