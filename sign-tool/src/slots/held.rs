//! What a slot holds, as far as trusted keys signed it.

use iofs_policy::{
    keys::{HistoryError, KeyHistory, KeyMoveError, KeyRing},
    manifest::{Architecture, VerifiedManifest},
    slots::{self, FooterError},
    trust::TrustPolicy,
};

use super::{layout::SlotLayout, storage::SlotDevice};
use crate::verity::Tree;

/// Why nothing is believed of what a slot holds.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    /// The device failed.
    #[error("read: {0}")]
    Io(#[from] std::io::Error),
    /// There is nothing, or something else.
    #[error(transparent)]
    Footer(#[from] FooterError),
    /// The key history is none.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The key history does not go on from what the machine has confirmed.
    #[error(transparent)]
    Keys(#[from] KeyMoveError),
    /// The manifest is not one for this machine.
    #[error(transparent)]
    Manifest(#[from] iofs_policy::manifest::VerificationError),
    /// It is not for a slot.
    #[error("{0}")]
    Layout(String),
    /// The tree is not the signed one.
    #[error(transparent)]
    Tree(#[from] crate::verity::VerifyError),
}

/// What the end of a slot leads to, whoever signed it.
#[derive(Debug, Clone)]
pub struct SlotEnd {
    /// The envelope with the manifest.
    pub envelope: Vec<u8>,
    /// The key history.
    pub history: Option<KeyHistory>,
}

/// The manifest at the slot's end, by the keys that the machine has confirmed and the slot's history. Whether the image is
/// whole is another question.
///
/// # Errors
/// [`HeldError`].
pub fn manifest(
    slot: &SlotDevice,
    trust: &TrustPolicy,
    confirmed: &KeyRing,
    machine: Architecture,
) -> Result<VerifiedManifest, HeldError> {
    let end = end(slot)?;
    Ok(VerifiedManifest::verify(&end.envelope, trust, &end.keys(confirmed)?, machine)?)
}

impl SlotEnd {
    /// The keys by which it is verified.
    ///
    /// # Errors
    /// The history does not go on from there.
    pub fn keys(&self, confirmed: &KeyRing) -> Result<KeyRing, KeyMoveError> {
        let history = self.history.as_ref();
        history.map_or_else(|| Ok(confirmed.clone()), |history| confirmed.clone().follow(history))
    }
}

/// What the slot's footer leads to.
///
/// # Errors
/// [`HeldError`].
pub fn end(slot: &SlotDevice) -> Result<SlotEnd, HeldError> {
    let read = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        slot.read(&mut bytes, offset)?;
        Ok(bytes)
    };
    let slots::SlotEnd { envelope, history } = slots::SlotEnd::read(slot.size(), read, HeldError::Footer)?;
    Ok(SlotEnd { envelope, history: history.as_deref().map(KeyHistory::parse).transpose()? })
}

/// The tree of what a slot holds.
///
/// # Errors
/// [`HeldError`].
pub fn tree(slot: &SlotDevice, manifest: &VerifiedManifest) -> Result<Tree, HeldError> {
    let layout = SlotLayout::new(manifest.manifest(), 0, None).map_err(|failure| HeldError::Layout(failure.fact))?;
    let verity = &manifest.manifest().verity;
    if layout.least_size > slot.size() {
        let (expected, found) = (layout.least_size, slot.size());
        return Err(HeldError::Layout(format!("expected at least {expected} bytes, found {found}")));
    }
    let mut bytes = vec![0; layout.tree_bytes as usize];
    slot.read(&mut bytes, layout.tree_offset)?;
    Ok(Tree::verify(&verity.parameters, &verity.root_hash, bytes)?)
}
