//! Writing a hash tree, byte for byte as `veritysetup format` does.

use std::{
    fs::File,
    num::NonZeroUsize,
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt},
};

use iofs_policy::verity::{Geometry, HashArea, Level, ParameterError, RootHash, Superblock, VerityParameters};
use uuid::Uuid;

use super::{
    engine::Engine,
    hasher::BlockHasher,
    media::{self, BUFFER_SIZE, MediaError, in_parallel, io_error},
};
use crate::report::Progress;

/// Why a hash tree was not written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The parameters describe no possible tree.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The data or the hash device failed or cannot be used.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The data ends early.
    #[error("data: expected at least {expected} bytes for {blocks} blocks, found {found} bytes")]
    DataTooSmall {
        /// The number of data blocks asked for.
        blocks: u64,
        /// Their size in bytes.
        expected: u64,
        /// The size found, in bytes.
        found: u64,
    },
    /// The hash device ends early.
    #[error("hash device: expected at least {expected} bytes, found {found} bytes")]
    HashTooSmall {
        /// Where the tree would end, in bytes.
        expected: u64,
        /// The size found, in bytes.
        found: u64,
    },
    /// Data and hash area are in one file, and the tree would overwrite data.
    #[error("hash offset: expected at least {expected}, the end of the data in the same file, found {found}")]
    Overlap {
        /// Where the data ends, in bytes.
        expected: u64,
        /// The hash offset found, in bytes.
        found: u64,
    },
}

/// What to hash and where to write the tree.
#[derive(Debug, Clone, Copy)]
pub struct FormatJob<'a> {
    /// The data; what follows its last block is left alone.
    pub data: &'a File,
    /// The file or device for the tree, open for reading and writing. It may be the data's own.
    pub hash: &'a File,
    /// Start of the hash area in `hash`, in bytes.
    pub hash_offset: u64,
    /// Writes a superblock with this UUID at the start of the hash area.
    pub superblock: Option<Uuid>,
    /// All that defines the tree.
    pub parameters: &'a VerityParameters,
    /// The most threads to use.
    pub threads: NonZeroUsize,
    /// What hashes SHA-256.
    pub engine: Engine,
}

/// Writes the hash tree, then the superblock, then waits until the storage has them. Progress is in bytes of data.
///
/// # Errors
/// See [`FormatError`]; nothing is written unless sizes and offsets fit.
pub fn format(job: &FormatJob<'_>, progress: &Progress) -> Result<RootHash, FormatError> {
    let geometry = Geometry::new(job.parameters)?;
    let area = HashArea { offset: job.hash_offset, superblock: job.superblock.is_some() };
    let tree = area.tree_range(job.parameters, &geometry)?;
    check_room(job, &geometry, &tree)?;
    let writer = Writer::new(job.hash, job.parameters, &geometry, tree.start, job.threads, job.engine);
    let root_hash = writer.write_levels(Source::data(job), geometry.levels(), progress)?;
    if let Some(uuid) = job.superblock {
        write_superblock(job.hash, job.hash_offset, tree.start, job.parameters, uuid)?;
    }
    job.hash.sync_all().map_err(io_error("flush the hash area"))?;
    Ok(root_hash)
}

fn check_room(job: &FormatJob<'_>, geometry: &Geometry, tree: &Range<u64>) -> Result<(), FormatError> {
    let expected = geometry.data_bytes();
    let found = media::size(job.data).map_err(io_error("find the size of the data"))?;
    if found < expected {
        return Err(FormatError::DataTooSmall { blocks: job.parameters.data_blocks, expected, found });
    }
    let stat = io_error("stat the data and the hash device");
    if media::same(job.data, job.hash).map_err(&stat)? && job.hash_offset < expected {
        return Err(FormatError::Overlap { expected, found: job.hash_offset });
    }
    if job.hash.metadata().map_err(stat)?.file_type().is_block_device() {
        let found = media::size(job.hash).map_err(io_error("find the size of the hash device"))?;
        if found < tree.end {
            return Err(FormatError::HashTooSmall { expected: tree.end, found });
        }
    }
    Ok(())
}

/// What comes between the superblock and the tree stays as it is, and is zero if the file was shorter.
pub(super) fn write_superblock(
    hash: &File,
    offset: u64,
    tree_start: u64,
    parameters: &VerityParameters,
    uuid: Uuid,
) -> Result<(), MediaError> {
    let superblock = Superblock { parameters: parameters.clone(), uuid };
    hash.write_all_at(&superblock.encode(), offset).map_err(io_error("write the superblock"))?;
    let metadata = hash.metadata().map_err(io_error("stat the hash area"))?;
    if metadata.is_file() && metadata.len() < tree_start {
        hash.set_len(tree_start).map_err(io_error("extend the hash area"))?;
    }
    Ok(())
}

