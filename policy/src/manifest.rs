//! The manifest: everything that reaches the device-mapper table and the mounts, as one signed JSON document.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    digest::Sha256Digest,
    dsse::{Envelope, EnvelopeError, PayloadType},
    failure::FailureAction,
    keys::{KeyChange, KeyRing, KeyRuleError, KeySequence},
    paths::{ROOT_MAPPING, SECOND_STAGE_MAPPING},
    trust::{KeyId, SignatureError, TrustPolicy, VerifiedPayload},
    verity::{CorruptionAction, ParameterError, RootHash, VerityParameters},
};

mod place;
mod tpm;
mod values;
mod volume;

pub use place::{FilePlace, Medium, MediumKind, MediumUuid, Place, PlaceError};
pub use tpm::{RollbackRule, SrkPublic, TpmRules, TpmUse};
pub use values::{ImageId, ImageVersion, MountOption, OverlaySize, PartitionLabel, RootPath, ValueError};
pub use volume::{
    DataUse, FileSystem, MAX_MEMORY_KIB, MAX_TRIES, MAX_VOLUMES, UnknownIdentity, UnlockRules, UpperUse, Volume,
    VolumeError, VolumeName, VolumeUse,
};

/// The longest time to wait for devices that may be sealed, in seconds.
pub const MAX_DEVICE_TIMEOUT: u32 = 3600;

/// What an image is for. An image of one role is refused where another is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The root file system of the real system.
    Root,
    /// The second stage of an initramfs, which goes on to another root.
    InitOverlay,
}

impl Role {
    /// The name of its verity mapping.
    pub fn mapping(self) -> &'static str {
        match self {
            Self::Root => ROOT_MAPPING,
            Self::InitOverlay => SECOND_STAGE_MAPPING,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Root => "root",
            Self::InitOverlay => "initoverlay",
        })
    }
}

/// The processor that an image is for, by the names of the Discoverable Partitions Specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    /// 64-bit x86.
    #[serde(rename = "x86-64")]
    X86_64,
    /// 64-bit Arm.
    #[serde(rename = "arm64")]
    Arm64,
}

impl Architecture {
    /// The architecture that this program was compiled for.
    #[cfg(target_arch = "x86_64")]
    pub const CURRENT: Self = Self::X86_64;
    /// The architecture that this program was compiled for.
    #[cfg(target_arch = "aarch64")]
    pub const CURRENT: Self = Self::Arm64;
}

impl fmt::Display for Architecture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::X86_64 => "x86-64",
            Self::Arm64 => "arm64",
        })
    }
}

/// Counts security releases: an image with a lower index than the floor is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RollbackIndex(pub u64);

impl fmt::Display for RollbackIndex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Which image this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageIdentity {
    /// The product: what a device accepts updates of.
    pub id: ImageId,
    /// The version, for people.
    pub version: ImageVersion,
    /// The version, for the rollback floor.
    pub rollback_index: RollbackIndex,
    /// What it is for.
    pub role: Role,
    /// What it runs on.
    pub architecture: Architecture,
    /// A debug image lets the kernel command line ask for more. It is known, and measured, as one.
    pub debug: bool,
}

/// The verity device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedVerity {
    /// Sizes, algorithm and salt.
    pub parameters: VerityParameters,
    /// The root hash.
    pub root_hash: RootHash,
    /// Byte offset of the hash area on the hash device: of its superblock, if it has one, else of its tree.
    pub hash_offset: u64,
    /// The UUID in the superblock, if there is one. It is compared byte by byte and never believed.
    pub superblock_uuid: Option<Uuid>,
    /// What the kernel does about a block that does not verify.
    pub on_corruption: CorruptionAction,
    /// Whether the kernel checks a signature of the root hash itself. Images that leave it alone do not mention it.
    #[serde(default, skip_serializing_if = "RootHashSignature::is_off")]
    pub root_hash_signature: RootHashSignature,
}

/// Whether the kernel checks a signature of the root hash itself (`DM_VERITY_VERIFY_ROOTHASH_SIG`), besides that of the
/// manifest: by keys that are built into it, or that firmware trusts. Only then does IPE see a signed volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootHashSignature {
    /// It is not asked to.
    #[default]
    Off,
    /// It is asked to; where it cannot, or does not know the key, the boot goes on without.
    Preferred,
    /// The boot goes on only where the kernel accepts the signature.
    Required,
}

