//! Slots that are two files of one file system, of which one device writes the other by itself.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use iofs_policy::{
    manifest::MediumKind,
    slots::{SlotName, Trial},
};
use iofs_sign::{
    seal::{SealRequest, config::PlaceText},
    sealed,
};
use serde_json::Value;
use swtpm_tests::{
    Line, ScratchDisk,
    attester::{self, SHELL_INIT},
    chain::Chain,
    medium,
    volume::{partitioned, splice},
    workshop::Workshop,
};

use super::{
    support::{record_in, slot_that_runs},
    updates::{MOUNT_STICK, debian_with, running_once, stick},
};

/// What a slot takes for these releases.
const SLOT: u64 = 96 << 20;
/// Both, and what a file system keeps of its own.
const FILE_SYSTEM: u64 = 2 * SLOT + (64 << 20);
const STATE: u64 = 1 << 20;
/// Has the device write where verify-init reads from: the kernel lets nobody mount that for writing right away.
const MOUNT: &str =
    "mkdir -p /run/slots && mount -t ext4 -o ro,noload /dev/vda2 /run/slots && mount -o remount,rw /run/slots";
const UPDATE: &str = "iofs-sign update /run/stick/2 --slot b --device /run/slots/iofs/b --state /dev/vda1 \
    --boot-record /run/iofs/boot.json --json";

fn place(slot: SlotName) -> PlaceText {
    PlaceText(format!("ext4:UUID={}:/iofs/{slot}", medium::UUID).parse().expect("a place"))
}

fn ask(request: &mut SealRequest) {
    request.config.boot.init = Some(SHELL_INIT.parse().expect("valid"));
    request.config.slots.as_mut().expect("it has slots").places = SlotName::ALL.map(place);
}

/// The first release in file a, written by the tool that writes a device from another system.
fn device(first: &Chain) -> Result<ScratchDisk> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let file = |name: &str, size| File::create(path(name))?.set_len(size);
    std::fs::create_dir_all(path("files/iofs"))?;
    for (name, size) in [("files/iofs/a", SLOT), ("files/iofs/b", SLOT), ("state", STATE), ("ext4", FILE_SYSTEM)] {
        file(name, size)?;
    }
    install(first, &path("files/iofs/a"), &path("state"))?;
    medium::write(MediumKind::Ext4, &path("files"), &path("ext4"))?;
    let disk = partitioned(&[("iofs_state", STATE), ("slots", FILE_SYSTEM)])?;
    splice(&path("state"), &disk, 1 << 20)?;
    splice(&path("ext4"), &disk, (1 << 20) + STATE)?;
    Ok(disk)
}

fn install(release: &Chain, slot: &Path, state: &Path) -> Result<()> {
    let directory = release.directory();
    let trust: PathBuf = directory.file(sealed::TRUST);
    let ran = Command::new(attester::program("iofs-sign")?)
        .arg("update")
        .arg(directory.path())
        .args(["--slot", "a", "--device"])
        .arg(slot)
        .arg("--state")
        .arg(state)
        .arg("--trust")
        .arg(trust)
        .output()?;
    ensure!(ran.status.success(), "iofs-sign update: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(())
}

struct Device {
    first: Chain,
    disk: ScratchDisk,
    stick: ScratchDisk,
}

impl Device {
    /// Boots, and checks which release runs from which file.
    fn boot(&self, version: u64, slot: &str) -> Result<Workshop> {
        let machine = self.first.machine("slots_files", &self.disk);
        let (shell, status) = running_once("true", machine, &self.stick, version)?;
        ensure!(slot_that_runs(&status, true)?["name"] == slot, "{status:#}");
        Ok(shell)
    }
}

#[test]
fn slots_that_are_files_are_updated_from_within_and_a_damaged_one_gives_way_to_the_other() -> Result<()> {
    let (first, second) = (debian_with(1, |_| Ok(()), ask)?, debian_with(2, |_| Ok(()), ask)?);
    let device = Device { disk: device(&first)?, stick: stick(&[(2, &second)])?, first };
    let mut shell = device.boot(1, "a")?;
    shell.run("iofs-sign mark-good")?;
    shell.run(&format!("{MOUNT_STICK}; {MOUNT}"))?;
    let updated: Value = serde_json::from_str(&shell.run(UPDATE)?)?;
    ensure!(updated["blocks"]["reused"].as_u64() > updated["blocks"]["read"].as_u64(), "{updated:#}");
    shell.close()?;

    let mut shell = device.boot(2, "b")?;
    shell.run(&format!(
        "{MOUNT} && dd if=/dev/urandom of=/run/slots/iofs/b bs=4096 seek=5000 count=1 conv=notrunc,fsync"
    ))?;
    shell.cut_power();

    let mut shell = device.boot(1, "a")?;
    let told = Line::containing("slot b is corrupt and out until it is written again");
    ensure!(shell.vm().console().find(&told).is_some());
    ensure!(record_in(&device.disk, 1 << 20)?.b.map(|state| state.trial) == Some(Trial::Corrupt));
    shell.run(&format!("{MOUNT_STICK}; {MOUNT}"))?;
    let updated: Value = serde_json::from_str(&shell.run(UPDATE)?)?;
    // The one block that was damaged.
    let missing = updated["blocks"]["total"].as_u64().zip(updated["blocks"]["in_place"].as_u64());
    ensure!(missing.is_some_and(|(total, in_place)| total - in_place == 1), "{updated:#}");
    shell.close()?;
    device.boot(2, "b")?.close()
}
