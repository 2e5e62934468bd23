//! The data of files: read and compressed in pieces by the pool, written in order.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io::Read,
    sync::Arc,
};

use super::{
    BlockSink, WriteError,
    clusters::{Cluster, Encoded},
    holes,
    options::{Compression, Options},
    output::Output,
    pipeline::Pipeline,
    pool::{Input, Job, Piece, content_error},
    tails::{Tail, Tails},
};
use crate::{
    format::{
        compressed::CompactParts,
        inode::NO_BLOCK,
        units::{BLOCK_SIZE, Block, SLOT_SIZE},
    },
    tree::{Content, Extent},
};

/// Files are cut into pieces of this size. Where they are cut shows in the image, so it never depends on anything.
pub(super) const PIECE_SIZE: u64 = 1 << 20;
/// The longest tail that finds a place behind any inode: inodes start at multiples of 32, so that so much of a block may
/// be out of reach.
const TAIL_LIMIT: usize = BLOCK_SIZE - SLOT_SIZE;

/// Content that an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredContent(usize);

/// Where and how the content of a file lies.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) size: u64,
    /// Of the pieces' checksums, for the image's UUID: CRC-32C, since nothing else is as fast.
    pub(super) checksum: u32,
    pub(super) data: Data,
}

/// How the content of a file lies.
#[derive(Debug)]
pub(super) enum Data {
    /// Consecutive blocks, and what follows the inode.
    Flat { first: Block, tail: Tail },
    /// Chunks of `1 << bits` blocks with their first blocks.
    Chunks { bits: u8, blocks: Vec<u32> },
    /// Consecutive physical clusters.
    Compressed { first: Block, clusters: Vec<Cluster> },
}

/// A file of which not all pieces are written.
#[derive(Debug)]
struct Pending {
    index: usize,
    size: u64,
    /// `None` while the first piece is not there.
    data: Option<Data>,
    /// Chunks with holes, made out before.
    chunks: Option<(u8, Vec<u32>)>,
    pieces: usize,
    checksum: u32,
    /// Where others may have the same content.
    digest: Option<blake3::Hasher>,
}

/// All contents of an image.
#[derive(Debug)]
pub(super) struct Contents {
    /// With the part of its file that a piece is, and whether it is the last.
    pipeline: Pipeline<(Extent, bool)>,
    compress: bool,
    stored: Vec<Option<Arc<Stored>>>,
    by_digest: HashMap<(u64, blake3::Hash), Arc<Stored>>,
    /// The sizes that several files have. No other file can have the content of another.
    common_sizes: HashSet<u64>,
    /// The sizes of files of several pieces that were stored: another of such a size may be the same.
    long_sizes: HashSet<u64>,
    pending: VecDeque<Pending>,
    pub(super) tails: Tails,
    pub(super) duplicates: u64,
}

