//! The bytes of an image follow from the tree and the options alone.

mod common;

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};

use common::{EXACT, assert_same, listing, odd, read, write};
use erofs_image::{
    BlockSink, Compression, ImageWriter, Metadata, Node, Options, Time, Tree,
    format::units::Block,
    source::directory,
    tree::{Content, ContentReader},
};

fn all() -> [Options; 4] {
    let with = |compression| Options { compression, ..Options::default() };
    let zstd = with(Compression::Zstd { level: 1 });
    let kernel = erofs_image::write::KernelRelease::new(6, 12);
    [with(Compression::None), with(Compression::Lz4), with(Compression::Lz4hc { level: 4 }), Options { kernel, ..zstd }]
}

#[test]
fn one_two_and_eight_threads_make_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    odd::build(folder.path(), false);
    let tree = directory::load(folder.path()).unwrap();
    for options in all() {
        let images = [1, 2, 8].map(|threads| write(&tree, &Options { threads, ..options.clone() }));
        assert!(images[0] == images[1] && images[0] == images[2], "{options:?}");
    }
}

#[test]
fn equal_files_are_stored_once_whichever_is_digested_first() {
    let short: Vec<Vec<u8>> = (0..4).map(|seed| odd::text(40_000, seed)).collect();
    let long: Vec<Vec<u8>> = (4..6).map(|seed| odd::text(2_500_000, seed)).collect();
    let mut tree = Tree::new(Metadata::default());
    for number in 0..100 {
        let content = if number % 20 == 7 { &long[number % 3 % 2] } else { &short[number / 3 % 4] };
        tree.add(format!("f{number:02}").as_bytes(), Node::file(Metadata::default(), content.clone())).unwrap();
    }
    for options in all() {
        let images = [1, 2, 8].map(|threads| write(&tree, &Options { threads, ..options.clone() }));
        assert!(images[0] == images[1] && images[0] == images[2], "{options:?}");
        assert_eq!(images[0].1.duplicates, 100 - 6, "{options:?}");
        let read = read(images[0].0.clone());
        assert_same(&listing(&tree, EXACT), &listing(&read, EXACT), &format!("{options:?}"));
    }
}

#[test]
fn files_that_are_alike_in_parts_are_read_as_they_were() {
    let text = odd::text(3_500_000, 1);
    let changed = |place: usize| {
        let mut other = text.clone();
        other[place] ^= 1;
        other
    };
    let mut tree = Tree::new(Metadata::default());
    // Equal at first, at last, in the middle and nowhere; then some of them again.
    let contents = [text.clone(), changed(3_400_000), changed(0), changed(1_500_000), odd::text(3_500_000, 2)];
    for (number, content) in contents.iter().chain([&contents[1], &text]).enumerate() {
        tree.add(format!("f{number}").as_bytes(), Node::file(Metadata::default(), content.clone())).unwrap();
    }
    for options in all() {
        let images = [1, 2, 8].map(|threads| write(&tree, &Options { threads, ..options.clone() }));
        assert!(images[0] == images[1] && images[0] == images[2], "{options:?}");
        assert_eq!(images[0].1.duplicates, 2, "{options:?}");
        let read = read(images[0].0.clone());
        assert_same(&listing(&tree, EXACT), &listing(&read, EXACT), &format!("{options:?}"));
    }
}

/// Content that is another one from the second reading on.
#[derive(Debug, Default)]
struct Changing(Vec<u8>, AtomicUsize);

impl Content for Changing {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn open(&self) -> std::io::Result<Box<dyn ContentReader + '_>> {
        Ok(Box::new(self))
    }

    fn name(&self) -> String {
        "a log".into()
    }
}

impl ContentReader for &Changing {
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> std::io::Result<()> {
        (&self.0[..]).read_exact_at(target, offset)?;
        // Only pieces count, not the samples of a file that are looked at for holes.
        if target.len() == 1 << 20 && offset == 0 && self.1.fetch_add(1, Ordering::Relaxed) > 0 {
            target[7] ^= 1;
        }
        Ok(())
    }
}

#[test]
fn a_file_that_changes_between_two_readings_is_refused() {
    let text = odd::text(3_500_000, 1);
    let mut tree = Tree::new(Metadata::default());
    tree.add(b"a", Node::file(Metadata::default(), text.clone())).unwrap();
    // Equal at first, so that it is read again once its end is seen.
    let changing = Changing([&text[..3_000_000], &text[..500_000]].concat(), AtomicUsize::new(0));
    tree.add(b"b", Node::file(Metadata::default(), changing)).unwrap();
    let written = ImageWriter::new(Options::default(), Vec::new()).unwrap().finish(tree);
    let error = written.unwrap_err().to_string();
    assert!(error.starts_with("read a log: found another content than a moment before; "), "{error}");
}

