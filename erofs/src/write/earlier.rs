//! Files as an image that was written before has them, so that those that look unchanged are taken from there and not read.
//!
//! What a file system says of a file, its [`Stamp`], is believed; what lies in the earlier image is not: each piece is compared
//! with the digest that was recorded of it. So the image is the same as one that is made of the files, as long as their stamps
//! change with them.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    clusters::{self, Cluster, Encoded},
    contents::{Data, PIECE_SIZE, files, shrinks, tail_of},
    inode::Body,
    layout::Layout,
    options::{Compression, Options},
    packed::Form,
    pool::Piece,
};
use crate::{
    format::units::{BLOCK_SIZE, Block},
    read::Image,
    tree::{Content, ContentReader, Extent, Stamp, Time, Tree},
};

/// How lists of files begin. To be raised with whatever is recorded, and with whatever else becomes of the same content.
const MAGIC: &[u8; 16] = b"erofs files 1\n\0\0";
/// File systems tell times in steps, of two seconds at the most. What was changed so shortly before it was listed may change
/// again with no other stamp.
const LONGEST_STEP: Duration = Duration::from_secs(2);

/// A list of files that is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is none, of another version, or damaged.
    #[error("expected a list of files as this program writes it, found {0}")]
    Bytes(&'static str),
}

/// The files of an image that was written, and where it has their content.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// What pieces follow from, besides their content.
    form: String,
    /// The bytes of its path.
    image: Vec<u8>,
    uuid: [u8; 16],
    stamps: Vec<(Stamp, u32)>,
    contents: Vec<Kept>,
}

/// A content in the image.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Tells it from all other content of its size in the tree.
    pub(super) digest: blake3::Hash,
    /// No other file had its size.
    pub(super) unique: bool,
    pub(super) pieces: Vec<KeptPiece>,
    /// The byte of the image at which its tail begins, if it has one. Not known before inodes have their places.
    pub(super) tail: Option<u64>,
}

/// A piece of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KeptPiece {
    /// As [`Piece::digest`].
    digest: blake3::Hash,
    /// Of its bytes in the image.
    stored: blake3::Hash,
    first: u32,
    /// Where it is compressed.
    clusters: Option<Vec<Cluster>>,
}

impl KeptPiece {
    /// `piece` as it lies in the image from `first` on.
    pub(super) fn new(piece: &Piece, data: &Data, first: Block) -> Self {
        let encoded = piece.encoded.as_ref().filter(|_| matches!(data, Data::Compressed { .. }));
        let bytes = encoded.map_or(&piece.raw, |encoded| &encoded.bytes);
        let stored = piece.stored.unwrap_or_else(|| blake3::hash(bytes));
        let clusters = encoded.map(|encoded| encoded.clusters.clone());
        Self { digest: piece.digest, stored, first: first.0, clusters }
    }
}

impl Record {
    /// Of a tree's files: those that have stamps and are among `contents`.
    pub(super) fn new(
        tree: &Tree,
        layout: &Layout,
        mut contents: Vec<Kept>,
        options: &Options,
        uuid: [u8; 16],
    ) -> Self {
        let mut stamps = Vec::new();
        for (id, content) in files(tree) {
            let plan = layout.plan(id);
            let (Some(stamp), Body::File(stored)) = (content.stamp(), &plan.body) else { continue };
            let Some(number) = stored.kept else { continue };
            let tail = u64::from(layout.meta.0) * BLOCK_SIZE as u64 + (layout.place(id) + plan.before()) as u64;
            contents[number as usize].tail.get_or_insert(tail);
            stamps.push((stamp, number));
        }
        Self { form: form(options), image: Vec::new(), uuid, stamps, contents }
    }

    /// The list's bytes: `image` is where the image will be found, and `listed` when the files were begun to be listed. Files that
    /// were changed shortly before are left out.
    #[must_use]
    pub fn to_bytes(mut self, image: &Path, listed: SystemTime) -> Vec<u8> {
        let settled = time(listed.checked_sub(LONGEST_STEP).unwrap_or(SystemTime::UNIX_EPOCH));
        self.stamps.retain(|(stamp, _)| stamp.changed < settled);
        self.image = image.as_os_str().as_bytes().to_vec();
        let list = postcard::to_allocvec(&self).expect("numbers and bytes can be written");
        [&MAGIC[..], blake3::hash(&list).as_bytes(), &list].concat()
    }