/// Writes levels of a tree.
pub(super) struct Writer<'a> {
    hash: &'a File,
    parameters: &'a VerityParameters,
    geometry: &'a Geometry,
    hasher: BlockHasher,
    tree_start: u64,
    threads: NonZeroUsize,
}

/// The blocks that one level digests: the data or the level below.
pub(super) struct Source<'a> {
    file: &'a File,
    doing: &'static str,
    start: u64,
    block_size: u64,
    blocks: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        hash: &'a File,
        parameters: &'a VerityParameters,
        geometry: &'a Geometry,
        tree_start: u64,
        threads: NonZeroUsize,
        engine: Engine,
    ) -> Self {
        Self { hash, parameters, geometry, hasher: BlockHasher::new(parameters, engine), tree_start, threads }
    }

    /// Writes `levels`, the first of which digests `source`. Returns the digest of the last one's only block.
    pub(super) fn write_levels(
        &self,
        mut source: Source<'a>,
        levels: &[Level],
        progress: &Progress,
    ) -> Result<RootHash, FormatError> {
        let silent = Progress::hidden();
        for (number, level) in levels.iter().enumerate() {
            self.write_level(&source, level, if number == 0 { progress } else { &silent })?;
            source = self.level(level);
        }
        let mut block = vec![0; source.block_size as usize];
        source.read(&mut block, 0)?;
        Ok(RootHash::new(self.parameters.algorithm, self.hasher.digest(&block))?)
    }

    /// Levels are read back rather than kept: a small hash block size makes trees that no memory holds.
    pub(super) fn level(&self, level: &Level) -> Source<'a> {
        let (start, block_size) = (self.level_start(level), self.hash_block_size());
        Source { file: self.hash, doing: "read the hash tree", start, block_size, blocks: level.blocks }
    }

    /// Where a level starts in the file.
    pub(super) fn level_start(&self, level: &Level) -> u64 {
        self.tree_start + level.first_block * self.hash_block_size()
    }

    fn hash_block_size(&self) -> u64 {
        self.parameters.hash_block_size.into()
    }

    fn write_level(&self, source: &Source<'_>, level: &Level, progress: &Progress) -> Result<(), MediaError> {
        let (start, block_size) = (self.level_start(level), self.hash_block_size());
        // Small hash blocks are written several at once.
        let together = (BUFFER_SIZE / (self.geometry.digests_per_block() * source.block_size)).max(1);
        in_parallel(level.blocks.div_ceil(together), self.threads, Vec::new, |buffer, piece| {
            let blocks = piece * together..level.blocks.min((piece + 1) * together);
            let mut digests = vec![0; ((blocks.end - blocks.start) * block_size) as usize];
            for (number, slots) in blocks.clone().zip(digests.chunks_exact_mut(block_size as usize)) {
                self.fill(source, number, slots, buffer, progress)?;
            }
            let written = self.hash.write_all_at(&digests, start + blocks.start * block_size);
            written.map_err(io_error("write the hash tree")).map(|()| true)
        })
    }

    /// Digests all that belongs to one hash block, a buffer at a time.
    fn fill(
        &self,
        source: &Source<'_>,
        hash_block: u64,
        mut slots: &mut [u8],
        buffer: &mut Vec<u8>,
        progress: &Progress,
    ) -> Result<(), MediaError> {
        let slot_size = self.geometry.slot_size();
        let first = hash_block * self.geometry.digests_per_block();
        let end = source.blocks.min(first + self.geometry.digests_per_block());
        let step = BUFFER_SIZE / source.block_size;
        let mut block = first;
        while block < end {
            let count = step.min(end - block);
            buffer.resize((count * source.block_size) as usize, 0);
            source.read(buffer, block)?;
            let (now, later) = slots.split_at_mut(count as usize * slot_size);
            self.hasher.hash(buffer, source.block_size as usize, now, slot_size);
            progress.advance(buffer.len() as u64);
            (slots, block) = (later, block + count);
        }
        Ok(())
    }
}

impl<'a> Source<'a> {
    fn data(job: &FormatJob<'a>) -> Self {
        let VerityParameters { data_block_size, data_blocks, .. } = job.parameters;
        let block_size = u64::from(*data_block_size);
        Source { file: job.data, doing: "read the data", start: 0, block_size, blocks: *data_blocks }
    }

    fn read(&self, buffer: &mut [u8], block: u64) -> Result<(), MediaError> {
        let offset = self.start + block * self.block_size;
        self.file.read_exact_at(buffer, offset).map_err(io_error(self.doing))
    }
}
