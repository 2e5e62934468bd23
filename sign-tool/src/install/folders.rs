//! Changes to a file system that can be taken back until they are kept.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{state::FileContent, sysroot::Sysroot};
use crate::{
    atomic::{self, AtomicFile},
    report::Failure,
};

/// How to take back a change.
#[derive(Debug)]
enum Undo {
    /// A file was written or removed: this is what it was.
    File(PathBuf, Option<FileContent>),
    /// A folder was put into the place of another, which was kept beside it.
    Folder(PathBuf, Option<PathBuf>),
    /// A folder was made.
    Made(PathBuf),
}

/// All changes so far.
#[derive(Debug)]
pub(super) struct Journal<'a> {
    sysroot: &'a Sysroot,
    done: Vec<Undo>,
}

impl<'a> Journal<'a> {
    pub(super) fn new(sysroot: &'a Sysroot) -> Self {
        Self { sysroot, done: Vec::new() }
    }

    /// Notes what a file is before somebody else changes it.
    pub(super) fn will_change(&mut self, path: &Path) -> Result<Option<FileContent>, Failure> {
        let before = FileContent::read(self.sysroot, path)?;
        self.done.push(Undo::File(path.to_owned(), before.clone()));
        Ok(before)
    }

    /// Writes a file, and gives what it was.
    pub(super) fn write(&mut self, path: &Path, content: &FileContent) -> Result<Option<FileContent>, Failure> {
        self.make_folder(atomic::parent(path))?;
        let before = self.will_change(path)?;
        write(&self.sysroot.path(path), content)?;
        Ok(before)
    }

    /// Removes a file, and gives what it was.
    pub(super) fn remove(&mut self, path: &Path) -> Result<Option<FileContent>, Failure> {
        let before = self.will_change(path)?;
        if before.is_some() {
            let path = self.sysroot.path(path);
            fs::remove_file(&path).map_err(|error| Failure::io(format_args!("remove {}", path.display()), &error))?;
        }
        Ok(before)
    }

    /// Puts a copy of the folder `from`, which lies on the build's file system, in the place of `to`, at once.
    pub(super) fn put_folder(&mut self, from: &Path, to: &Path) -> Result<(), Failure> {
        self.make_folder(atomic::parent(to))?;
        let target = self.sysroot.path(to);
        let beside = beside(&target, "new");
        let put = || {
            copy_folder(from, &beside)?;
            let replaced = target.exists();
            swap(&beside, &target, replaced)?;
            sync(atomic::parent(&target))?;
            Ok(replaced.then_some(beside.clone()))
        };
        let kept = put().map_err(|error: io::Error| {
            let _ = fs::remove_dir_all(&beside);
            Failure::io(format_args!("write {}", to.display()), &error)
        })?;
        self.done.push(Undo::Folder(target, kept));
        Ok(())
    }

    /// Removes a folder, as far as nobody can see it; it is gone once the changes are kept.
    pub(super) fn remove_folder(&mut self, path: &Path) -> Result<(), Failure> {
        let target = self.sysroot.path(path);
        if !target.exists() {
            return Ok(());
        }
        let kept = beside(&target, "old");
        let _ = fs::remove_dir_all(&kept);
        fs::rename(&target, &kept).map_err(|error| Failure::io(format_args!("remove {}", path.display()), &error))?;
        self.done.push(Undo::Folder(target, Some(kept)));
        Ok(())
    }

    fn make_folder(&mut self, path: &Path) -> Result<(), Failure> {
        let mut missing: Vec<PathBuf> = path.ancestors().map(Path::to_owned).collect();
        missing.retain(|folder| !self.sysroot.path(folder).exists());
        for folder in missing.iter().rev() {
            let path = self.sysroot.path(folder);
            fs::create_dir(&path).map_err(|error| Failure::io(format_args!("make {}", folder.display()), &error))?;
            self.done.push(Undo::Made(path));
        }
        Ok(())
    }

    /// Keeps all changes: what was replaced goes.
    pub(super) fn keep(self) {
        for undo in self.done {
            if let Undo::Folder(_, Some(kept)) = undo {
                // Nobody looks for it; the next installation removes it.
                let _ = fs::remove_dir_all(kept);
            }
        }
    }

