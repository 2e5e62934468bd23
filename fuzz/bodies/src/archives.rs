//! Archives: tar, bundles, and the cpio archives of an initramfs.

use std::io;

use iofs_sign::{
    archive::{
        entry::{Content, Entry, EntryReader, Kind},
        error::ArchiveError,
        initramfs::{self, Segment, Visitor},
        input::Input,
        tar::TarReader,
    },
    slots::bundle,
};

use crate::erofs::{initramfs_tree, tar_tree};

/// Content is compared up to here: what is larger comes out of a decompressor.
const KEPT: usize = 1 << 16;

/// The walk over an initramfs yields entries with a sound name and exactly as much content as their size says, counts
/// them per segment, and accounts for the file's bytes in order. It gives the same entries where nobody reads contents.
pub fn cpio_initramfs(data: &[u8]) -> bool {
    initramfs_tree(data);
    let mut reader = Reading { contents: true, ..Reading::default() };
    let walked = initramfs::walk(&mut Input::new(data, "fuzz"), &mut reader);
    let mut skipper = Reading::default();
    let skipped = initramfs::walk(&mut Input::new(data, "fuzz"), &mut skipper);
    assert_eq!(walked.is_ok(), skipped.is_ok());
    assert_eq!(reader.entries, skipper.entries);
    let Ok(segments) = walked else { return false };
    assert_eq!(segments.iter().map(|segment| segment.entries).sum::<u64>(), reader.entries.len() as u64);
    let mut end = 0;
    for (index, segment) in segments.iter().enumerate() {
        assert_eq!(segment.index, index);
        assert!(segment.offset >= end && segment.size > 0);
        end = segment.offset + segment.size;
    }
    assert!(end <= data.len() as u64);
    true
}

#[derive(Default)]
struct Reading {
    contents: bool,
    entries: Vec<Entry>,
}

impl Visitor for Reading {
    type Error = ArchiveError;

    fn entry(
        &mut self,
        _segment: &Segment,
        _archive: u64,
        entry: &Entry,
        content: &mut dyn Content,
    ) -> Result<(), ArchiveError> {
        check_entry(entry);
        self.entries.push(entry.clone());
        if self.contents { check_content(entry, content) } else { Ok(()) }
    }
}

/// A tar archive yields entries with a sound name, exactly as much content as their size or their extents say, extents
/// in order inside the file, and each attribute once. It gives the same entries where nobody reads contents.
///
/// Nothing but luck finds a header's checksum, so the archive is also read with all of them corrected.
pub fn tar(data: &[u8]) -> bool {
    let corrected = with_checksums(data);
    read_tar(&corrected);
    tar_tree(&corrected);
    read_tar(data)
}

/// A bundle is its files, a header in front of each, and its end: there is room for nothing else. Read as tar it has the same
/// files.
pub fn bundle(data: &[u8]) -> bool {
    read_bundle(&with_checksums(data));
    read_bundle(data)
}

fn read_bundle(data: &[u8]) -> bool {
    let read = |buffer: &mut [u8], offset: u64| {
        let bytes = data.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    let Ok(files) = bundle::parse(read, data.len() as u64) else { return false };
    let room: u64 = files.values().map(|file| 512 + file.size.next_multiple_of(512)).sum();
    assert_eq!(room + 1024, data.len() as u64);
    let (entries, ended) = entries(data, false);
    assert!(ended && entries.len() == files.len());
    for entry in entries {
        let name = std::str::from_utf8(&entry.name).expect("the names are ASCII");
        assert_eq!((&entry.kind, entry.size), (&Kind::File, files[name].size));
    }
    true
}

fn read_tar(data: &[u8]) -> bool {
    let (read, ended) = entries(data, true);
    let (skipped, also_ended) = entries(data, false);
    assert_eq!((&read, ended), (&skipped, also_ended));
    ended
}

fn entries(data: &[u8], contents: bool) -> (Vec<Entry>, bool) {
    let mut reader = TarReader::new(Input::new(data, "fuzz"));
    let mut entries = Vec::new();
    loop {
        match reader.next_entry() {
            Ok(Some(entry)) => {
                check_entry(&entry);
                let damaged = contents && check_content(&entry, &mut reader).is_err();
                entries.push(entry);
                if damaged {
                    return (entries, false);
                }
            }
            Ok(None) => return (entries, true),
            Err(_) => return (entries, false),
        }
    }
}

fn check_entry(entry: &Entry) {
    assert!(!entry.name.is_empty() && !entry.name.contains(&0));
    assert!(entry.metadata.mode <= 0o7777);
    assert!(entry.metadata.mtime.nanoseconds < 1_000_000_000);
    if let Kind::Symlink(target) | Kind::HardLink(target) = &entry.kind {
        assert!(!target.is_empty() && !target.contains(&0) && target.len() < 4096);
    }
    assert!(entry.kind == Kind::File || (entry.size == 0 && entry.extents.is_none()));
    let mut end = 0;
    for extent in entry.extents.iter().flatten() {
        assert!(extent.length > 0 && extent.offset >= end);
        end = extent.offset.checked_add(extent.length).expect("extents were checked");
    }
    assert!(end <= entry.size);
    let xattrs = &entry.metadata.xattrs;
    for (index, xattr) in xattrs.iter().enumerate() {
        assert!(!xattrs[..index].iter().any(|other| other.name == xattr.name));
    }
}

fn check_content(entry: &Entry, content: &mut dyn Content) -> Result<(), ArchiveError> {
    let stored = entry.extents.as_ref().map_or(entry.size, |extents| extents.iter().map(|one| one.length).sum());
    let mut buffer = vec![0; KEPT];
    let mut total = 0;
    loop {
        let count = content.read_content(&mut buffer)?;
        total += count as u64;
        assert!(total <= stored, "more content than the entry's size");
        if count == 0 {
            assert_eq!(total, stored, "less content than the entry's size");
            return Ok(());
        }
    }
}

/// Corrects the checksum of each block that has the magic of a header.
pub(crate) fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut fixed = data.to_vec();
    for block in fixed.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    fixed
}
