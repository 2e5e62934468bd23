//! Checking data and hash tree against a root hash.
//!
//! Each block is checked against a digest that was itself checked, from the root down, as the kernel does. A block is
//! never read twice, once to be checked and once to be believed.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    num::NonZeroUsize,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Mutex, PoisonError},
};

use iofs_policy::{
    hex,
    verity::{Geometry, HashArea, ParameterError, RootHash, VerityParameters},
};
use serde::Serialize;

use super::{
    engine::Engine,
    hasher::BlockHasher,
    media::{self, BUFFER_SIZE, MediaError, in_parallel, io_error},
};
use crate::report::Progress;

/// Why data and hash tree are not what the root hash stands for.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The parameters describe no possible tree, or the root hash is not one of theirs.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The data or the hash device failed.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The data or the hash device ends before the last block.
    #[error("{artifact}: expected at least {expected} bytes, found {found} bytes")]
    TooSmall {
        /// Which of the two.
        artifact: &'static str,
        /// The size needed, in bytes.
        expected: u64,
        /// The size found, in bytes.
        found: u64,
    },
    /// Blocks do not verify: at least one and at most the limit asked for, in the order of the data they guard.
    #[error("{}", first(.0))]
    Mismatch(Vec<Mismatch>),
}

/// What a block belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "artifact")]
pub enum Artifact {
    /// The protected data.
    Data,
    /// The hash tree.
    HashTree {
        /// 0 is the level above the data, the highest is the root block.
        level: usize,
    },
}

/// What is wrong with a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "fault")]
pub enum Fault {
    /// It heads the tree, and its digest is not the root hash. Which of the two is wrong cannot be known.
    RootHash {
        /// The root hash.
        expected: String,
        /// The digest of the block, in hexadecimal.
        found: String,
    },
    /// Its digest is not the one in the block above.
    Digest {
        /// The digest that the block above promises, in hexadecimal.
        expected: String,
        /// The digest of the block.
        found: String,
    },
    /// It verifies, but holds something after its last digest, where every writer leaves zeros.
    Padding {
        /// Offset of the first such byte in its file or device.
        offset: u64,
        /// Its value.
        found: u8,
    },
}

/// One block that does not verify.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// What the block belongs to.
    #[serde(flatten)]
    pub artifact: Artifact,
    /// The block's index within the data or its level.
    pub block: u64,
    /// Offset of the block in its file or device, in bytes.
    pub offset: u64,
    /// What is wrong.
    #[serde(flatten)]
    pub fault: Fault,
    /// The data blocks that the block guards. Below a hash block that is wrong nothing can be vouched for.
    pub data_blocks: Range<u64>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { block, offset, .. } = self;
        match self.artifact {
            Artifact::Data => write!(formatter, "data block {block} at byte {offset}: ")?,
            Artifact::HashTree { level } => {
                write!(formatter, "hash tree level {level} block {block} at byte {offset}: ")?;
            }
        }
        match &self.fault {
            Fault::RootHash { expected, found } => write!(formatter, "expected root hash {expected}, found {found}"),
            Fault::Digest { expected, found } => write!(formatter, "expected digest {expected}, found {found}"),
            Fault::Padding { offset, found } => {
                write!(formatter, "expected zeros after the last digest, found {found:#04x} at byte {offset}")
            }
        }
    }
}

/// What to check.
#[derive(Debug, Clone, Copy)]
pub struct VerifyJob<'a> {
    /// The data.
    pub data: &'a File,
    /// The file or device that holds the tree. It may be the data's own.
    pub hash: &'a File,
    /// Where the hash area lies in `hash`. A superblock is skipped, not read.
    pub area: HashArea,
    /// All that defines the tree.
    pub parameters: &'a VerityParameters,
    /// What the tree must come to.
    pub root_hash: &'a RootHash,
    /// The most threads to use.
    pub threads: NonZeroUsize,
    /// How many mismatches to collect before giving up.
    pub limit: NonZeroUsize,
    /// What hashes SHA-256.
    pub engine: Engine,
}

/// Proof that data and hash tree matched a root hash when they were read. Only [`verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    root_hash: RootHash,
    data_blocks: u64,
    hash_blocks: u64,
}

impl Verified {
    /// The root hash.
    pub fn root_hash(&self) -> &RootHash {
        &self.root_hash
    }

    /// Number of data blocks that were checked.
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Number of hash blocks that were checked.
    pub fn hash_blocks(&self) -> u64 {
        self.hash_blocks
    }
}

