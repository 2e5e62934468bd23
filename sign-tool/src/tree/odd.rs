//! A tree of everything that tools get wrong, for tests. Making it needs root.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, PermissionsExt, lchown, symlink},
    },
    path::Path,
};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat, utimensat,
};

/// `cap_net_raw=ep`, version 2, little endian: Linux `struct vfs_cap_data`. 13 is CAP_NET_RAW.
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Capabilities 1 and 3: the value holds a newline byte, where line-minded tools break.
const NEWLINE_CAPS: [u8; 20] = [1, 0, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// What the tree shall hold, for ways that cannot carry all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Odd {
    /// Extended attributes, capabilities and access control lists.
    pub xattrs: bool,
    /// Two names of one device, which GNU tar stores as two devices.
    pub device_links: bool,
    /// Names in the directory with many. ext4 without a journal looks at each inode that was deleted in the last seconds
    /// before it gives out another, so that tests which make and delete thousands again and again would take minutes.
    pub many: usize,
    /// Create in the reverse order: another order of directory entries, inodes and attributes.
    pub reversed: bool,
}

impl Odd {
    /// Everything.
    pub const ALL: Self = Self { xattrs: true, device_links: true, many: 5000, reversed: false };
}

impl Default for Odd {
    fn default() -> Self {
        Self::ALL
    }
}

type Step = (Vec<u8>, Box<dyn Fn(&Path) -> io::Result<()>>);

/// Fills `root` with what is asked for.
///
/// # Errors
/// Without root's rights, or on a file system without extended attributes.
pub fn build(root: &Path, odd: Odd) -> io::Result<()> {
    let directories = ["", "dir", "dir/deep", "dir/deep/er", "many", "empty", "sticky", "links", "sizes"];
    for directory in directories {
        fs::create_dir_all(root.join(directory))?;
    }
    let mut steps = files(odd);
    if odd.reversed {
        steps.reverse();
    }
    for (name, make) in &steps {
        make(&root.join(OsStr::from_bytes(name))).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", crate::archive::entry::printable(name)))
        })?;
    }
    // Not among the steps: what it links to must exist.
    fs::hard_link(root.join("links/first"), root.join("links/second"))?;
    fs::hard_link(root.join("links/first"), root.join("dir/third"))?;
    if odd.device_links {
        fs::hard_link(root.join("dev-char"), root.join("links/dev-char"))?;
    }
    if odd.xattrs {
        attributes(root, odd)?;
    }
    for (index, (name, _)) in files(odd).iter().enumerate() {
        set_time(
            &root.join(OsStr::from_bytes(name)),
            1_600_000_000 + index as i64,
            7 * index as i64 % 1_000_000_000 + 1,
        )?;
    }
    set_permissions(&root.join("sticky"), 0o1777)?;
    set_permissions(&root.join("dir/deep"), 0o2750)?;
    lchown(root.join("dir/deep"), Some(3), Some(4))?;
    for (index, directory) in directories.iter().rev().enumerate() {
        set_time(&root.join(directory), 1_500_000_000 + index as i64, 123_456_789)?;
    }
    set_permissions(root, 0o755)
}

fn files(odd: Odd) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for size in [0_usize, 1, 511, 512, 4095, 4096, 4097, 65536, 1_000_003] {
        steps.push((format!("sizes/{size}").into_bytes(), Box::new(move |path| fs::write(path, pattern(size)))));
    }
    let mut file = |name: &[u8], mode: u32, uid: u32, gid: u32| {
        let content = name.to_vec();
        steps.push((
            name.to_vec(),
            Box::new(move |path| {
                fs::write(path, &content)?;
                lchown(path, Some(uid), Some(gid))?;
                set_permissions(path, mode)
            }),
        ));
    };
    file(b"setuid", 0o4755, 0, 0);
    file(b"setgid", 0o2755, 0, 42);
    file(b"unreadable", 0o000, 1000, 1000);
    file(b"capable", 0o755, 0, 0);
    file(b"newline-capable", 0o755, 0, 0);
    file(b"listed", 0o640, 0, 0);
    file(b"attributed", 0o644, 0, 0);
    file(b"links/first", 0o640, 7, 8);
    file(b"-dash", 0o644, 0, 0);
    file(b"dir/deep/er/ space and 'quote\" \\ ", 0o644, 0, 0);
    file("dir/\u{fc}ml\u{e4}ut".as_bytes(), 0o644, 0, 0);
    file(b"dir/not-utf8-\xff\xfe", 0o644, 0, 0);
    file(&[b"dir/".as_slice(), &[b'n'; 255]].concat(), 0o644, 0, 0);
    file(b"uid-70000", 0o644, 70_000, 80_000);
    file(b"uid-large", 0o644, 4_000_000_000, 3_000_000_000);
    file(b"dir/new\nline", 0o644, 0, 0);
    for number in 0..odd.many {
        let name = format!("many/{number:04}-{}", "x".repeat(number % 40)).into_bytes();
        steps.push((name, Box::new(|path| File::create(path).map(|_| ()))));
    }
    special(&mut steps);
    steps
}

