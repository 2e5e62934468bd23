//! A whole Debian that updates itself: from slot to slot over three releases, each confirmed by its own unit.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};
use iofs_policy::{
    manifest::RollbackIndex,
    slots::{Outcome, SlotName},
};
use iofs_sign::{
    seal::{SealRequest, config::SlotsSection},
    sealed,
};
use serde_json::Value;
use swtpm_tests::{Disk, Ending, Machine, ScratchDisk, attester, cache, chain::Chain, tools, workshop::Workshop};

use super::support::{Device, TRIES, as_is, slot_that_runs};

/// A whole Debian takes its time, and the units behind it.
const COMPLETE: Duration = Duration::from_secs(600);
/// Where releases are found, as often as it is asked for.
pub(super) const MOUNT_STICK: &str =
    "mkdir -p /run/stick; mountpoint -q /run/stick || mount -t erofs /dev/vdb /run/stick";
/// Later, since the shell's answer would be overtaken by its end.
const POWER_OFF: &str = "(sleep 1; systemctl poweroff) >/dev/null 2>&1 &";

/// A Debian 13 of this version whose unit confirms each boot once it is complete, as `packaging/` has it.
pub(super) fn debian(version: u64, change: impl FnOnce(&mut SealRequest)) -> Result<Chain> {
    debian_with(version, |_| Ok(()), change)
}

/// The same with what `add` puts into it.
pub(super) fn debian_with(
    version: u64,
    add: fn(&Path) -> Result<()>,
    change: impl FnOnce(&mut SealRequest),
) -> Result<Chain> {
    let added = tempfile::tempdir()?;
    attester::add_mark_good(added.path(), "")?;
    fs::write(added.path().join("etc/version"), format!("{version}\n"))?;
    add(added.path())?;
    let root = attester::root_with(added.path())?;
    Chain::seal("trixie", &root, |request| {
        request.config.slots = Some(SlotsSection { tries: TRIES, ..SlotsSection::default() });
        request.config.image.version = Some(version.to_string().parse().expect("valid"));
        request.config.image.rollback_index = RollbackIndex(version);
        request.config.trust.minimum_rollback_index = Some(RollbackIndex(1));
        change(request);
    })
}

/// A stick with releases, each in a folder that is called like its version.
pub(super) fn stick(releases: &[(u64, &Chain)]) -> Result<ScratchDisk> {
    let folder = tempfile::tempdir_in(cache::target_folder("vm-scratch")?)?;
    for (version, chain) in releases {
        let to = folder.path().join("releases").join(version.to_string());
        fs::create_dir_all(&to)?;
        let directory = chain.directory();
        let names = [
            sealed::IMAGE,
            sealed::TREE,
            sealed::MANIFEST,
            sealed::TRUST,
            sealed::RELEASE,
            sealed::UKI,
            sealed::KEY_HISTORY,
        ];
        for name in names.into_iter().filter(|name| directory.has(name)) {
            fs::hard_link(directory.file(name), to.join(name))
                .or_else(|_| fs::copy(directory.file(name), to.join(name)).map(drop))?;
        }
    }
    let image: PathBuf = folder.path().join("stick");
    let mkfs = tools::require("mkfs.erofs", "apt-get install erofs-utils")?;
    let made = Command::new(mkfs).arg(&image).arg(folder.path().join("releases")).output()?;
    ensure!(made.status.success(), "mkfs.erofs: {}", String::from_utf8_lossy(&made.stderr));
    ScratchDisk::copy_of(&image)
}

/// Boots it until its unit has confirmed the release, and shows what it says of itself.
pub(super) fn running(machine: Machine, stick: &ScratchDisk, version: u64) -> Result<(Workshop, Value)> {
    running_once(attester::MARKED_GOOD, machine, stick, version)
}

/// The same once a command has succeeded there.
pub(super) fn running_once(
    ready: &str,
    machine: Machine,
    stick: &ScratchDisk,
    version: u64,
) -> Result<(Workshop, Value)> {
    let vm = machine.disk(Disk::raw(stick.path())).memory_mib(1024).start()?;
    let mut shell = Workshop::of(vm, ScratchDisk::empty(4096)?)?;
    shell.run_for(ready, COMPLETE)?;
    ensure!(shell.run("cat /etc/version")? == version.to_string());
    let status = serde_json::from_str(&shell.run("iofs-sign status --json")?)?;
    Ok((shell, status))
}

/// Has the running system write a release of the stick into its other slot.
pub(super) fn update(shell: &mut Workshop, release: u64) -> Result<Value> {
    shell.run(MOUNT_STICK)?;
    let updated: Value = serde_json::from_str(&shell.run(&format!("iofs-sign update /run/stick/{release} --json"))?)?;
    ensure!(updated["version"].as_str() == Some(&release.to_string()), "{updated:#}");
    Ok(updated)
}

pub(super) fn shut_down(mut shell: Workshop) -> Result<()> {
    shell.run(POWER_OFF)?;
    ensure!(shell.vm().wait_for_end(COMPLETE)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn a_debian_13_updates_itself_from_slot_to_slot_over_three_releases() -> Result<()> {
    let (second, third) = (debian(2, as_is)?, debian(3, as_is)?);
    let stick = stick(&[(2, &second), (3, &third)])?;
    let device = Device::new("slots_debian", debian(1, as_is)?)?;
    for (version, slot, next) in [(1, "a", Some(2)), (2, "b", Some(3)), (3, "a", None)] {
        let (mut shell, status) = running(device.machine(), &stick, version)?;
        let here = slot_that_runs(&status, true)?;
        ensure!(here["name"] == slot && here["trial"] == "good", "{status:#}");
        ensure!(status["slots"]["floor"] == version, "{status:#}");
        if let Some(next) = next {
            println!("{version} to {next}: {}", update(&mut shell, next)?);
        } else {
            let told = shell.attempt(&format!("{MOUNT_STICK}; iofs-sign update /run/stick/2"))?;
            ensure!(told.code == 4, "rollback: an older release is refused: {told:?}");
        }
        shut_down(shell)?;
    }
    let boots = device.record()?.boots;
    let told: Vec<_> = boots.iter().map(|boot| (boot.slot, boot.outcome)).collect();
    use SlotName::{A, B};
    ensure!(told == [(A, Outcome::Ended), (B, Outcome::Ended), (A, Outcome::Ended)], "{told:?}");
    Ok(())
}
