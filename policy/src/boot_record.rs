//! The record of one boot, `/run/iofs/boot.json`: what was verified, and when.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Sha256Digest,
    failure::Stage,
    manifest::{Architecture, ImageId, Role, RollbackIndex},
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
    /// The kernel's release.
    pub kernel_release: String,
    /// What was odd, but not refused.
    pub warnings: Vec<String>,
    /// When each stage was reached.
    pub stages: Vec<StageTime>,
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
