//! Manifest and trust policy.

use iofs_policy::{
    dsse::{Envelope, PayloadType},
    manifest::{Architecture, ImageIdentity, Manifest, Overlay, Place, SealedVerity},
    trust::TrustPolicy,
    verity::RootHash,
};
use uuid::Uuid;

use super::{
    config::{Config, SlotsSection},
    os_release::OsRelease,
    succession::SealedKeys,
};
use crate::{atomic::AtomicDirectory, initramfs::kernel::KernelImage, report::Failure, sealed};

/// Which image this is: as configured, else as the tree says.
pub(super) fn identity(config: &Config, os_release: &OsRelease, kernel: Option<&KernelImage>) -> ImageIdentity {
    let image = &config.image;
    ImageIdentity {
        id: image.id.clone().unwrap_or_else(|| os_release.image_id()),
        version: image.version.clone().unwrap_or_else(|| os_release.image_version()),
        rollback_index: image.rollback_index,
        role: image.role,
        architecture: image
            .architecture
            .or(kernel.map(|kernel| kernel.machine.architecture()))
            .unwrap_or(Architecture::CURRENT),
        debug: image.debug,
    }
}

/// PARTUUIDs follow from the root hash, as the Discoverable Partitions Specification has it.
fn default_places(root_hash: &RootHash) -> (Place, Place) {
    let bytes = root_hash.as_bytes();
    let half = |bytes: &[u8]| Place::PartUuid(Uuid::from_slice(bytes).expect("16 bytes are a UUID"));
    (half(&bytes[..16]), half(&bytes[bytes.len() - 16..]))
}

/// The manifest, to be signed.
pub(super) fn manifest(
    config: &Config,
    image: ImageIdentity,
    mut verity: SealedVerity,
    kernel: Option<&KernelImage>,
) -> Result<Manifest, Failure> {
    let (first, last) = default_places(&verity.root_hash);
    let [data, tree] = config.places();
    let (data, tree) = (data.unwrap_or(first), tree.unwrap_or(last));
    if data == tree {
        verity.hash_offset = behind_data(&verity);
    }
    Ok(Manifest {
        image,
        verity,
        data,
        tree,
        mount_options: config.filesystem.mount_options.clone(),
        // A volume that keeps what is written takes its place.
        overlay: (config.overlay.enabled && !config.has_upper_volume())
            .then(|| Overlay { tmpfs_size: config.overlay.size.clone() }),
        volumes: config.sealed_volumes(),
        init: config.init(),
        kernel_release: kernel.map(|kernel| kernel.release.to_string()),
        device_timeout: config.boot.device_timeout,
        on_failure: config.boot.on_failure,
        tpm: config.tpm.rules()?,
        command_lines: config.boot.command_lines.clone(),
        allowed_parameters: config.boot.allowed_parameters.clone(),
        keys: None,
    })
}

/// Where the hash area begins at a place that holds data and tree: at the next hash block.
fn behind_data(verity: &SealedVerity) -> u64 {
    let parameters = &verity.parameters;
    let data = parameters.data_blocks * u64::from(parameters.data_block_size.bytes());
    data.next_multiple_of(parameters.hash_block_size.bytes().into())
}

/// What the boot side accepts.
pub(super) fn trust_policy(config: &Config, manifest: &Manifest, keys: &SealedKeys) -> TrustPolicy {
    TrustPolicy {
        keys: keys.trusted.clone(),
        image_id: manifest.image.id.clone(),
        role: manifest.image.role,
        minimum_rollback_index: config.trust.minimum_rollback_index.unwrap_or(manifest.image.rollback_index),
        on_failure: manifest.on_failure,
        slots: config.slots.as_ref().map(SlotsSection::rules),
        key_sequence: keys.sequence,
        revoked: keys.revoked.clone(),
    }
}

/// Writes both, and the root hash for other tools.
pub(super) fn write_documents(
    directory: &AtomicDirectory,
    manifest: &Manifest,
    trust: &TrustPolicy,
) -> Result<(), Failure> {
    let envelope = Envelope::unsigned(PayloadType::Manifest, manifest.to_json());
    directory.write(sealed::MANIFEST, &envelope.to_json())?;
    directory.write(sealed::TRUST, &trust.to_json())?;
    directory.write(sealed::ROOT_HASH, manifest.verity.root_hash.to_string().as_bytes())
}
