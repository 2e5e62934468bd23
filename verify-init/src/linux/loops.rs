//! Loop devices: a file as a block device (`loop(4)`).
#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        linux::fs::MetadataExt,
        unix::fs::OpenOptionsExt,
    },
};

use iofs_policy::verity::DeviceNumber;
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    libc::{Ioctl, dev_t, ioctl, major, minor},
    sys::stat::Mode,
};

use crate::system::Attached;

/// `include/uapi/linux/loop.h`.
const LOOP_CTL_GET_FREE: Ioctl = 0x4c82;
const LOOP_CONFIGURE: Ioctl = 0x4c0a;
const LOOP_GET_STATUS64: Ioctl = 0x4c05;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const SECTOR: u64 = 512;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

impl Info {
    const fn with_flags(flags: u32) -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// The device goes by itself once nobody has it open, so that it must be held until something else does.
pub(super) fn attach(folder: &str, path: &str) -> io::Result<(File, Attached)> {
    let file = open_file(folder, path)?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    // SAFETY: the request takes no argument, and the descriptor is open as long as `control` lives.
    let number = Errno::result(unsafe { ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
    let node = format!("/dev/loop{number}");
    // Nobody else attaches files now; a device that is taken all the same is an error that is told.
    let device = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_CLOEXEC.bits()).open(&node)?;
    configure(&device, file.as_raw_fd())?;
    let number = numbers(device.metadata()?.st_rdev());
    let bytes = file.metadata()?.st_size() / SECTOR * SECTOR;
    let attached = Attached { path: node, number, bytes, direct: is_direct(&device) };
    Ok((device, attached))
}

/// A path of `folder` without links, on that file system alone. Without O_NONBLOCK a pipe of that name would stop the boot.
fn open_file(folder: &str, path: &str) -> io::Result<File> {
    let folder = open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
    let file = File::from(openat2(&folder, path, how)?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

fn configure(device: &File, file: RawFd) -> io::Result<()> {
    let flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
    let fd = u32::try_from(file).map_err(|_| Errno::EBADF)?;
    let config = Config { fd, block_size: 0, info: Info::with_flags(flags), reserved: [0; 8] };
    // SAFETY: the kernel reads a `loop_config` from the pointer, which is valid for the call, and keeps no pointer to it.
    Errno::result(unsafe { ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })?;
    Ok(())
}

/// The kernel leaves direct I/O away where the file system below cannot do it.
fn is_direct(device: &File) -> bool {
    let mut info = Info::with_flags(0);
    // SAFETY: the kernel writes a `loop_info64` to the pointer, which is valid for the call.
    let asked = unsafe { ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    asked == 0 && info.flags & LO_FLAGS_DIRECT_IO != 0
}

fn numbers(device: dev_t) -> DeviceNumber {
    DeviceNumber { major: major(device), minor: minor(device) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_sizes_of_the_kernels() {
        assert_eq!((size_of::<Info>(), size_of::<Config>()), (232, 304));
    }

    #[test]
    fn what_is_no_file_below_the_folder_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        std::os::unix::fs::symlink("..", path("up")).unwrap();
        nix::unistd::mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
        let open = |name: &str| open_file(folder.path().to_str().unwrap(), name).map(drop);
        assert!(open("/file").is_ok());
        assert_eq!(open("/link").unwrap_err().raw_os_error(), Some(Errno::ELOOP as i32));
        assert_eq!(open("/up/file").unwrap_err().raw_os_error(), Some(Errno::ELOOP as i32));
        assert_eq!(open("/pipe").unwrap_err().to_string(), "it is no regular file");
        assert!(open("/").is_err() && open("/absent").is_err());
    }
}
