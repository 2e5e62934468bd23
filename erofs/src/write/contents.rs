//! The data of files: read and compressed in pieces by the pool, written in order.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    sync::Arc,
};

use super::{
    BlockSink, WriteError,
    clusters::{Cluster, Encoded},
    earlier::{Earlier, Kept, KeptPiece, Unchanged},
    holes,
    options::{Compression, Options},
    output::Output,
    pipeline::Pipeline,
    pool::{Input, Job, Piece, Repeats, content_error},
    tails::{Tail, Tails},
};
use crate::{
    format::{
        compressed::CompactParts,
        inode::NO_BLOCK,
        units::{BLOCK_SIZE, Block, SLOT_SIZE},
    },
    tree::{Content, Extent, InodeId, Kind, Tree},
};

/// Files are cut into pieces of this size. Where they are cut shows in the image, so it never depends on anything.
pub(super) const PIECE_SIZE: u64 = 1 << 20;
/// The longest tail that finds a place behind any inode: inodes start at multiples of 32, so that so much of a block may
/// be out of reach.
const TAIL_LIMIT: usize = BLOCK_SIZE - SLOT_SIZE;

/// Where and how the content of a file lies.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) size: u64,
    /// Tells its content from all other content of this size in the tree.
    pub(super) digest: blake3::Hash,
    /// Its number among [`Contents::kept`].
    pub(super) kept: Option<u32>,
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
    content: Arc<dyn Content>,
    /// No other file has this size.
    unique: bool,
    /// `None` while the first piece is not there.
    data: Option<Data>,
    /// Chunks with holes, made out before.
    chunks: Option<(u8, Vec<u32>)>,
    /// Tells how it begins, up to the piece that came last.
    beginning: blake3::Hash,
    /// An earlier file begins with all pieces so far. They are not written as long as that may be true to the end.
    is_like_others: bool,
    /// Those pieces, with their digests.
    held: Vec<(Extent, blake3::Hash)>,
    /// The earlier image has it.
    unchanged: Option<Unchanged>,
    /// All pieces so far came from there.
    is_unchanged: bool,
    pieces: Vec<KeptPiece>,
}

/// All contents of an image.
#[derive(Debug)]
pub(super) struct Contents {
    /// With the part of its file that a piece is, and whether it is the last.
    pipeline: Pipeline<(Extent, bool)>,
    compress: bool,
    /// Of each inode.
    stored: Vec<Option<Arc<Stored>>>,
    by_digest: HashMap<(u64, blake3::Hash), Arc<Stored>>,
    /// How files of several pieces begin: their size, and the digest of the first piece, of the first two, and so on.
    beginnings: HashSet<(u64, blake3::Hash)>,
    /// The sizes that several files have. No other file can have the content of another.
    common_sizes: HashSet<u64>,
    pending: VecDeque<Pending>,
    pub(super) tails: Tails,
    pub(super) duplicates: u64,
    /// Files that were taken from the earlier image.
    pub(super) unchanged: u64,
    earlier: Option<Arc<Earlier>>,
    /// Where the pieces of contents without holes lie, if that is to be recorded.
    pub(super) kept: Option<Vec<Kept>>,
}

impl Contents {
    /// None of a tree's contents yet.
    pub(super) fn new(tree: &Tree, options: &Options) -> Self {
        Self {
            pipeline: Pipeline::new(options),
            compress: options.compression != Compression::None,
            stored: vec![None; tree.len()],
            by_digest: HashMap::new(),
            beginnings: HashSet::new(),
            common_sizes: common_sizes(files(tree).map(|(_, content)| content.size())),
            pending: VecDeque::new(),
            tails: Tails::default(),
            duplicates: 0,
            unchanged: 0,
            earlier: None,
            kept: None,
        }
    }

    /// Records where pieces lie, and takes those from `earlier` that it has.
    pub(super) fn recorded(self, earlier: Option<Earlier>) -> Self {
        Self { earlier: earlier.map(Arc::new), kept: Some(Vec::new()), ..self }
    }

    pub(super) fn get(&self, id: InodeId) -> Option<&Arc<Stored>> {
        self.stored[id.index()].as_ref()
    }

