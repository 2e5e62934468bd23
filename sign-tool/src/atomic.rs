//! Outputs that appear whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use tempfile::{Builder, NamedTempFile, TempDir};

use crate::report::{ExitStatus, Failure};

/// How the names of files begin until they are complete.
pub const TEMPORARY: &str = ".iofs-";

/// The folder that a path lies in; `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A file that takes its name only once it is complete and on disk.
#[derive(Debug)]
pub struct AtomicFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl AtomicFile {
    /// Opens a hidden file beside `path`. `mode` is what the file will have, less the umask where it is public.
    ///
    /// # Errors
    /// A [`Failure`] that names the path.
    pub fn create(path: &Path, mode: u32) -> Result<Self, Failure> {
        let file = Builder::new()
            .prefix(TEMPORARY)
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(parent(path))
            .map_err(|error| Failure::io(format_args!("create {}", path.display()), &error))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// The open file.
    pub fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Where the file lies until it is complete.
    pub fn temporary_path(&self) -> &Path {
        self.file.path()
    }

    /// Gives the file its name, in place of what had it before.
    pub fn replace(self) -> Result<(), Failure> {
        self.finish(|file, path| file.persist(path).map(drop).map_err(|error| error.error))
    }

    /// Gives the file its name, which must be free.
    pub fn create_new(self) -> Result<(), Failure> {
        self.finish(|file, path| file.persist_noclobber(path).map(drop).map_err(|error| error.error))
    }

    fn finish(self, persist: impl FnOnce(NamedTempFile, &Path) -> io::Result<()>) -> Result<(), Failure> {
        let Self { file, path } = self;
        let finish = || {
            file.as_file().sync_all()?;
            persist(file, &path)?;
            File::open(parent(&path))?.sync_all()
        };
        finish().map_err(|error| Failure::io(format_args!("write {}", path.display()), &error))
    }
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))
}

/// Writes a whole file, or leaves what was there.
pub fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Failure> {
    let mut file = AtomicFile::create(path, mode)?;
    file.file().write_all(bytes).map_err(|error| Failure::io(format_args!("write {}", path.display()), &error))?;
    file.replace()
}

/// A directory that takes its name only once everything in it is complete and on disk.
///
/// While it is filled it is locked. What a killed process left is not, and is removed by the next one for that name.
#[derive(Debug)]
pub struct AtomicDirectory {
    staging: TempDir,
    _lock: File,
    path: PathBuf,
    replace: bool,
}

impl AtomicDirectory {
    /// Makes a hidden directory beside `path`, gone again unless [`AtomicDirectory::commit`] is reached.
    ///
    /// # Errors
    /// `path` exists, unless it is to be replaced and looks like an earlier output (`is_ours`), or is empty.
    pub fn create(path: &Path, replace: bool, is_ours: impl FnOnce(&Path) -> bool) -> Result<Self, Failure> {
        Self::check(path, replace, is_ours)?;
        let prefix = format!(".{}.partial-", path.file_name().unwrap_or_default().to_string_lossy());
        remove_abandoned(parent(path), &prefix);
        let (staging, lock) = locked_directory(parent(path), &prefix)
            .map_err(|error| Failure::io(format_args!("create a directory beside {}", path.display()), &error))?;
        Ok(Self { staging, _lock: lock, path: path.to_owned(), replace })
    }

    /// Whether [`AtomicDirectory::create`] would take the name.
    ///
    /// # Errors
    /// As there.
    pub fn check(path: &Path, replace: bool, is_ours: impl FnOnce(&Path) -> bool) -> Result<(), Failure> {
        if path.symlink_metadata().is_err() || is_empty_directory(path) {
            return Ok(());
        }
        if !replace {
            return Err(Failure::new(ExitStatus::Usage, format!("{} exists already", path.display()))
                .next("choose another --out, or add --replace to put the new output in its place"));
        }
        if !is_ours(path) {
            let fact = format!("{} is not the output of an earlier seal: it is not replaced", path.display());
            return Err(Failure::new(ExitStatus::Usage, fact).next("choose another --out"));
        }
        Ok(())
    }