fn special(steps: &mut Vec<Step>) {
    for (name, target) in [
        ("link-relative", "sizes/4096".to_owned()),
        ("link-absolute", "/etc/passwd".to_owned()),
        ("link-up", "../../../../etc".to_owned()),
        ("link-dangling", "no such file".to_owned()),
        ("dir/link-long", "l/".repeat(2000)),
    ] {
        steps.push((
            name.into(),
            Box::new(move |path| symlink(&target, path).and_then(|()| lchown(path, Some(9), Some(10)))),
        ));
    }
    for (name, kind, major, minor) in [
        ("dev-char", FileType::CharacterDevice, 1, 3),
        ("dev-block", FileType::BlockDevice, 259, 1_048_575),
        ("fifo", FileType::Fifo, 0, 0),
    ] {
        steps.push((
            name.into(),
            Box::new(move |path| {
                mknodat(CWD, path, kind, Mode::from_raw_mode(0o620), makedev(major, minor))?;
                set_permissions(path, 0o620)
            }),
        ));
    }
    steps.push((
        b"sparse".to_vec(),
        Box::new(|path| {
            let file = File::create(path)?;
            file.write_all_at(&pattern(5000), 1 << 20)?;
            file.write_all_at(b"end", (5 << 20) - 1)?;
            file.set_len(6 << 20)
        }),
    ));
    steps.push((b"hole".to_vec(), Box::new(|path| File::create(path)?.set_len(3 << 20))));
}

fn attributes(root: &Path, odd: Odd) -> io::Result<()> {
    let set = |name: &str, attribute: &str, value: &[u8]| {
        lsetxattr(root.join(name), attribute, value, XattrFlags::empty())
            .map_err(|errno| io::Error::other(format!("set {attribute} of {name} below {}: {errno}", root.display())))
    };
    set("capable", "security.capability", &NET_RAW)?;
    set("newline-capable", "security.capability", &NEWLINE_CAPS)?;
    set("listed", "system.posix_acl_access", &acl())?;
    set("dir", "system.posix_acl_default", &acl())?;
    set("dir", "trusted.directory", b"trust")?;
    let mut attributes = vec![
        ("user.empty", vec![]),
        ("user.binary", (0..=255).collect::<Vec<u8>>()),
        ("user.lines", b"one\n20 path=/etc/evil\ntwo\n".to_vec()),
        ("user.percent%25=", b"odd name".to_vec()),
        ("security.something", b"thing".to_vec()),
        ("trusted.overlay.opaque", b"y".to_vec()),
    ];
    if odd.reversed {
        attributes.reverse();
    }
    for (name, value) in attributes {
        set("attributed", name, &value)?;
    }
    set("links/first", "user.shared", b"by all names")?;
    for number in 0..4 {
        set(&format!("sizes/{}", [0, 1, 511, 512][number]), "user.same", b"the same everywhere")?;
    }
    Ok(())
}

/// user::rw-, user:71000:rw-, group::r--, group:70000:r-x, mask::rwx, other::---
fn acl() -> Vec<u8> {
    let none = u32::MAX;
    let entries = [(1_u16, 6_u16, none), (2, 6, 71_000), (4, 4, none), (8, 5, 70_000), (16, 7, none), (32, 0, none)];
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(rights.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// Bytes that compress, but not to nothing.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| ((at >> 8) * 31 + at % 61 * (at / 4096 % 7)) as u8).collect()
}

fn set_permissions(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
