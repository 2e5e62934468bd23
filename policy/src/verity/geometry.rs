//! Where each block of a hash tree lies.
//!
//! Source: Linux `drivers/md/dm-verity-target.c` (`verity_ctr`) and cryptsetup `lib/verity/verity_hash.c`
//! (`hash_levels`); both lay the tree out alike for hash types 0 and 1.

use super::{BlockSize, HashFormat, ParameterError, Superblock, VerityParameters};

/// The largest end of a data or hash area in bytes: positions in files are signed 64-bit numbers.
const MAX_BYTES: u64 = i64::MAX as u64;

/// One level of a hash tree. Level 0 holds the digests of the data blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Position of the level's first block, in hash blocks from the start of the tree.
    pub first_block: u64,
    /// Number of hash blocks in the level.
    pub blocks: u64,
}

/// The shape of a hash tree, derived from its parameters alone.
///
/// A single data block needs no tree: its digest is the root hash, and there are no levels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    digests_per_block: u64,
    slot_size: usize,
    levels: Vec<Level>,
    hash_blocks: u64,
    data_bytes: u64,
    hash_bytes: u64,
}

impl Geometry {
    /// Lays out the tree.
    ///
    /// # Errors
    /// [`ParameterError::NoData`] for no data blocks, [`ParameterError::TooLarge`] if the data or the tree would end
    /// beyond 2^63 bytes.
    pub fn new(parameters: &VerityParameters) -> Result<Self, ParameterError> {
        let data_blocks = parameters.data_blocks;
        if data_blocks == 0 {
            return Err(ParameterError::NoData);
        }
        let too_large = || ParameterError::TooLarge(data_blocks);
        let data_bytes = bytes(data_blocks, parameters.data_block_size).ok_or_else(too_large)?;
        let digests_per_block = digests_per_block(parameters);
        let mut levels = level_sizes(data_blocks, digests_per_block);
        let hash_blocks = place_root_first(&mut levels).ok_or_else(too_large)?;
        let hash_bytes = bytes(hash_blocks, parameters.hash_block_size).ok_or_else(too_large)?;
        let slot_size = parameters.slot_size();
        Ok(Self { digests_per_block, slot_size, levels, hash_blocks, data_bytes, hash_bytes })
    }

    /// The levels, from the one above the data (0) to the root block. On disk they lie the other way round.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// Number of digests in a full hash block.
    pub fn digests_per_block(&self) -> u64 {
        self.digests_per_block
    }

    /// Bytes from one digest to the next within a hash block.
    pub fn slot_size(&self) -> usize {
        self.slot_size
    }

    /// Number of blocks in all levels.
    pub fn hash_blocks(&self) -> u64 {
        self.hash_blocks
    }

    /// Size of the tree in bytes, without a superblock.
    pub fn hash_bytes(&self) -> u64 {
        self.hash_bytes
    }

    /// Size of the protected data in bytes.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Size of the protected data in 512-byte sectors, the unit of device-mapper.
    pub fn data_sectors(&self) -> u64 {
        self.data_bytes / 512
    }
}

/// Where a hash area lies on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HashArea {
    /// Start of the area in bytes.
    pub offset: u64,
    /// Whether the area begins with a superblock; the tree then starts at the next hash block.
    pub superblock: bool,
}

impl HashArea {
    /// The tree's first block, in hash blocks from the start of the device: the table's hash start block.
    ///
    /// # Errors
    /// [`ParameterError::SuperblockOffset`] or [`ParameterError::HashOffset`] if the area is not aligned,
    /// [`ParameterError::AreaTooLarge`] if it begins beyond 2^63 bytes.
    pub fn start_block(self, hash_block_size: BlockSize) -> Result<u64, ParameterError> {
        let block = u64::from(hash_block_size);
        if !self.superblock {
            return match self.offset.is_multiple_of(block) {
                true => Ok(self.offset / block),
                false => {
                    Err(ParameterError::HashOffset { hash_block_size: hash_block_size.bytes(), found: self.offset })
                }
            };
        }
        if !self.offset.is_multiple_of(Superblock::SIZE as u64) {
            return Err(ParameterError::SuperblockOffset(self.offset));
        }
        let end = self.offset.checked_add(Superblock::SIZE as u64).filter(|end| *end <= MAX_BYTES);
        end.map(|end| end.div_ceil(block)).ok_or(ParameterError::AreaTooLarge { offset: self.offset })
    }

    /// Where the tree starts and ends on its device, in bytes.
    ///
    /// # Errors
    /// Those of [`HashArea::start_block`]; [`ParameterError::AreaTooLarge`] if the tree ends beyond 2^63 bytes.
    pub fn tree_range(
        self,
        parameters: &VerityParameters,
        geometry: &Geometry,
    ) -> Result<std::ops::Range<u64>, ParameterError> {
        let too_large = ParameterError::AreaTooLarge { offset: self.offset };
        let start_block = self.start_block(parameters.hash_block_size)?;
        let Some(start) = bytes(start_block, parameters.hash_block_size) else { return Err(too_large) };
        let end = start.checked_add(geometry.hash_bytes()).filter(|end| *end <= MAX_BYTES);
        end.map(|end| start..end).ok_or(too_large)
    }
}

