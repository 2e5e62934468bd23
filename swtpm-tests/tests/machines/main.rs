//! Whatever takes a kernel or firmware. One program, so that its tests keep all processors busy from first to last.

mod attestation;
mod attested_firmware;
mod compression;
mod debian_boots;
mod disk_encryption;
mod enrolled_once;
mod harness;
mod image_equals_tree;
mod many_partitions;
mod measured_boot;
mod package;
mod refusals;
mod second_stage;
mod secure_boot;
mod signed_policy;
mod slots;
mod systemd_dissect;
mod systemd_log;
mod volume_tables;
mod volumes;
