//! The published attacks on volumes that a TPM unlocks, each performed on a booted device.

use anyhow::{Context, Result, ensure};
use iofs_policy::{boot_record::UnlockedBy, pcr::PcrBank};
use iofs_sign::seal::SealRequest;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use swtpm_tests::{
    Disk, Ending, ScratchDisk, TpmState,
    chain::Chain,
    volume::{VolumeFile, data_volume, disk_of},
    workshop::{self, Workshop, measured_at_unlock},
};

use super::support::{
    ASKS_PASSPHRASE, ASKS_PIN, BOOT, Identity, PASSPHRASE, PIN, answer, boot_record, command_line, enroll, file_with,
    is_latched, machine, opened, refused, sealed_volumes, told,
};

/// What is said of a PIN that the TPM does not take any more.
const LOCKED: &str = "the TPM is locked after too many wrong PINs";
/// How systemd opens a volume by the TPM alone.
const ATTACH: &str = "systemd-cryptsetup attach real";
const OPTIONS: &str = "- tpm2-device=/dev/tpmrm0,headless=1";
/// What the attacker's own volume is opened by.
const ROGUE: &str = "the attacker knows this one";

fn device(volumes: &[Value], change: impl FnOnce(&mut SealRequest)) -> Result<Chain> {
    workshop::device("trixie", |request| {
        request.config.volumes = sealed_volumes(volumes);
        change(request);
    })
}

/// A volume of the attacker's that looks like another: same UUID, same place.
fn rogue_twin(of: &VolumeFile) -> Result<VolumeFile> {
    let twin = VolumeFile::with_file(ROGUE, "name", "rogue")?;
    twin.cryptsetup(&format!("luksUUID --uuid {}", of.uuid()?))?;
    ensure!(twin.uuid()? == of.uuid()?);
    Ok(twin)
}

#[test]
fn rogue_root_a_foreign_volume_with_the_same_uuid_is_refused_by_its_key() -> Result<()> {
    let volume = VolumeFile::with_file(PASSPHRASE, "name", "state")?;
    let mut sealed = data_volume("state", "/srv", &json!({ "passphrase": true }));
    sealed["volume_key"] = Identity::of("state", &volume)?.pin().into();
    sealed["luks_uuid"] = volume.uuid()?.into();
    let chain = device(&[sealed], |_| ())?;
    let (tpm, rogue) = (TpmState::new()?, rogue_twin(&volume)?);
    let disk = disk_of(&[("state", &rogue)])?;
    let (root, _) = chain.disk()?;
    let mut vm = machine("rogue_root_pinned", &chain, &root, &disk, &tpm).start()?;
    answer(&mut vm, ASKS_PASSPHRASE, "state", 1, 3, ROGUE)?;
    refused(
        &vm,
        &[
            "\"unlocked\": volume state: /dev/vdb1 is not the sealed volume",
            "expected: volume key",
            "found:    volume key",
        ],
    )?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}

/// Without a pin the foreign volume opens, by its own passphrase, and the system that it carries asks the TPM for the real
/// one's secret, in every bank, with every program that there is.
#[test]
fn rogue_root_and_replay_after_switch_root_the_running_system_gets_nothing_from_the_tpm() -> Result<()> {
    let chain = device(&[data_volume("state", "/srv", &json!({ "passphrase": true }))], |_| ())?;
    let (tpm, real) = (TpmState::new()?, VolumeFile::with_file(PASSPHRASE, "name", "state")?);
    enroll(&real, &tpm, &chain, &[])?;
    let (rogue, real_disk) = (rogue_twin(&real)?, disk_of(&[("real", &real)])?);
    let (rogue_disk, objects) = (disk_of(&[("state", &rogue)])?, ScratchDisk::empty(1 << 20)?);

    let mut workshop = Workshop::open("replay_workshop", "trixie", &tpm, &[&real_disk, &objects])?;
    workshop.reach(&measured_at_unlock(&chain, &command_line())?)?;
    workshop.run("cryptsetup open --test-passphrase --token-only /dev/vdb1")?;
    workshop.run(&format!("{ATTACH} /dev/vdb1 {OPTIONS} && cryptsetup close real"))?;
    seal_in_every_bank(&mut workshop)?;
    workshop.run("tar -C /run -cf /dev/vdc objects")?;
    workshop.close()?;

    let (root, _) = chain.disk()?;
    let machine = machine("replay_after_switch_root", &chain, &root, &rogue_disk, &tpm)
        .disk(Disk::raw(real_disk.path()))
        .disk(Disk::raw(objects.path()));
    let mut vm = machine.start()?;
    answer(&mut vm, ASKS_PASSPHRASE, "state", 1, 3, ROGUE)?;
    let mut device = Workshop::of(vm, root)?;
    ensure!(opened(&boot_record(&mut device)?) == [("state".to_owned(), UnlockedBy::Passphrase)]);
    is_latched(&mut device, &[Identity::of("state", &rogue)?])?;
    for command in
        ["cryptsetup open --test-passphrase --token-only /dev/vdc1".to_owned(), format!("{ATTACH} /dev/vdc1 {OPTIONS}")]
    {
        let ran = device.attempt(&command)?;
        ensure!(ran.code != 0, "{command} was not refused");
    }
    device.run("tar -C /run -xf /dev/vdd")?;
    for bank in PcrBank::ALL {
        let ran = device.attempt(&unsealing(bank))?;
        ensure!(ran.code != 0, "the {bank} bank still unseals");
        ensure!(ran.stderr.contains("0x99D") || ran.stderr.contains("policy check failed"), "{bank}: {}", ran.stderr);
    }
    device.cut_power();
    Ok(())
}

