//! What `inspect` found, as people read it.

use std::fmt::{self, Display, Formatter};

use iofs_policy::{
    boot_record::BootRecord,
    manifest::{Manifest, Volume, VolumeUse},
    release::Release,
    trust::KeyId,
};

use super::{
    Checked, Document, InspectedDisk, InspectedErofs, InspectedInitramfs, InspectedMove, InspectedSuperblock,
    Inspection, ListedEntry,
};

impl Display for Inspection {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::SealedDirectory { manifest, release, history } => {
                manifest.fmt(out)?;
                if let Some(history) = history {
                    write!(out, "\n{history}")?;
                }
                match release {
                    Some(release) => write!(out, "\n{release}"),
                    None => write!(out, "\nrelease statement: none yet"),
                }
            }
            Self::KeyHistory { moves } => {
                writeln!(out, "key history of {} moves", moves.len())?;
                moves.iter().try_for_each(|one| key_move(one, out))
            }
            Self::Manifest(document) => manifest(document, out),
            Self::Release(document) => release(document, out),
            Self::Trust { policy, keys } => {
                writeln!(out, "trust policy for {} ({})", policy.image_id, policy.role)?;
                writeln!(out, "  signatures needed: {} of {}", policy.keys.threshold(), keys.len())?;
                keys.iter().try_for_each(|key| writeln!(out, "  trusted key: {}", named(*key)))?;
                writeln!(out, "  key moves before it: {}", policy.key_sequence)?;
                policy.revoked.iter().try_for_each(|key| writeln!(out, "  revoked key: {}", named(*key)))?;
                writeln!(out, "  rollback floor: {}", policy.minimum_rollback_index)?;
                writeln!(out, "  on failure: {}", policy.on_failure)
            }
            Self::VeritySuperblock(superblock) => verity(superblock, out),
            Self::Erofs(image) => erofs(image, out),
            Self::Initramfs(initramfs) => list(initramfs, out),
            Self::Disk(disk) => partitions(disk, out),
            Self::Luks2(volume) => volume.fmt(out),
            Self::Uki(image) => image.fmt(out),
            Self::Kernel { release, machine } => writeln!(out, "kernel {release} ({machine})"),
            Self::Key { private, keyid, .. } => {
                let half = if *private { "private" } else { "public" };
                writeln!(out, "ed25519 {half} key\n  key id: {}", named(*keyid))
            }
            Self::BootRecord(record) => timeline(record, out),
            Self::ModuleIndex { release, modules } => {
                writeln!(out, "module index for kernel {release}\n  modules: {}", modules.join(" "))
            }
        }
    }
}

fn named(key: KeyId) -> String {
    let remark = if key.is_example() { " (a published example key: anybody can sign with it)" } else { "" };
    format!("{key}{remark}")
}

fn signers(keys: &[KeyId], out: &mut Formatter<'_>) -> fmt::Result {
    if keys.is_empty() {
        return writeln!(out, "  signatures: none");
    }
    keys.iter().try_for_each(|key| writeln!(out, "  claims a signature by: {}", named(*key)))
}

fn manifest(document: &Document<Manifest>, out: &mut Formatter<'_>) -> fmt::Result {
    let manifest = &document.payload;
    let (image, verity) = (&manifest.image, &manifest.verity);
    let debug = if image.debug { ", DEBUG image" } else { "" };
    writeln!(out, "manifest of {} {} ({}, {}{debug})", image.id, image.version, image.role, image.architecture)?;
    writeln!(out, "  digest: sha256:{}", document.digest)?;
    signers(&document.claimed_signers, out)?;
    writeln!(out, "  bytes to sign: sha256:{}", document.signed_bytes_sha256)?;
    writeln!(out, "  rollback index: {}", image.rollback_index)?;
    writeln!(out, "  root hash: {} ({})", verity.root_hash, verity.parameters.algorithm)?;
    writeln!(
        out,
        "  data: {} blocks of {} bytes on {}",
        verity.parameters.data_blocks, verity.parameters.data_block_size, manifest.data
    )?;
    writeln!(out, "  tree: at byte {} of {}", verity.hash_offset, manifest.tree)?;
    writeln!(out, "  salt: {}", verity.parameters.salt)?;
    let overlay = match (&manifest.overlay, manifest.upper()) {
        (Some(overlay), _) => Some(format!("tmpfs of {}", overlay.tmpfs_size)),
        (None, upper) => upper.map(|(volume, _)| format!("kept on the volume {}", volume.name)),
    };
    writeln!(out, "  overlay: {}", overlay.as_deref().unwrap_or("none, the root is read-only"))?;
    writeln!(out, "  init: {}", manifest.init)?;
    writeln!(out, "  kernel: {}", manifest.kernel_release.as_deref().unwrap_or("any"))?;
    writeln!(out, "  device timeout: {} s", manifest.device_timeout)?;
    let corruption = verity.on_corruption.option().unwrap_or("reads fail (eio)");
    writeln!(out, "  on corruption: {corruption}; on failure: {}", manifest.on_failure)?;
    let srk = if manifest.tpm.srk.is_some() { ", for one TPM only" } else { "" };
    writeln!(out, "  TPM: {}{srk}", manifest.tpm.usage)?;
    if let Some(rule) = manifest.tpm.rollback {
        let (counter, value) = (rule.counter, rule.value);
        writeln!(out, "  rollback counter: {counter:#010x}; at {value} it stands for rollback index {}", rule.index)?;
    }
    manifest.volumes.iter().try_for_each(|one| volume(one, out))?;
    for line in &manifest.command_lines {
        writeln!(out, "  command line: {line}")?;
    }
    if !manifest.allowed_parameters.is_empty() {
        writeln!(out, "  allowed on the command line: {}", manifest.allowed_parameters.join(" "))?;
    }
    match &manifest.keys {
        Some(change) => {
            let trusted: Vec<KeyId> = change.trusted.ids().collect();
            writeln!(out, "  keys from here on: move {}", change.sequence)?;
            keys(change.trusted.threshold(), &trusted, &change.revoked, out)
        }
        None => Ok(()),
    }
}

