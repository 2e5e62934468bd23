//! Two trees, compared in content and in all metadata that an image keeps.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{lgetxattr, llistxattr};
use walkdir::WalkDir;

use crate::archive::entry::printable;

/// One way in which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The file's name below the roots, for people.
    pub name: String,
    /// What differs.
    pub field: &'static str,
    /// In the first tree.
    pub left: String,
    /// In the second tree.
    pub right: String,
}

/// What is not compared, since the way between the trees cannot keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ignore {
    /// Nanoseconds of times.
    pub nanoseconds: bool,
    /// Extended attributes, and with them capabilities and access control lists.
    pub xattrs: bool,
    /// Which names are one file.
    pub hard_links: bool,
    /// Modification times of symlinks.
    pub symlink_times: bool,
    /// The set-user-ID and set-group-ID bits of files, which fsck.erofs 1.5 loses when it extracts.
    pub set_id_modes: bool,
    /// Modification times of directories, which some tools set before they fill them.
    pub directory_times: bool,
    /// All modification times.
    pub times: bool,
}

type Names = BTreeMap<Vec<u8>, PathBuf>;

/// Compares names, kinds, contents, modes, owners, times, devices, attributes and hard links.
///
/// # Errors
/// When either tree cannot be read.
pub fn compare_trees(left: &Path, right: &Path, ignore: Ignore) -> io::Result<Vec<Difference>> {
    let (left, right) = (names(left)?, names(right)?);
    let mut differences = Differences::default();
    for name in left.keys().filter(|name| !right.contains_key(*name)) {
        differences.add(name, "existence", &"present", &"absent");
    }
    for name in right.keys().filter(|name| !left.contains_key(*name)) {
        differences.add(name, "existence", &"absent", &"present");
    }
    for (name, left) in &left {
        if let Some(right) = right.get(name) {
            compare_files(name, left, right, ignore, &mut differences)?;
        }
    }
    if !ignore.hard_links {
        let (left, right) = (groups(&left)?, groups(&right)?);
        for (name, first) in &left {
            differences.compare(name, "first hard link", printable(first), printable(right.get(name).unwrap_or(name)));
        }
    }
    Ok(differences.0)
}

#[derive(Default)]
struct Differences(Vec<Difference>);

impl Differences {
    fn add(&mut self, name: &[u8], field: &'static str, left: &dyn ToString, right: &dyn ToString) {
        let name = printable(name);
        self.0.push(Difference { name, field, left: left.to_string(), right: right.to_string() });
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers pass numbers and texts made on the spot")]
    fn compare<T: PartialEq + ToString>(&mut self, name: &[u8], field: &'static str, left: T, right: T) {
        if left != right {
            self.add(name, field, &left, &right);
        }
    }
}

fn names(root: &Path) -> io::Result<Names> {
    let mut names = Names::new();
    for entry in WalkDir::new(root) {
        let path = entry?.into_path();
        let name = path.strip_prefix(root).expect("the walk stays below the root").as_os_str().as_bytes().to_vec();
        names.insert(name, path);
    }
    Ok(names)
}

fn compare_files(
    name: &[u8],
    left: &Path,
    right: &Path,
    ignore: Ignore,
    differences: &mut Differences,
) -> io::Result<()> {
    let (a, b) = (left.symlink_metadata()?, right.symlink_metadata()?);
    if kind(&a) != kind(&b) {
        differences.add(name, "kind", &kind(&a), &kind(&b));
        return Ok(());
    }
    let hidden = if ignore.set_id_modes && a.is_file() { 0o6000 } else { 0 };
    let mode = |metadata: &Metadata| format!("{:o}", metadata.mode() & !hidden);
    differences.compare(name, "mode", mode(&a), mode(&b));
    differences.compare(name, "owner", a.uid(), b.uid());
    differences.compare(name, "group", a.gid(), b.gid());
    if !(ignore.times || a.is_symlink() && ignore.symlink_times || a.is_dir() && ignore.directory_times) {
        differences.compare(name, "mtime", a.mtime(), b.mtime());
        if !ignore.nanoseconds {
            differences.compare(name, "mtime nanoseconds", a.mtime_nsec(), b.mtime_nsec());
        }
    }
    if a.file_type().is_char_device() || a.file_type().is_block_device() {
        differences.compare(name, "device", a.rdev(), b.rdev());
    }
    if !ignore.xattrs {
        compare_xattrs(name, &xattrs(left)?, &xattrs(right)?, differences);
    }
    if a.is_symlink() {
        let target = |path: &Path| std::fs::read_link(path).map(|target| printable(target.as_os_str().as_bytes()));
        differences.compare(name, "target", target(left)?, target(right)?);
    }
    if a.is_file() {
        differences.compare(name, "size", a.len(), b.len());
        if a.len() == b.len() && !same_content(left, right)? {
            differences.add(name, "content", &"this", &"other");
        }
    }
    Ok(())
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "symlink",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () if kind.is_fifo() => "fifo",
        () => "socket",
    }
}

fn compare_xattrs(
    name: &[u8],
    left: &BTreeMap<Vec<u8>, Vec<u8>>,
    right: &BTreeMap<Vec<u8>, Vec<u8>>,
    differences: &mut Differences,
) {
    let show = |xattrs: &BTreeMap<Vec<u8>, Vec<u8>>| {
        let shown = xattrs.iter().map(|(name, value)| format!("{}={}", printable(name), printable(value)));
        shown.collect::<Vec<_>>().join(" ")
    };
    differences.compare(name, "attributes", show(left), show(right));
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0_u8; 65536];
    let count = llistxattr(path, &mut list[..])?;
    list.truncate(count);
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0_u8; 65536];
            let size = lgetxattr(path, name, &mut value[..])?;
            value.truncate(size);
            Ok((name.to_vec(), value))
        })
        .collect()
}

fn same_content(left: &Path, right: &Path) -> io::Result<bool> {
    let (mut left, mut right) = (File::open(left)?, File::open(right)?);
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let count = left.read(&mut a)?;
        if count == 0 {
            return Ok(true);
        }
        if right.read_exact(&mut b[..count]).is_err() || a[..count] != b[..count] {
            return Ok(false);
        }
    }
}

/// Each name with the first name of the same file.
fn groups(names: &Names) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut groups = BTreeMap::new();
    for (name, path) in names {
        let metadata = path.symlink_metadata()?;
        if !metadata.is_dir() {
            let first = first.entry((metadata.dev(), metadata.ino())).or_insert_with(|| name.clone());
            groups.insert(name.clone(), first.clone());
        }
    }
    Ok(groups)
}