impl RootHashSignature {
    /// Whether the kernel is not asked.
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

impl SealedVerity {
    /// Byte offset of the tree's first block on the hash device.
    pub fn tree_offset(&self) -> u64 {
        let header = if self.superblock_uuid.is_some() { self.parameters.hash_block_size.bytes() } else { 0 };
        self.hash_offset.saturating_add(header.into())
    }
}

/// The writable layer over the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlay {
    /// The size of the tmpfs that holds what is written. It is gone at the next boot.
    pub tmpfs_size: OverlaySize,
}

/// The signed manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Which image this is.
    pub image: ImageIdentity,
    /// How its blocks are verified.
    pub verity: SealedVerity,
    /// Where the data is.
    pub data: Place,
    /// Where the tree is. The same place as the data, if the tree follows it there.
    pub tree: Place,
    /// Options of the erofs mount. `ro` is always among the effective ones.
    pub mount_options: Vec<MountOption>,
    /// The writable layer in memory, or none for a read-only root or one whose writable layer is a volume.
    pub overlay: Option<Overlay>,
    /// The encrypted volumes, in the order in which they are opened. Images without any do not mention them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// The real system's init.
    pub init: RootPath,
    /// The release of the kernel that the mini-initramfs holds modules for: another kernel is refused.
    pub kernel_release: Option<String>,
    /// How long to wait for the devices, in seconds.
    pub device_timeout: u32,
    /// What happens after a failure.
    pub on_failure: FailureAction,
    /// How the TPM is used.
    pub tpm: TpmRules,
    /// The kernel command lines that this image is meant to boot with, for verifiers: the boot measures whichever it finds.
    pub command_lines: Vec<String>,
    /// Kernel command line parameters (`name` or `name=value`) that are allowed although they are refused by default.
    pub allowed_parameters: Vec<String>,
    /// Who signs from this release on, where that changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeyChange>,
}

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The payload is of another type.
    #[error("manifest: expected a payload of type {expected}, found {found}")]
    PayloadType {
        /// The media type of manifests.
        expected: &'static str,
        /// The payload's media type.
        found: &'static str,
    },
    /// It is not the JSON of a manifest.
    #[error("manifest: {0}")]
    Json(String),
    /// Two fields contradict each other, or the tree cannot exist.
    #[error("manifest: verity: {0}")]
    Verity(#[from] ParameterError),
    /// A TPM is pinned and not required.
    #[error("manifest: tpm: expected use \"required\" beside a pinned srk, found \"{0}\"")]
    PinnedTpm(TpmUse),
    /// A rollback counter is named, and not whose.
    #[error("manifest: tpm.rollback: expected a pinned srk beside it, found none: whoever is on the bus could answer")]
    UnpinnedRollback,
    /// Where data and tree lie contradicts something.
    #[error("manifest: {field}: expected {expected}, found {found}")]
    Place {
        /// The field.
        field: &'static str,
        /// What would do.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A second stage without a writable layer in memory.
    #[error("manifest: overlay: expected one in memory for the role initoverlay, found none: what runs there writes")]
    NoOverlay,
    /// A volume contradicts something.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The deadline is out of bounds.
    #[error("manifest: device_timeout: expected 1 to {MAX_DEVICE_TIMEOUT} seconds, found {0}")]
    DeviceTimeout(u32),
    /// What it says of keys contradicts something.
    #[error("manifest: {0}")]
    Keys(#[from] KeyRuleError),
}

impl Manifest {
    /// Reads a payload that was verified.
    ///
    /// # Errors
    /// [`ManifestError`]: unknown fields, values out of bounds and impossible geometry.
    pub fn from_payload(payload: &VerifiedPayload) -> Result<Self, ManifestError> {
        match payload.payload_type() {
            PayloadType::Manifest => Self::from_json(payload.bytes()),
            other @ PayloadType::Release => {
                let (expected, found) = (PayloadType::Manifest.media_type(), other.media_type());
                Err(ManifestError::PayloadType { expected, found })
            }
        }
    }

    /// Parses the JSON form, for showing: what acts on a manifest uses [`VerifiedManifest`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| ManifestError::Json(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Refuses what no field's own type can refuse.
    pub fn check(&self) -> Result<(), ManifestError> {
        let verity = &self.verity;
        let geometry = crate::verity::Geometry::new(&verity.parameters)?;
        verity.root_hash.check_size(verity.parameters.algorithm)?;
        if !(1..=MAX_DEVICE_TIMEOUT).contains(&self.device_timeout) {
            return Err(ManifestError::DeviceTimeout(self.device_timeout));
        }
        if self.tpm.srk.is_some() && self.tpm.usage != TpmUse::Required {
            return Err(ManifestError::PinnedTpm(self.tpm.usage));
        }
        if self.tpm.rollback.is_some() && self.tpm.srk.is_none() {
            return Err(ManifestError::UnpinnedRollback);
        }
        if self.image.role == Role::InitOverlay && self.overlay.is_none() {
            return Err(ManifestError::NoOverlay);
        }
        if let Some(change) = &self.keys {
            change.check()?;
            if self.data != Place::Slot {
                return Err(KeyRuleError::NoSlot.into());
            }
        }
        self.check_volumes()?;
        self.check_places(geometry.data_bytes())
    }

    /// The JSON form whose bytes are signed.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("a manifest always serialises");
        json.push(b'\n');
        json
    }
}

/// Why an envelope does not give a manifest that may boot here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerificationError {
    /// The envelope is malformed.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The signatures do not suffice.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The signed manifest is malformed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The signed manifest is for something else.
    #[error("manifest: {field}: expected {expected}, found {found}")]
    Identity {
        /// The field's name.
        field: &'static str,
        /// What this machine accepts.
        expected: String,
        /// What was signed.
        found: String,
    },
    /// The signed manifest speaks of other keys than those that verified it.
    #[error("manifest: keys: expected what the key history says of move {sequence}, found move {found} of its own")]
    Keys {
        /// How often the keys were moved that verified it.
        sequence: KeySequence,
        /// Which move it claims to be.
        found: KeySequence,
    },
    /// The image was revoked.
    #[error("manifest: rollback_index: expected at least {floor}, found {found}")]
    Rollback {
        /// The oldest index that may boot.
        floor: RollbackIndex,
        /// The image's index.
        found: RollbackIndex,
    },
}

