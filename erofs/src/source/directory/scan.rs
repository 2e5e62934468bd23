//! Lists a directory with all below it on several threads: most of the time goes into waiting for the system's calls.

use std::{
    collections::HashMap,
    fs,
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

/// The entries of each directory, sorted by name, by the directory's number. That of the root is 0; the others' say nothing.
pub(super) fn scan(root: &Path, threads: NonZeroUsize) -> Result<HashMap<usize, Vec<Listed>>, DirectoryError> {
    let state = State { waiting: vec![(0, root.to_owned())], next: 1, ..State::default() };
    let scan = Scan { state: Mutex::new(state), changed: Condvar::new() };
    std::thread::scope(|scope| {
        for _ in 1..threads.get() {
            // Without a thread the others do its work.
            let _ = std::thread::Builder::new().spawn_scoped(scope, || scan.run());
        }
        scan.run();
    });
    let state = scan.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    state.failed.map_or(Ok(state.found), Err)
}

#[derive(Default)]
struct State {
    waiting: Vec<(usize, PathBuf)>,
    /// The number of the next directory.
    next: usize,
    /// Directories that are being listed: more may come of them.
    busy: usize,
    found: HashMap<usize, Vec<Listed>>,
    failed: Option<DirectoryError>,
}

struct Scan {
    state: Mutex<State>,
    changed: Condvar,
}

impl Scan {
    fn run(&self) {
        let mut xattrs = XattrReader::new();
        while let Some((number, path)) = self.take() {
            let listed = list(&path, &mut xattrs);
            let mut state = self.lock();
            state.busy -= 1;
            match listed {
                Ok(listed) => state.add(number, &path, listed),
                Err(error) => state.failed = Some(error),
            }
            self.changed.notify_all();
        }
    }

    /// The next directory; none where all are listed, or one cannot be.
    fn take(&self) -> Option<(usize, PathBuf)> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() {
                return None;
            }
            if let Some(next) = state.waiting.pop() {
                state.busy += 1;
                return Some(next);
            }
            if state.busy == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, number: usize, path: &Path, mut listed: Vec<Listed>) {
        for entry in listed.iter_mut().filter(|entry| entry.metadata.is_dir()) {
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
