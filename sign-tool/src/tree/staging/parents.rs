//! From names in an archive to directories below the root, without a way out.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat2, readlinkat, statat},
    io::Errno,
};

use super::{StagingError, make};
use crate::archive::name::split;

/// The directory in which an entry is made.
#[derive(Debug)]
pub(super) struct Parents {
    root: OwnedFd,
    /// Where the root is on this machine.
    root_path: Vec<u8>,
    /// The last one: archives list directory by directory.
    cached: Option<(Vec<u8>, Arc<OwnedFd>)>,
}

/// Parents that the archive does not list, in the order of making.
pub(super) type Made = Vec<(Vec<u8>, OwnedFd)>;

impl Parents {
    pub(super) fn new(root: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let root = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
        Ok(Self { root_path: path_of(root.as_fd())?, root, cached: None })
    }

    /// The name of an open directory below the root, without symlinks in it. It stays true: nothing is renamed.
    pub(super) fn true_name(&self, opened: BorrowedFd<'_>) -> rustix::io::Result<Vec<u8>> {
        let path = path_of(opened)?;
        let name = path.strip_prefix(&*self.root_path).ok_or(Errno::XDEV)?;
        Ok(name.strip_prefix(b"/").unwrap_or(name).to_vec())
    }

    /// Forgets what was resolved: after anything was removed, or a symlink made.
    pub(super) fn forget(&mut self) {
        self.cached = None;
    }

    /// Opens the directory of `name`, making what is missing, and returns it with the last part.
    pub(super) fn open(&mut self, name: &[u8]) -> Result<(Arc<OwnedFd>, Vec<u8>, Made), StagingError> {
        let (directory, last) = split(name);
        if let Some((known, opened)) = &self.cached
            && known == directory
        {
            return Ok((opened.clone(), last.to_vec(), Made::new()));
        }
        let mut made = Made::new();
        let opened = match beneath(self.root.as_fd(), directory) {
            Err(Errno::NOENT) => self.make(directory, &mut made)?,
            other => other.map_err(|errno| StagingError::call("open its directory", name, errno))?,
        };
        let opened = Arc::new(opened);
        self.cached = Some((directory.to_vec(), opened.clone()));
        Ok((opened, last.to_vec(), made))
    }

    /// Like [`Parents::open`], without making anything.
    pub(super) fn open_existing(&self, name: &[u8]) -> Result<(OwnedFd, Vec<u8>), StagingError> {
        let (directory, last) = split(name);
        let opened = beneath(self.root.as_fd(), directory)
            .map_err(|errno| StagingError::call("open its directory", name, errno))?;
        Ok((opened, last.to_vec()))
    }

    /// Opens a directory by its true name.
    pub(super) fn open_directory(&self, name: &[u8]) -> Result<OwnedFd, StagingError> {
        let name_or_dot = if name.is_empty() { b"." } else { name };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        openat2(&self.root, name_or_dot, flags, Mode::empty(), resolve)
            .map_err(|errno| StagingError::call("open", name, errno))
    }

    fn make(&self, directory: &[u8], made: &mut Made) -> Result<OwnedFd, StagingError> {
        let mut end = 0;
        loop {
            let next = directory[end..].iter().position(|byte| *byte == b'/').map(|at| end + at);
            let part = &directory[..next.unwrap_or(directory.len())];
            match beneath(self.root.as_fd(), part) {
                Err(Errno::NOENT) => made.push((part.to_vec(), self.make_one(part)?)),
                Err(errno) => return Err(StagingError::call("open a directory", part, errno)),
                Ok(opened) if next.is_none() => return Ok(opened),
                Ok(_) => {}
            }
            match next {
                Some(slash) => end = slash + 1,
                None => {
                    return beneath(self.root.as_fd(), directory)
                        .map_err(|errno| StagingError::call("open a directory", directory, errno));
                }
            }
        }
    }

    fn make_one(&self, name: &[u8]) -> Result<OwnedFd, StagingError> {
        let (directory, last) = split(name);
        let fail = |errno| StagingError::call("mkdir", name, errno);
        let parent = beneath(self.root.as_fd(), directory).map_err(fail)?;
        mkdirat(&parent, last, Mode::RWXU).map_err(fail)?;
        make::open_directory_at(parent.as_fd(), last).map_err(fail)
    }
}

/// Opens a directory below `root` as if `root` were `/`: `..` and absolute symlinks end there.
fn beneath(root: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let name = if name.is_empty() { b"." } else { name };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(root, name, flags, Mode::empty(), resolve) {
            // A rename somewhere on the system at the same moment.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

fn path_of(opened: BorrowedFd<'_>) -> rustix::io::Result<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", opened.as_raw_fd());
    readlinkat(CWD, link, Vec::new()).map(std::ffi::CString::into_bytes)
}

/// What stands at a name, itself not followed.
pub(super) fn kind_at(parent: BorrowedFd<'_>, last: &[u8]) -> rustix::io::Result<Option<FileType>> {
    match statat(parent, last, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}
