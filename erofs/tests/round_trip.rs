//! What is written is read: by the reader of this crate, and by erofs-utils 1.5 and 1.8.

mod common;

use std::fs;

use common::{EXACT, assert_same, listing, odd, read, utils::Utils, write};
use erofs_image::{
    Compression, Metadata, Node, Options, Time, Tree,
    source::directory,
    tree::{Device, Kind},
    write::KernelRelease,
};

fn compressions() -> [(Compression, usize); 6] {
    [
        (Compression::None, 65536),
        (Compression::Lz4, 65536),
        (Compression::Lz4, 4096),
        (Compression::Lz4, 1 << 20),
        (Compression::Lz4hc { level: 9 }, 65536),
        (Compression::Zstd { level: 3 }, 65536),
    ]
}

fn options(compression: Compression, cluster_size: usize) -> Options {
    let kernel = KernelRelease::new(6, if matches!(compression, Compression::Zstd { .. }) { 10 } else { 1 });
    Options { compression, cluster_size, kernel, ..Options::default() }
}

#[test]
fn a_tree_of_all_odd_entries_is_read_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    odd::build(folder.path(), false);
    let tree = directory::load(folder.path()).unwrap();
    let expected = listing(&tree, EXACT);
    for (compression, cluster_size) in compressions() {
        let (bytes, written) = write(&tree, &options(compression, cluster_size));
        assert!(written.duplicates > 0);
        assert_eq!(compression == Compression::None, written.compressed == 0);
        assert_same(&expected, &listing(&read(bytes), EXACT), &format!("{compression:?}, {cluster_size}"));
    }
}

#[test]
fn a_directory_is_taken_with_attributes_links_devices_and_holes() {
    let folder = tempfile::tempdir().unwrap();
    odd::build(folder.path(), false);
    let tree = directory::load(folder.path()).unwrap();
    let node = |path: &str| tree.node(tree.find(path.as_bytes()).unwrap());
    assert_eq!(node("noise-4065").metadata.xattrs.len(), 5);
    assert_eq!(node("sizes-4095").metadata.xattrs[&b"security.capability"[..]].len(), 20);
    assert_eq!(node("d").metadata.xattrs[&b"system.posix_acl_default"[..]].len(), 52);
    assert_eq!(tree.links(tree.find(b"d/e/linked").unwrap()), 3);
    assert_eq!((node("owned").metadata.mode, node("owned").metadata.uid), (0o4711, 4_000_000_000));
    assert!(matches!(node("block").kind, Kind::BlockDevice(Device { major: 259, minor: 1_048_575 })));
    let Kind::File(sparse) = &node("sparse").kind else { panic!("no file") };
    assert_eq!(sparse.data().unwrap().len(), 2);
}

#[test]
fn erofs_utils_accept_and_extract_a_tree_of_all_odd_entries_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    odd::build(&root, false);
    // Both leave holes out, and shorten the file by one at its end.
    ["hole", "sparse", "zeros"].iter().for_each(|name| fs::remove_file(root.join(name)).unwrap());
    // 1.8 gives a directory its default ACL before it fills it, so that all below inherit that; it takes an empty attribute for the
    // end of them; and it changes owners after attributes, which takes capabilities away.
    for (name, attribute) in
        [("d", "system.posix_acl_default"), ("noise-4065", "user.empty"), ("sizes-4095", "security.capability")]
    {
        rustix::fs::removexattr(root.join(name), attribute).unwrap();
    }
    let tree = directory::load(&root).unwrap();
    let (image, target) = (folder.path().join("image"), folder.path().join("extracted"));
    for (compression, cluster_size) in compressions() {
        fs::write(&image, write(&tree, &options(compression, cluster_size)).0).unwrap();
        for utils in Utils::BOTH.into_iter().filter(|utils| utils.knows(compression)) {
            utils.accept(&image);
            let found = listing(&utils.extract(&image, &target), utils.lossy());
            fs::remove_dir_all(&target).unwrap();
            let what = format!("{utils:?}, {compression:?}, {cluster_size}");
            assert_same(&listing(&tree, utils.lossy()), &found, &what);
        }
    }
}

#[test]
fn a_directory_of_100000_entries_is_accepted_and_read() {
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    for number in 0..100_000 {
        let name = format!("{:x}-{number}-{}", number * 7919 % 65_536, "y".repeat(number % 50));
        tree.add(name.as_bytes(), Node::other(Metadata::with_mode(0o644), Kind::Fifo)).unwrap();
    }
    let (bytes, _) = write(&tree, &Options::default());
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::write(&image, &bytes).unwrap();
    Utils::BOTH.iter().for_each(|utils| utils.accept(&image));
    assert_same(&listing(&tree, EXACT), &listing(&read(bytes), EXACT), "100,000 entries");
}

#[test]
fn one_time_for_all_needs_no_extended_inode() {
    let folder = tempfile::tempdir().unwrap();
    odd::build(folder.path(), false);
    let tree = directory::load(folder.path()).unwrap();
    let time = Time { seconds: 1_700_000_000, nanoseconds: 5 };
    let own = write(&tree, &Options::default()).0;
    let same = write(&tree, &Options { same_time: Some(time), ..Options::default() }).0;
    assert!(same.len() + 30_000 < own.len(), "{} {}", same.len(), own.len());
    let found = read(same);
    assert!(found.ids().all(|id| found.node(id).metadata.mtime == time));
}

#[test]
fn an_image_that_is_read_can_be_written_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    odd::build(folder.path(), false);
    let tree = directory::load(folder.path()).unwrap();
    let first = write(&tree, &options(Compression::Lz4, 65536)).0;
    // What has holes lists none when it is read, and the order of content is that of the walk.
    let second = write(&read(first), &options(Compression::Lz4, 65536)).0;
    let third = write(&read(second.clone()), &options(Compression::Lz4, 65536)).0;
    assert!(second == third, "{} and {} bytes", second.len(), third.len());
}

#[test]
fn a_tree_becomes_the_files_that_it_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let (root, again) = (folder.path().join("root"), folder.path().join("again"));
    fs::create_dir(&root).unwrap();
    odd::build(&root, false);
    let tree = directory::load(&root).unwrap();
    let image = read(write(&tree, &options(Compression::Lz4, 65536)).0);
    assert_eq!(erofs_image::extract(&image, &again).unwrap(), [] as [&str; 0]);
    assert_same(&listing(&tree, EXACT), &listing(&directory::load(&again).unwrap(), EXACT), "extracted");
    let error = erofs_image::extract(&image, &again).unwrap_err().to_string();
    assert!(error.contains("File exists") && error.contains("name a directory that does not exist"), "{error}");
}
