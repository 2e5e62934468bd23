//! The bodies of the fuzz targets: one function for each parser, which states what holds for any bytes at all.
//!
//! A body panics where its invariant does not hold, and says whether the parser took the input. `make test` replays the
//! corpus and runs each body for a while on a stable compiler; `make fuzz` runs them under `cargo fuzz`.

mod archives;
mod attest;
mod boot;
mod devices;
mod documents;
mod erofs;
mod files;
mod images;
mod keys;
mod luks;
mod modules;
mod sealed;
mod slots;
mod texts;
mod tpm;

pub use archives::{bundle, cpio_initramfs, tar};
pub use attest::{certificate, evidence, measurement_log, quote, tcg_log};
pub use boot::{command_line, verity_superblock, verity_table};
pub use devices::{file_system_id, gpt, superblock_difference, uevent};
pub use documents::{dsse_envelope, manifest, release, trust_policy};
pub use erofs::{erofs_image, erofs_oci};
pub use files::erofs_files;
pub use images::{erofs_superblock, kernel_image, unified_kernel_image};
pub use keys::key_history;
pub use luks::{integrity_superblock, luks_header, luks_token};
pub use modules::{module_alias, module_index};
pub use slots::{slot_footer, slot_record};
pub use texts::{iofs_toml, os_release};
pub use tpm::{pcr_signatures, policy_key, sealed_object, tpm_response, tpm_structure};

/// Panics where an invariant is broken; tells whether the parser took the input.
pub type Body = fn(&[u8]) -> bool;

/// Every target: its name, which is also its corpus' folder, and its body.
pub const TARGETS: &[(&str, Body)] = &[
    ("bundle", bundle),
    ("certificate", certificate),
    ("command_line", command_line),
    ("cpio_initramfs", cpio_initramfs),
    ("dsse_envelope", dsse_envelope),
    ("erofs_files", erofs_files),
    ("erofs_image", erofs_image),
    ("erofs_oci", erofs_oci),
    ("erofs_superblock", erofs_superblock),
    ("evidence", evidence),
    ("file_system_id", file_system_id),
    ("gpt", gpt),
    ("integrity_superblock", integrity_superblock),
    ("iofs_toml", iofs_toml),
    ("kernel_image", kernel_image),
    ("key_history", key_history),
    ("luks_header", luks_header),
    ("luks_token", luks_token),
    ("manifest", manifest),
    ("measurement_log", measurement_log),
    ("module_alias", module_alias),
    ("module_index", module_index),
    ("os_release", os_release),
    ("pcr_signatures", pcr_signatures),
    ("policy_key", policy_key),
    ("quote", quote),
    ("release", release),
    ("sealed_object", sealed_object),
    ("slot_footer", slot_footer),
    ("slot_record", slot_record),
    ("superblock_difference", superblock_difference),
    ("tar", tar),
    ("tcg_log", tcg_log),
    ("tpm_response", tpm_response),
    ("tpm_structure", tpm_structure),
    ("trust_policy", trust_policy),
    ("uevent", uevent),
    ("unified_kernel_image", unified_kernel_image),
    ("verity_superblock", verity_superblock),
    ("verity_table", verity_table),
];
