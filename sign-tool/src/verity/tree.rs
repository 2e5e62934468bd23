//! A hash tree in memory, every level of which was checked against the root hash.

use std::ops::Range;

use iofs_policy::{
    hex,
    verity::{Geometry, RootHash, VerityParameters},
};

use super::{
    Engine,
    hasher::BlockHasher,
    verify::{Artifact, Fault, Mismatch, VerifyError, digest_in},
};

/// The digests that a root hash stands for. Only [`Tree::verify`] makes one: whatever it promises may be believed.
///
/// It takes less than a hundredth of the data's size.
#[derive(Debug, Clone)]
pub struct Tree {
    parameters: VerityParameters,
    geometry: Geometry,
    root_hash: RootHash,
    hasher: BlockHasher,
    bytes: Vec<u8>,
}

impl Tree {
    /// Checks each hash block against the one above, and the first one against the root hash. `bytes` is the tree without
    /// its superblock; the first mismatch, from the root down, is reported with offsets from its start.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify(parameters: &VerityParameters, root_hash: &RootHash, bytes: Vec<u8>) -> Result<Self, VerifyError> {
        let geometry = Geometry::new(parameters)?;
        root_hash.check_size(parameters.algorithm)?;
        let (expected, found) = (geometry.hash_bytes(), bytes.len() as u64);
        if expected != found {
            return Err(VerifyError::TooSmall { artifact: "hash tree", expected, found });
        }
        let hasher = BlockHasher::new(parameters, Engine::best());
        let tree = Self { parameters: parameters.clone(), geometry, root_hash: root_hash.clone(), hasher, bytes };
        let first = (0..tree.geometry.levels().len()).rev().find_map(|level| tree.mismatch(level));
        first.map_or(Ok(tree), |mismatch| Err(VerifyError::Mismatch(vec![mismatch])))
    }

    /// What the data is hashed by.
    pub fn parameters(&self) -> &VerityParameters {
        &self.parameters
    }

    /// The tree as it lies behind a superblock.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The digest that a data block must have.
    pub fn leaf(&self, block: u64) -> &[u8] {
        self.promised(0, block)
    }

    /// Whether a data block has these bytes.
    pub fn holds(&self, block: u64, content: &[u8]) -> bool {
        self.hasher.digest(content) == self.leaf(block)
    }

    /// Whether a block has the same digest in both trees if it has the same bytes.
    pub fn hashes_like(&self, other: &Self) -> bool {
        let hashing = |tree: &Self| {
            let VerityParameters { format, algorithm, data_block_size, salt, .. } = &tree.parameters;
            (*format, *algorithm, *data_block_size, salt.clone())
        };
        hashing(self) == hashing(other)
    }

    /// The digest that a level promises for a block of what is below it; above the highest there is the root hash.
    fn promised(&self, level: usize, block: u64) -> &[u8] {
        if level == self.geometry.levels().len() {
            return self.root_hash.as_bytes();
        }
        let per_block = self.geometry.digests_per_block();
        let range = self.range(level, block / per_block);
        let digest_size = self.parameters.algorithm.digest_size();
        digest_in(&self.bytes[range], block % per_block, self.geometry.slot_size(), digest_size)
    }

    fn range(&self, level: usize, block: u64) -> Range<usize> {
        let size = self.parameters.hash_block_size.bytes() as usize;
        let start = (self.geometry.levels()[level].first_block + block) as usize * size;
        start..start + size
    }

    /// The first block of a level that is wrong; the levels above are right.
    fn mismatch(&self, level: usize) -> Option<Mismatch> {
        (0..self.geometry.levels()[level].blocks).find_map(|block| {
            let range = self.range(level, block);
            let (offset, content) = (range.start as u64, &self.bytes[range]);
            let fault =
                self.digest_fault(level, block, content).or_else(|| self.padding_fault(level, block, offset))?;
            let data_blocks = self.guarded(level, block);
            Some(Mismatch { artifact: Artifact::HashTree { level }, block, offset, fault, data_blocks })
        })
    }

    fn digest_fault(&self, level: usize, block: u64, content: &[u8]) -> Option<Fault> {
        let (expected, found) = (self.promised(level + 1, block), self.hasher.digest(content));
        if expected == found {
            return None;
        }
        let (expected, found) = (hex::encode(expected), hex::encode(&found));
        let is_top = level + 1 == self.geometry.levels().len();
        Some(if is_top { Fault::RootHash { expected, found } } else { Fault::Digest { expected, found } })
    }

    /// What follows the last digest is zero.
    fn padding_fault(&self, level: usize, block: u64, offset: u64) -> Option<Fault> {
        let below = match level.checked_sub(1) {
            Some(below) => self.geometry.levels()[below].blocks,
            None => self.parameters.data_blocks,
        };
        let per_block = self.geometry.digests_per_block();
        let used = per_block.min(below - block * per_block) as usize * self.geometry.slot_size();
        let padding = self.bytes[self.range(level, block)].get(used..)?;
        let at = padding.iter().position(|byte| *byte != 0)?;
        Some(Fault::Padding { offset: offset + (used + at) as u64, found: padding[at] })
    }

    fn guarded(&self, level: usize, block: u64) -> Range<u64> {
        let each = self.geometry.digests_per_block().saturating_pow(level as u32 + 1);
        let end = block.saturating_add(1).saturating_mul(each).min(self.parameters.data_blocks);
        block.saturating_mul(each)..end
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read, num::NonZeroUsize};

    use iofs_policy::verity::{BlockSize, HashAlgorithm, HashFormat, Salt};

    use super::*;
    use crate::{
        report::Progress,
        verity::{FormatJob, format},
    };

    /// Data of some blocks, all different, and its tree as `format` writes it.
    fn made(blocks: u64, algorithm: HashAlgorithm) -> (VerityParameters, RootHash, Vec<u8>, Vec<u8>) {
        let data: Vec<u8> = (0..blocks).flat_map(|block| [block as u8 + 1; 512]).collect();
        let parameters = VerityParameters {
            format: HashFormat::Normal,
            algorithm,
            data_block_size: BlockSize::try_from(512).unwrap(),
            hash_block_size: BlockSize::try_from(512).unwrap(),
            data_blocks: blocks,
            salt: Salt::new(vec![0xaa]).unwrap(),
        };
        let [mut data_file, mut hash] = [(); 2].map(|()| tempfile::tempfile().unwrap());
        std::io::Write::write_all(&mut data_file, &data).unwrap();
        let job = FormatJob {
            data: &data_file,
            hash: &hash,
            hash_offset: 0,
            superblock: None,
            parameters: &parameters,
            threads: NonZeroUsize::MIN,
            engine: Engine::Sha2,
        };
        let root = format(&job, &Progress::hidden()).unwrap();
        let mut bytes = Vec::new();
        std::io::Seek::rewind(&mut hash).unwrap();
        File::read_to_end(&mut hash, &mut bytes).unwrap();
        (parameters, root, data, bytes)
    }

    #[test]
    fn the_tree_that_format_writes_holds_each_block_of_its_data_and_no_other() {
        for (blocks, algorithm) in
            [(1, HashAlgorithm::Sha256), (16, HashAlgorithm::Sha256), (200, HashAlgorithm::Sha512)]
        {
            let (parameters, root, data, bytes) = made(blocks, algorithm);
            let tree = Tree::verify(&parameters, &root, bytes).unwrap();
            for (number, content) in data.chunks(512).enumerate() {
                assert!(tree.holds(number as u64, content), "{number} of {blocks}");
                assert!(!tree.holds(number as u64, &[0; 512]), "{number} of {blocks}");
            }
        }
    }

    #[test]
    fn every_changed_bit_of_a_tree_is_refused() {
        // The last block of a level is partly padding.
        let (parameters, root, _, bytes) = made(90, HashAlgorithm::Sha256);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            let error = Tree::verify(&parameters, &root, changed).unwrap_err();
            let VerifyError::Mismatch(found) = error else { panic!("byte {at}: {error}") };
            assert_eq!(found[0].offset, at as u64 / 512 * 512, "byte {at}: {}", found[0]);
        }
        let short = bytes[..bytes.len() - 1].to_vec();
        assert!(matches!(Tree::verify(&parameters, &root, short), Err(VerifyError::TooSmall { .. })));
    }
}
