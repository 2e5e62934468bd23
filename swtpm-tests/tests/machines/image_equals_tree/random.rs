//! Trees that nobody thought of, and a large one. The same seed makes the same tree.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, PermissionsExt, lchown, symlink},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat, utimensat,
};

/// Marsaglia's xorshift: a generator that needs no more.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Bytes that no name and no target is forbidden to have, the number in front so that no two names are the same.
    fn name(&mut self, number: u64, most: u64) -> Vec<u8> {
        let mut name = format!("{number:x}").into_bytes();
        for _ in 0..self.below(most) {
            name.push(match self.next() as u8 {
                0 | b'/' => b'~',
                byte => byte,
            });
        }
        name
    }

    /// Runs of text, noise and zeros, as long as asked for.
    fn content(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size);
        while bytes.len() < size {
            let run = (self.below(20_000) as usize + 1).min(size - bytes.len());
            match self.below(3) {
                0 => bytes.resize(bytes.len() + run, 0),
                1 => bytes.extend((0..run).map(|_| self.next() as u8)),
                _ => {
                    let word = self.next().to_le_bytes();
                    bytes.extend((0..run).map(|at| word[at % 8] & 0x3f | 0x20));
                }
            }
        }
        bytes
    }
}

/// Fills `root` with `count` random trees, each in a directory of its own.
pub(crate) fn many(root: &Path, count: u64, seed: u64) -> io::Result<()> {
    let mut random = Random(seed | 1);
    for tree in 0..count {
        let path = root.join(format!("tree-{tree}"));
        directory(&mut random, &path, 3)?;
    }
    Ok(())
}

fn directory(random: &mut Random, path: &Path, depth: u32) -> io::Result<()> {
    fs::create_dir(path)?;
    let mut files: Vec<PathBuf> = Vec::new();
    for number in 0..random.below(9) {
        let longest = random.of(&[4, 60, 240]);
        let child = path.join(OsStr::from_bytes(&random.name(number, longest)));
        match random.below(12) {
            0..=2 if depth > 0 => {
                directory(random, &child, depth - 1)?;
                continue;
            }
            3 => {
                let length = random.of(&[3, 60, 1000, 4000]);
                symlink(OsStr::from_bytes(&random.name(number, length)), &child)?;
            }
            4 => special(random, &child)?,
            5 if !files.is_empty() => {
                fs::hard_link(&files[random.below(files.len() as u64) as usize], &child)?;
                continue;
            }
            _ => {
                file(random, &child)?;
                files.push(child.clone());
            }
        }
        describe(random, &child)?;
    }
    describe(random, path)
}

fn special(random: &mut Random, path: &Path) -> io::Result<()> {
    let kind = random.of(&[FileType::Fifo, FileType::CharacterDevice, FileType::BlockDevice, FileType::Socket]);
    let device = makedev(random.below(4096) as u32, random.below(1 << 20) as u32);
    Ok(mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device)?)
}

fn file(random: &mut Random, path: &Path) -> io::Result<()> {
    let largest = random.of(&[1, 100, 4096, 8200, 70_000, 1_500_000]);
    let size = random.below(largest + 1);
    let file = File::create(path)?;
    if random.below(8) == 0 {
        // A hole, some bytes, a hole.
        file.set_len(4 * size + 20_000)?;
        let bytes = random.content(size.min(9000) as usize);
        return file.write_all_at(&bytes, 2 * size);
    }
    file.write_all_at(&random.content(size as usize), 0)
}

fn describe(random: &mut Random, path: &Path) -> io::Result<()> {
    let owners = [0, 0, 33, 1000, 65_535, 65_536, 4_000_000_000];
    lchown(path, Some(random.of(&owners)), Some(random.of(&owners)))?;
    let kind = path.symlink_metadata()?.file_type();
    for number in 0..if kind.is_file() || kind.is_dir() { random.of(&[0, 0, 0, 1, 5]) } else { 0 } {
        let prefix = random.of(&["user.", "trusted.", "security."]);
        let size = random.of(&[0, 10, 300]);
        let name = format!("{prefix}{number}");
        lsetxattr(path, name, &random.content(size), XattrFlags::empty())?;
    }
    if !kind.is_symlink() {
        fs::set_permissions(path, Permissions::from_mode(random.below(0o10000) as u32))?;
    }
    let seconds = random.of(&[0, 1_700_000_000, 1_700_000_000, -1, 4_000_000_000]);
    let nanoseconds = random.of(&[0, 0, 999_999_999, 1]);
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Fills `root` with files of `bytes` in all, many small and some large as a distribution has them, `count` entries with their
/// directories.
pub(crate) fn large(root: &Path, count: u64, bytes: u64) -> io::Result<()> {
    let mut random = Random(0x5eed);
    let usual = bytes / count;
    let (mut made, mut written, mut folder) = (0, 0, root.to_path_buf());
    while made < count {
        if made % 40 == 0 {
            folder = root.join(format!("{:02}/{:03}", made / 4000, made / 40 % 100));
            fs::create_dir_all(&folder)?;
        }
        // Nine of ten have a fifth of the usual size, the others make up for it.
        let largest = if random.below(10) == 0 { 16 * usual } else { 2 * usual / 5 };
        let size = if made + 1 == count { bytes.saturating_sub(written) } else { random.below(largest + 1) };
        fs::write(folder.join(format!("{made:05}")), random.content(size as usize))?;
        (made, written) = (made + 1, written + size);
    }
    Ok(())
}