/// Seals something to register 11 of each bank, and shows that it is unsealed in this state.
fn seal_in_every_bank(workshop: &mut Workshop) -> Result<()> {
    workshop.run("mkdir /run/objects; tpm2_createprimary -Q -C o -c /run/objects/parent")?;
    for bank in PcrBank::ALL {
        workshop.run(&format!(
            "set -e; cd /run/objects; echo secret >/run/secret
             tpm2_createpolicy -Q --policy-pcr -l {bank}:11 -L {bank}.policy
             tpm2_create -Q -C parent -L {bank}.policy -i /run/secret -u {bank}.pub -r {bank}.priv"
        ))?;
        let unsealed = workshop.run(&unsealing(bank))?;
        ensure!(unsealed == "secret", "{bank}: {unsealed}");
    }
    Ok(())
}

/// A transient parent is gone after a power cycle, and made again the same.
fn unsealing(bank: PcrBank) -> String {
    format!(
        "set -e; cd /run/objects; tpm2_createprimary -Q -C o -c parent
         tpm2_load -Q -C parent -u {bank}.pub -r {bank}.priv -c object; tpm2_unseal -c object -p pcr:{bank}:11"
    )
}

#[test]
fn luks_cipher_null_a_header_that_names_no_cipher_is_refused_before_anything_is_asked() -> Result<()> {
    let chain = device(&[data_volume("state", "/srv", &json!({ "passphrase": true }))], |_| ())?;
    let (tpm, volume) = (TpmState::new()?, VolumeFile::with_file(PASSPHRASE, "name", "state")?);
    enroll(&volume, &tpm, &chain, &[])?;
    let disk = disk_of(&[("state", &volume)])?;
    rewrite_headers(&disk, 1 << 20, |metadata| {
        metadata["segments"]["0"]["encryption"] = "cipher_null-ecb".into();
    })?;
    let (root, _) = chain.disk()?;
    let mut vm = machine("luks_cipher_null", &chain, &root, &disk, &tpm).start()?;
    refused(&vm, &["\"unlocked\": volume state: the header on /dev/vdb1 is refused", "cipher_null-ecb"])?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}

/// Changes the metadata in both headers of a volume, and makes their checksums hold: LUKS2 On-Disk Format Specification,
/// section 2.1.
fn rewrite_headers(disk: &ScratchDisk, volume: u64, change: impl Fn(&mut Value)) -> Result<()> {
    const BINARY: usize = 4096;
    const CHECKSUM: std::ops::Range<usize> = 448..512;
    let size = u64::from_be_bytes(disk.read(volume + 8, 8)?.as_slice().try_into()?);
    for header in [volume, volume + size] {
        let mut bytes = disk.read(header, usize::try_from(size)?)?;
        let end = bytes[BINARY..].iter().position(|byte| *byte == 0).context("metadata ends with a NUL")?;
        let mut metadata: Value = serde_json::from_slice(&bytes[BINARY..BINARY + end])?;
        change(&mut metadata);
        let text = serde_json::to_vec(&metadata)?;
        bytes[BINARY..].fill(0);
        bytes[BINARY..BINARY + text.len()].copy_from_slice(&text);
        bytes[CHECKSUM].fill(0);
        let digest = Sha256::digest(&bytes);
        bytes[CHECKSUM.start..CHECKSUM.start + digest.len()].copy_from_slice(&digest);
        disk.write(header, &bytes)?;
    }
    Ok(())
}

#[test]
fn lockout_wrong_pins_lock_the_pin_and_neither_the_other_volume_nor_the_passphrase() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let volumes = [
        data_volume("plain", "/mnt", &json!({})),
        data_volume("guarded", "/srv", &json!({ "tpm": false, "pin": true, "passphrase": true, "tries": 10 })),
    ];
    let chain = device(&volumes, |_| ())?;
    let tpm = TpmState::new()?;
    let plain = VolumeFile::with_file(PASSPHRASE, "name", "plain")?;
    let guarded = VolumeFile::with_file(PASSPHRASE, "name", "guarded")?;
    enroll(&plain, &tpm, &chain, &[])?;
    let pin = file_with(folder.path(), "pin", PIN)?;
    enroll(&guarded, &tpm, &chain, &["--pin", "--pin-file", &pin])?;
    let disk = disk_of(&[("plain", &plain), ("guarded", &guarded)])?;

    let (root, _) = chain.disk()?;
    let mut vm = machine("lockout", &chain, &root, &disk, &tpm).start()?;
    // swtpm locks after three wrong ones, and the fourth is not even looked at.
    for number in 1..=4 {
        answer(&mut vm, ASKS_PIN, "guarded", number, 10, "a wrong one")?;
    }
    told(&vm, &[LOCKED])?;
    answer(&mut vm, ASKS_PASSPHRASE, "guarded", 1, 10, PASSPHRASE)?;
    let mut device = Workshop::of(vm, root)?;
    let expected = [("plain".to_owned(), UnlockedBy::Tpm), ("guarded".to_owned(), UnlockedBy::Passphrase)];
    ensure!(opened(&boot_record(&mut device)?) == expected);
    device.close()?;

    // The lock outlives the power; what has no PIN opens all the same.
    let (root, _) = chain.disk()?;
    let mut vm = machine("lockout", &chain, &root, &disk, &tpm).start()?;
    answer(&mut vm, ASKS_PIN, "guarded", 1, 10, PIN)?;
    told(&vm, &[LOCKED])?;
    answer(&mut vm, ASKS_PASSPHRASE, "guarded", 1, 10, PASSPHRASE)?;
    let mut device = Workshop::of(vm, root)?;
    ensure!(opened(&boot_record(&mut device)?) == expected);
    device.cut_power();
    Ok(())
}
