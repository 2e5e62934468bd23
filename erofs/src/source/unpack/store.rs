//! Where the content of archived files is until it is written.

use std::{
    fs::File,
    io::{self, Write},
    sync::Arc,
};

use super::UnpackError;
use crate::{
    archive::entry::{self, Entry},
    tree::{Content, ContentReader, Extent},
    write::{Options, Packer},
};

/// So many bytes are copied at once.
const COPY_SIZE: usize = 256 << 10;

/// The content of one entry.
pub(in crate::source) type Kept = Arc<dyn Content>;

/// How content that comes out of a compressed archive is kept until its place in an image is known.
#[derive(Debug, Clone, Default)]
pub enum Keep {
    /// As it is.
    #[default]
    Plain,
    /// As an image of such options will hold it. That takes less room, and compresses while the archive is being read. The
    /// image's bytes are the same.
    Packed(Options),
}

/// The archive itself, or what came out of it. By default it is the latter.
#[derive(Default)]
pub(in crate::source) struct Store {
    /// With the place in the file at which the archive begins.
    archive: Option<(Arc<File>, u64)>,
    spool: Option<Arc<File>>,
    end: u64,
    keep: Keep,
    /// Made for the first content that needs it.
    packer: Option<Packer>,
    /// The current archive is not compressed, so that its content stays where it is.
    pub(in crate::source) in_place: bool,
}

impl Store {
    /// For archives that come once.
    pub(in crate::source) fn new(keep: &Keep) -> Self {
        Self { keep: keep.clone(), ..Self::default() }
    }

    /// For an archive in a file, in which content can stay.
    pub(in crate::source) fn of(archive: &File, keep: &Keep) -> Result<Self, UnpackError> {
        let archive = Arc::new(archive.try_clone().map_err(UnpackError::Store)?);
        Ok(Self { archive: Some((archive, 0)), in_place: true, ..Self::new(keep) })
    }

    /// From here on entries come from an archive that lies in `file` from `start` on.
    pub(in crate::source) fn turn_to(&mut self, file: Arc<File>, start: u64) {
        self.archive = Some((file, start));
        self.in_place = true;
    }

    /// Keeps the content of the entry that was read last: nothing unless it is a file.
    pub(in crate::source) fn keep(
        &mut self,
        entry: &Entry,
        content: &mut dyn entry::Content,
    ) -> Result<Kept, UnpackError> {
        if entry.kind != entry::Kind::File {
            return Ok(Arc::new(Vec::new()));
        }
        if let (Keep::Packed(options), None, false) = (&self.keep, &entry.extents, self.in_place) {
            let packer = match &mut self.packer {
                Some(packer) => packer,
                none => none.insert(Packer::new(options).map_err(UnpackError::Store)?),
            };
            return Ok(packer.pack(entry.display_name(), entry.size, |target| fill(content, target))?);
        }
        let whole = [entry::Extent { offset: 0, length: entry.size }];
        let extents = entry.extents.as_deref().unwrap_or(&whole);
        let stored = extents.iter().map(|extent| extent.length).sum();
        let (file, start) = match &self.archive {
            Some((archive, start)) if self.in_place => (Arc::clone(archive), start + content.content_offset()),
            _ => self.copy(content, stored)?,
        };
        let data = extents.iter().scan(start, |place, part| {
            let from = *place;
            *place += part.length;
            Some(Part { extent: Extent { start: part.offset, length: part.length }, from })
        });
        Ok(Arc::new(Stored { file, size: entry.size, data: data.collect(), name: entry.display_name() }))
    }

    fn copy(&mut self, content: &mut dyn entry::Content, stored: u64) -> Result<(Arc<File>, u64), UnpackError> {
        let spool = match &self.spool {
            Some(spool) => Arc::clone(spool),
            None => {
                let spool = Arc::new(tempfile::tempfile().map_err(UnpackError::Store)?);
                Arc::clone(self.spool.insert(spool))
            }
        };
        let start = self.end;
        let mut buffer = vec![0; COPY_SIZE.min(usize::try_from(stored).unwrap_or(COPY_SIZE))];
        let mut rest = stored;
        while rest > 0 {
            let length = buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            fill(content, &mut buffer[..length])?;
            (&*spool).write_all(&buffer[..length]).map_err(UnpackError::Store)?;
            rest -= length as u64;
        }
        self.end += stored;
        Ok((spool, start))
    }

    /// What was kept can be read from then on.
    pub(in crate::source) fn finish(&mut self) -> Result<(), UnpackError> {
        self.packer.as_mut().map_or(Ok(()), Packer::finish).map_err(UnpackError::Pack)
    }
}

fn fill(content: &mut dyn entry::Content, mut target: &mut [u8]) -> Result<(), UnpackError> {
    while !target.is_empty() {
        match content.read_content(target)? {
            0 => return Err(UnpackError::Store(io::ErrorKind::UnexpectedEof.into())),
            count => target = &mut target[count..],
        }
    }
    Ok(())
}

/// A stretch of data.
#[derive(Debug)]
struct Part {
    /// Where it belongs.
    extent: Extent,
    /// Where it begins in the file that keeps it.
    from: u64,
}

/// Content whose data lies in a file.
#[derive(Debug)]
struct Stored {
    file: Arc<File>,
    size: u64,
    /// In order and apart.
    data: Vec<Part>,
    name: String,
}

impl Content for Stored {
    fn size(&self) -> u64 {
        self.size
    }

    fn data(&self) -> io::Result<Vec<Extent>> {
        Ok(self.data.iter().map(|part| part.extent).collect())
    }

    fn open(&self) -> io::Result<Box<dyn ContentReader + '_>> {
        Ok(Box::new(Reader(self)))
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

struct Reader<'a>(&'a Stored);

impl ContentReader for Reader<'_> {
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(target.len() as u64).filter(|end| *end <= self.0.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        target.fill(0);
        let first = self.0.data.partition_point(|part| part.extent.start + part.extent.length <= offset);
        for Part { extent, from } in self.0.data[first..].iter().take_while(|part| part.extent.start < end) {
            let (start, stop) = (extent.start.max(offset), (extent.start + extent.length).min(end));
            let into = &mut target[(start - offset) as usize..(stop - offset) as usize];
            std::os::unix::fs::FileExt::read_exact_at(&*self.0.file, into, from + (start - extent.start))?;
        }
        Ok(())
    }
}
