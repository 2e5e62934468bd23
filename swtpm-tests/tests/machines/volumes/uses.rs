//! The two uses of volumes beside data: the sealed image itself, and what is written to the root.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use anyhow::{Result, ensure};
use iofs_policy::boot_record::UnlockedBy;
use iofs_sign::sealed;
use serde_json::json;
use swtpm_tests::{
    Disk, Ending, Machine, ScratchDisk, TpmState,
    chain::Chain,
    volume::{VolumeFile, disk_of},
    workshop::{self, PROTECTED_BYTES, Workshop},
};

use super::support::{BOOT, Identity, PASSPHRASE, boot_record, enroll, is_latched, opened, refused, sealed_volumes};

/// A Debian 13 of which nothing lies on the disk in clear: the image in one volume, what is written in the other.
fn device() -> Result<Chain> {
    workshop::device("trixie", |request| {
        let (config, inside) = (&mut request.config, json!("volume:system"));
        config.place.data = serde_json::from_value(inside.clone()).expect("a place");
        config.place.tree = serde_json::from_value(inside).expect("a place");
        config.volumes = sealed_volumes(&[
            json!({ "name": "system", "place": "PARTLABEL=system", "use": "image" }),
            json!({ "name": "upper", "place": "PARTLABEL=upper", "use": { "upper": { "file_system": "ext4" } } }),
        ]);
    })
}

/// The volume that holds the image and its tree.
fn system(chain: &Chain) -> Result<VolumeFile> {
    let (directory, verity) = (chain.directory(), chain.manifest()?.verity);
    let plain = tempfile::NamedTempFile::new()?;
    fs::copy(directory.file(sealed::IMAGE), plain.path())?;
    let tree = fs::read(directory.file(sealed::TREE))?;
    let file = File::options().write(true).open(plain.path())?;
    file.write_all_at(&tree, verity.hash_offset)?;
    file.set_len((verity.hash_offset + tree.len() as u64).next_multiple_of(4096))?;
    VolumeFile::holding(plain.path(), PASSPHRASE, "")
}

fn machine(name: &str, chain: &Chain, disk: &ScratchDisk, tpm: &TpmState) -> Machine {
    chain.without_disk(name).memory_mib(1024).tpm(tpm).disk(Disk::raw(disk.path()))
}

#[test]
fn overlay_upper_an_image_within_a_volume_keeps_what_is_written_on_a_protected_volume_alone() -> Result<()> {
    let (chain, tpm) = (device()?, TpmState::new()?);
    let (system, upper) = (system(&chain)?, workshop::protected(&tpm, PASSPHRASE)?);
    enroll(&system, &tpm, &chain, &[])?;
    enroll(&upper, &tpm, &chain, &[])?;
    let disk = disk_of(&[("system", &system), ("upper", &upper)])?;
    let machine = machine("a_persistent_upper", &chain, &disk, &tpm);
    for boot in 1..=2 {
        let mut device = Workshop::of(machine.start()?, ScratchDisk::empty(512)?)?;
        let by_tpm = |name: &str| (name.to_owned(), UnlockedBy::Tpm);
        ensure!(opened(&boot_record(&mut device)?) == [by_tpm("system"), by_tpm("upper")]);
        is_latched(&mut device, &[Identity::of("system", &system)?, Identity::of("upper", &upper)?])?;
        let tables = device.run("dmsetup table")?;
        for part in
            ["upper: 0 ", "crypt capi:authenc(hmac(sha256),xts(aes))-plain64", "integrity:32:aead", "system: 0 "]
        {
            ensure!(tables.contains(part), "no {part:?} in {tables}");
        }
        let root = device.run("grep ' / ' /proc/mounts")?;
        for option in ["redirect_dir=nofollow", "metacopy=off"] {
            // The kernel shows what is not its default.
            ensure!(root.contains(option) || option == "metacopy=off", "no {option} in {root}");
        }
        ensure!(!root.contains("metacopy=on"), "{root}");
        let boots = device.run(&format!("echo boot {boot} >>/etc/boots; sync; cat /etc/boots"))?;
        ensure!(boots == (1..=boot).map(|boot| format!("boot {boot}")).collect::<Vec<_>>().join("\n"), "{boots}");
        device.close()?;
    }
    a_changed_upper_is_refused(&chain, &disk, &system, &tpm)?;
    an_unprotected_upper_is_refused(&chain, &system)
}

/// Somebody with the disk changes what the boot before has written: one bit of every sector.
fn a_changed_upper_is_refused(chain: &Chain, disk: &ScratchDisk, system: &VolumeFile, tpm: &TpmState) -> Result<()> {
    let start = (1 << 20) + fs::metadata(system.path())?.len().next_multiple_of(1 << 20);
    // Behind the header, the keyslots, and what dm-integrity keeps of its own.
    for sector in (start + (8 << 20)..start + PROTECTED_BYTES).step_by(512) {
        disk.flip_bit(sector, 0)?;
    }
    let mut vm = machine("a_changed_upper", chain, disk, tpm).start()?;
    refused(&vm, &["BOOT REFUSED before stage \"mounted\""])?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}

/// The same chain with an upper layer that has no protection from changes, enrolled like the other.
fn an_unprotected_upper_is_refused(chain: &Chain, system: &VolumeFile) -> Result<()> {
    let (tpm, upper) = (TpmState::new()?, VolumeFile::with_file(PASSPHRASE, "name", "upper")?);
    enroll(system, &tpm, chain, &[])?;
    enroll(&upper, &tpm, chain, &[])?;
    let disk = disk_of(&[("system", system), ("upper", &upper)])?;
    let mut vm = machine("an_unprotected_upper", chain, &disk, &tpm).start()?;
    refused(&vm, &["\"unlocked\": volume upper: what is written to the root would not be protected"])?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}
