//! Lists a directory with all below it on several threads: most of the time goes into waiting for the system's calls.

use std::{
    collections::HashMap,
    fs, io,
    num::NonZeroUsize,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{DirectoryError, XattrReader, common, io_error, kind};
use crate::tree::Node;

/// What a directory has under one name.
pub(super) struct Listed {
    pub(super) name: Vec<u8>,
    pub(super) metadata: fs::Metadata,
    pub(super) node: Node,
    /// The number of what is below, where it is a directory.
    pub(super) below: Option<usize>,
}

/// Lists `root` and all below it on up to `threads` threads. This one has `taker` take the listings meanwhile.
pub(super) fn scan<T>(
    root: &Path,
    threads: NonZeroUsize,
    taker: impl FnOnce(&Scan) -> Result<T, DirectoryError>,
) -> Result<T, DirectoryError> {
    let state = State { waiting: vec![(0, root.to_owned())], next: 1, ..State::default() };
    let scan = Scan { state: Mutex::new(state), changed: Condvar::new() };
    std::thread::scope(|scope| {
        let _ending = Ending(&scan);
        for _ in 1..threads.get() {
            // Without a thread the others do its work.
            let _ = std::thread::Builder::new().spawn_scoped(scope, || scan.run());
        }
        taker(&scan)
    })
}

pub(super) struct Scan {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Directories to be listed, the next one last.
    waiting: Vec<(usize, PathBuf)>,
    /// The number of the next directory.
    next: usize,
    /// Directories that are being listed: more may come of them.
    busy: usize,
    /// What nobody has taken yet.
    found: HashMap<usize, Vec<Listed>>,
    failed: Option<DirectoryError>,
    /// A thread is through with it, or panicked: nothing more is to be listed.
    ended: bool,
}

struct Ending<'a>(&'a Scan);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

impl Scan {
    /// The entries of a directory, sorted by name. The root's number is 0; the others' say nothing.
    pub(super) fn listing(&self, number: usize, xattrs: &mut XattrReader) -> Result<Vec<Listed>, DirectoryError> {
        let mut state = self.lock();
        loop {
            if let Some(found) = state.found.remove(&number) {
                return Ok(found);
            }
            if let Some(error) = state.failed.take() {
                return Err(error);
            }
            if state.ended && state.waiting.is_empty() {
                return Err(io_error("list", Path::new("the directory"), io::Error::other("another thread has ended")));
            }
            state = self.go_on(state, xattrs);
        }
    }

    fn run(&self) {
        let _ending = Ending(self);
        let mut xattrs = XattrReader::new();
        let mut state = self.lock();
        while !state.ended && state.failed.is_none() && (state.busy > 0 || !state.waiting.is_empty()) {
            state = self.go_on(state, &mut xattrs);
        }
    }

    /// Lists the directory that is next, or waits for what others list.
    fn go_on<'a>(&'a self, mut state: MutexGuard<'a, State>, xattrs: &mut XattrReader) -> MutexGuard<'a, State> {
        let Some(next) = state.take() else {
            return self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        self.list(next, xattrs);
        self.lock()
    }

    fn list(&self, (number, path): (usize, PathBuf), xattrs: &mut XattrReader) {
        let listed = list(&path, xattrs);
        let mut state = self.lock();
        state.busy -= 1;
        match listed {
            Ok(listed) => state.add(number, &path, listed),
            Err(error) => state.failed = Some(error),
        }
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self) -> Option<(usize, PathBuf)> {
        let next = self.waiting.pop()?;
        self.busy += 1;
        Some(next)
    }

    fn add(&mut self, number: usize, path: &Path, mut listed: Vec<Listed>) {
        // The first name is wanted first.
        for entry in listed.iter_mut().rev().filter(|entry| entry.metadata.is_dir()) {
            entry.below = Some(self.next);
            self.waiting.push((self.next, path.join(name(&entry.name))));
            self.next += 1;
        }
        self.found.insert(number, listed);
    }
}

/// Sorted, so that nothing depends on how the file system lists them.
fn list(path: &Path, xattrs: &mut XattrReader) -> Result<Vec<Listed>, DirectoryError> {
    let mut found = Vec::new();
    for entry in path.read_dir().map_err(|source| io_error("list", path, source))? {
        let entry = entry.map_err(|source| io_error("list", path, source))?;
        let path = entry.path();
        // Asked of the open directory, which spares the walk along the path.
        let metadata = entry.metadata().map_err(|source| io_error("stat", &path, source))?;
        let node = Node { metadata: common(&path, &metadata, xattrs)?, kind: kind(&path, &metadata)? };
        found.push(Listed { name: entry.file_name().into_vec(), metadata, node, below: None });
    }
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn name(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}