/// Checks every block. Progress is in bytes of data.
///
/// # Errors
/// [`VerifyError::Mismatch`] with the first blocks that are wrong, the same ones for any number of threads; the others
/// if the check cannot be made.
pub fn verify(job: &VerifyJob<'_>, progress: &Progress) -> Result<Verified, VerifyError> {
    let geometry = Geometry::new(job.parameters)?;
    job.root_hash.check_size(job.parameters.algorithm)?;
    let tree = job.area.tree_range(job.parameters, &geometry)?;
    check_size("data", job.data, geometry.data_bytes())?;
    if !geometry.levels().is_empty() {
        check_size("hash device", job.hash, tree.end)?;
    }
    let hasher = BlockHasher::new(job.parameters, job.engine);
    let found = Mutex::new(BTreeMap::new());
    Walk { job, geometry: &geometry, hasher, tree_start: tree.start, found: &found }.run(progress)?;
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    if found.is_empty() {
        let (data_blocks, hash_blocks) = (job.parameters.data_blocks, geometry.hash_blocks());
        return Ok(Verified { root_hash: job.root_hash.clone(), data_blocks, hash_blocks });
    }
    Err(VerifyError::Mismatch(found.into_values().take(job.limit.get()).collect()))
}

fn first(mismatches: &[Mismatch]) -> String {
    match mismatches {
        [] => "no block is wrong".to_owned(),
        [one] => one.to_string(),
        [one, more @ ..] => format!("{one} (and {} more)", more.len()),
    }
}

fn check_size(artifact: &'static str, file: &File, expected: u64) -> Result<(), VerifyError> {
    let found = media::size(file).map_err(io_error("find the size of the data and hash devices"))?;
    if found < expected {
        return Err(VerifyError::TooSmall { artifact, expected, found });
    }
    Ok(())
}

/// Orders mismatches by the data they guard, a hash block before what is below it.
type Position = (u64, std::cmp::Reverse<usize>);

struct Walk<'a> {
    job: &'a VerifyJob<'a>,
    geometry: &'a Geometry,
    hasher: BlockHasher,
    tree_start: u64,
    found: &'a Mutex<BTreeMap<Position, Mismatch>>,
}

/// A thread's way from the root to where it works, one block of each level, and a buffer for data.
struct Path {
    levels: Vec<Option<Checked>>,
    buffer: Vec<u8>,
}

/// A hash block that was read, and whether it may be believed.
struct Checked {
    block: u64,
    content: Vec<u8>,
    good: bool,
}

