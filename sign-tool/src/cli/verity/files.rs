//! The files that the verb writes and reads besides the data.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use iofs_policy::verity::RootHash;
use iofs_sign::report::{ExitStatus, Failure};
use tempfile::NamedTempFile;

/// Where the tree is written: in place, or to a file beside that takes the name once it is complete.
pub(super) enum HashFile {
    Existing(File),
    New(NamedTempFile),
}

impl HashFile {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let failure = |error: &io::Error| Failure::io(format_args!("open hash device {}", path.display()), error);
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Self::Existing(file)),
            Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => {
                Self::beside(path).map_err(|error| failure(&error))
            }
            Err(error) => Err(failure(&error)),
        }
    }

    fn beside(path: &Path) -> io::Result<Self> {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        tempfile::Builder::new().prefix(".verity-").suffix(".partial").tempfile_in(folder).map(Self::New)
    }

    pub(super) fn file(&self) -> &File {
        match self {
            Self::Existing(file) => file,
            Self::New(file) => file.as_file(),
        }
    }

    pub(super) fn commit(self, path: &Path) -> Result<(), Failure> {
        let Self::New(file) = self else { return Ok(()) };
        file.persist_noclobber(path)
            .map(drop)
            .map_err(|error| Failure::io(format_args!("create hash device {}", path.display()), &error.error))
    }
}

/// In hexadecimal and without a newline, readable by the owner alone: as veritysetup does.
pub(super) fn write_root_hash(path: &Path, root_hash: &RootHash) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(root_hash.to_string().as_bytes()))
        .map_err(|error| Failure::io(format_args!("write root hash file {}", path.display()), &error))
}

pub(super) fn read_root_hash(path: &Path) -> Result<RootHash, Failure> {
    // The longest root hash has 128 digits: no more of an endless file need be read.
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(256).read_to_string(&mut text))
        .map_err(|error| Failure::io(format_args!("read root hash file {}", path.display()), &error))?;
    text.trim_end().to_ascii_lowercase().parse().map_err(|error| {
        let fact = format!("root hash file {}: {error}", path.display());
        Failure::new(ExitStatus::BadInput, fact).next("give the file that `verity format --root-hash-file` wrote")
    })
}
