//! Real Debian systems, sealed and booted to multi-user by the kernels of their releases.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iofs_policy::{boot_record::BootRecord, failure::Stage, manifest::Place};
use iofs_sign::{initramfs::profile::Profile, seal::config::PlaceText};
use swtpm_tests::{
    Bus, Disk, Ending, Line, Machine, Vm, cache,
    chain::{Chain, ROOT_REACHED},
};

/// A whole Debian boot under emulation, on a busy machine.
const BOOT: Duration = Duration::from_secs(300);
const TINY: Duration = Duration::from_secs(90);

/// What the root's own report says behind a word.
fn reported(vm: &Vm, word: &str) -> Result<String> {
    let start = format!("IOFS-REPORT {word} ");
    let line = vm.wait_for_line(&Line::containing(&start), BOOT)?;
    let (_, text) = line.text.split_once(&start).context("the line holds the word")?;
    Ok(text.to_owned())
}

fn boots_to_multi_user(suite: &str, kernel: &str) -> Result<()> {
    let chain = Chain::seal(suite, &cache::root(suite)?, |_| ())?;
    let (disk, _) = chain.disk()?;
    let machine = chain.machine(&format!("debian_boots_{suite}"), &disk).memory_mib(1024).append("iofs.test=poweroff");
    let mut vm = machine.start()?;
    vm.wait_for_line(&Line::exactly("IOFS-REPORT begin"), BOOT)?;
    let state = reported(&vm, "state")?;
    let failed = reported(&vm, "failed")?;
    ensure!(state == "running" && failed == "none", "state {state}, failed units: {failed}");
    let root = reported(&vm, "root")?;
    ensure!(root.starts_with("overlay overlay rw") && root.contains("lowerdir=/run/iofs/lower"), "/ is {root}");

    let slow = vm.console().find(&Line::containing("using shash \"sha256-generic\""));
    ensure!(slow.is_none(), "the processor's own SHA-256 was not loaded before dm-verity");

    let record: BootRecord = serde_json::from_str(&reported(&vm, "boot")?)?;
    let manifest = chain.manifest()?;
    ensure!(record.root_hash == manifest.verity.root_hash && record.image_id == manifest.image.id, "{record:?}");
    ensure!(record.kernel_release.starts_with(kernel), "booted {}", record.kernel_release);
    ensure!(record.verity_table.contains(&record.root_hash.to_string()), "{}", record.verity_table);
    ensure!(record.warnings.is_empty(), "{:?}", record.warnings);
    let stages: Vec<Stage> = record.stages.iter().map(|stage| stage.stage).collect();
    let all = [
        Stage::Started,
        Stage::Verified,
        Stage::Measured,
        Stage::Found,
        Stage::Mapped,
        Stage::Mounted,
        Stage::Capped,
        Stage::Switched,
    ];
    ensure!(stages == all, "{stages:?}");
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn debian_12_boots_to_multi_user_on_6_1() -> Result<()> {
    boots_to_multi_user("bookworm", "6.1.")
}

#[test]
fn debian_13_boots_to_multi_user_on_6_12() -> Result<()> {
    boots_to_multi_user("trixie", "6.12.")
}

/// Boots a tiny root that tells about itself, and checks that it got to its end.
fn tiny_boots(machine: &Machine, lines: &[&str]) -> Result<()> {
    let mut vm = machine.start()?;
    vm.wait_for_line(&Line::containing(ROOT_REACHED), TINY)?;
    for line in lines {
        vm.wait_for_line(&Line::containing(line), TINY)?;
    }
    ensure!(vm.wait_for_end(TINY)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn a_root_without_overlay_is_read_only() -> Result<()> {
    let script = "cat /proc/mounts; touch /etc/x 2>/dev/null || echo 'READ ONLY'";
    let chain = Chain::tiny("trixie", script, |request| request.config.overlay.enabled = false)?;
    let (disk, _) = chain.disk()?;
    tiny_boots(&chain.machine("a_root_without_overlay", &disk), &["/dev/dm-0 / erofs ro", "READ ONLY"])
}

#[test]
fn overlay_upper_what_is_written_is_gone_at_the_next_boot() -> Result<()> {
    let script = "ls /etc/written 2>/dev/null && echo 'STILL THERE'; touch /etc/written && echo 'WRITTEN'; sync";
    let chain = Chain::tiny("bookworm", script, |request| {
        request.config.overlay.size = "32m".parse().expect("valid");
    })?;
    let (disk, _) = chain.disk()?;
    let machine = chain.machine("the_overlay_is_gone", &disk);
    tiny_boots(&machine, &["WRITTEN"])?;
    let mut vm = machine.start()?;
    vm.wait_for_line(&Line::exactly("WRITTEN"), TINY)?;
    ensure!(vm.wait_for_end(TINY)? == Ending::PoweredOff);
    ensure!(vm.console().find(&Line::exactly("STILL THERE")).is_none(), "the overlay outlived the boot");
    Ok(())
}

#[test]
fn partitions_are_found_by_label_on_scsi() -> Result<()> {
    let label = |name: &str| Some(PlaceText(Place::PartLabel(name.parse().expect("valid"))));
    let chain = Chain::tiny("bookworm", "", |request| {
        request.config.place.data = label("system_a");
        request.config.place.tree = label("system_a-verity");
    })?;
    let (disk, _) = chain.disk()?;
    let machine = chain.without_disk("partitions_by_label").disk(Disk::raw(disk.path()).on(Bus::VirtioScsi));
    tiny_boots(&machine, &[])
}

#[test]
fn a_sata_disk_takes_the_profile_cloud_and_the_one_for_kvm_says_so() -> Result<()> {
    for (profile, boots) in [(Profile::Cloud, true), (Profile::Vm, false)] {
        let chain = Chain::tiny("trixie", "", |request| {
            request.config.modules.profile = profile;
            request.config.boot.device_timeout = 3;
        })?;
        let (disk, _) = chain.disk()?;
        let machine = chain.without_disk(&format!("sata_{profile:?}")).disk(Disk::raw(disk.path()).on(Bus::Ahci));
        if boots {
            tiny_boots(&machine, &[])?;
            continue;
        }
        let vm = machine.start()?;
        vm.wait_for_line(&Line::containing("a wider profile of modules has more"), TINY)?;
        ensure!(vm.console().find(&Line::containing(ROOT_REACHED)).is_none(), "the root was reached without its disk");
    }
    Ok(())
}

#[test]
fn whole_disks_are_found_by_name_on_nvme() -> Result<()> {
    let place = |name: &str| Some(PlaceText(Place::Disk(name.parse().expect("valid"))));
    let chain = Chain::tiny("trixie", "", |request| {
        request.config.place.data = place("nvme0n1");
        request.config.place.tree = place("vda");
    })?;
    let directory = chain.directory();
    let on = |name: &str, bus| Disk::raw(directory.file(name)).on(bus).discarding_writes();
    let machine = chain
        .without_disk("whole_disks_by_name")
        .disk(on(iofs_sign::sealed::IMAGE, Bus::Nvme))
        .disk(on(iofs_sign::sealed::TREE, Bus::VirtioBlk));
    tiny_boots(&machine, &[])
}

#[test]
fn the_real_init_inherits_no_descriptor_and_no_initramfs() -> Result<()> {
    let script = "ls -l /proc/self/fd | while read -r line; do echo \"FD $line\"; done; \
                  grep -c . /proc/mounts; [ -e /etc/iofs ] && echo 'INITRAMFS LEFT'";
    let chain = Chain::tiny("trixie", script, |_| ())?;
    let (disk, _) = chain.disk()?;
    let mut vm = chain.machine("the_real_init_inherits_nothing", &disk).start()?;
    ensure!(vm.wait_for_end(TINY)? == Ending::PoweredOff);
    let descriptors: Vec<String> = vm
        .console()
        .lines()
        .into_iter()
        .map(|line| line.text)
        .filter(|text| text.contains("FD ") && text.contains(" -> "))
        .collect();
    ensure!(!descriptors.is_empty(), "the root told nothing of its descriptors");
    for one in &descriptors {
        let expected = ["/dev/console", "pipe:", "/proc/"].iter().any(|name| one.contains(name));
        ensure!(expected, "a descriptor leaked: {one}");
    }
    ensure!(vm.console().find(&Line::exactly("INITRAMFS LEFT")).is_none());
    Ok(())
}
