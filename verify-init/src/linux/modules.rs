//! Loads kernel modules on all processors. Nearly all of the time goes into the kernel's check of each one's signature, which
//! keeps one processor busy.

use std::{
    ffi::CString,
    fs::File,
    io, iter,
    sync::atomic::{AtomicUsize, Ordering},
    thread::{self, ScopedJoinHandle},
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    unistd::{SysconfVar, sysconf},
};

use super::since_start;
use crate::system::{Loaded, ModuleFile};

/// More at once do not help: what comes after them takes longer than they all.
const MAX_THREADS: usize = 4;

pub(super) fn load(modules: &[ModuleFile]) -> Vec<Loaded> {
    let next = AtomicUsize::new(0);
    let work = || {
        let numbers = iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        let mine = numbers.map_while(|at| modules.get(at).map(|module| (at, load_one(module))));
        mine.collect::<Vec<_>>()
    };
    let mut done = thread::scope(|scope| {
        let others = 1..modules.len().min(processors()).min(MAX_THREADS);
        // Where there cannot be another thread, this one does all of it.
        let others: Vec<_> = others.flat_map(|_| thread::Builder::new().spawn_scoped(scope, work)).collect();
        let mut done = work();
        others.into_iter().flat_map(ScopedJoinHandle::join).for_each(|theirs| done.extend(theirs));
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, loaded)| loaded).collect()
}

/// On one, threads that wait for each other cost more than they bring.
fn processors() -> usize {
    let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    online.and_then(|count| count.try_into().ok()).unwrap_or(1)
}

fn load_one(module: &ModuleFile) -> Loaded {
    let before = since_start();
    let result = insert(module);
    Loaded { result, took: since_start().saturating_sub(before) }
}

fn insert(module: &ModuleFile) -> io::Result<()> {
    let file = File::open(&module.path)?;
    match finit_module(&file, &CString::new(module.parameters.as_str())?, ModuleInitFlags::empty()) {
        Err(Errno::EEXIST) => Ok(()),
        result => Ok(result?),
    }
}
