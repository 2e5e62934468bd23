//! An initramfs file: archives in a row, some compressed, with zeros between them.
//!
//! The same walk as `unpack_to_rootfs` in Linux `init/initramfs.c`: at a multiple of 4 an uncompressed archive may
//! begin, zeros are passed over, and anything else must be a compressed stream that holds archives and zeros.

use std::io::Read;

use super::{
    compression::{Compression, MAGIC_SIZE},
    cpio::CpioReader,
    entry::{Content, Entry, EntryReader, printable},
    error::ArchiveError,
    input::Input,
};

/// One run of archives with the same compression: what was concatenated to make the file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Segment {
    /// Its number in the file, from 0.
    pub index: usize,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// How it is compressed.
    pub compression: Compression,
    /// Bytes in the file, without the zeros behind.
    pub size: u64,
    /// Bytes after decompression.
    pub unpacked_size: u64,
    /// Entries, the trailers not counted.
    pub entries: u64,
}

/// Receives an initramfs' entries in their order.
pub trait Visitor {
    /// What stops the walk.
    type Error: From<ArchiveError>;

    /// An entry; `segment` has no size yet. A new archive begins where `archive`, a running number, changes: hard links
    /// do not cross that border.
    ///
    /// # Errors
    /// Whatever shall stop the walk.
    fn entry(
        &mut self,
        segment: &Segment,
        archive: u64,
        entry: &Entry,
        content: &mut dyn Content,
    ) -> Result<(), Self::Error>;
}

/// Walks all archives and returns the segments.
///
/// # Errors
/// A malformed archive, bytes between archives that are neither zeros nor a known compression, a file without any
/// archive, or what the visitor returns.
pub fn walk<R: Read, V: Visitor>(input: &mut Input<R>, visitor: &mut V) -> Result<Vec<Segment>, V::Error> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut archive = 0;
    loop {
        input.skip_zeros()?;
        let offset = input.offset();
        let start = input.peek(MAGIC_SIZE)?;
        if start.is_empty() {
            break;
        }
        let plain = start[0] == b'0';
        let compression = if plain { Compression::None } else { Compression::detect(start) };
        if !plain && compression == Compression::None {
            let found = printable(start);
            return Err(unknown(input, found).into());
        }
        let segment = Segment { index: segments.len(), offset, compression, size: 0, unpacked_size: 0, entries: 0 };
        let mut state = State { segment, archive: &mut archive, visitor };
        if plain {
            state.one_archive(input)?;
            state.segment.unpacked_size = input.offset() - offset;
        } else {
            state.compressed(input)?;
        }
        state.segment.size = input.offset() - offset;
        segments.push(state.segment);
    }
    if segments.is_empty() {
        return Err(input.truncated("the search for the first cpio archive", None).into());
    }
    Ok(segments)
}

struct State<'a, V> {
    segment: Segment,
    archive: &'a mut u64,
    visitor: &'a mut V,
}

impl<V: Visitor> State<'_, V> {
    fn one_archive<R: Read>(&mut self, input: &mut Input<R>) -> Result<(), V::Error> {
        if !input.offset().is_multiple_of(4) {
            return Err(ArchiveError::Field {
                place: input.place(input.offset(), None),
                field: "start of an archive",
                expected: "a multiple of 4, as the kernel demands".into(),
                found: input.offset().to_string(),
            }
            .into());
        }
        let mut reader = CpioReader::new(input);
        while let Some(entry) = reader.next_entry()? {
            self.segment.entries += 1;
            self.visitor.entry(&self.segment, *self.archive, &entry, &mut reader)?;
        }
        *self.archive += 1;
        Ok(())
    }

    fn compressed<R: Read>(&mut self, input: &mut Input<R>) -> Result<(), V::Error> {
        let Segment { offset, compression, .. } = self.segment;
        let name = format!("{} ({} segment at offset {offset})", input.name(), compression.name());
        let stream = compression.first_stream(&mut *input).map_err(|source| match source.kind() {
            std::io::ErrorKind::Unsupported => ArchiveError::Compression { archive: name.clone(), compression },
            _ => ArchiveError::Read {
                place: Box::new(super::error::Place { archive: name.clone(), entry: None, offset: 0 }),
                source,
            },
        })?;
        let mut unpacked = Input::new(stream, name);
        loop {
            unpacked.skip_zeros()?;
            let start = unpacked.peek(6)?;
            match start.first() {
                None => break,
                Some(b'0') => self.one_archive(&mut unpacked)?,
                Some(_) => {
                    let found = printable(start);
                    return Err(unknown(&unpacked, found).into());
                }
            }
        }
        self.segment.unpacked_size = unpacked.offset();
        Ok(())
    }
}

fn unknown<R: Read>(input: &Input<R>, found: String) -> ArchiveError {
    ArchiveError::Field {
        place: input.place(input.offset(), None),
        field: "start of an archive",
        expected: "a newc cpio archive or a compressed stream".into(),
        found,
    }
}
