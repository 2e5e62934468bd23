//! Files that look unchanged are taken from the image before, and nothing of the image tells.

mod common;

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use common::{odd, write};
use erofs_image::{
    Compression, ImageWriter, Metadata, Node, Options, Time, Tree, Written,
    source::directory,
    tree::{Content, ContentReader, Kind, Stamp},
    write::{Earlier, KernelRelease, Record},
};

fn all() -> [Options; 4] {
    let with = |compression| Options { compression, kernel: KernelRelease::new(6, 12), ..Options::default() };
    let zstd = Compression::Zstd { level: 1 };
    [with(Compression::None), with(Compression::Lz4), with(Compression::Lz4hc { level: 4 }), with(zstd)]
}

/// So late that no file was changed shortly before.
fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(10)
}

/// An image with the list of its files.
struct Sealed {
    image: File,
    list: Vec<u8>,
}

impl Sealed {
    fn new(tree: &Tree, options: &Options) -> Self {
        let (bytes, _, record) = recorded(tree, options, None);
        let image = tempfile::tempfile().unwrap();
        image.write_all_at(&bytes, 0).unwrap();
        Self { image, list: record.to_bytes(Path::new("/image"), later()) }
    }

    fn earlier(&self, options: &Options) -> Option<Earlier> {
        let record = Record::parse(&self.list).unwrap();
        assert_eq!(record.image(), Path::new("/image"));
        Earlier::new(record, self.image.try_clone().unwrap(), options)
    }
}

fn recorded(tree: &Tree, options: &Options, earlier: Option<Earlier>) -> (Vec<u8>, Written, Record) {
    let mut bytes = Vec::new();
    let writer = ImageWriter::new(options.clone(), &mut bytes).unwrap();
    let (written, record) = writer.finish_recorded(tree.clone(), earlier).unwrap();
    (bytes, written, record)
}

fn odd_tree(folder: &Path) -> Tree {
    odd::build(folder, false);
    directory::load(folder).unwrap()
}

/// How many inodes have content, without those that have holes.
fn contents(tree: &Tree) -> u64 {
    let content = |id| match &tree.node(id).kind {
        Kind::File(content) => content.read_all().unwrap(),
        _ => Vec::new(),
    };
    tree.ids().filter(|id| content(*id).iter().any(|byte| *byte != 0)).count() as u64
}

#[test]
fn unchanged_files_are_not_read_and_the_bytes_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let tree = odd_tree(folder.path());
    for options in all() {
        let (expected, fresh) = write(&tree, &options);
        let sealed = Sealed::new(&tree, &options);
        for threads in [1, 3] {
            let options = Options { threads, ..options.clone() };
            let (bytes, written, record) = recorded(&tree, &options, sealed.earlier(&options));
            assert!(bytes == expected, "{options:?}");
            assert_eq!(written, Written { unchanged: contents(&tree), ..fresh.clone() }, "{options:?}");
            assert!(record.to_bytes(Path::new("/image"), later()) == sealed.list, "{options:?}");
        }
    }
}

#[test]
fn what_is_changed_added_or_removed_is_read_and_the_bytes_are_those_of_the_new_tree() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let before = odd_tree(folder.path());
    let sealed = all().map(|options| Sealed::new(&before, &options));
    // Of the same size and time.
    let kept = fs::metadata(place("long")).unwrap().modified().unwrap();
    let mut bytes = fs::read(place("long")).unwrap();
    bytes[4_000_000] ^= 1;
    fs::write(place("long"), bytes).unwrap();
    File::options().write(true).open(place("long")).unwrap().set_modified(kept).unwrap();
    fs::write(place("added"), odd::text(65_536, 0)).unwrap();
    fs::remove_file(place("noise-65536")).unwrap();
    fs::rename(place("noise-8192"), place("d/renamed")).unwrap();
    let after = directory::load(folder.path()).unwrap();
    for (options, sealed) in all().iter().zip(sealed) {
        let (bytes, written, _) = recorded(&after, options, sealed.earlier(options));
        assert!(bytes == write(&after, options).0, "{options:?}");
        // A new name is a change of the inode as well.
        assert_eq!(written.unchanged, contents(&after) - 3, "{options:?}");
    }
}

