//! Leaving the initramfs, as util-linux' `switch_root` does.

use std::{
    convert::Infallible,
    env,
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::symlink,
    },
    path::Path,
};

use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2},
    libc::dev_t,
    mount::{MsFlags, mount},
    sys::{
        stat::{FileStat, Mode, SFlag, fstat, fstatat},
        statfs::{FsType, TMPFS_MAGIC, fstatfs},
    },
    unistd::{UnlinkatFlags, chdir, chroot, execve, getpid, unlinkat},
};

use crate::system::Mount;

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
const NONE: Option<&str> = None;

/// The mode of a path whose links are followed as they will be once `root` is `/`.
pub(crate) fn mode(root: &str, path: &str) -> io::Result<u32> {
    let folder = open(root, FOLDER | OFlag::O_PATH, Mode::empty())?;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(fstat(openat2(&folder, path, how)?)?.st_mode)
}

/// Mounts at a path of `root` that has no links in it, whoever made them.
pub(super) fn mount_in(root: &str, to: &Mount<'_>) -> io::Result<()> {
    let folder = open(root, FOLDER | OFlag::O_PATH, Mode::empty())?;
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let target = openat2(&folder, to.target, OpenHow::new().flags(flags).resolve(resolve))?;
    let options = Some(to.options).filter(|options| !options.is_empty());
    let target = format!("/proc/self/fd/{}", target.as_raw_fd());
    Ok(mount(Some(to.source), target.as_str(), Some(to.kind), to.flags, options)?)
}

/// Deletes the files of the initramfs: only as PID 1, only in memory, and never across a mount.
pub(super) fn delete_initramfs() -> io::Result<()> {
    let root = Dir::open("/", FOLDER, Mode::empty())?;
    let kind = fstatfs(&root)?.filesystem_type();
    if getpid().as_raw() != 1 || !in_memory(kind) {
        return Err(io::Error::other("the root is no initramfs"));
    }
    let device = fstat(&root)?.st_dev;
    delete_contents(root, device);
    Ok(())
}

fn in_memory(kind: FsType) -> bool {
    // RAMFS_MAGIC of include/uapi/linux/magic.h, in the C library's type.
    kind == TMPFS_MAGIC || kind.0 == 0x8584_58f6
}

/// What cannot be deleted stays: a mount point is one.
fn delete_contents(mut folder: Dir, device: dev_t) {
    let names: Vec<CString> = folder.iter().flatten().map(|entry| entry.file_name().to_owned()).collect();
    for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
        let Ok(stat) = fstatat(&folder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        if stat.st_dev == device {
            delete(&folder, name, &stat, device);
        }
    }
}

fn delete(parent: &Dir, name: &CStr, stat: &FileStat, device: dev_t) {
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR {
        let _ = unlinkat(parent, name, UnlinkatFlags::NoRemoveDir);
        return;
    }
    if let Ok(folder) = Dir::openat(parent.as_fd(), name, FOLDER, Mode::empty()) {
        delete_contents(folder, device);
    }
    let _ = unlinkat(parent, name, UnlinkatFlags::RemoveDir);
}

/// Where an init mounts file systems of the kernel's, unless it finds a mount there. So it is with `/sysroot` and all others that
/// are empty.
const NOT_MOUNTED: [&str; 4] = ["dev", "proc", "run", "sys"];

/// Mounts each thing in a folder at its name in another. Devices, pipes and sockets are left out: nobody boots from them.
pub(super) fn bind_contents(from: &str, to: &str) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target, kind) = (entry.path(), Path::new(to).join(entry.file_name()), entry.file_type()?);
        if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_dir() || kind.is_file() {
            if kind.is_dir() {
                fs::create_dir(&target)?;
                fs::set_permissions(&target, entry.metadata()?.permissions())?;
            } else {
                drop(fs::File::create_new(&target)?);
            }
            let empty = kind.is_dir() && fs::read_dir(&source)?.next().is_none();
            if !empty && !NOT_MOUNTED.iter().any(|name| entry.file_name() == *name) {
                mount(Some(&source), &target, NONE, MsFlags::MS_BIND, NONE)?;
            }
        }
    }
    Ok(())
}

/// Makes a mount the root. `pivot_root` does not work on an initramfs.
pub(super) fn enter(root: &str) -> io::Result<()> {
    chdir(root)?;
    mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
    chroot(".")?;
    Ok(chdir("/")?)
}

/// Becomes init. The environment is the kernel's own: what the command line adds to it (`LD_PRELOAD=…`) is left out.
pub(super) fn exec(path: &str, arguments: &[String]) -> io::Result<Infallible> {
    let path = CString::new(path)?;
    let mut words = vec![path.clone()];
    for argument in arguments {
        words.push(CString::new(argument.as_str())?);
    }
    let environment = [c"HOME=/".to_owned(), terminal()];
    Ok(execve(&path, &words, &environment)?)
}

/// The kernel says `linux`; a serial console's command line may say something better.
fn terminal() -> CString {
    let plain = |text: &String| {
        text.len() < 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
    };
    let name = env::var("TERM").ok().filter(plain).unwrap_or_else(|| "linux".to_owned());
    CString::new(format!("TERM={name}")).unwrap_or_else(|_| c"TERM=linux".to_owned())
}
