//! UEFI firmware with Secure Boot, and systemd-boot, which counts the tries of releases in slots.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context, Result, ensure};
use iofs_policy::{
    failure::FailureAction,
    manifest::RollbackIndex,
    slots::{Chooser, SlotName},
    verity::CorruptionAction,
};
use iofs_sign::{
    disk::DiskReport,
    seal::{SealRequest, config::SlotsSection},
};
use serde_json::{Value, json};
use swtpm_tests::{
    Disk, Ending, FirmwareImage, Line, Machine, ScratchDisk, SecureBoot, TpmState, attester::SHELL_INIT, cache,
    chain::Chain, workshop::Workshop,
};

use super::{
    support::{BOOT, TRIES, find, reached, sealed, slot_that_runs},
    updates::{debian_with, running, running_once, shut_down, stick, update},
};

/// Sealed for a boot loader that chooses, which firmware with these keys starts.
fn for_loader(keys: &SecureBoot, request: &mut SealRequest) -> Result<()> {
    FirmwareImage::new(keys, "trixie", "panic=-1")?.ask(request);
    let config = &mut request.config;
    config.image.id = Some("org.example.gateway".parse()?);
    config.slots = Some(SlotsSection { tries: TRIES, chooser: Chooser::BootLoader, ..SlotsSection::default() });
    config.boot.on_failure = FailureAction::Reboot;
    config.boot.on_corruption = CorruptionAction::Restart;
    // The root has no modules of its own, and mounts the EFI system partition.
    config.modules.add = ["vfat", "nls_cp437", "nls_ascii"].map(str::to_owned).to_vec();
    config.trust.minimum_rollback_index = Some(RollbackIndex(1));
    Ok(())
}

/// A tiny root of this version that does what `script` says.
fn tiny(keys: &SecureBoot, version: u64, script: &str) -> Result<Chain> {
    sealed(
        |change| Chain::tiny("trixie", &format!("echo 'RELEASE {version}'\n{script}"), change),
        |request| {
            request.config.image.version = Some(version.to_string().parse()?);
            request.config.image.rollback_index = RollbackIndex(version);
            for_loader(keys, request)
        },
    )
}

/// Mounts the EFI system partition where `update` and `mark-good` look for it.
fn add_mount(added: &Path) -> Result<()> {
    let units = added.join("etc/systemd/system");
    let mount = "[Unit]\nDescription=What firmware starts\n[Mount]\nWhat=/dev/disk/by-partlabel/esp\nWhere=/boot\nType=vfat\nOptions=umask=0077\n";
    fs::write(units.join("boot.mount"), mount)?;
    Ok(symlink("../boot.mount", units.join("multi-user.target.wants/boot.mount"))?)
}

struct Gateway {
    name: &'static str,
    keys: SecureBoot,
    tpm: TpmState,
    disk: ScratchDisk,
    report: DiskReport,
}

impl Gateway {
    /// With its first release in slot a.
    fn new(name: &'static str, keys: SecureBoot, first: &Chain) -> Result<Self> {
        let boot_loader = keys.image_signer().sign(&fs::read(cache::boot_loader("trixie")?)?)?;
        let (disk, report) = first.disk_that_loads(&boot_loader)?;
        Ok(Self { name, tpm: TpmState::new()?, keys, disk, report })
    }

    fn machine(&self) -> Machine {
        Machine::named(self.name).disk(Disk::raw(self.disk.path())).secure_boot(&self.keys).tpm(&self.tpm)
    }
}

/// The names of the files that the loader sees, as `status` tells.
fn loader(status: &Value) -> Vec<String> {
    let files = status["loader"].as_array().into_iter().flatten();
    files.filter_map(|file| Some(file["path"].as_str()?.rsplit_once('/')?.1.to_owned())).collect()
}