fn bytes(blocks: u64, size: BlockSize) -> Option<u64> {
    blocks.checked_mul(size.into()).filter(|bytes| *bytes <= MAX_BYTES)
}

/// Rounded down to a power of two, so that a block's position is a shift; at least 8 (512 / 64).
fn digests_per_block(parameters: &VerityParameters) -> u64 {
    let fitting = u64::from(parameters.hash_block_size) / parameters.algorithm.digest_size() as u64;
    1 << fitting.ilog2()
}

impl VerityParameters {
    /// The size of a digest's place in a hash block, in bytes.
    pub fn slot_size(&self) -> usize {
        let digest_size = self.algorithm.digest_size();
        match self.format {
            HashFormat::ChromeOs => digest_size,
            HashFormat::Normal => digest_size.next_power_of_two(),
        }
    }
}

fn level_sizes(data_blocks: u64, digests_per_block: u64) -> Vec<Level> {
    let mut levels = Vec::new();
    let mut below = data_blocks;
    while below > 1 {
        below = below.div_ceil(digests_per_block);
        levels.push(Level { first_block: 0, blocks: below });
    }
    levels
}

/// Sets each level's position and returns the number of blocks of all.
fn place_root_first(levels: &mut [Level]) -> Option<u64> {
    levels.iter_mut().rev().try_fold(0u64, |position, level| {
        level.first_block = position;
        position.checked_add(level.blocks)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verity::{HashAlgorithm, Salt};

    fn parameters(data_blocks: u64, data: u64, hash: u64, algorithm: HashAlgorithm) -> VerityParameters {
        VerityParameters {
            format: HashFormat::Normal,
            algorithm,
            data_block_size: data.try_into().unwrap(),
            hash_block_size: hash.try_into().unwrap(),
            data_blocks,
            salt: Salt::default(),
        }
    }

    fn sizes(parameters: &VerityParameters) -> Vec<(u64, u64)> {
        let geometry = Geometry::new(parameters).unwrap();
        geometry.levels().iter().map(|level| (level.first_block, level.blocks)).collect()
    }

    #[test]
    fn root_level_comes_first_on_disk() {
        let default = |blocks| sizes(&parameters(blocks, 4096, 4096, HashAlgorithm::Sha256));
        assert_eq!(default(1), []);
        assert_eq!(default(2), [(0, 1)]);
        assert_eq!(default(128), [(0, 1)]);
        assert_eq!(default(129), [(1, 2), (0, 1)]);
        assert_eq!(default(16384), [(1, 128), (0, 1)]);
        assert_eq!(default(16385), [(3, 129), (1, 2), (0, 1)]);
        assert_eq!(sizes(&parameters(65, 4096, 512, HashAlgorithm::Sha512)), [(3, 9), (1, 2), (0, 1)]);
    }

    #[test]
    fn empty_and_oversized_devices_are_refused() {
        let geometry = |blocks, size| Geometry::new(&parameters(blocks, size, 512, HashAlgorithm::Sha512));
        assert_eq!(geometry(0, 4096), Err(ParameterError::NoData));
        assert_eq!(geometry(1 << 51, 4096), Err(ParameterError::TooLarge(1 << 51)));
        assert_eq!(geometry(u64::MAX, 512), Err(ParameterError::TooLarge(u64::MAX)));
        let largest = geometry((1 << 51) - 1, 4096).unwrap();
        assert_eq!(largest.levels().len(), 17);
        assert_eq!(largest.data_sectors(), (1 << 54) - 8);
    }

    #[test]
    fn tree_starts_at_the_block_after_the_superblock() {
        let start = |offset, superblock, size: u64| {
            HashArea { offset, superblock }.start_block(BlockSize::try_from(size).unwrap())
        };
        assert_eq!(start(0, true, 4096), Ok(1));
        assert_eq!(start(0, true, 512), Ok(1));
        assert_eq!(start(3584, true, 4096), Ok(1));
        assert_eq!(start(4096, true, 4096), Ok(2));
        assert_eq!(start(4096, false, 4096), Ok(1));
        assert_eq!(start(100, true, 4096), Err(ParameterError::SuperblockOffset(100)));
        assert_eq!(start(512, false, 1024), Err(ParameterError::HashOffset { hash_block_size: 1024, found: 512 }));
        let last = u64::MAX - 511;
        assert_eq!(start(last, true, 512), Err(ParameterError::AreaTooLarge { offset: last }));
    }

    #[test]
    fn a_tree_that_would_end_beyond_the_last_position_is_refused() {
        let parameters = parameters(1000, 4096, 4096, HashAlgorithm::Sha256);
        let geometry = Geometry::new(&parameters).unwrap();
        let range = |offset| HashArea { offset, superblock: false }.tree_range(&parameters, &geometry);
        assert_eq!(range(8192), Ok(8192..8192 + 9 * 4096));
        let late = MAX_BYTES - 4095 - 4096;
        assert_eq!(range(late), Err(ParameterError::AreaTooLarge { offset: late }));
        let beyond = u64::MAX - 4095;
        assert_eq!(range(beyond), Err(ParameterError::AreaTooLarge { offset: beyond }));
    }
}
