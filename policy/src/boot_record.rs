//! The record of one boot, `/run/iofs/boot.json`: what was verified, and when.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    digest::Sha256Digest,
    failure::Stage,
    keys::KeySequence,
    manifest::{Architecture, ImageId, Role, RollbackIndex, RollbackRule, VolumeName},
    slots::SlotName,
    trust::KeyId,
    verity::RootHash,
};

/// What `verify-init` tells the system that it booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// The version of this record's shape: 1.
    pub record_version: u32,
    /// The version of `verify-init`.
    pub verify_init: String,
    /// The image that was booted.
    pub image_id: ImageId,
    /// Its version.
    pub image_version: String,
    /// Its rollback index.
    pub rollback_index: RollbackIndex,
    /// Its role.
    pub role: Role,
    /// Its architecture.
    pub architecture: Architecture,
    /// Whether it is a debug image, which allows what others refuse.
    pub debug: bool,
    /// SHA-256 of the signed manifest (the payload, not the envelope).
    pub manifest_digest: Sha256Digest,
    /// The trusted keys that signed it.
    pub signers: Vec<KeyId>,
    /// The root hash that every block is checked against.
    pub root_hash: RootHash,
    /// The data device, as the kernel names it.
    pub data_device: String,
    /// The hash device, as the kernel names it.
    pub hash_device: String,
    /// The verity table as read back from the kernel.
    pub verity_table: String,
    /// The banks that the command line and the manifest were measured into; none where nothing was measured.
    pub measured_banks: Vec<String>,
    /// The volumes that were opened, in this order. Nothing secret is among what is told of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<UnlockedVolume>,
    /// What the TPM's rollback counter stands for, where the manifest says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackRule>,
    /// The slot that was booted, where there are two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<BootedSlot>,
    /// The kernel's release.
    pub kernel_release: String,
    /// What was odd, but not refused.
    pub warnings: Vec<String>,
    /// When each stage was reached.
    pub stages: Vec<StageTime>,
}

/// The slot that was booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootedSlot {
    /// Which.
    pub name: SlotName,
    /// The partition with the record of tries, as the kernel names it.
    pub state_device: String,
    /// Both slots' devices, as the kernel names them: `a`, then `b`. Of files, the device that holds their file system.
    pub devices: [Option<String>; 2],
    /// How often the keys were moved by which the release verified.
    #[serde(default, skip_serializing_if = "KeySequence::is_first")]
    pub key_sequence: KeySequence,
}

/// A volume that was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlockedVolume {
    /// Its sealed name.
    pub name: VolumeName,
    /// What it is for: `data`, `image` or `upper`.
    #[serde(rename = "use")]
    pub usage: String,
    /// The device that holds it, as the kernel names it.
    pub device: String,
    /// The decrypted device, as the kernel names it.
    pub mapping: String,
    /// The UUID in its header.
    pub luks_uuid: Uuid,
    /// How it was opened.
    pub by: UnlockedBy,
    /// The keyslot that gave the key.
    pub keyslot: u32,
    /// The token that led to the secret, where one did.
    pub token: Option<u32>,
    /// Whether blocks that were changed on the disk are noticed.
    pub integrity: bool,
}

/// How a volume was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnlockedBy {
    /// The TPM gave the secret to this boot, without anybody present.
    Tpm,
    /// The TPM gave the secret for a PIN.
    Pin,
    /// Somebody typed a passphrase or a recovery key.
    Passphrase,
}

impl fmt::Display for UnlockedBy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tpm => "the TPM",
            Self::Pin => "the TPM and a PIN",
            Self::Passphrase => "a passphrase",
        })
    }
}

/// When a stage was reached and what it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTime {
    /// The stage.
    pub stage: Stage,
    /// Nanoseconds from the kernel's start (CLOCK_BOOTTIME) at which the stage was reached.
    pub reached_ns: u64,
    /// Nanoseconds since the stage before, or since PID 1's first instruction.
    pub took_ns: u64,
}