    /// Stores the content of all files.
    pub(super) fn store_all<S: BlockSink>(&mut self, tree: &Tree, output: &mut Output<S>) -> Result<(), WriteError> {
        files(tree).try_for_each(|(id, content)| self.store(id.index(), content, output))?;
        self.drain(output)
    }

    fn store<S: BlockSink>(
        &mut self,
        index: usize,
        content: &Arc<dyn Content>,
        output: &mut Output<S>,
    ) -> Result<(), WriteError> {
        let size = content.size();
        let all = Extent { start: 0, length: size };
        let unique = !self.common_sizes.contains(&size);
        let unchanged = self.earlier.as_ref().and_then(|earlier| earlier.find(&**content, unique));
        if let Some(found) = unchanged.as_ref().and_then(|it| self.by_digest.get(&(size, it.digest()))) {
            self.unchanged += 1;
            self.repeat(index, Arc::clone(found));
            return Ok(());
        }
        // What is unchanged has no holes; whether a file of one piece has some is told by those who read it.
        let is_plain = unchanged.is_some() || size <= PIECE_SIZE;
        let data = if is_plain { Ok(vec![all]) } else { holes::data(&**content, self.compress) };
        let data = data.map_err(|source| content_error(&**content, source))?;
        let (mut file, mut parts) = (Pending::new(index, content, unique, unchanged), vec![all]);
        if let Some((bits, data)) = holes::sparse(size, &data, self.compress) {
            (file.chunks, parts) = (Some(holes_only(size, bits)), data);
        }
        let pieces: Vec<Extent> = parts.iter().flat_map(|part| pieces(*part)).collect();
        if pieces.is_empty() {
            self.complete(file);
            return Ok(());
        }
        self.pending.push_back(file);
        for (number, extent) in pieces.iter().enumerate() {
            let Some(file) = self.pending.back() else { return Ok(()) };
            let job = file.job(*extent, self.compress);
            self.submit(job, *extent, number + 1 == pieces.len(), output)?;
        }
        Ok(())
    }

