//! Hash trees of data whose blocks are hashed as they are shown: by whoever reads them anyway, before all of them are there.

use std::{fs::File, num::NonZeroUsize, os::unix::fs::FileExt};

use iofs_policy::verity::{Geometry, HashArea, RootHash, VerityParameters};
use uuid::Uuid;

use super::{
    Engine, FormatError,
    format::{Writer, write_superblock},
    hasher::BlockHasher,
    media::io_error,
};
use crate::report::Progress;

/// The digests of data blocks. They take less than a hundredth of the data's size.
#[derive(Debug)]
pub struct Leaves {
    parameters: VerityParameters,
    hasher: BlockHasher,
    /// Of the lowest level: each block's digest in its slot.
    slots: Vec<u8>,
}

impl Leaves {
    /// For data of a size that is not known yet: `parameters.data_blocks` is of no account.
    pub fn new(parameters: VerityParameters) -> Self {
        Self { hasher: BlockHasher::new(&parameters, Engine::best()), parameters, slots: Vec::new() }
    }

    /// Hashes the whole blocks that are next.
    pub fn hash(&mut self, blocks: &[u8]) {
        let block_size = self.parameters.data_block_size.bytes() as usize;
        let slot_size = self.parameters.slot_size();
        debug_assert!(blocks.len().is_multiple_of(block_size));
        let start = self.slots.len();
        self.slots.resize(start + blocks.len() / block_size * slot_size, 0);
        self.hasher.hash(blocks, block_size, &mut self.slots[start..], slot_size);
    }

    /// Writes the tree at the start of `hash`, behind a superblock where `superblock` says which UUID it has, and waits until
    /// the storage has them.
    ///
    /// # Errors
    /// [`FormatError`]: parameters that describe no tree, or a file that cannot be written.
    pub fn finish(
        mut self,
        hash: &File,
        superblock: Option<fn(&RootHash) -> Uuid>,
        threads: NonZeroUsize,
    ) -> Result<(VerityParameters, RootHash), FormatError> {
        self.parameters.data_blocks = (self.slots.len() / self.parameters.slot_size()) as u64;
        let geometry = Geometry::new(&self.parameters)?;
        let area = HashArea { offset: 0, superblock: superblock.is_some() };
        let tree_start = area.tree_range(&self.parameters, &geometry)?.start;
        let writer = Writer::new(hash, &self.parameters, &geometry, tree_start, threads, Engine::best());
        let root_hash = match geometry.levels() {
            [] => RootHash::new(self.parameters.algorithm, self.slots)?,
            [lowest, above @ ..] => {
                let size = lowest.blocks * u64::from(self.parameters.hash_block_size);
                self.slots.resize(size as usize, 0);
                hash.write_all_at(&self.slots, writer.level_start(lowest)).map_err(io_error("write the hash tree"))?;
                writer.write_levels(writer.level(lowest), above, &Progress::hidden())?
            }
        };
        if let Some(uuid) = superblock {
            write_superblock(hash, 0, tree_start, &self.parameters, uuid(&root_hash))?;
        }
        hash.sync_all().map_err(io_error("flush the hash area"))?;
        Ok((self.parameters, root_hash))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use iofs_policy::verity::{BlockSize, HashAlgorithm, HashFormat, Salt};

    use super::*;
    use crate::verity::{FormatJob, format};

    fn all(mut file: File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn blocks_hashed_as_they_come_give_the_tree_of_the_data() {
        let id: fn(&RootHash) -> Uuid = |root| Uuid::from_slice(&root.as_bytes()[..16]).unwrap();
        for (blocks, algorithm, superblock) in [
            (1, HashAlgorithm::Sha256, None),
            (2, HashAlgorithm::Sha256, Some(id)),
            (129, HashAlgorithm::Sha512, Some(id)),
            (1000, HashAlgorithm::Sha256, None),
        ] {
            let data: Vec<u8> = (0..blocks * 512_u64).map(|at| (at * 7 + at / 512) as u8).collect();
            let parameters = VerityParameters {
                format: HashFormat::Normal,
                algorithm,
                data_block_size: BlockSize::try_from(512).unwrap(),
                hash_block_size: BlockSize::try_from(1024).unwrap(),
                data_blocks: 0,
                salt: Salt::new(vec![3; 7]).unwrap(),
            };
            let mut leaves = Leaves::new(parameters);
            data.chunks(100 * 512).for_each(|blocks| leaves.hash(blocks));
            let [data_file, expected, found] = [(); 3].map(|()| tempfile::tempfile().unwrap());
            data_file.write_all_at(&data, 0).unwrap();
            let (parameters, root) = leaves.finish(&found, superblock, NonZeroUsize::MIN).unwrap();
            let job = FormatJob {
                data: &data_file,
                hash: &expected,
                hash_offset: 0,
                superblock: superblock.map(|id| id(&root)),
                parameters: &parameters,
                threads: NonZeroUsize::MIN,
                engine: Engine::Sha2,
            };
            assert_eq!((parameters.data_blocks, format(&job, &Progress::hidden()).unwrap()), (blocks, root));
            assert!(all(expected) == all(found), "{blocks} blocks");
        }
    }
}
