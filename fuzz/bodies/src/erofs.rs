//! erofs images, and the trees that archives become.

use std::sync::Arc;

use erofs_image::{
    Image, ImageWriter, Options, Tree,
    source::archive::{Unpacked, initramfs_stream, tar_stream},
    tree::{FileContent, Kind},
};

/// Files are read up to here, and images written of trees that are no larger.
const KEPT: u64 = 1 << 16;
/// The superblock's optional features, of which the lowest bit announces a checksum.
const FEATURE_COMPAT: usize = 1024 + 8;

/// An image gives a tree whose names are sound and whose files can be read as far as they go, or an error. What passes the
/// check, written anew, has the same tree.
///
/// Nothing but luck finds the checksum, so the image is also read without one.
pub fn erofs_image(data: &[u8]) -> bool {
    let mut unchecked = data.to_vec();
    if let Some(byte) = unchecked.get_mut(FEATURE_COMPAT) {
        *byte &= !1;
        read_image(unchecked);
    }
    read_image(data.to_vec())
}

fn read_image(data: Vec<u8>) -> bool {
    let Ok(image) = Image::open(data).map(Arc::new) else { return false };
    let Ok(tree) = image.tree() else { return false };
    let size = check_tree(&tree);
    if size > KEPT || image.check().is_err() {
        return false;
    }
    let again = write(&tree).expect("what was read can be written");
    assert_eq!(shape(&tree), shape(&again));
    true
}

/// A tar archive becomes a tree that can be written and read, or an error.
pub(crate) fn tar_tree(data: &[u8]) {
    tar_stream("fuzz", data).into_iter().for_each(check_unpacked);
}

/// The same for an initramfs.
pub(crate) fn initramfs_tree(data: &[u8]) {
    initramfs_stream("fuzz", data).into_iter().for_each(check_unpacked);
}

fn check_unpacked(unpacked: Unpacked) {
    let tree = unpacked.tree.into_walked();
    if check_tree(&tree) <= KEPT
        && let Some(again) = write(&tree)
    {
        assert_eq!(shape(&tree), shape(&again));
    }
}

/// The sum of all files' sizes.
fn check_tree(tree: &Tree) -> u64 {
    let mut sum = 0_u64;
    for id in tree.ids() {
        for name in tree.entries(id).keys() {
            assert!(!matches!(&name[..], b"" | b"." | b"..") && name.len() <= 255);
            assert!(!name.contains(&b'/') && !name.contains(&0));
        }
        if let Kind::File(FileContent::Source(content)) = &tree.node(id).kind {
            sum = sum.saturating_add(content.size());
            let mut start = vec![0; content.size().min(KEPT) as usize];
            let _ = content.open().and_then(|reader| reader.read_exact_at(&mut start, 0));
        }
    }
    sum
}

/// Nothing where the tree has what the format cannot hold, such as a device number of too many bits.
fn write(tree: &Tree) -> Option<Tree> {
    let mut bytes = Vec::new();
    let options = Options { threads: 1, ..Options::default() };
    ImageWriter::new(options, &mut bytes).ok()?.finish(tree.clone()).ok()?;
    let image = Arc::new(Image::open(bytes).expect("our own image"));
    image.check().expect("our own image");
    Some(image.tree().expect("our own image"))
}

/// How often each name, mode and number of links is there.
fn shape(tree: &Tree) -> Vec<(Vec<Vec<u8>>, u16, u32)> {
    let tree = tree.clone().into_walked();
    let ids = tree.ids();
    ids.map(|id| (tree.entries(id).keys().cloned().collect(), tree.node(id).metadata.mode, tree.links(id))).collect()
}
