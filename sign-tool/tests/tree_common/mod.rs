//! What the tests of trees share.
#![allow(dead_code)]

use std::{
    fs::File,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::Command,
};

use erofs_image::{Tree, source::oci::Choice, write::FileSink};
use iofs_sign::{
    erofs::{
        self, ImageCompression, ImageOptions,
        superblock::{self, Superblock},
    },
    report::Failure,
    tree::{
        Source,
        compare::{Ignore, compare_trees},
        odd::{Odd, build},
    },
};
use tempfile::TempDir;

/// A directory on disk, since attributes of users need a file system that has them.
pub(crate) fn work() -> TempDir {
    work_in("/var/tmp")
}

/// A directory in memory, for tests that make and delete thousands of files: see [`Odd::many`].
pub(crate) fn fast_work() -> TempDir {
    work_in("/dev/shm")
}

fn work_in(place: &str) -> TempDir {
    assert!(rustix::process::geteuid().is_root(), "these tests make device nodes and owners: run them as root");
    tempfile::tempdir_in(place).unwrap()
}

/// The odd tree in a new directory below `work`.
pub(crate) fn odd(work: &Path, odd: Odd) -> PathBuf {
    let tree = work.join(if odd.reversed { "reversed" } else { "tree" });
    std::fs::create_dir(&tree).unwrap();
    build(&tree, odd).unwrap();
    tree
}

/// Runs a shell script with arguments `$1`, `$2`, …
pub(crate) fn shell(script: &str, arguments: &[&Path]) {
    let output = Command::new("sh").args(["-ec", script, "sh"]).args(arguments).env("LC_ALL", "C").output().unwrap();
    assert!(
        output.status.success(),
        "{script}: {}\n(apt-get install tar cpio gzip xz-utils zstd lz4 erofs-utils acl attr dracut-core)",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The tree that an archive or a directory holds.
pub(crate) fn load(source: &Path) -> Result<Tree, Failure> {
    let keep = ImageOptions { compression: ImageCompression::Lz4, ..ImageOptions::default() }.keep();
    let found = Source::open(source)?.load(&Choice::default(), NonZeroUsize::MIN, &keep)?.expect("not a ready image");
    assert_eq!(found.remarks, [] as [&str; 0]);
    Ok(found.tree)
}

/// The same as files below `work`, which are gone when they are dropped.
pub(crate) fn unpack(source: &Path, work: &Path) -> Result<Unpacked, Failure> {
    let tree = load(source)?;
    let place = tempfile::tempdir_in(work).unwrap();
    assert_eq!(erofs_image::extract(&tree, &place.path().join("tree")).unwrap(), [] as [&str; 0]);
    Ok(Unpacked(place))
}

pub(crate) struct Unpacked(TempDir);

impl Unpacked {
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("tree")
    }
}

/// Writes an image, and returns what it says about itself.
pub(crate) fn write(tree: &Path, image: &Path, options: &ImageOptions) -> Superblock {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(image).unwrap();
    erofs::write(load(tree).unwrap(), FileSink(file), options).unwrap();
    superblock::read(image).unwrap()
}

/// Fails with all differences.
pub(crate) fn assert_same(left: &Path, right: &Path, ignore: Ignore) {
    let differences = compare_trees(left, right, ignore).unwrap();
    assert!(
        differences.is_empty(),
        "{} differences: {:#?}",
        differences.len(),
        &differences[..differences.len().min(10)]
    );
}
