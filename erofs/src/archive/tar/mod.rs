//! tar: v7, ustar, GNU and pax, as GNU tar, bsdtar, Docker and Go write them.
//!
//! Read here rather than by a library, since what must not be mangled is exactly what the common one mangles: it splits
//! pax records at newlines (extended attributes are binary, and access control lists are lines), takes a wrong sign for
//! times before 1970, and knows no pax sparse files. Sources: POSIX.1-2017 `pax`, the GNU tar manual's "Tar Internals".

mod header;
mod pax;
mod sparse;

use std::io::Read;

use self::{
    header::{BLOCK, Header},
    pax::{Extensions, Overrides},
};
use super::{
    entry::{Content, Entry, EntryReader, Kind, Metadata, Timestamp, excerpt, printable},
    error::ArchiveError,
    input::Input,
};

/// An extended header holds at most some attributes of 64 KiB each; more is an attack on memory.
const EXTENSION_LIMIT: u64 = 8 << 20;
/// The system's `PATH_MAX`: nothing with a longer name can be made.
const NAME_LIMIT: u64 = 4096;
/// The largest file accepted, holes included: a few bytes of archive can claim any size, and all of it would be read.
const FILE_LIMIT: u64 = 1 << 40;

/// Reads an archive up to and including its end marker.
pub struct TarReader<R> {
    input: Input<R>,
    /// Bytes of the current content that were not read yet.
    remaining: u64,
    /// Bytes between the content and the next header.
    padding: u64,
    name: Option<String>,
    done: bool,
}

/// What the headers in front of an entry's own say about it.
#[derive(Default)]
struct Prelude {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Extensions>,
}

impl<R: Read> TarReader<R> {
    /// Starts at the input's position, where an archive must begin.
    pub fn new(input: Input<R>) -> Self {
        Self { input, remaining: 0, padding: 0, name: None, done: false }
    }

    fn finish_content(&mut self) -> Result<(), ArchiveError> {
        let rest = std::mem::take(&mut self.remaining);
        self.input.skip(rest, "a file's content", self.name.as_deref())?;
        let padding = std::mem::take(&mut self.padding);
        self.input.skip(padding, "the padding behind a file", self.name.as_deref())
    }

    /// The next header, or `None` at the end marker.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let offset = self.input.offset();
        let mut block = [0; BLOCK];
        if self.input.peek(1)?.is_empty() {
            return Err(self.input.truncated("an archive without end marker", self.name.as_deref()));
        }
        self.input.read_whole(&mut block, "a header", None)?;
        if block.iter().all(|byte| *byte == 0) {
            return self.end().map(|()| None);
        }
        Header::new(block, self.input.place(offset, None)).map(Some)
    }

    /// Reads to the end, so that the decompressor checks its sums, and nothing hides behind the end marker.
    fn end(&mut self) -> Result<(), ArchiveError> {
        self.done = true;
        self.input.skip_zeros()?;
        let rest = self.input.peek(16)?;
        if rest.is_empty() {
            return Ok(());
        }
        let found = printable(rest);
        Err(ArchiveError::Field {
            place: self.input.place(self.input.offset(), None),
            field: "end of the archive",
            expected: "nothing but zeros behind the end marker (concatenated archives are not read)".into(),
            found,
        })
    }

    /// The content of an extension header.
    fn extension(&mut self, header: &Header, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        let size = header.size()?;
        if size > limit {
            return Err(header.error("size", format!("at most {limit} in an extension header"), size.to_string()));
        }
        let mut content = vec![0; usize::try_from(size).expect("checked against the limit")];
        self.input.read_whole(&mut content, "an extension header", None)?;
        self.input.skip(padding(size), "an extension header", None)?;
        Ok(content)
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let mut name = self.extension(header, NAME_LIMIT)?;
        if let Some(nul) = name.iter().position(|byte| *byte == 0) {
            name.truncate(nul);
        }
        Ok(name)
    }

    fn prelude(&mut self) -> Result<Option<(Prelude, Header)>, ArchiveError> {
        let mut prelude = Prelude::default();
        let mut any = false;
        loop {
            let Some(header) = self.header()? else {
                return if any {
                    Err(self.input.truncated("an extension header without file", None))
                } else {
                    Ok(None)
                };
            };
            let twice = match header.typeflag() {
                b'x' => {
                    let records = self.extension(&header, EXTENSION_LIMIT)?;
                    prelude.pax.replace(Extensions::parse(&records, &header)?).is_some()
                }
                b'g' => {
                    let records = self.extension(&header, EXTENSION_LIMIT)?;
                    Extensions::parse(&records, &header)?.refuse_global(&header)?;
                    continue;
                }
                b'L' => prelude.name.replace(self.long_name(&header)?).is_some(),
                b'K' => prelude.link.replace(self.long_name(&header)?).is_some(),
                // A volume label describes the medium.
                b'V' => {
                    self.extension(&header, EXTENSION_LIMIT)?;
                    continue;
                }
                _ => return Ok(Some((prelude, header))),
            };
            if twice {
                let found = (header.typeflag() as char).to_string();
                return Err(header.error("typeflag", "one extension header of a kind for a file".into(), found));
            }
            any = true;
        }
    }

    fn entry(&mut self, prelude: Prelude, mut header: Header) -> Result<Entry, ArchiveError> {
        let mut pax = prelude.pax.unwrap_or_default();
        let overrides = pax.take_overrides(&header)?;
        let name = overrides.path.clone().or(prelude.name).unwrap_or_else(|| header.name());
        header.set_entry(printable(&name));
        self.name = Some(printable(&name));
        if name.is_empty() || name.contains(&0) || name.len() as u64 > NAME_LIMIT {
            return Err(header.error("name", format!("1 to {NAME_LIMIT} bytes without NUL"), excerpt(&name)));
        }
        let link = overrides.link.clone().or(prelude.link).unwrap_or_else(|| header.link_name());
        let kind = header.kind(&name, link)?;
        let stored = overrides.size.map_or_else(|| header.size(), Ok)?;
        check_stored(&header, &kind, stored)?;
        self.remaining = if matches!(kind, Kind::File) { stored } else { 0 };
        self.padding = padding(self.remaining);
        let mut entry = Entry {
            metadata: metadata(&header, &overrides, pax)?,
            size: self.remaining,
            name,
            kind,
            extents: None,
            link: None,
            offset: header.offset(),
        };
        if entry.kind == Kind::File {
            self.sparse(&header, overrides, &mut entry)?;
        }
        Ok(entry)
    }
}

