//! The record of this boot, for the system that follows.

use std::io;

use iofs_policy::{
    boot_record::BootRecord,
    paths::{BOOT_RECORD, KEY_HISTORY_COPY, TRUST_COPY},
};

use crate::{boot::Boot, mapped::Mapped, measured::Measuring, report::text, slots::Trial, system::System};

/// Writes the record. A system without it boots all the same.
pub(crate) fn write<S: System>(boot: &mut Boot<'_, S>, mapped: &Mapped) {
    if let Err(error) = try_write(boot, mapped) {
        boot.warn(format!("{BOOT_RECORD}: {}", text(&error)));
    }
}

fn try_write<S: System>(boot: &mut Boot<'_, S>, mapped: &Mapped) -> io::Result<()> {
    let verified = &mapped.verified.manifest;
    let manifest = verified.manifest();
    let image = &manifest.image;
    let record = BootRecord {
        record_version: 1,
        verify_init: env!("CARGO_PKG_VERSION").to_owned(),
        image_id: image.id.clone(),
        image_version: image.version.to_string(),
        rollback_index: image.rollback_index,
        role: image.role,
        architecture: image.architecture,
        debug: image.debug,
        manifest_digest: verified.digest(),
        signers: verified.signers().to_vec(),
        root_hash: manifest.verity.root_hash.clone(),
        data_device: mapped.data_device.clone(),
        hash_device: mapped.hash_device.clone(),
        verity_table: mapped.table.clone(),
        volumes: mapped.volumes.iter().map(|volume| volume.record.clone()).collect(),
        measured_banks: boot.measuring.as_ref().map(Measuring::bank_names).unwrap_or_default(),
        rollback: manifest.tpm.rollback,
        slot: boot.slots.as_ref().and_then(Trial::record),
        kernel_release: mapped.verified.release.clone(),
        warnings: boot.warnings.clone(),
        stages: boot.stages.clone(),
    };
    let mut json = serde_json::to_vec_pretty(&record)?;
    json.push(b'\n');
    // Updates are held against it.
    if boot.slots.is_some() {
        boot.system.write(TRUST_COPY, &mapped.verified.trust.to_json())?;
    }
    if let Some(history) = boot.slots.as_ref().and_then(Trial::key_history) {
        boot.system.write(KEY_HISTORY_COPY, history)?;
    }
    boot.system.write(BOOT_RECORD, &json)
}