    /// A list from its bytes.
    ///
    /// # Errors
    /// When they are damaged, or not from this version.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let list = bytes.strip_prefix(MAGIC).ok_or(RecordError::Bytes("another beginning"))?;
        let (digest, list) = list.split_first_chunk().ok_or(RecordError::Bytes("its beginning alone"))?;
        if blake3::hash(list) != blake3::Hash::from_bytes(*digest) {
            return Err(RecordError::Bytes("another digest"));
        }
        postcard::from_bytes(list).map_err(|_| RecordError::Bytes("something else behind its digest"))
    }

    /// Where its image is to be found.
    pub fn image(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.image))
    }
}

/// What becomes of the same content in each image whose options say so.
fn form(options: &Options) -> String {
    let made_by = match options.compression {
        Compression::None => String::new(),
        Compression::Lz4 | Compression::Lz4hc { .. } => lzzzz::version_string().to_owned(),
        Compression::Zstd { .. } => zstd::zstd_safe::version_string().to_owned(),
    };
    format!("{} {made_by} {:?}", env!("CARGO_PKG_VERSION"), Form::of(options))
}

fn time(time: SystemTime) -> Time {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Time { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanoseconds: since.subsec_nanos() }
}

/// An image that was written before, with the list of its files.
#[derive(Debug)]
pub struct Earlier {
    image: File,
    numbers: HashMap<Stamp, u32>,
    contents: Vec<Kept>,
}

impl Earlier {
    /// For an image with `options`. `None` where `image` is not the one that was recorded, or has content in another form.
    pub fn new(record: Record, image: File, options: &Options) -> Option<Self> {
        let found = Image::open(image.try_clone().ok()?).ok()?;
        let same = found.superblock().uuid == record.uuid && record.form == form(options);
        let Record { stamps, contents, .. } = record;
        same.then(|| Self { image, numbers: stamps.into_iter().collect(), contents })
    }

    /// The content of a file that looks as it did, where it is told apart in the same way.
    pub(super) fn find(self: &Arc<Self>, content: &dyn Content, unique: bool) -> Option<Unchanged> {
        let number = *self.numbers.get(&content.stamp()?)? as usize;
        let kept = self.contents.get(number)?;
        let whole = kept.unique == unique && kept.pieces.len() as u64 == content.size().div_ceil(PIECE_SIZE);
        let mut compressed = kept.pieces.iter().map(|piece| piece.clusters.is_some());
        let first = compressed.next()?;
        (whole && compressed.all(|next| next == first)).then(|| Unchanged { earlier: Arc::clone(self), number })
    }
}

/// A content that the earlier image has.
#[derive(Debug, Clone)]
pub(super) struct Unchanged {
    earlier: Arc<Earlier>,
    number: usize,
}

impl Unchanged {
    fn kept(&self) -> &Kept {
        &self.earlier.contents[self.number]
    }

    /// As [`Stored::digest`](super::contents::Stored::digest).
    pub(super) fn digest(&self) -> blake3::Hash {
        self.kept().digest
    }

    /// A piece of it. `None` where the image is not as it was recorded.
    pub(super) fn piece(&self, part: Extent) -> Option<Piece> {
        let (kept, length) = (self.kept(), usize::try_from(part.length).ok()?);
        let number = usize::try_from(part.start / PIECE_SIZE).ok()?;
        let piece = kept.pieces.get(number)?;
        let start = u64::from(piece.first) * BLOCK_SIZE as u64;
        let is_last = number + 1 == kept.pieces.len();
        let (raw, encoded) = match &piece.clusters {
            None => (self.plain(start, length, if is_last { tail_of(length) } else { 0 })?, None),
            Some(clusters) => {
                let size = clusters::size(clusters, length)?;
                let bytes = self.earlier.image.read_part(Extent { start, length: size }).ok()?;
                let encoded = Encoded { bytes, clusters: clusters.clone() };
                (Vec::new(), Some(encoded).filter(|encoded| number > 0 || shrinks(encoded, length, is_last)))
            }
        };
        let stored = blake3::hash(encoded.as_ref().map_or(&raw, |encoded| &encoded.bytes));
        (stored == piece.stored).then_some(Piece {
            raw,
            length,
            digest: piece.digest,
            encoded,
            sparse: None,
            repeated: false,
            stored: Some(stored),
        })
    }

    /// So many bytes that are not compressed; the last of them are the tail.
    fn plain(&self, start: u64, length: usize, tail: usize) -> Option<Vec<u8>> {
        let mut raw = vec![0; length];
        let (blocks, rest) = raw.split_at_mut(length - tail);
        self.earlier.image.read_exact_at(blocks, start).ok()?;
        self.earlier.image.read_exact_at(rest, self.kept().tail?).ok()?;
        Some(raw)
    }
}