    /// Where the directory lies while it is being filled. What is removed again can lie in it, too.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// The path of a file in the directory while it is being filled.
    pub fn file(&self, name: &str) -> PathBuf {
        self.staging.path().join(name)
    }

    /// Writes a file into the directory.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let write = || {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(self.file(name))?;
            file.write_all(bytes)
        };
        write().map_err(|error| Failure::io(format_args!("write {name} for {}", self.path.display()), &error))
    }

    /// Makes everything durable, then gives the directory its name. What it replaces is removed last.
    pub fn commit(self) -> Result<(), Failure> {
        self.sync_and_rename()
            .map_err(|error| Failure::io(format_args!("complete {}", self.path.display()), &error))?;
        // After an exchange the staging name holds what was replaced; else nothing.
        let leftover = self.staging.keep();
        match fs::remove_dir_all(&leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::io(format_args!("remove the replaced {}", leftover.display()), &error))
            }
            _ => Ok(()),
        }
    }

    fn sync_and_rename(&self) -> io::Result<()> {
        let staging = self.staging.path();
        for entry in fs::read_dir(staging)? {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(staging)?.sync_all()?;
        if self.replace && self.path.exists() {
            renameat_with(CWD, staging, CWD, &self.path, RenameFlags::EXCHANGE)?;
        } else {
            fs::rename(staging, &self.path)?;
        }
        File::open(parent(&self.path))?.sync_all()
    }
}

fn locked_directory(parent: &Path, prefix: &str) -> io::Result<(TempDir, File)> {
    loop {
        let permissions = fs::Permissions::from_mode(0o755);
        let directory = Builder::new().prefix(prefix).permissions(permissions).tempdir_in(parent)?;
        let lock = File::open(directory.path())?;
        // Between its creation and its locking, another process may have taken it for abandoned.
        let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        let same = fs::symlink_metadata(directory.path())
            .is_ok_and(|found| lock.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (found.dev(), found.ino())));
        if locked && same {
            return Ok((directory, lock));
        }
    }
}

/// Removes the directories of processes that were killed, as far as this one may.
fn remove_abandoned(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let named = entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes());
        if !named || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let free = File::open(entry.path()).and_then(|directory| {
            flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
            Ok(directory)
        });
        // Whoever may not remove it can still seal: it is in nobody's way.
        if let Ok(_lock) = free {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_empty_directory(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_directory_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let out = home.path().join("out");
        let directory = AtomicDirectory::create(&out, false, |_| true).unwrap();
        directory.write("a", b"1").unwrap();
        drop(directory);
        assert!(is_empty_directory(home.path()));
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_in_use_is_not() {
        let home = tempfile::tempdir().unwrap();
        let out = home.path().join("out");
        let abandoned = home.path().join(".out.partial-123456/tree/deep");
        fs::create_dir_all(&abandoned).unwrap();
        fs::create_dir(home.path().join(".other.partial-1")).unwrap();
        let first = AtomicDirectory::create(&out, false, |_| true).unwrap();
        assert!(!home.path().join(".out.partial-123456").exists());
        let second = AtomicDirectory::create(&out, false, |_| true).unwrap();
        assert!(first.path().exists() && second.path().exists());
        assert!(home.path().join(".other.partial-1").exists());
    }

    #[test]
    fn a_finished_directory_replaces_only_what_it_may() {
        let home = tempfile::tempdir().unwrap();
        let out = home.path().join("out");
        for (content, replace) in [("1", false), ("2", true)] {
            let directory = AtomicDirectory::create(&out, replace, |_| true).unwrap();
            directory.write("a", content.as_bytes()).unwrap();
            directory.commit().unwrap();
            assert_eq!(fs::read_to_string(out.join("a")).unwrap(), content);
        }
        assert_eq!(AtomicDirectory::create(&out, false, |_| true).unwrap_err().status, ExitStatus::Usage);
        assert_eq!(AtomicDirectory::create(&out, true, |_| false).unwrap_err().status, ExitStatus::Usage);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_file_does_not_take_a_name_that_is_in_use() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key");
        write(&path, 0o600, b"old").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(AtomicFile::create(&path, 0o600).unwrap().create_new().is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }
}