/// A manifest that trusted keys signed and that is meant for this machine. Only [`VerifiedManifest::verify`] makes one,
/// and every later stage demands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedManifest {
    manifest: Manifest,
    digest: Sha256Digest,
    signers: Vec<KeyId>,
}

impl VerifiedManifest {
    /// Verifies signatures first, by the keys of that point, then parses, then compares with what this machine accepts.
    ///
    /// # Errors
    /// [`VerificationError`]; each variant names the field with what was expected and what was found.
    pub fn verify(
        envelope: &[u8],
        trust: &TrustPolicy,
        keys: &KeyRing,
        machine: Architecture,
    ) -> Result<Self, VerificationError> {
        let envelope = Envelope::parse(envelope, PayloadType::Manifest)?;
        let payload = keys.verify(&envelope)?;
        let manifest = Manifest::from_payload(&payload)?;
        let image = &manifest.image;
        expect("role", &trust.role, &image.role)?;
        expect("architecture", &machine, &image.architecture)?;
        expect("image id", &trust.image_id, &image.id)?;
        if image.rollback_index < trust.minimum_rollback_index {
            let (floor, found) = (trust.minimum_rollback_index, image.rollback_index);
            return Err(VerificationError::Rollback { floor, found });
        }
        if let Some(change) = manifest.keys.as_ref().filter(|change| !keys.accepts(change)) {
            let (sequence, found) = (keys.sequence(), change.sequence);
            return Err(VerificationError::Keys { sequence, found });
        }
        Ok(Self { digest: Sha256Digest::of(payload.bytes()), signers: payload.signers().to_vec(), manifest })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// SHA-256 of the signed payload.
    pub fn digest(&self) -> Sha256Digest {
        self.digest
    }

    /// The trusted keys that signed.
    pub fn signers(&self) -> &[KeyId] {
        &self.signers
    }
}

fn expect<T: PartialEq + fmt::Display>(field: &'static str, expected: &T, found: &T) -> Result<(), VerificationError> {
    if expected == found {
        return Ok(());
    }
    Err(VerificationError::Identity { field, expected: expected.to_string(), found: found.to_string() })
}

#[cfg(test)]
pub(crate) mod tests;