    /// Writes all that is under way.
    pub(super) fn drain<S: BlockSink>(&mut self, output: &mut Output<S>) -> Result<(), WriteError> {
        while !self.pipeline.is_empty() {
            self.take(output)?;
        }
        Ok(())
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

    /// Takes the piece that is next. It is written, unless an earlier file has it and all before it.
    fn take<S: BlockSink>(&mut self, output: &mut Output<S>) -> Result<(), WriteError> {
        let Some((piece, (extent, last))) = self.pipeline.next()? else { return Ok(()) };
        let Some(mut file) = self.pending.pop_front() else { return Ok(()) };
        file.go_on(extent, piece.digest);
        file.is_unchanged &= piece.stored.is_some();
        let beginning = (file.size, file.beginning);
        if !last {
            file.is_like_others &= !file.unique && !self.beginnings.insert(beginning);
            if file.is_like_others {
                file.held.push((extent, piece.digest));
                self.pending.push_front(file);
                return Ok(());
            }
        } else if let Some(found) = self.by_digest.get(&beginning) {
            self.unchanged += u64::from(file.is_unchanged);
            self.repeat(file.index, Arc::clone(found));
            return Ok(());
        }
        for (part, digest) in std::mem::take(&mut file.held) {
            let piece = self.read_again(&file, part, digest)?;
            self.write(&mut file, piece, part, false, output)?;
        }
        let piece = if piece.repeated { self.read_again(&file, extent, piece.digest)? } else { piece };
        self.write(&mut file, piece, extent, last, output)?;
        if last {
            self.complete(file);
        } else {
            self.pending.push_front(file);
        }
        Ok(())
    }

    /// A piece that was not compressed: an earlier file has the same there, but is another one as a whole.
    fn read_again(&mut self, file: &Pending, part: Extent, digest: blake3::Hash) -> Result<Piece, WriteError> {
        let piece = self.pipeline.now(Job { repeats: None, ..file.job(part, self.compress) })?;
        if piece.digest != digest {
            return Err(content_error(&*file.content, io::Error::other("found another content than a moment before")));
        }
        Ok(piece)
    }

    fn write<S: BlockSink>(
        &mut self,
        file: &mut Pending,
        piece: Piece,
        extent: Extent,
        last: bool,
        output: &mut Output<S>,
    ) -> Result<(), WriteError> {
        if let Some((bits, parts)) = piece.sparse {
            file.chunks = Some(holes_only(file.size, bits));
            for part in parts {
                let bytes = &piece.raw[part.start as usize..][..part.length as usize];
                write_chunks(file, part, bytes, output)?;
            }
        } else if file.chunks.is_some() {
            write_chunks(file, extent, &piece.raw, output)?;
        } else {
            let next = output.next()?;
            let data = file.data.take().unwrap_or_else(|| first_data(&piece, last, next));
            if self.kept.is_some() {
                file.pieces.push(KeptPiece::new(&piece, &data, next));
            }
            file.data = Some(self.write_piece(data, piece, last, output)?);
        }
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

    /// The content of an earlier file.
    fn repeat(&mut self, index: usize, found: Arc<Stored>) {
        self.stored[index] = Some(found);
        self.duplicates += 1;
    }

    fn complete(&mut self, file: Pending) {
        self.unchanged += u64::from(file.is_unchanged);
        let data = match file.chunks {
            Some((bits, blocks)) => Data::Chunks { bits, blocks },
            None => file.data.unwrap_or(Data::Flat { first: Block(0), tail: Tail::default() }),
        };
        let (size, digest) = (file.size, file.beginning);
        let kept = self.kept.as_mut().filter(|_| !file.pieces.is_empty()).map(|kept| {
            kept.push(Kept { digest, unique: file.unique, pieces: file.pieces, tail: None });
            kept.len() as u32 - 1
        });
        let stored = Arc::new(Stored { size, digest, kept, data });
        self.by_digest.insert((size, digest), Arc::clone(&stored));
        self.stored[file.index] = Some(stored);
    }
}

impl Pending {
    fn new(index: usize, content: &Arc<dyn Content>, unique: bool, unchanged: Option<Unchanged>) -> Self {
        Self {
            index,
            size: content.size(),
            content: Arc::clone(content),
            unique,
            data: None,
            chunks: None,
            beginning: blake3::Hash::from_bytes([0; blake3::OUT_LEN]),
            is_like_others: !unique,
            held: Vec::new(),
            is_unchanged: unchanged.is_some(),
            unchanged,
            pieces: Vec::new(),
        }
    }

    /// What is to be done with a part of it.
    fn job(&self, extent: Extent, compress: bool) -> Job {
        Job {
            compress: compress && self.size > BLOCK_SIZE as u64 && self.chunks.is_none() && !self.is_plain(),
            whole: self.size <= PIECE_SIZE,
            unique: self.unique,
            unchanged: self.unchanged.clone(),
            repeats: (!self.unique).then_some(Repeats { file: self.index, size: self.size, start: extent.start }),
            ..Job::new(Input::Content(Arc::clone(&self.content), extent))
        }
    }

    /// Adds the piece that is next to what tells the beginning.
    fn go_on(&mut self, extent: Extent, digest: blake3::Hash) {
        let parts = [&self.beginning.as_bytes()[..], &extent.start.to_le_bytes(), digest.as_bytes()];
        self.beginning = blake3::hash(&parts.concat());
    }

    /// Its first piece did not shrink, so that there is no use in compressing others.
    fn is_plain(&self) -> bool {
        matches!(self.data, Some(Data::Flat { .. }))
    }
}

/// The tree's files, in its order.
pub(super) fn files(tree: &Tree) -> impl Iterator<Item = (InodeId, &Arc<dyn Content>)> {
    tree.ids().filter_map(|id| match &tree.node(id).kind {
        Kind::File(content) => Some((id, content)),
        _ => None,
    })
}

fn common_sizes(sizes: impl Iterator<Item = u64>) -> HashSet<u64> {
    let mut seen = HashSet::new();
    sizes.filter(|size| !seen.insert(*size)).collect()
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
pub(super) fn tail_of(length: usize) -> usize {
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