fn key_move(one: &InspectedMove, out: &mut Formatter<'_>) -> fmt::Result {
    writeln!(out, "move {} by release {}", one.sequence, one.version)?;
    signers(&one.claimed_signers, out)?;
    keys(one.threshold, &one.trusted, &one.revoked, out)
}

fn keys(threshold: u8, trusted: &[KeyId], revoked: &[KeyId], out: &mut Formatter<'_>) -> fmt::Result {
    writeln!(out, "    signatures needed: {threshold} of {}", trusted.len())?;
    trusted.iter().try_for_each(|key| writeln!(out, "    trusted key: {}", named(*key)))?;
    revoked.iter().try_for_each(|key| writeln!(out, "    revoked key: {}", named(*key)))
}

fn volume(volume: &Volume, out: &mut Formatter<'_>) -> fmt::Result {
    let usage = match &volume.usage {
        VolumeUse::Data(data) => format!("{} on {}", data.file_system, data.path),
        VolumeUse::Image => "the image".to_owned(),
        VolumeUse::Upper(upper) => format!("{} for what is written to the root", upper.file_system),
    };
    let unlock = &volume.unlock;
    let ways = [(unlock.tpm, "TPM"), (unlock.pin, "PIN"), (unlock.passphrase, "passphrase")];
    let ways: Vec<&str> = ways.into_iter().filter(|(allowed, _)| *allowed).map(|(_, way)| way).collect();
    let optional = if volume.optional { ", optional" } else { "" };
    let (name, place) = (&volume.name, &volume.place);
    writeln!(out, "  volume {name}: {place}, {usage}, opened by {}{optional}", ways.join(" or "))?;
    if let Some(uuid) = volume.luks_uuid {
        writeln!(out, "    LUKS UUID: {uuid}")?;
    }
    match volume.volume_key {
        Some(key) => writeln!(out, "    volume key: {key}"),
        None => Ok(()),
    }
}

fn release(document: &Document<Release>, out: &mut Formatter<'_>) -> fmt::Result {
    let release = &document.payload;
    writeln!(out, "release statement for {} {}", release.image.id, release.image.version)?;
    signers(&document.claimed_signers, out)?;
    writeln!(out, "  manifest: sha256:{}", release.manifest_digest)?;
    writeln!(out, "  root hash: {}", release.root_hash)?;
    writeln!(out, "  kernel: {}", release.kernel_release.as_deref().unwrap_or("none"))?;
    for artifact in &release.artifacts {
        writeln!(out, "  {:>12}  {}  {}", artifact.size, artifact.sha256, artifact.name)?;
    }
    Ok(())
}

fn verity(superblock: &InspectedSuperblock, out: &mut Formatter<'_>) -> fmt::Result {
    let parameters = &superblock.parameters;
    writeln!(out, "verity superblock {}", superblock.uuid)?;
    writeln!(out, "  hash type: {}, algorithm: {}", u32::from(parameters.format), parameters.algorithm)?;
    writeln!(
        out,
        "  data: {} blocks of {} bytes ({} bytes)",
        parameters.data_blocks, parameters.data_block_size, superblock.data_bytes
    )?;
    let levels: Vec<String> = superblock.levels.iter().map(u64::to_string).collect();
    writeln!(
        out,
        "  tree: {} bytes, blocks of {} bytes a level, from the data up: {}",
        superblock.tree_bytes,
        parameters.hash_block_size,
        levels.join(" ")
    )?;
    writeln!(out, "  salt: {}", parameters.salt)?;
    writeln!(out, "  note: nobody signs a superblock; the manifest decides")
}

