//! What TREE is: told from its first bytes, never from its name.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek},
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use erofs_image::source::{
    archive::{self, Keep, UnpackError, Unpacked},
    directory::{self, DirectoryError},
    oci::{self, Choice, OciError},
};

use crate::{
    archive::{
        compression::{Compression, MAGIC_SIZE},
        entry::printable,
        error::ArchiveError,
        tar::is_tar,
    },
    erofs::{ImageError, superblock},
    report::{ExitStatus, Failure},
};

/// A root tree as it was handed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory.
    Directory(PathBuf),
    /// A tar archive.
    Tar(PathBuf, Compression),
    /// A cpio initramfs: archives in a row, each compressed in its own way.
    Initramfs(PathBuf),
    /// A container image in an OCI layout: a directory, or a tar archive of one.
    Oci(PathBuf),
    /// An erofs image, to be used as it is.
    Erofs(PathBuf),
}

/// A TREE that cannot be told or read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be opened or read.
    #[error("read {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something else.
    #[error("{}: expected a directory, a tar or cpio archive, an OCI image layout, or an erofs image; found {found}", .path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: String,
    },
    /// A compression that is not read.
    #[error("{}: {} compression is not supported", .path.display(), .compression.name())]
    Compression {
        /// The file.
        path: PathBuf,
        /// Its compression.
        compression: Compression,
    },
    /// A directory cannot be read, or has what no image can hold.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A container image is incomplete, or not what its digests say, or not told from others.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// An archive is bad, or has what no image can hold.
    #[error(transparent)]
    Archive(#[from] UnpackError),
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        let fact = error.to_string();
        match error {
            ArchiveError::Read { source, .. } if source.raw_os_error().is_some() => {
                Self::new(ExitStatus::System, fact).next("check that the file can be read")
            }
            ArchiveError::Truncated { .. } | ArchiveError::Read { .. } => {
                Self::new(ExitStatus::BadInput, fact).next("make or copy the archive anew; it is damaged")
            }
            ArchiveError::Field { .. } => Self::new(ExitStatus::BadInput, fact)
                .next("make the archive anew with GNU tar, or with `cpio -o -H newc`"),
            ArchiveError::Unsupported { .. } => {
                Self::new(ExitStatus::BadInput, fact).next("unpack it and pass the directory instead")
            }
            ArchiveError::Compression { .. } => {
                Self::new(ExitStatus::BadInput, fact).next("recompress it with gzip, xz, zstd or lz4")
            }
        }
    }
}

impl From<ArchiveError> for SourceError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error.into())
    }
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        let status = match error {
            DirectoryError::Io { .. } => ExitStatus::System,
            DirectoryError::Tree(_) | DirectoryError::UnknownKind { .. } => ExitStatus::BadInput,
        };
        Self::new(status, error.to_string())
    }
}

impl From<OciError> for Failure {
    fn from(error: OciError) -> Self {
        let fact = error.to_string();
        match error {
            OciError::Io { .. } => Self::new(ExitStatus::System, fact),
            OciError::Choice { .. } => Self::new(ExitStatus::Usage, fact).next(
                "name one by --oci-name; the processor is the kernel's, or image.architecture of the configuration",
            ),
            OciError::Layer { error, .. } | OciError::Image { error } => Self { fact, ..error.into() },
            _ => Self::new(ExitStatus::BadInput, fact),
        }
    }
}