impl Contents {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            pipeline: Pipeline::new(options),
            compress: options.compression != Compression::None,
            stored: Vec::new(),
            by_digest: HashMap::new(),
            common_sizes: HashSet::new(),
            long_sizes: HashSet::new(),
            pending: VecDeque::new(),
            tails: Tails::default(),
            duplicates: 0,
        }
    }

    /// Tells the sizes of all files that [`Self::store`] will store.
    pub(super) fn announce(&mut self, sizes: impl Iterator<Item = u64>) {
        let mut seen: HashSet<u64> = self.all().map(|stored| stored.size).collect();
        self.common_sizes.extend(sizes.filter(|size| !seen.insert(*size)));
    }

    /// What was stored, in order; each content once for each time that it was stored.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.stored.iter().flatten()
    }

    pub(super) fn get(&self, content: StoredContent) -> Option<&Arc<Stored>> {
        self.stored.get(content.0)?.as_ref()
    }

    /// Stores content that can be opened, and opened again.
    pub(super) fn store<S: BlockSink>(
        &mut self,
        content: &Arc<dyn Content>,
        output: &mut Output<S>,
    ) -> Result<StoredContent, WriteError> {
        let size = content.size();
        let digest = self.common_sizes.contains(&size);
        if size <= PIECE_SIZE {
            let input = Input::Content(Arc::clone(content), Extent { start: 0, length: size });
            return self.store_piece(None, size, input, digest, output);
        }
        let data = holes::data(&**content, self.compress).map_err(|source| content_error(&**content, source))?;
        let sparse = holes::sparse(size, &data, self.compress);
        if digest && sparse.is_none() && !self.long_sizes.insert(size) {
            self.drain(output)?;
            let found = self.long_digest(content)?;
            if let Some(found) = self.by_digest.get(&(size, found)) {
                let found = Arc::clone(found);
                return Ok(self.duplicate(found));
            }
        }
        let (chunks, parts) = match sparse {
            Some((bits, parts)) => (Some(bits), parts),
            None => (None, vec![Extent { start: 0, length: size }]),
        };
        let stored = self.begin(size, chunks, digest);
        let pieces: Vec<Extent> = parts.iter().flat_map(|part| pieces(*part)).collect();
        if pieces.is_empty() {
            self.complete_last(output)?;
        }
        for (number, extent) in pieces.iter().enumerate() {
            let compress = self.compress && chunks.is_none() && !self.is_plain(stored);
            let input = Input::Content(Arc::clone(content), *extent);
            let job = Job { name: None, input, compress, whole: false, digest, repeats: None };
            self.submit(job, *extent, number + 1 == pieces.len(), output)?;
        }
        Ok(stored)
    }

    /// Stores a file of one piece, or none.
    fn store_piece<S: BlockSink>(
        &mut self,
        name: Option<String>,
        size: u64,
        input: Input,
        digest: bool,
        output: &mut Output<S>,
    ) -> Result<StoredContent, WriteError> {
        let stored = self.begin(size, None, digest);
        if size == 0 {
            self.complete_last(output)?;
            return Ok(stored);
        }
        let compress = self.compress && size > BLOCK_SIZE as u64;
        let job = Job { name, input, compress, whole: true, digest, repeats: Some(stored.0) };
        self.submit(job, Extent { start: 0, length: size }, true, output)?;
        Ok(stored)
    }

    /// Stores content that comes once.
    pub(super) fn store_stream<S: BlockSink>(
        &mut self,
        name: &str,
        size: u64,
        content: &mut dyn Read,
        output: &mut Output<S>,
    ) -> Result<StoredContent, WriteError> {
        let mut read = |length: u64| {
            let mut bytes = vec![0; length as usize];
            let fail = |source| WriteError::Content { name: name.to_owned(), source };
            content.read_exact(&mut bytes).map_err(fail).map(|()| Input::Bytes(bytes))
        };
        if size <= PIECE_SIZE {
            return self.store_piece(Some(name.to_owned()), size, read(size)?, true, output);
        }
        let stored = self.begin(size, None, true);
        self.long_sizes.insert(size);
        for extent in pieces(Extent { start: 0, length: size }) {
            let input = read(extent.length)?;
            let compress = self.compress && !self.is_plain(stored);
            let job = Job { name: Some(name.to_owned()), input, compress, whole: false, digest: true, repeats: None };
            self.submit(job, extent, extent.start + extent.length == size, output)?;
        }
        Ok(stored)
    }

    /// Writes all that is under way.
    pub(super) fn drain<S: BlockSink>(&mut self, output: &mut Output<S>) -> Result<(), WriteError> {
        while !self.pipeline.is_empty() {
            self.take(output)?;
        }
        Ok(())
    }

    /// Ends the file that was begun last, of which nothing needs to be written.
    fn complete_last<S: BlockSink>(&mut self, output: &mut Output<S>) -> Result<(), WriteError> {
        self.drain(output)?;
        self.pending.pop_back().into_iter().for_each(|file| self.complete(file, None));
        Ok(())
    }

    fn begin(&mut self, size: u64, chunk_bits: Option<u8>, digest: bool) -> StoredContent {
        let index = self.stored.len();
        self.stored.push(None);
        let chunks = chunk_bits.map(|bits| holes_only(size, bits));
        let digest = digest.then(pieces_hasher);
        self.pending.push_back(Pending { index, size, data: None, chunks, pieces: 0, checksum: 0, digest });
        StoredContent(index)
    }

    /// Digests a file of several pieces, on all threads. Nothing else may be under way.
    fn long_digest(&mut self, content: &Arc<dyn Content>) -> Result<blake3::Hash, WriteError> {
        let mut hasher = pieces_hasher();
        for part in pieces(Extent { start: 0, length: content.size() }) {
            let input = Input::Content(Arc::clone(content), part);
            let job = Job { name: None, input, compress: false, whole: false, digest: true, repeats: None };
            self.pipeline.submit(job, part.length, (part, false));
            while self.pipeline.is_full() {
                self.take_digest(&mut hasher)?;
            }
        }
        while !self.pipeline.is_empty() {
            self.take_digest(&mut hasher)?;
        }
        Ok(hasher.finalize())
    }

    fn take_digest(&mut self, hasher: &mut blake3::Hasher) -> Result<(), WriteError> {
        if let Some(digest) = self.pipeline.next()?.and_then(|(piece, _)| piece.digest) {
            hasher.update(digest.as_bytes());
        }
        Ok(())
    }

    fn duplicate(&mut self, found: Arc<Stored>) -> StoredContent {
        self.duplicates += 1;
        self.stored.push(Some(found));
        StoredContent(self.stored.len() - 1)
    }

    /// Its first piece did not shrink, so that there is no use in compressing others.
    fn is_plain(&self, stored: StoredContent) -> bool {
        let first = self.pending.front().filter(|file| file.index == stored.0);
        first.is_some_and(|file| matches!(file.data, Some(Data::Flat { .. })))
    }

    fn submit<S: BlockSink>(
        &mut self,
        job: Job,
        extent: Extent,
        last: bool,
        output: &mut Output<S>,
    ) -> Result<(), WriteError> {
        self.pipeline.submit(job, extent.length, (extent, last));
        while self.pipeline.is_full() {
            self.take(output)?;
        }
        Ok(())
    }

    /// Writes the piece that is next.
    fn take<S: BlockSink>(&mut self, output: &mut Output<S>) -> Result<(), WriteError> {
        let Some((piece, (extent, last))) = self.pipeline.next()? else { return Ok(()) };
        let Some(mut file) = self.pending.pop_front() else { return Ok(()) };
        let whole = piece.digest.filter(|_| last && file.pieces == 0 && file.chunks.is_none());
        if let Some(found) = whole.and_then(|digest| self.by_digest.get(&(file.size, digest))) {
            self.stored[file.index] = Some(Arc::clone(found));
            self.duplicates += 1;
            return Ok(());
        }
        debug_assert!(!piece.repeated, "the first of its content was not stored");
        if let (Some(hasher), Some(digest)) = (&mut file.digest, piece.digest) {
            hasher.update(digest.as_bytes());
        }
        file.checksum = crc32c::crc32c_append(file.checksum, &piece.checksum.to_le_bytes());
        file.pieces += 1;
        if let Some((bits, parts)) = piece.sparse {
            file.chunks = Some(holes_only(file.size, bits));
            for part in parts {
                let bytes = &piece.raw[part.start as usize..][..part.length as usize];
                write_chunks(&mut file, part, bytes, output)?;
            }
        } else if file.chunks.is_some() {
            write_chunks(&mut file, extent, &piece.raw, output)?;
        } else {
            let data = match file.data.take() {
                Some(data) => data,
                None => first_data(&piece, last, output.next()?),
            };
            file.data = Some(self.write_piece(data, piece, last, output)?);
        }
        if !last {
            self.pending.push_front(file);
            return Ok(());
        }
        self.complete(file, whole);
        Ok(())
    }

    fn write_piece<S: BlockSink>(
        &mut self,
        data: Data,
        piece: Piece,
        last: bool,
        output: &mut Output<S>,
    ) -> Result<Data, WriteError> {
        Ok(match (data, piece.encoded) {
            (Data::Compressed { first, mut clusters }, Some(encoded)) => {
                output.push(&encoded.bytes)?;
                clusters.extend_from_slice(&encoded.clusters);
                Data::Compressed { first, clusters }
            }
            (Data::Flat { first, .. }, _) => {
                let tail = if last { tail_of(piece.raw.len()) } else { 0 };
                let (blocks, rest) = piece.raw.split_at(piece.raw.len() - tail);
                output.push(blocks)?;
                output.pad()?;
                let sink = |source| WriteError::Sink { what: "a temporary file".into(), source };
                Data::Flat { first, tail: self.tails.keep(rest).map_err(sink)? }
            }
            (other, _) => other,
        })
    }

    /// `whole` is the digest of a file of one piece.
    fn complete(&mut self, file: Pending, whole: Option<blake3::Hash>) {
        // Of long files with holes, only the data was digested, and not where it lies.
        let digest = match file.chunks {
            Some(_) => whole,
            None => whole.or_else(|| file.digest.map(|hasher| hasher.finalize())),
        };
        let data = match file.chunks {
            Some((bits, blocks)) => Data::Chunks { bits, blocks },
            None => file.data.unwrap_or(Data::Flat { first: Block(0), tail: Tail::default() }),
        };
        let stored = Arc::new(Stored { size: file.size, checksum: file.checksum, data });
        if let Some(digest) = digest.filter(|_| file.size > 0) {
            self.by_digest.insert((file.size, digest), Arc::clone(&stored));
        }
        self.stored[file.index] = Some(stored);
    }
}