#[test]
fn systemd_boot_counts_the_tries_of_releases_and_comes_back_from_a_corrupt_one() -> Result<()> {
    let keys = SecureBoot::new()?;
    let debian =
        |version| sealed(|change| debian_with(version, add_mount, change), |request| for_loader(&keys, request));
    let (first, second, third) = (debian(1)?, debian(2)?, debian(3)?);
    let corrupt = tiny(&keys, 4, "cat /ballast >/dev/null && echo 'BALLAST READ'")?;
    let stick = stick(&[(2, &second), (3, &third), (4, &corrupt)])?;
    let gateway = Gateway::new("slots_systemd_boot", keys, &first)?;

    for (version, slot, next) in [(1, "a", 2), (2, "b", 3), (3, "a", 4)] {
        let (mut shell, status) = running(gateway.machine(), &stick, version)?;
        let here = slot_that_runs(&status, true)?;
        ensure!(here["name"] == slot && here["trial"] == "good", "{status:#}");
        ensure!(loader(&status).contains(&format!("org.example.gateway-{slot}.efi")), "{status:#}");
        println!("{version} to {next}: {}", update(&mut shell, next)?);
        shut_down(shell)?;
    }

    // Release 4 in slot b, with a block of its ballast changed.
    let slot = find(&gateway.report, "system_b")?;
    gateway.disk.flip_bit(slot.offset + 3 * 1024 * 1024, 0)?;
    let mut vm = gateway.machine().start()?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::Reset && reached(&vm).as_deref() == Some("4"));
    ensure!(vm.console().find(&Line::containing("BALLAST READ")).is_none());
    let mut vm = gateway.machine().start()?;
    vm.wait_for_line(&Line::containing("slot b is corrupt and out until it is written again"), BOOT)?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::Reset && reached(&vm).is_none());

    let (shell, status) = running(gateway.machine(), &stick, 3)?;
    ensure!(loader(&status) == ["org.example.gateway-a.efi", "org.example.gateway-b+0-2.efi"], "{status:#}");
    let boots = status["slots"]["boots"].as_array().context("the last boots")?;
    let told: Vec<_> = boots.iter().map(|boot| (boot["slot"].clone(), boot["outcome"].clone())).collect();
    let (a, b) = (json!(SlotName::A), json!(SlotName::B));
    let ended = |slot: &Value| (slot.clone(), json!("ended"));
    let expected = [
        ended(&a),
        ended(&b),
        ended(&a),
        (b.clone(), json!("corrupt")),
        (b.clone(), json!({"refused": "chosen"})),
        (a, json!("good")),
    ];
    ensure!(told == expected, "{told:#?}");
    shut_down(shell)
}

/// The first release, as firmware starts it right into a shell; and what `status` says.
fn shell(gateway: &Gateway, stick: &ScratchDisk) -> Result<(Workshop, Value)> {
    let mounted = "mkdir -p /boot && mount -t vfat $(findfs PARTLABEL=esp) /boot";
    running_once(mounted, gateway.machine(), stick, 1)
}

#[test]
fn systemd_boot_falls_back_from_a_release_that_crashes_and_from_one_that_nobody_confirms() -> Result<()> {
    let keys = SecureBoot::new()?;
    let first = sealed(
        |change| debian_with(1, |_| Ok(()), change),
        |request| {
            for_loader(&keys, request)?;
            request.config.boot.init = Some(SHELL_INIT.parse()?);
            Ok(())
        },
    )?;
    let (crashes, never) = (tiny(&keys, 2, "exit 1")?, tiny(&keys, 3, "")?);
    let stick = stick(&[(2, &crashes), (3, &never)])?;
    let gateway = Gateway::new("slots_firmware_fallback", keys, &first)?;

    let (mut device, _) = shell(&gateway, &stick)?;
    device.run("iofs-sign mark-good")?;
    for (version, panics) in [(2, true), (3, false)] {
        println!("1 to {version}: {}", update(&mut device, version)?);
        device.run("umount /boot")?;
        device.close()?;
        for _ in 0..TRIES {
            let mut vm = gateway.machine().start()?;
            let ending = vm.wait_for_end(BOOT)?;
            ensure!(
                if panics { matches!(ending, Ending::Panicked(_)) } else { ending == Ending::PoweredOff },
                "{ending:?}"
            );
            ensure!(reached(&vm) == Some(version.to_string()));
        }
        let status;
        (device, status) = shell(&gateway, &stick)?;
        ensure!(loader(&status) == ["org.example.gateway-a.efi", "org.example.gateway-b+0-2.efi"], "{status:#}");
        let told = device.run("iofs-sign status")?;
        let gave_up = format!("slot b:    {version} (rollback index {version}), not confirmed, no tries left");
        ensure!(told.contains(&gave_up), "{told}");
    }
    device.close()
}
