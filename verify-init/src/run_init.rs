//! `run-init`, as which this program leaves a second stage for the real root.
//!
//! klibc's program of that name deletes the initramfs' files and moves the new root over it. A second stage has nothing to
//! delete: here the old root is taken away instead, so that nothing of it stays mounted below the new one. The command line
//! is klibc's: `run-init [-n] [-c CONSOLE] ROOT INIT [ARGUMENT]…`; with `-n` it is only checked that this would do.

use std::{
    ffi::{CString, OsString},
    fs,
    io::{self, Write},
    os::unix::{ffi::OsStringExt, fs::PermissionsExt},
    path::Path,
};

use nix::{
    fcntl::{OFlag, open},
    mount::{MntFlags, umount2},
    sys::stat::{Mode, stat},
    unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, execv, pivot_root},
};

use crate::{linux::root, mounted::is_program};

/// The name that this program has then.
const NAME: &str = "run-init";
const USAGE: &str = "usage: run-init [-n] [-c CONSOLE] ROOT INIT [ARGUMENT]...";
/// What was left on the `/run` that came from the mini-initramfs. Deeper folders than these are nobody's.
const MAX_DEPTH: usize = 8;

/// Whether this program was started under the other name.
pub fn is_called(arguments: &[OsString]) -> bool {
    arguments.first().is_some_and(|name| Path::new(name).file_name().is_some_and(|name| name == NAME))
}

/// Leaves for the real root. Returns only where that cannot be, with the exit code; as PID 1 the kernel then panics, as it does
/// with klibc's.
pub fn run(arguments: &[OsString]) -> i32 {
    match Call::parse(arguments.iter().skip(1).cloned()).and_then(|call| call.run()) {
        Ok(()) => 0,
        Err(why) => {
            // Whoever closed the stream does not want it.
            let _ = writeln!(io::stderr(), "run-init: {why}");
            1
        }
    }
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    only_check: bool,
    console: String,
    root: String,
    /// The program, then its arguments.
    init: Vec<OsString>,
}

impl Call {
    fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let text = |word: Option<OsString>| word.and_then(|word| word.into_string().ok()).ok_or(USAGE.to_owned());
        let (mut only_check, mut console) = (false, "/dev/console".to_owned());
        let root = loop {
            match text(words.next())?.as_str() {
                "-n" => only_check = true,
                "-c" => console = text(words.next())?,
                option if option.starts_with('-') => return Err(format!("{option} is not supported; {USAGE}")),
                root => break root.to_owned(),
            }
        };
        let init: Vec<OsString> = words.collect();
        if init.is_empty() { Err(USAGE.to_owned()) } else { Ok(Self { only_check, console, root, init }) }
    }

    fn run(&self) -> Result<(), String> {
        self.check()?;
        if self.only_check {
            return Ok(());
        }
        keep_run(&self.root);
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        chdir(self.root.as_str()).map_err(|error| failed(&self.root, &error))?;
        // Both at one place: the old root lies over the new one, and is taken away from there.
        pivot_root(".", ".").map_err(|error| failed("pivot_root", &error))?;
        umount2(".", MntFlags::MNT_DETACH).map_err(|error| failed("the old root", &error))?;
        chdir("/").map_err(|error| failed("/", &error))?;
        self.open_console();
        let words = self.init.iter().map(|word| CString::new(word.clone().into_vec()));
        let words: Vec<CString> = words.collect::<Result<_, _>>().map_err(|error| failed("init", &error))?;
        let Err(error) = execv(&words[0], &words);
        Err(failed(&self.init[0].to_string_lossy(), &error))
    }

    /// The new root is another file system, and has that init.
    fn check(&self) -> Result<(), String> {
        let device = |path: &str| stat(path).map(|stat| stat.st_dev).map_err(|error| format!("{path}: {error}"));
        if device(&self.root)? == device("/")? {
            return Err(format!("{} is no file system of its own", self.root));
        }
        let init = self.init[0].to_string_lossy();
        let mode = root::mode(&self.root, &init).map_err(|error| format!("{init} in {}: {error}", self.root))?;
        if is_program(mode) {
            return Ok(());
        }
        Err(format!("{init} in {}: expected an executable file, found mode {mode:o}", self.root))
    }

    /// A machine without console has none here either.
    fn open_console(&self) {
        if let Ok(console) = open(self.console.as_str(), OFlag::O_RDWR | OFlag::O_NOCTTY, Mode::empty()) {
            let _ = dup2_stdin(&console).and_then(|()| dup2_stdout(&console)).and_then(|()| dup2_stderr(&console));
        }
    }
}

/// Scripts mount a `/run` of their own over the one that came from the mini-initramfs, and move theirs to the new root. What lies
/// in the first one then, such as the record of this boot, is put into the other. Whatever fails is missed by those who look for
/// it, which stops nothing.
fn keep_run(root: &str) {
    copy_missing(Path::new("/run"), &Path::new(root).join("run"), MAX_DEPTH);
}

fn copy_missing(from: &Path, to: &Path, depth: usize) {
    let entries = fs::read_dir(from).into_iter().flatten().flatten().filter(|_| depth > 0);
    for entry in entries {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            if fs::create_dir(&to).is_ok() {
                let _ = fs::set_permissions(&to, fs::Permissions::from_mode(metadata.permissions().mode()));
            }
            copy_missing(&from, &to, depth - 1);
        } else if metadata.is_file() && !to.exists() {
            let _ = fs::copy(&from, &to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Call, String> {
        Call::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_command_line_is_klibcs() {
        let call = parse("-n -c /dev/ttyS0 /root /sbin/init -x y").unwrap();
        assert_eq!((call.only_check, call.console.as_str(), call.root.as_str()), (true, "/dev/ttyS0", "/root"));
        assert_eq!(call.init, ["/sbin/init", "-x", "y"]);
        assert!(!parse("/root /sbin/init").unwrap().only_check);
        for line in ["", "/root", "-n /root", "-c", "-d cap_sys_module /root /sbin/init"] {
            assert!(parse(line).unwrap_err().contains(USAGE), "{line}");
        }
    }

    #[test]
    fn a_root_is_only_left_for_another_file_system_with_that_init() {
        let check = |line: &str| parse(line).unwrap().check();
        assert!(check("/usr /sbin/init").unwrap_err().contains("no file system of its own"));
        assert!(check("/proc /sbin/init").unwrap_err().starts_with("/sbin/init in /proc: "));
        assert!(check("/proc /version").unwrap_err().contains("expected an executable file, found mode 100444"));
    }

    #[test]
    fn what_is_missing_is_copied_and_what_is_there_stays() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("iofs/deep")).unwrap();
        fs::write(from.path().join("iofs/deep/new"), "new").unwrap();
        fs::write(from.path().join("there"), "mini").unwrap();
        fs::write(to.path().join("there"), "theirs").unwrap();
        fs::set_permissions(from.path().join("iofs"), fs::Permissions::from_mode(0o700)).unwrap();
        copy_missing(from.path(), to.path(), MAX_DEPTH);
        assert_eq!(fs::read_to_string(to.path().join("iofs/deep/new")).unwrap(), "new");
        assert_eq!(fs::read_to_string(to.path().join("there")).unwrap(), "theirs");
        assert_eq!(fs::metadata(to.path().join("iofs")).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
