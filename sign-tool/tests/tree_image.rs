//! Images of trees.

use std::{path::Path, process::Command};

use iofs_sign::{
    erofs::{ImageOptions, ImageWriter, mkfs::MkfsErofs},
    report::Progress,
    tree::Source,
};

#[test]
fn a_directory_and_its_tar_give_the_same_image() {
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    std::fs::write(tree.join("etc/hostname"), "box\n").unwrap();
    std::fs::write(tree.join("big"), "abc".repeat(100_000)).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", tree.join("link")).unwrap();
    let archive = work.path().join("tree.tar.gz");
    let status =
        Command::new("tar").args(["--format=pax", "-czf"]).arg(&archive).arg("-C").arg(&tree).arg(".").status();
    assert!(status.unwrap().success());
    let a = image(&tree, &work.path().join("a"));
    let b = image(&archive, &work.path().join("b"));
    assert!(a == b);
}

fn image(source: &Path, image: &Path) -> Vec<u8> {
    let tree = Source::open(source).unwrap().stage(None, &Progress::hidden()).unwrap().unwrap();
    let writer = MkfsErofs::find().unwrap();
    let info = writer.write(&tree.path(), image, &ImageOptions::default(), &Progress::hidden()).unwrap();
    println!("{info:?}");
    assert!(Command::new("fsck.erofs").arg(image).status().unwrap().success());
    std::fs::read(image).unwrap()
}
