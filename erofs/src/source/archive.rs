//! A tree from archives: what unpacking them as root would give, without unpacking.
//!
//! Archives are hostile: symbolic links in names are followed within the tree alone, `..` in a name is refused, and every
//! loop has an end. Later entries take the place of earlier ones.
//!
//! An archive that is not compressed is read where it lies, when the image is written. What comes out of a compressed one
//! is kept meanwhile in a temporary file without a name, best of all as the image will hold it ([`Keep::Packed`]).

use std::{
    fs::File,
    io::{BufReader, Read, Seek},
    path::Path,
};

use super::unpack::{Builder, Store};
pub use super::unpack::{EntryProblem, Keep, UnpackError, Unpacked};
use crate::archive::{
    compression::{Compression, MAGIC_SIZE},
    entry::{self, Entry, EntryReader},
    initramfs::{self, Segment, Visitor},
    input::Input,
    tar::TarReader,
};

/// Takes a tar archive, compressed or not.
///
/// # Errors
/// A bad archive, or an entry that no tree can hold.
pub fn tar(path: &Path, keep: &Keep) -> Result<Unpacked, UnpackError> {
    let mut file = open(path)?;
    let mut magic = Vec::new();
    let fail = |source| UnpackError::Open { path: path.to_owned(), source };
    (&mut file).take(MAGIC_SIZE as u64).read_to_end(&mut magic).map_err(fail)?;
    file.rewind().map_err(fail)?;
    let name = path.display().to_string();
    let compression = Compression::detect(&magic);
    if compression == Compression::None {
        let store = Store::of(&file, keep)?;
        return entries(store, Input::new(BufReader::with_capacity(1 << 16, file), name));
    }
    let stream = compression.reader(BufReader::with_capacity(1 << 16, file)).map_err(fail)?;
    entries(Store::new(keep), Input::new(stream, name))
}

/// Takes a tar archive that is not compressed from wherever it comes; `name` is what messages call it.
///
/// # Errors
/// As [`tar`].
pub fn tar_stream(name: &str, stream: impl Read, keep: &Keep) -> Result<Unpacked, UnpackError> {
    entries(Store::new(keep), Input::new(stream, name))
}

fn entries<R: Read>(store: Store, input: Input<R>) -> Result<Unpacked, UnpackError> {
    let name = input.name().to_owned();
    take(store, input).map_err(|error| error.in_archive(&name))
}

fn take<R: Read>(mut store: Store, input: Input<R>) -> Result<Unpacked, UnpackError> {
    let mut builder = Builder::new();
    let mut reader = TarReader::new(input);
    while let Some(entry) = reader.next_entry()? {
        let content = store.keep(&entry, &mut reader)?;
        builder.add(&entry, &content)?;
    }
    store.finish()?;
    builder.finish()
}

/// Takes an initramfs: cpio archives in a row, each compressed in its own way.
///
/// # Errors
/// As [`tar`].
pub fn initramfs(path: &Path, keep: &Keep) -> Result<Unpacked, UnpackError> {
    let file = open(path)?;
    let visitor = Archives { builder: Builder::new(), store: Store::of(&file, keep)?, archive: None, in_place: true };
    visitor.walk(&mut Input::new(file, path.display().to_string()))
}

/// The same from wherever it comes; `name` is what messages call it.
///
/// # Errors
/// As [`tar`].
pub fn initramfs_stream(name: &str, stream: impl Read, keep: &Keep) -> Result<Unpacked, UnpackError> {
    let visitor = Archives { builder: Builder::new(), store: Store::new(keep), archive: None, in_place: false };
    visitor.walk(&mut Input::new(stream, name))
}

fn open(path: &Path) -> Result<File, UnpackError> {
    File::open(path).map_err(|source| UnpackError::Open { path: path.to_owned(), source })
}

struct Archives {
    builder: Builder,
    store: Store,
    archive: Option<u64>,
    /// What is not compressed can be read later where it lies.
    in_place: bool,
}

impl Archives {
    fn walk<R: Read>(mut self, input: &mut Input<R>) -> Result<Unpacked, UnpackError> {
        let walked = initramfs::walk(input, &mut self).and_then(|_| self.store.finish());
        walked.and_then(|()| self.builder.finish()).map_err(|error| error.in_archive(input.name()))
    }
}

impl Visitor for Archives {
    type Error = UnpackError;

    fn entry(
        &mut self,
        segment: &Segment,
        archive: u64,
        entry: &Entry,
        content: &mut dyn entry::Content,
    ) -> Result<(), UnpackError> {
        if self.archive.replace(archive) != Some(archive) {
            self.builder.forget_links();
        }
        self.store.in_place = self.in_place && segment.compression == Compression::None;
        let content = self.store.keep(entry, content)?;
        self.builder.add(entry, &content)
    }
}
