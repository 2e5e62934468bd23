//! What the kernel reads of a program in order to run it.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::Read,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::libc::O_NONBLOCK;

/// So much of each file, which is all of most: `execve` touches more than their headers.
const START: usize = 1 << 18;
/// A script, its interpreter and what loads that one's libraries; the kernel itself follows five.
const MAX_FILES: usize = 5;

/// Has a program's start read, and that of what runs it, as long as nothing else has the processor: whatever `execve` would wait
/// for afterwards it finds in memory. What is wrong with them is for `execve` to say.
pub(super) fn read_ahead(path: &str) {
    let mut next = Some(PathBuf::from(path));
    for _ in 0..MAX_FILES {
        let Some(start) = next.take().and_then(|path| start(&path)) else { return };
        next = interpreter(&start).map(|path| PathBuf::from(OsStr::from_bytes(path)));
    }
}

/// Nothing of what is no file, or has nothing to read yet: nobody waits here for what `execve` would refuse at once.
fn start(path: &Path) -> Option<Vec<u8>> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).ok()?;
    let mut start = Vec::with_capacity(START);
    file.take(START as u64).read_to_end(&mut start).ok()?;
    Some(start)
}

/// The file that runs one that begins so (`execve(2)`; `elf(5)`, of 64 bits in this machine's byte order).
fn interpreter(start: &[u8]) -> Option<&[u8]> {
    if let Some(line) = start.strip_prefix(b"#!") {
        return line.split(|byte| byte.is_ascii_whitespace() || *byte == 0).find(|word| !word.is_empty());
    }
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| {
        let bytes = start.get(at..at.checked_add(size)?)?;
        let mut number = [0; 8];
        number[..size].copy_from_slice(bytes);
        usize::try_from(u64::from_le_bytes(number)).ok()
    };
    let is_elf = start.starts_with(b"\x7fELF\x02\x01");
    let (headers, size, count) = (number(32, 8).filter(|_| is_elf)?, number(54, 2)?, number(56, 2)?);
    let header = (0..count)
        .map_while(|number| headers.checked_add(number * size))
        .find(|at| number(*at, 4) == Some(PT_INTERP as usize))?;
    let (place, length) = (number(header.checked_add(8)?, 8)?, number(header.checked_add(32)?, 8)?);
    start.get(place..place.checked_add(length)?)?.split(|byte| *byte == 0).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_of_scripts_and_programs_are_found() {
        assert_eq!(interpreter(b"#! /bin/sh -e\necho"), Some(&b"/bin/sh"[..]));
        let own = start(&std::env::current_exe().unwrap()).unwrap();
        let loader = interpreter(&own).map(|path| Path::new(OsStr::from_bytes(path)).to_owned());
        assert!(loader.is_some_and(|loader| loader.is_absolute() && loader.exists()), "of this test");
    }

    #[test]
    fn starts_that_tell_nothing_are_no_program() {
        let own = start(&std::env::current_exe().unwrap()).unwrap();
        for end in [0, 3, 6, 33, 57, 64, 100, 200] {
            assert_eq!(interpreter(&own[..end]), None, "{end} bytes");
        }
        for place in 0..64 {
            let mut broken = own.clone();
            broken[place] = 0xff;
            interpreter(&broken);
        }
        assert_eq!(interpreter(b"#!"), None);
        assert_eq!(interpreter(b"#!  \n\n"), None);
        read_ahead("/nowhere");
    }

    #[test]
    fn nobody_waits_for_an_interpreter_that_is_no_file() {
        use nix::{sys::stat::Mode, unistd::mkfifo};
        let folder = tempfile::tempdir().unwrap();
        let (pipe, script) = (folder.path().join("pipe"), folder.path().join("script"));
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        fs::write(&script, format!("#!{}\n", pipe.display())).unwrap();
        read_ahead(script.to_str().unwrap());
    }
}
