//! Images that mkfs.erofs 1.5 and 1.8 made are read as the tree that they were made of.

mod common;

use std::fs;

use common::{Lossy, assert_same, listing, odd, read, utils::Utils};
use erofs_image::{Image, source::directory};

/// mkfs.erofs 1.5 cuts names at 254 bytes, and forgets times before 1970 of the image itself.
fn odd_tree_for_mkfs(root: &std::path::Path) {
    fs::create_dir(root).unwrap();
    odd::build(root, false);
    fs::remove_file(root.join("d").join("n".repeat(255))).unwrap();
    odd::touch(root, &["d", ""]);
}

fn check(arguments: &[&str]) {
    Utils::BOTH.iter().for_each(|utils| check_of(*utils, arguments));
}

fn check_of(utils: Utils, arguments: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    odd_tree_for_mkfs(&root);
    let image = folder.path().join("image");
    let places = [image.to_str().unwrap(), root.to_str().unwrap()];
    utils.run("mkfs.erofs", &[arguments, &["--quiet", "-T1500000000", "--ignore-mtime"], &places].concat());
    let tree = directory::load(&root).unwrap();
    let found = read(fs::read(&image).unwrap());
    // One time for all, which is the image's.
    assert!(found.ids().all(|id| found.node(id).metadata.mtime.seconds == 1_500_000_000));
    let lossy = Lossy { times: true, ..Lossy::default() };
    assert_same(&listing(&tree, lossy), &listing(&found, lossy), &format!("{utils:?}, {arguments:?}"));
}

#[test]
fn plain_images_are_read() {
    check(&[]);
    check(&["-Eforce-inode-extended"]);
}

#[test]
fn chunked_images_are_read() {
    check(&["--chunksize=4096"]);
    check(&["--chunksize=65536", "-Eforce-chunk-indexes"]);
}

#[test]
fn compressed_images_are_read() {
    check(&["-zlz4"]);
    check(&["-zlz4", "-C65536"]);
    check(&["-zlz4hc,9", "-C65536"]);
    check(&["-zlz4", "-C1048576"]);
}

#[test]
fn images_with_old_indexes_are_read() {
    check(&["-zlz4", "-Elegacy-compress"]);
    check(&["-zlz4", "-C65536", "-Elegacy-compress"]);
}

#[test]
fn images_with_tails_in_their_metadata_are_read() {
    check(&["-zlz4", "-Eztailpacking"]);
    check(&["-zlz4", "-C65536", "-Eztailpacking"]);
    check(&["-zlz4", "-Elegacy-compress,ztailpacking"]);
}

/// 1.8 counts the level as an option of its own, and knows more.
#[test]
fn images_that_1_8_alone_makes_are_read() {
    check_of(Utils::New, &["-zzstd"]);
    check_of(Utils::New, &["-zzstd,level=3", "-C65536"]);
    check_of(Utils::New, &["-zzstd,level=1", "-C1048576"]);
    check_of(Utils::New, &["-zlz4hc,level=12:zstd", "-C65536"]);
}

/// What is not read is named, and nothing of it believed.
#[test]
fn images_with_what_is_not_read_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (root, image) = (folder.path().join("root"), folder.path().join("image"));
    odd_tree_for_mkfs(&root);
    for arguments in [&["-zlz4", "-Efragments"][..], &["-zlz4", "-C65536", "-Eall-fragments"], &["-zdeflate"]] {
        let places = ["--quiet", image.to_str().unwrap(), root.to_str().unwrap()];
        Utils::New.run("mkfs.erofs", &[arguments, &places].concat());
        let found = Image::open(fs::read(&image).unwrap()).and_then(|image| image.check());
        let error = found.unwrap_err().to_string();
        assert!(error.contains("is not supported; make the image without it"), "{arguments:?}: {error}");
        fs::remove_file(&image).unwrap();
    }
}
