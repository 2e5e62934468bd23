//! Where everything lies in a slot: the image, its tree, the envelope with the manifest, the key history, and the footer at the
//! very end.

use iofs_policy::{
    manifest::{Manifest, Place},
    slots::FOOTER_SIZE,
    verity::{Geometry, HashArea},
};

use crate::report::{ExitStatus, Failure};

/// Everything begins on multiples of this, in bytes.
const ALIGNMENT: u64 = 4096;

/// A slot's parts, each at its first byte. The image is at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotLayout {
    /// The image's size in bytes.
    pub data_bytes: u64,
    /// The hash area: superblock and tree.
    pub hash_offset: u64,
    /// The tree's first block in it.
    pub tree_offset: u64,
    /// The tree's size in bytes.
    pub tree_bytes: u64,
    /// The envelope with the manifest.
    pub envelope_offset: u64,
    /// The key history, if there is one.
    pub history_offset: u64,
    /// The smallest slot that holds all of it, in bytes.
    pub least_size: u64,
}

impl SlotLayout {
    /// Of a manifest, in an envelope of that many bytes, with a key history of that many.
    ///
    /// # Errors
    /// The manifest was not sealed for a slot, or its tree cannot exist.
    pub fn new(manifest: &Manifest, envelope: usize, history: Option<usize>) -> Result<Self, Failure> {
        if manifest.data != Place::Slot {
            let fact = format!("manifest: data: expected \"slot\", found {}", manifest.data);
            return Err(Failure::new(ExitStatus::BadInput, fact).next("seal the release with --slots"));
        }
        let verity = &manifest.verity;
        let impossible =
            |error: iofs_policy::verity::ParameterError| Failure::new(ExitStatus::BadInput, error.to_string());
        let geometry = Geometry::new(&verity.parameters).map_err(impossible)?;
        let area = HashArea { offset: verity.hash_offset, superblock: verity.superblock_uuid.is_some() };
        let tree = area.tree_range(&verity.parameters, &geometry).map_err(impossible)?;
        let envelope_offset = tree.end.next_multiple_of(ALIGNMENT);
        let history_offset = (envelope_offset + envelope as u64).next_multiple_of(ALIGNMENT);
        let end = history_offset + history.unwrap_or(0) as u64;
        let least_size = end.next_multiple_of(ALIGNMENT) + FOOTER_SIZE as u64;
        let (data_bytes, hash_offset) = (geometry.data_bytes(), verity.hash_offset);
        Ok(Self {
            data_bytes,
            hash_offset,
            tree_offset: tree.start,
            tree_bytes: tree.end - tree.start,
            envelope_offset,
            history_offset,
            least_size,
        })
    }

    /// Where the footer is in a slot of that size.
    pub fn footer_offset(size: u64) -> u64 {
        size - FOOTER_SIZE as u64
    }
}
