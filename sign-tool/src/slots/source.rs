//! Where a release comes from: a sealed directory, or a bundle, which is read where it lies.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use iofs_policy::{dsse::MAX_ENVELOPE_SIZE, keys::MAX_HISTORY_SIZE};
use rustix::fs::OFlags;

use super::bundle;
use crate::{
    report::{ExitStatus, Failure},
    sealed::{self, SealedDirectory, bad_input},
    verity,
};

/// What an update reads of a release. The manifest says what the others must be.
const NEEDED: [&str; 3] = [sealed::MANIFEST, sealed::TREE, sealed::IMAGE];
/// What it reads besides, where it is there: keys that were moved, and what a machine needs whose boot loader chooses.
const OPTIONAL: [&str; 3] = [sealed::KEY_HISTORY, sealed::RELEASE, sealed::UKI];

/// A release that nobody has verified yet.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    parts: BTreeMap<&'static str, Part>,
}

/// One of its files.
#[derive(Debug)]
pub struct Part {
    file: File,
    offset: u64,
    size: u64,
    /// As errors name it.
    name: String,
}

impl Source {
    /// Opens what an update needs.
    ///
    /// # Errors
    /// Something is missing, or it is neither a sealed directory nor a bundle.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let parts = if path.is_dir() { of_directory(path)? } else { of_bundle(path)? };
        Ok(Self { path: path.to_owned(), parts })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The envelope with the manifest.
    ///
    /// # Errors
    /// It is larger than any envelope, or cannot be read.
    pub fn envelope(&self) -> Result<Vec<u8>, Failure> {
        self.part(sealed::MANIFEST).read_whole(MAX_ENVELOPE_SIZE)
    }

    /// The envelope with the release statement.
    ///
    /// # Errors
    /// There is none; it is larger than any envelope, or cannot be read.
    pub fn statement(&self) -> Result<Vec<u8>, Failure> {
        self.for_loader(sealed::RELEASE)?.read_whole(MAX_ENVELOPE_SIZE)
    }

    /// The unified kernel image.
    ///
    /// # Errors
    /// There is none; it is larger than any that is loaded, or cannot be read.
    pub fn kernel_image(&self) -> Result<Vec<u8>, Failure> {
        self.for_loader(sealed::UKI)?.read_whole(sealed::MAX_IMAGE)
    }

    fn for_loader(&self, name: &str) -> Result<&Part, Failure> {
        self.parts.get(name).ok_or_else(|| {
            let fact =
                format!("{}: expected {name} in it, for the boot loader chooses here, found none", self.path.display());
            Failure::new(ExitStatus::BadInput, fact).next("nothing was written: seal the release with --uki")
        })
    }

    /// The key history, if there is one.
    ///
    /// # Errors
    /// It is larger than any, or cannot be read.
    pub fn history(&self) -> Result<Option<Vec<u8>>, Failure> {
        self.parts.get(sealed::KEY_HISTORY).map(|part| part.read_whole(MAX_HISTORY_SIZE)).transpose()
    }

    /// The hash area.
    pub fn tree(&self) -> &Part {
        self.part(sealed::TREE)
    }

    /// The image.
    pub fn image(&self) -> &Part {
        self.part(sealed::IMAGE)
    }

    fn part(&self, name: &str) -> &Part {
        self.parts.get(name).expect("all that is needed was opened")
    }
}

impl Part {
    /// As errors name it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All of it, if that is not more than `most` bytes.
    fn read_whole(&self, most: usize) -> Result<Vec<u8>, Failure> {
        if self.size > most as u64 {
            let fact = format!("{}: expected at most {most} bytes, found {}", self.name, self.size);
            return Err(Failure::new(ExitStatus::BadInput, fact));
        }
        let mut bytes = vec![0; self.size as usize];
        self.read(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Fills the buffer from an offset within the file.
    ///
    /// # Errors
    /// The file ends before, or cannot be read.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Failure> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.size) {
            let (name, expected, found) = (&self.name, offset.saturating_add(buffer.len() as u64), self.size);
            let fact = format!("{name}: expected at least {expected} bytes, as the manifest says, found {found}");
            return Err(Failure::new(ExitStatus::BadInput, fact).next("fetch the release again: it is not complete"));
        }
        self.file
            .read_exact_at(buffer, self.offset + offset)
            .map_err(|error| Failure::io(format_args!("read {}", self.name), &error))
    }
}

fn of_directory(path: &Path) -> Result<BTreeMap<&'static str, Part>, Failure> {
    let directory = SealedDirectory::new(path);
    let open = |name: &'static str| {
        let (file, path) = (directory.open(name)?, directory.file(name).display().to_string());
        let size = file.metadata().map_err(|error| Failure::io(format_args!("read {path}"), &error))?.len();
        Ok((name, Part { file, offset: 0, size, name: path }))
    };
    let more = OPTIONAL.into_iter().filter(|name| directory.has(name));
    NEEDED.into_iter().chain(more).map(open).collect()
}

fn of_bundle(path: &Path) -> Result<BTreeMap<&'static str, Part>, Failure> {
    let io = |error| Failure::io(format_args!("open {}", path.display()), &error);
    // A pipe would never end.
    let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        let failure =
            bad_input(path, &"expected a sealed directory or a bundle, found neither a folder nor a regular file");
        return Err(failure.next("give a directory of 'iofs-sign seal', or a file of 'iofs-sign bundle'"));
    }
    let size = verity::size(&file).map_err(io)?;
    let refuse = |error: &dyn std::fmt::Display| {
        bad_input(path, error)
            .next("give a directory of 'iofs-sign seal', or a file of 'iofs-sign bundle'; fetch it again")
    };
    let extents =
        bundle::parse(|buffer, offset| file.read_exact_at(buffer, offset), size).map_err(|error| refuse(&error))?;
    let part = |name: &'static str| {
        let missing = || refuse(&format_args!("expected {name} in the bundle, found none"));
        let extent = extents.get(name).ok_or_else(missing)?;
        let file = file.try_clone().map_err(io)?;
        Ok((
            name,
            Part { file, offset: extent.offset, size: extent.size, name: format!("{} ({name})", path.display()) },
        ))
    };
    let more = OPTIONAL.into_iter().filter(|name| extents.contains_key(name));
    NEEDED.into_iter().chain(more).map(part).collect()
}