fn erofs(image: &InspectedErofs, out: &mut Formatter<'_>) -> fmt::Result {
    let superblock = &image.superblock;
    writeln!(out, "erofs image {}", superblock.uuid)?;
    writeln!(out, "  {} blocks of {} bytes, {} inodes", superblock.blocks, superblock.block_size, superblock.inodes)?;
    let algorithms = if image.algorithms.is_empty() { "none".to_owned() } else { image.algorithms.join(" ") };
    writeln!(out, "  compression: {algorithms}; least kernel: {}", image.least_kernel)?;
    let checksum = match superblock.checksum_holds {
        Some(true) => "holds",
        Some(false) => "DOES NOT HOLD",
        None => "none",
    };
    writeln!(out, "  superblock checksum: {checksum}")?;
    if let Some(checked) = &image.checked {
        let Checked { inodes, names, bytes } = checked;
        writeln!(out, "  read and whole: {inodes} inodes by {names} names, {bytes} bytes")?;
    }
    image.entries.iter().flatten().try_for_each(|entry| line(entry, out))
}

fn list(initramfs: &InspectedInitramfs, out: &mut Formatter<'_>) -> fmt::Result {
    for segment in &initramfs.segments {
        writeln!(
            out,
            "archive {} at {}: {} bytes {}, {} unpacked, {} entries",
            segment.index,
            segment.offset,
            segment.size,
            segment.compression.name(),
            segment.unpacked_size,
            segment.entries
        )?;
        for entry in initramfs.entries.iter().filter(|entry| entry.segment == Some(segment.index)) {
            line(entry, out)?;
        }
    }
    Ok(())
}

fn line(entry: &ListedEntry, out: &mut Formatter<'_>) -> fmt::Result {
    let target = entry.target.as_ref().map(|target| format!(" -> {target}")).unwrap_or_default();
    writeln!(out, "{} {:>5} {:>5} {:>10} {}{target}", entry.mode, entry.uid, entry.gid, entry.size, entry.name)
}

/// The stages, each with a bar as long as it took.
fn timeline(record: &BootRecord, out: &mut Formatter<'_>) -> fmt::Result {
    const WIDTH: u64 = 40;
    let debug = if record.debug { ", DEBUG image" } else { "" };
    writeln!(out, "boot of {} {} ({}{debug})", record.image_id, record.image_version, record.role)?;
    writeln!(out, "  kernel: {}, verify-init {}", record.kernel_release, record.verify_init)?;
    record.signers.iter().try_for_each(|key| writeln!(out, "  signed by: {}", named(*key)))?;
    writeln!(out, "  root hash: {}", record.root_hash)?;
    writeln!(out, "  data: {}, tree: {}", record.data_device, record.hash_device)?;
    let milliseconds = |nanoseconds: u64| format!("{}.{}", nanoseconds / 1_000_000, nanoseconds / 100_000 % 10);
    let start = record.stages.first().map_or(0, |first| first.reached_ns.saturating_sub(first.took_ns));
    writeln!(out, "  {:<9} {:>9} {:>9}", "stage", "took ms", "at ms")?;
    writeln!(out, "  {:<9} {:>9} {:>9}", "kernel", milliseconds(start), milliseconds(start))?;
    let total: u64 = record.stages.iter().map(|stage| stage.took_ns).sum::<u64>().max(1);
    let mut before = 0;
    for stage in &record.stages {
        let (indent, length) = (before * WIDTH / total, (stage.took_ns * WIDTH / total).max(1));
        let bar = format!("{}{}", " ".repeat(indent as usize), "█".repeat(length as usize));
        let (took, at) = (milliseconds(stage.took_ns), milliseconds(stage.reached_ns));
        writeln!(out, "  {:<9} {took:>9} {at:>9}  {bar}", stage.stage.name())?;
        before += stage.took_ns;
    }
    record.warnings.iter().try_for_each(|warning| writeln!(out, "  warning: {warning}"))
}

fn partitions(disk: &InspectedDisk, out: &mut Formatter<'_>) -> fmt::Result {
    writeln!(out, "disk image {}", disk.disk_uuid)?;
    for one in &disk.partitions {
        let (entry, read_only) = (&one.entry, if one.read_only { ", read-only" } else { "" });
        writeln!(
            out,
            "partition {} {:?}: {} bytes at {}{read_only}",
            entry.number, entry.label, entry.size, entry.offset
        )?;
        let purpose = one.purpose.map_or_else(String::new, |purpose| format!(" ({purpose})"));
        writeln!(out, "  PARTUUID {}, type {}{purpose}", entry.partuuid, entry.type_uuid)?;
        writeln!(out, "  begins with: {}", one.content.unwrap_or("something unknown"))?;
    }
    Ok(())
}
