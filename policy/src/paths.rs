//! Where things lie, in the mini-initramfs and in the running system. The build writes what the boot reads.

/// The signed manifest, a DSSE envelope, inside the mini-initramfs.
pub const MANIFEST: &str = "/etc/iofs/manifest.dsse.json";
/// The trust policy, inside the mini-initramfs: what authenticates it is whatever authenticates the initramfs.
pub const TRUST: &str = "/etc/iofs/trust.json";
/// The root hash, signed for the kernel's own check, inside the mini-initramfs: PKCS #7 in DER.
pub const ROOT_HASH_SIGNATURE: &str = "/etc/iofs/roothash.p7s";
/// The index of kernel modules, inside the mini-initramfs.
pub const MODULE_INDEX: &str = "/etc/iofs/modules";
/// The record of the boot, on the `/run` that survives into the real system.
pub const BOOT_RECORD: &str = "/run/iofs/boot.json";
/// The trust policy of the boot, for updates: on the `/run` that survives, where there are slots.
pub const TRUST_COPY: &str = "/run/iofs/trust.json";
/// The key history of the release that was booted, for updates: beside the copy of the trust policy, where the slot has one.
pub const KEY_HISTORY_COPY: &str = "/run/iofs/keys.history";
/// The name of the verity mapping: what systemd's generators expect of a verity root.
pub const ROOT_MAPPING: &str = "root";
/// The name of the verity mapping of a second stage, whose real root may well be called `root`.
pub const SECOND_STAGE_MAPPING: &str = "initoverlay";
/// The image with its tree behind it, where it travels inside the mini-initramfs.
pub const IMAGE: &str = "/etc/iofs/image";
/// The log of what user space measured, where systemd appends to it.
pub const MEASUREMENT_LOG: &str = "/run/log/systemd/tpm2-measure.log";
