//! Volumes that take a kernel to make, by a real cryptsetup: their headers are read, their keys derived, and the tables are
//! word for word those that cryptsetup loads.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use iofs_luks::{Below, CryptTable, Header, IntegritySuperblock, IntegrityTable, KeyReference, Limits, SlotId};
use iofs_policy::verity::{DeviceNumber, LoadedTarget};
use swtpm_tests::{ScratchDisk, TpmState, workshop::Workshop};

const PASSPHRASE: &str = "correct horse";
const BYTES: u64 = 16 << 20;
/// Cheap to open, little to store, and nothing to wipe: what the sectors hold does not matter here.
const QUICK: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --luks2-metadata-size 16k --luks2-keyslots-size 1m";

/// What cryptsetup formats a volume with, and what it opens it with.
const VOLUMES: [(&str, &str); 7] = [
    ("--sector-size 512", "--persistent --allow-discards --perf-no_read_workqueue"),
    ("--sector-size 4096 --cipher aes-xts-plain64 --key-size 256", "--perf-same_cpu_crypt --persistent"),
    ("--integrity hmac-sha256", ""),
    ("--integrity hmac-sha512 --sector-size 512", ""),
    ("--integrity hmac-sha256 --cipher aes-xts-random", "--integrity-no-journal --persistent"),
    ("--integrity aead --cipher aes-gcm-random --key-size 256", ""),
    ("--integrity aead --cipher aegis128-random --key-size 128", ""),
];

/// What the kernel was told about a volume.
struct Loaded {
    device: DeviceNumber,
    integrity_device: Option<DeviceNumber>,
    crypt: String,
    integrity: Option<String>,
    volume_key: Vec<u8>,
}

fn number(text: &str) -> Result<DeviceNumber> {
    let (major, minor) = text.trim().split_once(':').context("major:minor")?;
    Ok(DeviceNumber { major: major.parse()?, minor: minor.parse()? })
}

/// Formats and opens one volume with cryptsetup, and closes it again.
fn load(workshop: &mut Workshop, disk: &str, format: &str, open: &str) -> Result<Loaded> {
    let wipe = if format.contains("--integrity") { "--integrity-no-wipe" } else { "" };
    workshop.run(&format!(
        "set -e; printf %s '{PASSPHRASE}' >/run/passphrase
         cryptsetup luksFormat --batch-mode --type luks2 --key-file /run/passphrase {QUICK} {format} {wipe} /dev/{disk}
         cryptsetup open --key-file /run/passphrase {open} /dev/{disk} opened"
    ))?;
    let has_integrity = wipe.len() > 1;
    let loaded = Loaded {
        device: number(&workshop.run(&format!("cat /sys/block/{disk}/dev"))?)?,
        integrity_device: has_integrity
            .then(|| number(&workshop.run("dmsetup info -c --noheadings -o major,minor opened_dif")?))
            .transpose()?,
        crypt: workshop.run("dmsetup table opened")?,
        integrity: has_integrity.then(|| workshop.run("dmsetup table opened_dif")).transpose()?,
        volume_key: workshop.volume_key(&format!("/dev/{disk}"), PASSPHRASE)?,
    };
    workshop.run("cryptsetup close opened")?;
    Ok(loaded)
}

/// Holds what is read from the disk against what the kernel was told.
fn compare(disk: &ScratchDisk, loaded: &Loaded) -> Result<()> {
    let mut file = File::open(disk.path())?;
    let header = Header::read(&mut file, BYTES)?;
    ensure!(header.notes.is_empty(), "{:?}", header.notes);
    let slot = SlotId::new(0).context("below 32")?;
    let key = header.open(&mut file, slot, PASSPHRASE.as_bytes(), &Limits::default())?;
    ensure!(key.as_bytes() == loaded.volume_key, "the volume key is another one");
    let reference = KeyReference { bytes: key.as_bytes().len(), description: format!("cryptsetup:{}-d0", header.uuid) };
    let Some(lower_table) = &loaded.integrity else {
        let table = header.crypt_table(&loaded.device.to_string(), Below::Device { bytes: BYTES }, &reference)?;
        return compare_crypt(&table, &loaded.crypt, loaded.device);
    };
    let superblock = IntegritySuperblock::read(&mut file, header.segment())?;
    let lower = header.integrity_table(&loaded.device.to_string(), BYTES, &superblock)?;
    lower.check_loaded(&LoadedTarget::parse(lower_table)?, loaded.device)?;
    ensure!(lower_table.starts_with(&format!("0 {} {} ", lower.sectors(), IntegrityTable::TARGET)));
    let device = loaded.integrity_device.context("a device below")?;
    let table = header.crypt_table(&device.to_string(), Below::Integrity(&lower), &reference)?;
    compare_crypt(&table, &loaded.crypt, device)
}

fn compare_crypt(table: &CryptTable, loaded: &str, device: DeviceNumber) -> Result<()> {
    table.check_loaded(&LoadedTarget::parse(loaded)?, device)?;
    let ours = format!("0 {} {} {table}", table.sectors(), CryptTable::TARGET);
    ensure!(loaded == ours, "cryptsetup loads {loaded:?}, we {ours:?}");
    Ok(())
}

/// All volumes of a Debian suite's cryptsetup and kernel.
fn compare_all(suite: &str) -> Result<()> {
    let tpm = TpmState::new()?;
    let disks = VOLUMES.iter().map(|_| ScratchDisk::empty(BYTES)).collect::<Result<Vec<_>>>()?;
    let mut workshop =
        Workshop::open(&format!("volume_tables_{suite}"), suite, &tpm, &disks.iter().collect::<Vec<_>>())?;
    let mut loaded = Vec::new();
    for ((format, open), letter) in VOLUMES.iter().zip('b'..) {
        let volume = load(&mut workshop, &format!("vd{letter}"), format, open);
        loaded.push(volume.with_context(|| format!("{format} {open}"))?);
    }
    workshop.close()?;
    for ((disk, loaded), (format, open)) in disks.iter().zip(&loaded).zip(VOLUMES) {
        compare(disk, loaded).with_context(|| format!("{format} {open}: {} {:?}", loaded.crypt, loaded.integrity))?;
    }
    Ok(())
}

#[test]
fn tables_and_keys_are_those_of_debian_12() -> Result<()> {
    compare_all("bookworm")
}

#[test]
fn tables_and_keys_are_those_of_debian_13() -> Result<()> {
    compare_all("trixie")
}
