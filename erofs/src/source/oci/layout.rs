//! Where a layout's files are: in a directory, or in a tar archive.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::{File, OpenOptions},
    io::{self, BufReader, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::OFlags;

use super::{OciError, blobs::Blob, document::Descriptor, document::check_mark};
use crate::{
    archive::{
        entry::{EntryReader, Kind},
        input::Input,
        name::normalise,
        tar::{TarReader, is_tar},
    },
    source::archive::UnpackError,
    tree::Extent,
};

const MARK: &str = "oci-layout";
const INDEX: &str = "index.json";
/// What registries take at most for a document; none needs a tenth of it.
const DOCUMENT_LIMIT: u64 = 4 << 20;
/// Files of an archive.
const FILE_LIMIT: usize = 1 << 16;

/// An image layout.
pub(super) struct Layout {
    pub(super) path: PathBuf,
    files: Files,
}

enum Files {
    /// Below [`Layout::path`].
    Directory,
    /// In it.
    Archive { file: Arc<File>, parts: HashMap<Vec<u8>, Extent> },
}

impl Layout {
    /// Opens a directory or an archive, and checks that it is a layout of a known version.
    pub(super) fn open(path: &Path) -> Result<Self, OciError> {
        let fail = |source| OciError::Io { call: "open", path: path.to_owned(), source };
        let files = if path.metadata().map_err(fail)?.is_dir() { Files::Directory } else { archive(path)? };
        let layout = Self { path: path.to_owned(), files };
        check_mark(MARK, &layout.unverified(MARK)?)?;
        Ok(layout)
    }

    /// Whether a layout is there, by its mark.
    pub(super) fn is_at(path: &Path) -> bool {
        match path.metadata() {
            Ok(found) if found.is_dir() => path.join(MARK).is_file(),
            Ok(found) if found.is_file() => begins_like_layout(path) && Self::open(path).is_ok(),
            _ => false,
        }
    }

    /// `index.json`, the one document that nothing names by its digest.
    pub(super) fn index(&self) -> Result<(String, Vec<u8>), OciError> {
        Ok((INDEX.to_owned(), self.unverified(INDEX)?))
    }

    /// A document whose digest is right.
    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, OciError> {
        let blob = self.blob(descriptor)?;
        let mut verified = blob.verified(descriptor.digest.clone());
        let mut bytes = vec![0; document_size(&blob)?];
        verified.read_exact(&mut bytes).map_err(|source| blob.io_error("read", source))?;
        verified.finish()?;
        Ok(bytes)
    }

    /// A blob that has the right size. Whether it has the right content, only reading it to its end tells.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Result<Blob, OciError> {
        let blob = self.file(&descriptor.digest.path())?;
        if blob.size == descriptor.size {
            return Ok(blob);
        }
        Err(OciError::Size { name: blob.name, expected: descriptor.size, found: blob.size })
    }

    fn unverified(&self, name: &str) -> Result<Vec<u8>, OciError> {
        let blob = self.file(name)?;
        blob.first(document_size(&blob)?)
    }

    fn file(&self, name: &str) -> Result<Blob, OciError> {
        let missing = || OciError::Missing { layout: self.path.clone(), name: name.to_owned() };
        match &self.files {
            Files::Directory => open_file(&self.path.join(name), name)?.ok_or_else(missing),
            Files::Archive { file, parts } => {
                let part = parts.get(name.as_bytes()).ok_or_else(missing)?;
                let (file, path) = (Arc::clone(file), self.path.clone());
                Ok(Blob { file, path, start: part.start, size: part.length, name: name.to_owned() })
            }
        }
    }
}

fn document_size(blob: &Blob) -> Result<usize, OciError> {
    if blob.size > DOCUMENT_LIMIT {
        let expected = format!("at most {DOCUMENT_LIMIT} bytes in a document");
        return Err(OciError::field(blob.name(), "size", expected, &blob.size.to_string()));
    }
    Ok(blob.size as usize)
}

/// Symbolic links are followed, since some tools keep blobs elsewhere, and a digest tells what comes of it. A pipe would wait.
fn open_file(path: &Path, name: &str) -> Result<Option<Blob>, OciError> {
    let fail = |source| OciError::Io { call: "open", path: path.to_owned(), source };
    let opened = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(fail)?,
    };
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(fail(io::Error::other("expected a regular file")));
    }
    let (file, size) = (Arc::new(file), metadata.len());
    Ok(Some(Blob { file, path: path.to_owned(), start: 0, size, name: name.to_owned() }))
}

/// The places of an archive's files.
fn archive(path: &Path) -> Result<Files, OciError> {
    let fail = |source| OciError::Io { call: "open", path: path.to_owned(), source };
    let file = File::open(path).map_err(fail)?;
    let input = Input::new(BufReader::new(file.try_clone().map_err(fail)?), path.display().to_string());
    let archive = |error| OciError::Layer { layer: path.display().to_string(), error };
    let mut reader = TarReader::new(input);
    let mut parts = HashMap::new();
    while let Some(entry) = reader.next_entry().map_err(|error| archive(UnpackError::Archive(error)))? {
        if entry.kind != Kind::File || entry.extents.is_some() {
            continue;
        }
        let name = normalise(&entry.name).unwrap_or_default();
        let part = Extent { start: crate::archive::entry::Content::content_offset(&reader), length: entry.size };
        let (expected, full) = ("each name once, and at most 65536 files", parts.len() == FILE_LIMIT);
        match parts.entry(name) {
            Entry::Vacant(place) if !full => place.insert(part),
            _ => {
                return Err(OciError::field(
                    path.display().to_string(),
                    "entry",
                    expected.into(),
                    &entry.display_name(),
                ));
            }
        };
    }
    Ok(Files::Archive { file: Arc::new(file), parts })
}

/// Spares other archives from being read to their end: all of a layout's entries have one of few names.
fn begins_like_layout(path: &Path) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let mut block = [0; 512];
    if file.read_exact(&mut block).is_err() || !is_tar(&block) {
        return false;
    }
    let mut reader = TarReader::new(Input::new(io::Cursor::new(block).chain(file), "the archive"));
    // GNU tar begins with the directory itself where that is what it was told to archive.
    let names = std::iter::from_fn(|| normalise(&reader.next_entry().ok()??.name).ok());
    let first = names.take(2).find(|name| !name.is_empty()).unwrap_or_default();
    let first = first.split(|byte| *byte == b'/').next().unwrap_or_default();
    [&b"blobs"[..], MARK.as_bytes(), INDEX.as_bytes()].contains(&first)
}
