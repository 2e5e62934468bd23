//! Files of more than 4 GiB.

mod common;

use std::{fs, io, os::unix::fs::FileExt};

use common::{odd, utils::Utils, write};
use erofs_image::{
    Compression, Image, Metadata, Node, Options, Tree,
    source::directory,
    tree::{Content, ContentReader},
};

const SIZE: u64 = (4 << 30) + 12_345;

fn options(compression: Compression) -> Options {
    Options { compression, ..Options::default() }
}

/// Accepted by both versions of erofs-utils, and read at some places as `expected` fills them.
fn check(bytes: &[u8], name: &str, places: &[u64], expected: &dyn ContentReader) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, bytes).unwrap();
    Utils::BOTH.iter().for_each(|utils| utils.accept(&path));
    let image = Image::open(bytes).unwrap();
    image.check().unwrap();
    let inode = image.lookup(name.as_bytes()).unwrap().unwrap();
    assert_eq!(inode.size, SIZE);
    let mut file = image.file(&inode).unwrap();
    let (mut here, mut there) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for place in places {
        let length = (SIZE - place).min(1 << 20) as usize;
        expected.read_exact_at(&mut here[..length], *place).unwrap();
        file.read_exact_at(&mut there[..length], *place).unwrap();
        assert!(here[..length] == there[..length], "from byte {place} on");
    }
}

#[test]
fn a_sparse_file_of_more_than_4_gib_takes_little_and_is_read_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let file = fs::File::create_new(folder.path().join("large")).unwrap();
    file.write_all_at(b"near the end", SIZE - 1000).unwrap();
    file.write_all_at(&odd::text(100_000, 2), 3 << 30).unwrap();
    file.set_len(SIZE).unwrap();
    let tree = directory::load(folder.path()).unwrap();
    let file = fs::File::open(folder.path().join("large")).unwrap();
    for compression in [Compression::None, Compression::Lz4] {
        let bytes = write(&tree, &options(compression)).0;
        assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
        check(&bytes, "large", &[0, (3 << 30) - 5000, (3 << 30) + 90_000, SIZE - 50_000], &file);
    }
}

/// Each block begins with its number, and is otherwise the same.
#[derive(Debug)]
struct Numbered;

impl ContentReader for Numbered {
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        let mut at = offset;
        let mut rest = target;
        while !rest.is_empty() {
            let inside = (at % 4096) as usize;
            let (now, later) = rest.split_at_mut(rest.len().min(4096 - inside));
            let mut block = [b'.'; 4096];
            block[..8].copy_from_slice(&(at / 4096).to_le_bytes());
            now.copy_from_slice(&block[inside..inside + now.len()]);
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }
}

impl Content for Numbered {
    fn size(&self) -> u64 {
        SIZE
    }

    fn open(&self) -> io::Result<Box<dyn ContentReader + '_>> {
        Ok(Box::new(Self))
    }

    fn name(&self) -> String {
        "numbered blocks".into()
    }
}

#[test]
fn a_compressed_file_of_more_than_4_gib_is_read_as_it_was() {
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    tree.add(b"large", Node::file(Metadata::with_mode(0o644), Numbered)).unwrap();
    let bytes = write(&tree, &options(Compression::Lz4)).0;
    assert!(bytes.len() < 64 << 20, "{} bytes", bytes.len());
    check(&bytes, "large", &[0, 4095, 1_000_000_007, (4 << 30) - 500_000, SIZE - 30_000], &Numbered);
}
