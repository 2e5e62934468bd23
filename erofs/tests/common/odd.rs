//! A directory with everything that tools get wrong. Making it needs root.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, PermissionsExt, lchown, symlink},
        net::UnixListener,
    },
    path::Path,
};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat, utimensat,
};

/// `cap_net_raw=ep` as Linux' `struct vfs_cap_data`, version 2.
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Bytes that compress, but not to nothing.
pub fn text(size: usize, seed: usize) -> Vec<u8> {
    (0..size).map(|at| ((at >> 8) * 31 + at % 61 * (at / 4096 % 7) + seed * (at / 100 % 3)) as u8).collect()
}

/// Bytes that do not compress.
pub fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Fills `root`, in the reverse order if asked to. A file system lists names and attributes in an order that follows.
pub fn build(root: &Path, reversed: bool) {
    for name in ["d", "d/e", "d/e/f", "many", "empty", "sticky"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let mut files = files();
    if reversed {
        files.reverse();
    }
    for (name, bytes) in &files {
        fs::write(root.join(OsStr::from_bytes(name)), bytes).unwrap();
    }
    special(root);
    attributes(root, reversed);
    fs::hard_link(root.join("sizes-4097"), root.join("d/linked")).unwrap();
    fs::hard_link(root.join("sizes-4097"), root.join("d/e/linked")).unwrap();
    fs::hard_link(root.join("character"), root.join("d/character")).unwrap();
    modes(root);
    for (number, (name, _)) in files.iter().enumerate() {
        let number = if reversed { files.len() - number } else { number + 1 } as i64;
        set_time(&root.join(OsStr::from_bytes(name)), 1_600_000_000 + number / 2, 7 * (number / 2));
    }
    for name in ["d/e/f", "d/e", "d", "many", "empty", "sticky", ""] {
        set_time(&root.join(name), -5, 999_999_999);
    }
}

fn files() -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut files: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for size in [0, 1, 511, 4031, 4032, 4064, 4065, 4095, 4096, 4097, 8192, 12_289, 65_536, 1_000_003] {
        files.push((format!("sizes-{size}").into(), text(size, 0)));
        files.push((format!("noise-{size}").into(), noise(size, size as u64)));
    }
    files.push((b"zeros".into(), vec![0; 3_000_000]));
    files.push((b"long".into(), text(5_000_001, 3)));
    files.push((b"long-again".into(), text(5_000_001, 3)));
    files.push((b"long-other".into(), text(5_000_001, 4)));
    files.push((b"long-noise".into(), noise(2_500_000, 9)));
    // Parts that do not compress among those that do, at all offsets.
    let mixed = (0..40).flat_map(|part| if part % 2 == 0 { noise(1000 * part, 77) } else { text(3333 * part, 5) });
    files.push((b"mixed".into(), mixed.collect()));
    for name in
        [&b"-dash"[..], b"d/ space 'quote\" \\", b"d/not-utf8-\xff\xfe", b"d/new\nline", b"!before-dot", b"owned"]
    {
        files.push((name.into(), name.into()));
    }
    files.push(([b"d/".as_slice(), &[b'n'; 255]].concat(), b"long name".into()));
    for number in 0..1500 {
        files.push((format!("many/{number:04}-{}", "x".repeat(number % 90)).into(), Vec::new()));
    }
    files
}

fn special(root: &Path) {
    for (name, target) in
        [("link", "sizes-4096"), ("link-absolute", "/etc/passwd"), ("link-up", "../../etc"), ("link-nowhere", "-")]
    {
        symlink(target, root.join(name)).unwrap();
    }
    for length in [3900, 4020, 4063, 4064, 4065, 4095] {
        symlink("l/".repeat(2048).get(..length).unwrap(), root.join(format!("d/link-{length}"))).unwrap();
    }
    lchown(root.join("link"), Some(9), Some(10)).unwrap();
    let devices = [
        ("character", FileType::CharacterDevice, 1, 3),
        ("whiteout", FileType::CharacterDevice, 0, 0),
        ("block", FileType::BlockDevice, 259, 1_048_575),
        ("fifo", FileType::Fifo, 0, 0),
    ];
    for (name, kind, major, minor) in devices {
        mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o620), makedev(major, minor)).unwrap();
    }
    UnixListener::bind(root.join("socket")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(&text(5000, 1), 1 << 20).unwrap();
    sparse.write_all_at(b"end", (5 << 20) - 1).unwrap();
    sparse.set_len((6 << 20) + 77).unwrap();
    File::create(root.join("hole")).unwrap().set_len(3 << 20).unwrap();
}

fn attributes(root: &Path, reversed: bool) {
    let set = |name: &str, attribute: &str, value: &[u8]| {
        lsetxattr(root.join(name), attribute, value, XattrFlags::empty()).unwrap();
    };
    set("sizes-4095", "security.capability", &NET_RAW);
    set("sizes-511", "system.posix_acl_access", &acl());
    set("d", "system.posix_acl_default", &acl());
    set("d", "trusted.overlay.opaque", b"y");
    let mut several = vec![
        ("user.empty", vec![]),
        ("user.all", (0..=255).collect::<Vec<u8>>()),
        ("user.large", noise(3000, 1)),
        ("trusted.t", b"t".to_vec()),
        ("security.s", b"s".to_vec()),
    ];
    if reversed {
        several.reverse();
    }
    for (attribute, value) in several {
        set("noise-4065", attribute, &value);
    }
    for name in ["sizes-0", "sizes-1", "sizes-4096", "noise-1", "empty", "many"] {
        set(name, "security.selinux", b"system_u:object_r:usr_t:s0\0");
    }
}

/// user::rw-, user:71000:rw-, group::r--, group:70000:r-x, mask::rwx, other::---
fn acl() -> Vec<u8> {
    let entries = [
        (1_u16, 6_u16, u32::MAX),
        (2, 6, 71_000),
        (4, 4, u32::MAX),
        (8, 5, 70_000),
        (16, 7, u32::MAX),
        (32, 0, u32::MAX),
    ];
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(rights.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn modes(root: &Path) {
    lchown(root.join("owned"), Some(4_000_000_000), Some(70_000)).unwrap();
    lchown(root.join("sizes-8192"), Some(65_535), Some(65_535)).unwrap();
    for (name, mode) in [("owned", 0o4711), ("sizes-1", 0o2755), ("noise-1", 0), ("sticky", 0o1777), ("d/e", 0o2750)] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// Gives directories a time that all tools store.
pub fn touch(root: &Path, names: &[&str]) {
    names.iter().for_each(|name| set_time(&root.join(name), 1_500_000_000, 0));
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Gives everything below `to` the times that it has below `from`.
pub fn copy_times(from: &Path, to: &Path) {
    use std::os::unix::fs::MetadataExt;
    let mut waiting = vec![std::path::PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let found = from.join(&path).symlink_metadata().unwrap();
        if found.is_dir() {
            waiting.extend(fs::read_dir(from.join(&path)).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        set_time(&to.join(&path), found.mtime(), found.mtime_nsec());
    }
}