    /// Takes all changes back, the last one first, and says what could not be.
    pub(super) fn undo(self) -> Vec<String> {
        let mut problems = Vec::new();
        for undo in self.done.into_iter().rev() {
            if let Err(error) = take_back(self.sysroot, undo) {
                problems.push(error.to_string());
            }
        }
        problems
    }
}

fn take_back(sysroot: &Sysroot, undo: Undo) -> Result<(), Failure> {
    match undo {
        Undo::File(path, Some(before)) => write(&sysroot.path(&path), &before),
        Undo::File(path, None) => match fs::remove_file(sysroot.path(&path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::io(format_args!("remove {}", path.display()), &error))
            }
            _ => Ok(()),
        },
        Undo::Folder(target, kept) => {
            let back = || {
                if target.exists() {
                    fs::remove_dir_all(&target)?;
                }
                kept.as_ref().map_or(Ok(()), |kept| fs::rename(kept, &target))
            };
            back().map_err(|error| Failure::io(format_args!("put {} back", target.display()), &error))
        }
        // What somebody else has put there meanwhile stays.
        Undo::Made(path) => {
            let _ = fs::remove_dir(path);
            Ok(())
        }
    }
}

fn write(path: &Path, content: &FileContent) -> Result<(), Failure> {
    let mut file = AtomicFile::create(path, content.mode)?;
    let failed = |error: io::Error| Failure::io(format_args!("write {}", path.display()), &error);
    file.file().write_all(&content.bytes).map_err(failed)?;
    file.replace()
}

/// A hidden name beside a folder: no loader and no script of GRUB's looks at it.
fn beside(target: &Path, ending: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{ending}"))
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        fs::copy(entry.path(), &target)?;
        sync(&target)?;
    }
    sync(to)
}

/// Exchanges two folders, or moves the first one to a name that is free.
fn swap(new: &Path, target: &Path, replaced: bool) -> io::Result<()> {
    if !replaced {
        return fs::rename(new, target);
    }
    if renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE).is_ok() {
        return Ok(());
    }
    // vfat can exchange since Linux 6.0. Before, there is a moment without this kernel's files: the stock entry is still there.
    let old = beside(target, "old");
    fs::rename(target, &old)?;
    fs::rename(new, target)?;
    fs::rename(&old, new)
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(text: &str) -> FileContent {
        FileContent { mode: 0o644, bytes: text.as_bytes().to_vec() }
    }

    fn listing(root: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        let walk = walkdir::WalkDir::new(root).sort_by_file_name().into_iter();
        walk.map(|entry| entry.unwrap().into_path()).map(|path| (path.clone(), fs::read(&path).ok())).collect()
    }

    #[test]
    fn everything_is_taken_back_in_the_end() {
        let home = tempfile::tempdir().unwrap();
        let sysroot = Sysroot::new(&home.path().join("root"));
        let sealed = home.path().join("sealed");
        fs::create_dir_all(sysroot.path("/boot/iofs/1")).unwrap();
        fs::write(sysroot.path("/boot/iofs/1/image"), "old").unwrap();
        fs::write(sysroot.path("/boot/grub.cfg"), "stock").unwrap();
        fs::create_dir(&sealed).unwrap();
        fs::write(sealed.join("image"), "new").unwrap();
        let before = listing(&sysroot.path("/"));
        let change = || {
            let mut journal = Journal::new(&sysroot);
            journal.put_folder(&sealed, Path::new("/boot/iofs/1")).unwrap();
            journal.put_folder(&sealed, Path::new("/boot/iofs/2")).unwrap();
            journal.remove_folder(Path::new("/boot/iofs/2")).unwrap();
            journal.write(Path::new("/etc/iofs/install.toml"), &content("x")).unwrap();
            journal.remove(Path::new("/boot/grub.cfg")).unwrap();
            assert_eq!(fs::read(sysroot.path("/boot/iofs/1/image")).unwrap(), b"new");
            journal
        };
        assert!(change().undo().is_empty());
        assert_eq!(listing(&sysroot.path("/")), before);
        change().keep();
        let kept: Vec<PathBuf> = listing(&sysroot.path("/boot")).into_iter().map(|(path, _)| path).collect();
        let expected = ["/boot", "/boot/iofs", "/boot/iofs/1", "/boot/iofs/1/image"].map(|path| sysroot.path(path));
        assert_eq!(kept, expected);
    }
}
