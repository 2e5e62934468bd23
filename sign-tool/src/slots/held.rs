//! What a slot holds, as far as trusted keys signed it.

use iofs_policy::{
    manifest::{Architecture, VerifiedManifest},
    slots::{FOOTER_SIZE, Footer, FooterError},
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

/// The manifest at the slot's end. Whether the image is whole is another question.
///
/// # Errors
/// [`HeldError`].
pub fn manifest(slot: &SlotDevice, trust: &TrustPolicy, machine: Architecture) -> Result<VerifiedManifest, HeldError> {
    Ok(VerifiedManifest::verify(&envelope(slot)?, trust, machine)?)
}

/// The envelope at the slot's end, whoever signed it.
///
/// # Errors
/// [`HeldError`].
pub fn envelope(slot: &SlotDevice) -> Result<Vec<u8>, HeldError> {
    let mut end = [0; FOOTER_SIZE];
    let offset = slot.size().checked_sub(FOOTER_SIZE as u64).ok_or(FooterError::Empty)?;
    slot.read(&mut end, offset)?;
    let footer = Footer::parse(&end, slot.size())?;
    let mut envelope = vec![0; footer.length as usize];
    slot.read(&mut envelope, footer.offset)?;
    footer.check_envelope(&envelope)?;
    Ok(envelope)
}

/// The tree of what a slot holds.
///
/// # Errors
/// [`HeldError`].
pub fn tree(slot: &SlotDevice, manifest: &VerifiedManifest) -> Result<Tree, HeldError> {
    let layout = SlotLayout::new(manifest.manifest(), 0).map_err(|failure| HeldError::Layout(failure.fact))?;
    let verity = &manifest.manifest().verity;
    if layout.least_size > slot.size() {
        let (expected, found) = (layout.least_size, slot.size());
        return Err(HeldError::Layout(format!("expected at least {expected} bytes, found {found}")));
    }
    let mut bytes = vec![0; layout.tree_bytes as usize];
    slot.read(&mut bytes, layout.tree_offset)?;
    Ok(Tree::verify(&verity.parameters, &verity.root_hash, bytes)?)
}
