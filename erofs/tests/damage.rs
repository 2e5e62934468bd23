//! Damaged images are refused or read otherwise, but never end the reader.

mod common;

use common::odd;
use erofs_image::{
    Compression, Image, Metadata, Node, Options, Tree,
    format::superblock::{OFFSET, checksum},
    tree::{Device, Kind},
};
use proptest::{prelude::*, test_runner::RngSeed};

/// Everything that the format has, in little space.
fn image(compression: Compression) -> Vec<u8> {
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    let mut metadata = Metadata::with_mode(0o644);
    metadata.xattrs.insert(b"user.a".to_vec(), vec![7; 30]);
    metadata.xattrs.insert(b"security.selinux".to_vec(), b"label".to_vec());
    tree.add(b"d", Node::directory(metadata.clone())).unwrap();
    for number in 0..200 {
        tree.add(format!("d/name-{number}").as_bytes(), Node::other(Metadata::default(), Kind::Fifo)).unwrap();
    }
    tree.add(b"text", Node::file(metadata.clone(), odd::text(60_000, 1))).unwrap();
    tree.add(b"noise", Node::file(metadata.clone(), odd::noise(10_000, 1))).unwrap();
    tree.add(b"link", Node::symlink(metadata, b"target")).unwrap();
    tree.link(b"d/text", b"text").unwrap();
    tree.add(b"device", Node::other(Metadata::default(), Kind::BlockDevice(Device { major: 8, minor: 1 }))).unwrap();
    let kernel = erofs_image::write::KernelRelease::new(6, 12);
    common::write(&tree, &Options { compression, kernel, cluster_size: 16384, ..Options::default() }).0
}

/// Ends without a panic, whatever it finds.
fn read_all(bytes: &[u8]) -> bool {
    let Ok(image) = Image::open(bytes) else { return false };
    image.check().is_ok()
}

/// So that changes of the first block get past its checksum.
fn mend(bytes: &mut [u8]) {
    let sum = checksum(&bytes[OFFSET..4096]);
    bytes[OFFSET + 4..OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
}

fn compressions() -> [Compression; 3] {
    [Compression::None, Compression::Lz4, Compression::Zstd { level: 1 }]
}

#[test]
fn cut_images_are_refused() {
    for compression in compressions() {
        let bytes = image(compression);
        assert!(read_all(&bytes));
        for length in (0..bytes.len()).step_by(509) {
            assert!(!read_all(&bytes[..length]), "{length} of {} bytes", bytes.len());
        }
    }
}

#[test]
fn each_bit_of_the_superblock_may_be_another() {
    let bytes = image(Compression::Lz4);
    // The bit that says that there is a checksum.
    let flag = (OFFSET + 8) * 8;
    for bit in (OFFSET * 8..(OFFSET + 160) * 8).filter(|bit| *bit != flag) {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(!read_all(&changed), "bit {bit} is covered by the checksum");
        mend(&mut changed);
        read_all(&changed);
    }
}

#[test]
fn each_byte_of_the_metadata_may_be_another() {
    for compression in compressions() {
        let bytes = image(compression);
        let meta = u32::from_le_bytes(bytes[OFFSET + 40..OFFSET + 44].try_into().unwrap()) as usize * 4096;
        let mut refused = 0;
        for at in meta..bytes.len() {
            for value in [0, 0xff, bytes[at] ^ 1, bytes[at].wrapping_add(1)] {
                let mut changed = bytes.clone();
                changed[at] = value;
                refused += u32::from(!read_all(&changed));
            }
        }
        assert!(refused > 100, "{refused}");
    }
}

#[test]
fn a_directory_that_contains_itself_is_refused() {
    let mut tree = Tree::new(Metadata::default());
    tree.add(b"outer", Node::directory(Metadata::default())).unwrap();
    tree.add(b"outer/inner", Node::directory(Metadata::default())).unwrap();
    let bytes = common::write(&tree, &Options::default()).0;
    let image = Image::open(bytes.as_slice()).unwrap();
    let [outer, inner] = [&b"outer"[..], b"outer/inner"].map(|path| image.lookup(path).unwrap().unwrap().nid.0);
    // The entry of 'inner' is the third of 'outer', behind '.' and '..'.
    let needle: Vec<u8> = inner.to_le_bytes().to_vec();
    let places: Vec<_> = (4096..bytes.len() - 8).filter(|at| bytes[*at..*at + 8] == needle[..]).collect();
    let mut cycles = 0;
    for place in places {
        let mut changed = bytes.clone();
        changed[place..place + 8].copy_from_slice(&outer.to_le_bytes());
        let error = Image::open(changed.as_slice()).unwrap().check().unwrap_err().to_string();
        cycles += u32::from(error.contains("one name for a directory"));
    }
    assert!(cycles > 0);
}

#[test]
fn errors_name_structure_field_expected_and_found() {
    let mut bytes = image(Compression::None);
    bytes[OFFSET] = 0;
    let error = Image::open(bytes.as_slice()).unwrap_err().to_string();
    assert_eq!(
        error,
        "the superblock: magic: expected 0xe0f5e1e2, found 0xe0f5e100; the image is damaged: make it anew"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, rng_seed: RngSeed::Fixed(2), ..ProptestConfig::default() })]

    #[test]
    fn many_bytes_may_be_others(
        which in 0..3_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..50),
    ) {
        let mut bytes = image(compressions()[which]);
        for (place, value) in changes {
            let at = OFFSET + place.index(bytes.len() - OFFSET);
            bytes[at] = value;
        }
        mend(&mut bytes);
        read_all(&bytes);
    }
}