fn check_stored(header: &Header, kind: &Kind, stored: u64) -> Result<(), ArchiveError> {
    match kind {
        Kind::File if stored > FILE_LIMIT => {
            Err(header.error("size", format!("at most {FILE_LIMIT}"), stored.to_string()))
        }
        // Old tars write a directory's or a symlink's size without content behind, others a hard link with content:
        // one byte more or less and everything behind would be misread.
        Kind::File => Ok(()),
        _ if stored != 0 => Err(header.error("size", "0, since it is not a regular file".into(), stored.to_string())),
        _ => Ok(()),
    }
}

fn metadata(header: &Header, overrides: &Overrides, pax: Extensions) -> Result<Metadata, ArchiveError> {
    let mtime = match overrides.mtime {
        Some(mtime) => mtime,
        None => Timestamp { seconds: header.mtime()?, nanoseconds: 0 },
    };
    Ok(Metadata {
        mode: header.mode()?,
        uid: overrides.uid.map_or_else(|| header.uid(), Ok)?,
        gid: overrides.gid.map_or_else(|| header.gid(), Ok)?,
        mtime,
        xattrs: pax.xattrs,
        acls: pax.acls,
    })
}

impl<R: Read> Content for TarReader<R> {
    fn content_offset(&self) -> u64 {
        self.input.offset()
    }

    fn read_content(&mut self, target: &mut [u8]) -> Result<usize, ArchiveError> {
        let wanted = target.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        self.input.read_whole(&mut target[..wanted], "a file's content", self.name.as_deref())?;
        self.remaining -= wanted as u64;
        Ok(wanted)
    }
}

impl<R: Read> EntryReader for TarReader<R> {
    fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if self.done {
            return Ok(None);
        }
        self.finish_content()?;
        match self.prelude()? {
            Some((prelude, header)) => self.entry(prelude, header).map(Some),
            None => Ok(None),
        }
    }
}

/// Tells whether `block`, a file's first 512 bytes, is a tar header: by its checksum, since v7 has no magic.
pub fn is_tar(block: &[u8]) -> bool {
    <[u8; BLOCK]>::try_from(block).is_ok_and(|block| header::checksum_holds(&block))
}

fn padding(size: u64) -> u64 {
    // Sizes are limited before they come here.
    size.next_multiple_of(BLOCK as u64) - size
}