impl From<UnpackError> for Failure {
    fn from(error: UnpackError) -> Self {
        let fact = error.to_string();
        match error {
            UnpackError::Archive(error) => error.into(),
            UnpackError::Open { .. } => {
                Self::new(ExitStatus::System, fact).next("check that the file exists and may be read")
            }
            UnpackError::Pack(error) => ImageError::from(error).into(),
            UnpackError::Store(_) => Self::new(ExitStatus::System, fact),
            UnpackError::Entry { .. } => Self::new(ExitStatus::BadInput, fact)
                .next("no honest tool makes such an entry: make the archive anew, or leave the entry out"),
            UnpackError::Acl { .. } => Self::new(ExitStatus::BadInput, fact)
                .next("make the archive with numeric ids (`tar --numeric-owner --acls`)"),
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        let fact = error.to_string();
        match error {
            SourceError::Io { .. } => Self::new(ExitStatus::System, fact).next("check the path and its permissions"),
            SourceError::Unknown { .. } => Self::new(ExitStatus::BadInput, fact)
                .next("pass a directory, the output of mmdebstrap, `docker export` or `skopeo copy … oci:`, an initramfs, or an erofs image"),
            SourceError::Compression { .. } => {
                Self::new(ExitStatus::BadInput, fact).next("recompress it with gzip, xz, zstd or lz4")
            }
            SourceError::Directory(error) => error.into(),
            SourceError::Oci(error) => error.into(),
            SourceError::Archive(error) => error.into(),
        }
    }
}

/// The block in which an uncompressed tar shows itself.
const HEAD_SIZE: usize = 512;

impl Source {
    /// Looks at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or is none of the accepted.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let fail = |source| SourceError::Io { path: path.to_owned(), source };
        let kind = std::fs::metadata(path).map_err(fail)?;
        if oci::is_layout(path) {
            return Ok(Self::Oci(path.to_owned()));
        }
        if kind.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let mut file = File::open(path).map_err(fail)?;
        let mut head = Vec::new();
        (&mut file).take(HEAD_SIZE as u64).read_to_end(&mut head).map_err(fail)?;
        if is_tar(&head) {
            return Ok(Self::Tar(path.to_owned(), Compression::None));
        }
        if head.starts_with(b"07070") {
            return Ok(Self::Initramfs(path.to_owned()));
        }
        let compression = Compression::detect(&head[..head.len().min(MAGIC_SIZE)]);
        if compression != Compression::None {
            return Self::open_compressed(path, compression, file);
        }
        if superblock::has_magic(&mut file).map_err(fail)? {
            return Ok(Self::Erofs(path.to_owned()));
        }
        let found = describe(&head);
        Err(SourceError::Unknown { path: path.to_owned(), found })
    }

    fn open_compressed(path: &Path, compression: Compression, mut file: File) -> Result<Self, SourceError> {
        let fail = |source| SourceError::Io { path: path.to_owned(), source };
        file.rewind().map_err(fail)?;
        let path = path.to_owned();
        let stream = match compression.first_stream(BufReader::new(file)) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                return Err(SourceError::Compression { path, compression });
            }
            other => other.map_err(fail)?,
        };
        let mut head = Vec::new();
        stream.take(HEAD_SIZE as u64).read_to_end(&mut head).map_err(|source| {
            let place = crate::archive::error::Place { archive: path.display().to_string(), entry: None, offset: 0 };
            ArchiveError::Read { place: Box::new(place), source }
        })?;
        if is_tar(&head) {
            return Ok(Self::Tar(path, compression));
        }
        if head.starts_with(b"07070") {
            return Ok(Self::Initramfs(path));
        }
        let found = format!("{} data that holds {}", compression.name(), describe(&head));
        Err(SourceError::Unknown { path, found })
    }

    /// Reads the tree: metadata, and where content lies. Nothing is unpacked, and nobody has to be root. `choice` says which
    /// of a layout's images; directories are listed on up to `threads` threads; `keep` says what becomes of what comes out of
    /// compressed archives. `None` for a ready image.
    ///
    /// # Errors
    /// A bad archive, or an entry that no image can hold.
    pub fn load(&self, choice: &Choice, threads: NonZeroUsize, keep: &Keep) -> Result<Option<Unpacked>, SourceError> {
        Ok(match self {
            Self::Directory(path) => Some(Unpacked { tree: directory::load_on(path, threads)?, remarks: Vec::new() }),
            Self::Tar(path, _) => Some(archive::tar(path, keep)?),
            Self::Initramfs(path) => Some(archive::initramfs(path, keep)?),
            Self::Oci(path) => Some(oci::load(path, choice, keep)?),
            Self::Erofs(_) => None,
        })
    }
}

/// Names common things that people pass by mistake.
fn describe(head: &[u8]) -> String {
    let known: [(&[u8], &str); 6] = [
        (b"hsqs", "a squashfs image"),
        (b"\x7fELF", "a program"),
        (b"MZ", "a kernel or UEFI program"),
        (b"PK\x03\x04", "a zip archive"),
        (b"QFI\xfb", "a qcow2 disk image"),
        (&[0xc7, 0x71], "a binary cpio archive (use `cpio -o -H newc`)"),
    ];
    if let Some((_, name)) = known.iter().find(|(magic, _)| head.starts_with(magic)) {
        return (*name).to_owned();
    }
    match head {
        [] => "an empty file".into(),
        head if head.iter().all(|byte| *byte == 0) => "zeros".into(),
        head => format!("bytes that begin with {}", printable(&head[..head.len().min(16)])),
    }
}