/// The chunks of a file while none has data.
fn holes_only(size: u64, bits: u8) -> (u8, Vec<u32>) {
    let count = size.div_ceil((BLOCK_SIZE as u64) << bits);
    (bits, vec![NO_BLOCK; count as usize])
}

/// How a file is stored, by its first piece.
fn first_data(piece: &Piece, last: bool, next: Block) -> Data {
    match &piece.encoded {
        Some(encoded) if shrinks(encoded, piece.length, last) => Data::Compressed { first: next, clusters: Vec::new() },
        _ => Data::Flat { first: next, tail: Tail::default() },
    }
}

/// Whether the first piece of a file, of so many bytes, takes less room when it is compressed.
pub(super) fn shrinks(encoded: &Encoded, length: usize, last: bool) -> bool {
    let index = CompactParts::new(0, 0, 0).size(length.div_ceil(BLOCK_SIZE) as u64) as usize;
    let tail = if last { tail_of(length) } else { 0 };
    encoded.bytes.len() + index < (length - tail).next_multiple_of(BLOCK_SIZE) + tail
}

/// How much of the end of so many bytes goes behind the inode.
fn tail_of(length: usize) -> usize {
    let tail = length % BLOCK_SIZE;
    if tail <= TAIL_LIMIT { tail } else { 0 }
}

/// The pieces of a part of a file.
pub(super) fn pieces(part: Extent) -> impl Iterator<Item = Extent> {
    (0..part.length.div_ceil(PIECE_SIZE)).map(move |number| {
        let start = number * PIECE_SIZE;
        Extent { start: part.start + start, length: PIECE_SIZE.min(part.length - start) }
    })
}

fn pieces_hasher() -> blake3::Hasher {
    blake3::Hasher::new_derive_key("erofs-image: digests of the pieces of a file")
}

fn write_chunks<S: BlockSink>(
    file: &mut Pending,
    extent: Extent,
    bytes: &[u8],
    output: &mut Output<S>,
) -> Result<(), WriteError> {
    let Some((bits, blocks)) = &mut file.chunks else { return Ok(()) };
    let first = output.next()?;
    let chunk = (BLOCK_SIZE as u64) << *bits;
    let end = extent.start + extent.length;
    for number in extent.start.div_ceil(chunk)..end.div_ceil(chunk) {
        let ahead = (number * chunk - extent.start) / BLOCK_SIZE as u64;
        blocks[number as usize] = first.0.checked_add(ahead as u32).ok_or(WriteError::TooLarge)?;
    }
    output.push(bytes)?;
    output.pad()
}
