//! erofs images, and the trees that archives become.

use std::sync::Arc;

use erofs_image::{
    Compression, Image, ImageWriter, Options, Tree,
    source::{
        archive::{Keep, Unpacked, initramfs_stream, tar_stream},
        oci::{Config, Descriptor, Index, Layers, Manifest},
    },
    tree::Kind,
};

use crate::archives::with_checksums;

/// Between the parts of an image: its index, manifest, config, and layers.
const SEPARATOR: &[u8] = b"\n--8<--\n";
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

/// An image's documents name nothing but blobs. Its layers, one over the other, give a tree that can be written and read, or an
/// error.
pub fn erofs_oci(data: &[u8]) -> bool {
    let mut parts = parts(data).into_iter();
    let mut next = || parts.next().unwrap_or_default();
    let index = Index::parse("fuzz", next());
    let manifest = Manifest::parse("fuzz", next());
    let config = Config::parse("fuzz", next());
    let described = index.iter().flat_map(|index| &index.manifests);
    let described =
        described.chain(manifest.iter().flat_map(|manifest| manifest.layers.iter().chain([&manifest.config])));
    described.for_each(check_descriptor);
    let layers: Vec<&[u8]> = parts.collect();
    check_layers(&layers.iter().map(|layer| with_checksums(layer)).collect::<Vec<_>>());
    index.is_ok() && manifest.is_ok() && config.is_ok() && !layers.is_empty() && check_layers(&layers)
}

fn parts(data: &[u8]) -> Vec<&[u8]> {
    let (mut parts, mut rest) = (Vec::new(), data);
    while let Some(at) = rest.windows(SEPARATOR.len()).position(|bytes| bytes == SEPARATOR) {
        parts.push(&rest[..at]);
        rest = &rest[at + SEPARATOR.len()..];
    }
    parts.push(rest);
    parts
}

fn check_descriptor(descriptor: &Descriptor) {
    let path = descriptor.digest.path();
    let digits = path.strip_prefix("blobs/sha256/").or_else(|| path.strip_prefix("blobs/sha512/"));
    let digits = digits.expect("no other algorithm is known");
    assert!(matches!(digits.len(), 64 | 128) && digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
}

fn check_layers(layers: &[impl AsRef<[u8]>]) -> bool {
    let mut image = Layers::new();
    if layers.iter().any(|layer| image.add("fuzz", layer.as_ref()).is_err()) {
        return false;
    }
    let Ok(unpacked) = image.finish() else { return false };
    for id in unpacked.tree.ids() {
        // Signs of what is gone are never seen.
        assert!(!unpacked.tree.entries(id).keys().any(|name| name.starts_with(b".wh.")));
    }
    check_unpacked(unpacked);
    true
}

/// A tar archive becomes a tree that can be written and read, or an error.
pub(crate) fn tar_tree(data: &[u8]) {
    tar_stream("fuzz", data, &Keep::Packed(options())).into_iter().for_each(check_unpacked);
}

/// The same for an initramfs.
pub(crate) fn initramfs_tree(data: &[u8]) {
    initramfs_stream("fuzz", data, &Keep::Packed(options())).into_iter().for_each(check_unpacked);
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
        if let Kind::File(content) = &tree.node(id).kind {
            sum = sum.saturating_add(content.size());
            let mut start = vec![0; content.size().min(KEPT) as usize];
            let _ = content.open().and_then(|reader| reader.read_exact_at(&mut start, 0));
        }
    }
    sum
}

/// Nothing where the tree has what the format cannot hold, such as a device number of too many bits.
fn options() -> Options {
    Options { compression: Compression::Lz4, threads: 1, ..Options::default() }
}

fn write(tree: &Tree) -> Option<Tree> {
    let mut bytes = Vec::new();
    ImageWriter::new(options(), &mut bytes).ok()?.finish(tree.clone()).ok()?;
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
