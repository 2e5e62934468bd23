//! Lists of an image's files, by which the next one takes what looks unchanged.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use erofs_image::{
    Compression, Image, ImageWriter, Metadata, Node, Options, Time, Tree,
    tree::{Content, ContentReader, Stamp},
    write::{Earlier, Record},
};

/// What a list begins with; then comes the digest of the rest.
const MAGIC_SIZE: usize = 16;
/// A change: at which byte of the list, in little-endian order, and what is there then.
const CHANGE_SIZE: usize = 3;

/// A list with any bytes changed, whose digest is right all the same, is refused, is of no use, or gives an image.
pub fn erofs_files(data: &[u8]) -> bool {
    let _ = Record::parse(data);
    let (image, recorded) = &*RECORDED;
    let (head, list) = (&recorded[..MAGIC_SIZE], &recorded[MAGIC_SIZE + blake3::OUT_LEN..]);
    let mut list = list.to_vec();
    for change in data.chunks_exact(CHANGE_SIZE) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % list.len();
        list[at] = change[2];
    }
    let Ok(record) = Record::parse(&[head, blake3::hash(&list).as_bytes(), &list].concat()) else { return false };
    let image = image.try_clone().expect("a handle more");
    if let Some(earlier) = Earlier::new(record, image, &options()) {
        let mut bytes = Vec::new();
        let writer = ImageWriter::new(options(), &mut bytes).expect("good options");
        if writer.finish_recorded(TREE.clone(), Some(earlier)).is_ok() {
            Image::open(bytes).expect("our own image").check().expect("our own image");
        }
    }
    true
}

/// An image, and the list of its files.
static RECORDED: LazyLock<(File, Vec<u8>)> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    let writer = ImageWriter::new(options(), &mut bytes).expect("good options");
    let (_, record) = writer.finish_recorded(TREE.clone(), None).expect("a good tree");
    let image = tempfile::tempfile().expect("a temporary file");
    image.write_all_at(&bytes, 0).expect("a temporary file");
    (image, record.to_bytes(Path::new("image"), SystemTime::UNIX_EPOCH + Duration::from_secs(60)))
});

fn options() -> Options {
    Options { compression: Compression::Lz4, threads: 1, ..Options::default() }
}

/// Files that are compressed or not, of one piece and of two, with tails and without.
static TREE: LazyLock<Tree> = LazyLock::new(|| {
    let text = |size: usize| (0..size).map(|at| (at / 7 % 61 * (at / 4096 % 7)) as u8).collect();
    let noise = |size: usize| {
        let mut bytes = vec![0; size];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    };
    let files = [text(11), text(9000), noise(5000), noise(8192), text((1 << 20) + 5000)];
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    for (number, bytes) in files.into_iter().enumerate() {
        let node = Node::file(Metadata::with_mode(0o644), Stamped { number: number as u64, bytes });
        tree.add(format!("f{number}").as_bytes(), node).expect("a good name");
    }
    tree
});

/// Content with the stamp of a file.
#[derive(Debug)]
struct Stamped {
    number: u64,
    bytes: Vec<u8>,
}

impl Content for Stamped {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn open(&self) -> io::Result<Box<dyn ContentReader + '_>> {
        Ok(Box::new(self.bytes.as_slice()))
    }

    fn name(&self) -> String {
        format!("f{}", self.number)
    }

    fn stamp(&self) -> Option<Stamp> {
        let time = Time::default();
        Some(Stamp { device: 1, inode: self.number, size: self.size(), mtime: time, changed: time })
    }
}