impl Walk<'_> {
    fn run(&self, progress: &Progress) -> Result<(), MediaError> {
        let per_block = self.geometry.digests_per_block();
        let leaves = self.job.parameters.data_blocks.div_ceil(per_block);
        let together = (BUFFER_SIZE / (per_block * self.data_block_size())).max(1);
        let path = || Path { levels: self.geometry.levels().iter().map(|_| None).collect(), buffer: Vec::new() };
        in_parallel(leaves.div_ceil(together), self.job.threads, path, |path, piece| {
            for leaf in piece * together..leaves.min((piece + 1) * together) {
                self.check_leaf(path, leaf)?;
                let end = self.job.parameters.data_blocks.min((leaf + 1) * per_block);
                progress.advance((end - leaf * per_block) * self.data_block_size());
            }
            Ok(self.lock().len() < self.job.limit.get())
        })
    }

    fn data_block_size(&self) -> u64 {
        self.job.parameters.data_block_size.into()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Position, Mismatch>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the way from the root down to one block of level 0, then the data blocks whose digests it holds.
    fn check_leaf(&self, path: &mut Path, leaf: u64) -> Result<(), MediaError> {
        if !self.check_path(path, leaf)? {
            return Ok(());
        }
        let Path { levels, buffer } = path;
        let digests = levels.first().and_then(Option::as_ref).map(|checked| checked.content.as_slice());
        let (per_block, block_size) = (self.geometry.digests_per_block(), self.data_block_size());
        let end = self.job.parameters.data_blocks.min((leaf + 1) * per_block);
        let mut block = leaf * per_block;
        while block < end {
            let count = (BUFFER_SIZE / block_size).min(end - block);
            buffer.resize((count * block_size) as usize, 0);
            self.job.data.read_exact_at(buffer, block * block_size).map_err(io_error("read the data"))?;
            self.check_data(buffer, block, digests);
            block += count;
        }
        Ok(())
    }

    fn check_data(&self, buffer: &[u8], first: u64, digests: Option<&[u8]>) {
        let (slot_size, digest_size) = (self.geometry.slot_size(), self.job.parameters.algorithm.digest_size());
        let block_size = self.data_block_size();
        let mut found = vec![0; buffer.len() / block_size as usize * digest_size];
        self.hasher.hash(buffer, block_size as usize, &mut found, digest_size);
        for (block, found) in (first..).zip(found.chunks_exact(digest_size)) {
            let slot = block % self.geometry.digests_per_block();
            let expected = digests.map(|digests| digest_in(digests, slot, slot_size, digest_size));
            if let Some(fault) = self.digest_fault(expected, found) {
                let offset = block * block_size;
                let guarded = block..block + 1;
                self.report(Mismatch { artifact: Artifact::Data, block, offset, fault, data_blocks: guarded });
            }
        }
    }

    /// Brings the path to a block of level 0 and returns whether all of it may be believed.
    fn check_path(&self, path: &mut Path, leaf: u64) -> Result<bool, MediaError> {
        for level in (0..path.levels.len()).rev() {
            let block = self.ancestor(leaf, level);
            let (below, above) = path.levels.split_at_mut(level + 1);
            let here = &mut below[level];
            if here.as_ref().is_none_or(|checked| checked.block != block) {
                let above = above.first().and_then(Option::as_ref).map(|checked| checked.content.as_slice());
                *here = Some(self.check_hash_block(level, block, above)?);
            }
            if here.as_ref().is_none_or(|checked| !checked.good) {
                // What was checked under another parent says nothing about the blocks below this one.
                below[..level].fill_with(|| None);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The block of a level that a block of level 0 lies under.
    fn ancestor(&self, leaf: u64, level: usize) -> u64 {
        let shift = self.geometry.digests_per_block().ilog2() * level as u32;
        leaf.checked_shr(shift).unwrap_or(0)
    }

    fn check_hash_block(&self, level: usize, block: u64, above: Option<&[u8]>) -> Result<Checked, MediaError> {
        let size = u64::from(self.job.parameters.hash_block_size);
        let offset = self.tree_start + (self.geometry.levels()[level].first_block + block) * size;
        let mut content = vec![0; size as usize];
        self.job.hash.read_exact_at(&mut content, offset).map_err(io_error("read the hash tree"))?;
        let (slot_size, digest_size) = (self.geometry.slot_size(), self.job.parameters.algorithm.digest_size());
        let slot = block % self.geometry.digests_per_block();
        let expected = above.map(|digests| digest_in(digests, slot, slot_size, digest_size));
        let fault = self.digest_fault(expected, &self.hasher.digest(&content));
        // Padding that is not zero breaks no digest: what is below can still be checked.
        let good = fault.is_none();
        let fault = fault.or_else(|| self.padding_fault(level, block, offset, &content));
        if let Some(fault) = fault {
            let data_blocks = self.guarded(level, block);
            self.report(Mismatch { artifact: Artifact::HashTree { level }, block, offset, fault, data_blocks });
        }
        Ok(Checked { block, content, good })
    }

    /// Compares a digest with the one promised by the block above or, without such a block, with the root hash.
    fn digest_fault(&self, above: Option<&[u8]>, found: &[u8]) -> Option<Fault> {
        let expected = above.unwrap_or(self.job.root_hash.as_bytes());
        if expected == found {
            return None;
        }
        let (expected, found) = (hex::encode(expected), hex::encode(found));
        Some(match above {
            Some(_) => Fault::Digest { expected, found },
            None => Fault::RootHash { expected, found },
        })
    }

    /// Digests fill their slots for the algorithms there are, so padding is only what follows the last one.
    fn padding_fault(&self, level: usize, block: u64, offset: u64, content: &[u8]) -> Option<Fault> {
        let below = match level.checked_sub(1) {
            Some(below) => self.geometry.levels()[below].blocks,
            None => self.job.parameters.data_blocks,
        };
        let per_block = self.geometry.digests_per_block();
        let used = per_block.min(below - block * per_block) as usize * self.geometry.slot_size();
        let padding = content.get(used..)?;
        let at = padding.iter().position(|byte| *byte != 0)?;
        Some(Fault::Padding { offset: offset + (used + at) as u64, found: padding[at] })
    }

    fn guarded(&self, level: usize, block: u64) -> Range<u64> {
        let (data_blocks, per_block) = (self.job.parameters.data_blocks, self.geometry.digests_per_block());
        let each = per_block.saturating_pow(level as u32 + 1);
        block.saturating_mul(each)..block.saturating_add(1).saturating_mul(each).min(data_blocks)
    }

    fn report(&self, mismatch: Mismatch) {
        let depth = match mismatch.artifact {
            Artifact::Data => 0,
            Artifact::HashTree { level } => level + 1,
        };
        let position = (mismatch.data_blocks.start, std::cmp::Reverse(depth));
        let mut found = self.lock();
        found.insert(position, mismatch);
        // A broken device must not fill the memory: only the first ones are ever asked for.
        if found.len() > self.job.limit.get() {
            found.pop_last();
        }
    }
}

pub(super) fn digest_in(digests: &[u8], slot: u64, slot_size: usize, digest_size: usize) -> &[u8] {
    let at = slot as usize * slot_size;
    &digests[at..at + digest_size]
}