#[test]
fn what_is_damaged_in_the_image_before_is_read_from_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let tree = odd_tree(folder.path());
    for options in all() {
        let sealed = Sealed::new(&tree, &options);
        let (expected, fresh) = write(&tree, &options);
        let size = expected.len() as u64;
        // Block 0 has a checksum of its own.
        for place in (1..200).map(|part| 4096 + (size - 4096) * part / 200) {
            sealed.image.write_all_at(&[!expected[place as usize]], place).unwrap();
        }
        let (bytes, written, _) = recorded(&tree, &options, sealed.earlier(&options));
        assert!(bytes == expected, "{options:?}");
        assert!(written.unchanged > 0 && written.unchanged < contents(&tree), "{options:?}");
        // Nothing is left of it but its first block.
        sealed.image.set_len(4096).unwrap();
        sealed.image.set_len(size).unwrap();
        let (bytes, written, _) = recorded(&tree, &options, sealed.earlier(&options));
        // What repeats another file of the new image needs nothing of the earlier one.
        assert!(bytes == expected && written.unchanged <= fresh.duplicates, "{options:?}");
        sealed.image.set_len(0).unwrap();
        assert!(sealed.earlier(&options).is_none());
    }
}

#[test]
fn an_image_of_another_form_or_tree_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let tree = odd_tree(folder.path());
    let [_, lz4, hc, _] = all();
    let (sealed, other) = (Sealed::new(&tree, &lz4), Sealed::new(&tree, &hc));
    assert!(sealed.earlier(&hc).is_none());
    assert!(sealed.earlier(&Options { cluster_size: 4096, ..lz4.clone() }).is_none());
    assert!(Sealed { image: other.image, list: sealed.list.clone() }.earlier(&lz4).is_none());
    assert!(sealed.earlier(&Options { threads: 7, ..lz4 }).is_some());
}

#[test]
fn a_list_that_is_cut_off_or_changed_anywhere_is_refused() {
    let mut tree = Tree::new(Metadata::default());
    tree.add(b"f", Node::file(Metadata::default(), Stamped::new(b"content".to_vec()))).unwrap();
    let list = Sealed::new(&tree, &Options::default()).list;
    assert!(Record::parse(&list).is_ok());
    for at in 0..list.len() {
        assert!(Record::parse(&list[..at]).is_err(), "cut off at {at}");
        let mut changed = list.clone();
        changed[at] ^= 1;
        assert!(Record::parse(&changed).is_err(), "changed at {at}");
    }
    let error = Record::parse(b"{}").unwrap_err().to_string();
    assert_eq!(error, "expected a list of files as this program writes it, found another beginning");
}

#[test]
fn files_that_were_changed_just_before_they_were_listed_are_not_recorded() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("f"), odd::noise(5000, 1)).unwrap();
    let changed = fs::metadata(folder.path().join("f")).unwrap().modified().unwrap();
    let tree = directory::load(folder.path()).unwrap();
    let options = Options::default();
    let unchanged: HashMap<u64, u64> = [0, 1, 3]
        .map(|seconds| {
            let mut sealed = Sealed::new(&tree, &options);
            let (.., record) = recorded(&tree, &options, None);
            sealed.list = record.to_bytes(Path::new("/image"), changed + Duration::from_secs(seconds));
            (seconds, recorded(&tree, &options, sealed.earlier(&options)).1.unchanged)
        })
        .into();
    assert_eq!(unchanged, HashMap::from([(0, 0), (1, 0), (3, 1)]));
}

/// Content with a stamp that somebody made up.
#[derive(Debug, Clone)]
struct Stamped(Arc<Vec<u8>>);

impl Stamped {
    fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(bytes))
    }
}

impl Content for Stamped {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn open(&self) -> std::io::Result<Box<dyn ContentReader + '_>> {
        Ok(Box::new(self.0.as_slice()))
    }

    fn name(&self) -> String {
        "a file".into()
    }

    fn stamp(&self) -> Option<Stamp> {
        let (mtime, changed) = (Time::default(), Time::default());
        Some(Stamp { device: 1, inode: 2, size: self.size(), mtime, changed })
    }
}

/// This is what whoever asks for it believes.
#[test]
fn content_that_changes_with_no_other_stamp_is_missed() {
    let tree = |bytes: &[u8]| {
        let mut tree = Tree::new(Metadata::default());
        tree.add(b"f", Node::file(Metadata::default(), Stamped::new(bytes.to_vec()))).unwrap();
        tree
    };
    let options = Options::default();
    let (before, after) = (tree(b"before"), tree(b"after!"));
    let earlier = Sealed::new(&before, &options).earlier(&options);
    let (bytes, ..) = recorded(&after, &options, earlier);
    assert!(bytes == write(&before, &options).0);
}
