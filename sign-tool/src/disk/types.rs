//! Partition types: UEFI 2.10, section 5.3.3, and the Discoverable Partitions Specification.

use iofs_policy::manifest::Architecture;
use uuid::{Uuid, uuid};

/// An EFI system partition.
pub(super) const ESP: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// Linux file system data.
pub(super) const GENERIC: Uuid = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");

const ROOT_X86_64: Uuid = uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709");
const TREE_X86_64: Uuid = uuid!("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5");
const SIGNATURE_X86_64: Uuid = uuid!("41092b05-9fc8-4523-994f-2def0408b176");
const ROOT_ARM64: Uuid = uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae");
const TREE_ARM64: Uuid = uuid!("df3300ce-d69f-4c92-978c-9bfb0f38d820");
const SIGNATURE_ARM64: Uuid = uuid!("6db69de6-29f4-4758-a7a5-962190f00ce3");

/// The types of a root's partitions.
pub(super) struct RootTypes {
    pub(super) data: Uuid,
    pub(super) tree: Uuid,
    pub(super) signature: Uuid,
}

impl RootTypes {
    /// Those of an architecture.
    pub(super) fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::X86_64 => Self { data: ROOT_X86_64, tree: TREE_X86_64, signature: SIGNATURE_X86_64 },
            Architecture::Arm64 => Self { data: ROOT_ARM64, tree: TREE_ARM64, signature: SIGNATURE_ARM64 },
        }
    }
}

/// What a partition of this type is, if `disk` writes such.
pub fn type_name(type_uuid: &Uuid) -> Option<&'static str> {
    let names = [
        (ESP, "EFI system partition"),
        (GENERIC, "Linux file system data"),
        (ROOT_X86_64, "root, x86-64"),
        (TREE_X86_64, "root verity, x86-64"),
        (SIGNATURE_X86_64, "root verity signature, x86-64"),
        (ROOT_ARM64, "root, arm64"),
        (TREE_ARM64, "root verity, arm64"),
        (SIGNATURE_ARM64, "root verity signature, arm64"),
    ];
    names.into_iter().find(|(known, _)| known == type_uuid).map(|(_, name)| name)
}