#[test]
fn another_folder_and_order_of_entries_make_the_same_bytes() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    odd::build(first.path(), false);
    // The same tree, filled in the reverse order on another file system, with the times of the first.
    odd::build(second.path(), true);
    odd::copy_times(first.path(), second.path());
    let names = |path: &std::path::Path| -> Vec<_> {
        fs::read_dir(path.join("many")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_ne!(names(first.path()), names(second.path()), "the file systems list alike, which proves nothing");
    let three = std::num::NonZeroUsize::new(3).unwrap();
    let trees = [
        directory::load(first.path()).unwrap(),
        directory::load(second.path()).unwrap(),
        directory::load_on(second.path(), three).unwrap(),
    ];
    for options in all() {
        let images = trees.each_ref().map(|tree| write(tree, &options));
        assert!(images[0] == images[1] && images[0] == images[2], "{options:?}");
    }
}

#[test]
fn a_file_with_holes_is_stored_alike_wherever_its_file_system_sees_them() {
    use std::os::unix::fs::FileExt;
    let image = |zeros: &[(u64, usize)], options: &Options| {
        let folder = tempfile::tempdir().unwrap();
        let file = fs::File::create_new(folder.path().join("f")).unwrap();
        file.set_len(9 << 20).unwrap();
        zeros.iter().for_each(|(place, size)| file.write_all_at(&vec![0; *size], *place).unwrap());
        file.write_all_at(&odd::text(10_000, 1), (2 << 20) + 5).unwrap();
        let options = Options { same_time: Some(Time::default()), ..options.clone() };
        write(&directory::load(folder.path()).unwrap(), &options).0
    };
    for options in all() {
        assert!(image(&[], &options) == image(&[(0, 70_000), (8 << 20, 4096)], &options), "{options:?}");
    }
}

#[test]
fn any_change_changes_the_uuid() {
    let uuid = |mode, bytes: &[u8]| {
        let mut tree = Tree::new(Metadata::with_mode(0o755));
        tree.add(b"f", Node::file(Metadata::with_mode(mode), bytes.to_vec())).unwrap();
        write(&tree, &Options::default()).1.uuid
    };
    let first = uuid(0o644, &[1; 5000]);
    assert_eq!(first, uuid(0o644, &[1; 5000]));
    assert_ne!(first, uuid(0o600, &[1; 5000]));
    assert_ne!(first, uuid(0o644, &[2; 5000]));
    // The same data, at other places between holes.
    let at = |place: usize| {
        let mut bytes = vec![0; 3 << 20];
        bytes[place..place + 4096].fill(1);
        uuid(0o644, &bytes)
    };
    assert_ne!(at(4096), at(2 << 20));
}

#[test]
fn files_with_the_same_data_and_holes_are_stored_once() {
    let mut bytes = vec![0; 5 << 20];
    bytes[(2 << 20) + 5..(3 << 20) + 77].copy_from_slice(&odd::text((1 << 20) + 72, 1));
    let mut elsewhere = bytes.clone();
    elsewhere.rotate_right(1 << 20);
    let mut tree = Tree::new(Metadata::default());
    for (name, content) in [(&b"a"[..], &bytes), (b"b", &elsewhere), (b"c", &bytes)] {
        tree.add(name, Node::file(Metadata::default(), content.clone())).unwrap();
    }
    for options in all() {
        let (image, written) = write(&tree, &options);
        assert_eq!(written.duplicates, 1, "{options:?}");
        assert!(image.len() < 3 << 20, "{options:?}: {}", image.len());
        assert_same(&listing(&tree, EXACT), &listing(&read(image), EXACT), &format!("{options:?}"));
    }
}

/// Counts how often each block comes.
#[derive(Default)]
struct Counting {
    counts: Vec<u32>,
    bytes: Vec<u8>,
}

impl BlockSink for Counting {
    fn write(&mut self, first: Block, bytes: &[u8]) -> std::io::Result<()> {
        assert_eq!(bytes.len() % 4096, 0);
        let end = first.0 as usize + bytes.len() / 4096;
        self.counts.resize(end.max(self.counts.len()), 0);
        self.counts[first.0 as usize..end].iter_mut().for_each(|count| *count += 1);
        self.bytes.write(first, bytes)
    }
}

#[test]
fn each_block_leaves_once() {
    let folder = tempfile::tempdir().unwrap();
    odd::build(folder.path(), false);
    let tree = directory::load(folder.path()).unwrap();
    for options in all() {
        let mut sink = Counting::default();
        let written = ImageWriter::new(options, &mut sink).unwrap().finish(tree.clone()).unwrap();
        assert_eq!(sink.counts.len(), written.blocks as usize);
        assert!(sink.counts.iter().all(|count| *count == 1));
    }
}
