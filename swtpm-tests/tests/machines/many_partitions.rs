//! A partition among 128: a boot finds it by one look at the kernel's list and one read of the partition table, since neither
//! kernel tells unique ids. `blkid` probes each partition, and udev's rules have it do so.
//!
//! How long each takes is printed (`--nocapture`); what each reads is what is checked.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use iofs_policy::manifest::TpmUse;
use swtpm_tests::{
    DeviceShell, Disk, ScratchDisk,
    attester::{self, SHELL_INIT},
    chain::{Chain, verify_inits},
    medium::{Partition, partitioned},
    tools,
};

const PATIENCE: Duration = Duration::from_secs(180);
const COUNT: u32 = 128;
/// The disk with the partitions; the first one is that of the root.
const DISK: &str = "vdb";

fn partuuid(number: u32) -> String {
    format!("0a0b0c0d-0102-4304-8506-0000000000{number:02x}")
}

/// A disk of 128 partitions, each with a file system in it.
fn disk() -> Result<ScratchDisk> {
    let folder = tempfile::tempdir()?;
    let content = folder.path().join("ext4");
    fs::File::create(&content)?.set_len(1 << 20)?;
    let mke2fs = tools::require("mke2fs", "apt-get install e2fsprogs")?;
    ensure!(std::process::Command::new(mke2fs).args(["-q", "-F", "-t", "ext4"]).arg(&content).status()?.success());
    let names: Vec<(String, String)> = (1..=COUNT).map(|number| (format!("part{number}"), partuuid(number))).collect();
    let partitions = names.iter().map(|(label, uuid)| Partition { label, uuid, content: &content });
    partitioned(&partitions.collect::<Vec<_>>())
}

/// What a search took.
#[derive(Debug)]
struct Search {
    microseconds: u64,
    /// Of the disk, 512 bytes each.
    sectors: u64,
    output: String,
}

fn search(shell: &mut DeviceShell, command: &str) -> Result<Search> {
    let script = format!(
        "sync; echo 3 >/proc/sys/vm/drop_caches; rm -rf /run/blkid; \
         read() {{ tr -s ' ' </sys/block/{DISK}/stat | cut -d' ' -f4; }}; \
         sectors=$(read); start=$(date +%s%N); {command} >/tmp/output; end=$(date +%s%N); \
         echo $(( (end - start) / 1000 )) $(( $(read) - sectors )); cat /tmp/output"
    );
    let text = String::from_utf8(shell.output(&script, PATIENCE)?)?;
    let (numbers, output) = text.split_once('\n').context("numbers first")?;
    let (microseconds, sectors) = numbers.split_once(' ').context("two numbers")?;
    Ok(Search { microseconds: microseconds.parse()?, sectors: sectors.parse()?, output: output.trim().to_owned() })
}

/// A Debian that boots right into the shell, with verify-init in it.
fn chain(suite: &str) -> Result<Chain> {
    let added = tempfile::tempdir()?;
    for folder in ["etc", "usr/lib/iofs"] {
        fs::create_dir_all(added.path().join(folder))?;
    }
    let name = "verify-init-full";
    fs::copy(verify_inits()?.join(name), added.path().join("usr/lib/iofs").join(name))?;
    let root = attester::root_with(added.path())?;
    Chain::seal(suite, &root, |request| {
        request.config.boot.init = Some(SHELL_INIT.parse().expect("valid"));
        request.config.tpm.usage = TpmUse::Off;
    })
}

/// Searches for the last partition in each way, in one guest.
fn finds(suite: &str) -> Result<()> {
    let (chain, many) = (chain(suite)?, disk()?);
    let (root, _) = chain.disk()?;
    let name = format!("many_partitions_{suite}");
    let mut vm = chain.machine(&name, &root).disk(Disk::raw(many.path())).memory_mib(1024).start()?;
    let mut shell = vm.device_shell(PATIENCE)?;
    shell.output("/usr/lib/systemd/systemd-udevd --daemon; udevadm settle", PATIENCE)?;
    let wanted = format!("PARTUUID={}", partuuid(COUNT));
    let device = format!("/dev/{DISK}{COUNT}");

    let ours = search(&mut shell, &format!("/usr/lib/iofs/verify-init-full --find {wanted}"))?;
    let blkid = search(&mut shell, &format!("blkid --cache-file /dev/null --output device --match-token {wanted}"))?;
    let udev = search(&mut shell, "udevadm trigger --action=add --subsystem-match=block --settle")?;
    println!("{suite}, {COUNT} partitions: microseconds, sectors read of the disk");
    for (who, search) in [("verify-init", &ours), ("blkid", &blkid), ("udevadm settle", &udev)] {
        println!("{who:16} {:8} {:6}", search.microseconds, search.sectors);
    }
    ensure!(ours.output.starts_with(&format!("{device}: {wanted}, found among ")), "{ours:?}");
    ensure!(blkid.output == device, "{blkid:?}");
    // Header and entries are 33 sectors; the kernel reads whole pages, and ahead.
    ensure!(ours.sectors <= 256, "{ours:?}");
    ensure!(blkid.sectors >= u64::from(COUNT) * 8 && udev.sectors >= u64::from(COUNT) * 8, "{blkid:?} {udev:?}");
    shell.power_off()?;
    vm.wait_for_end(PATIENCE)?;
    Ok(())
}

#[test]
fn one_of_128_is_found_by_one_read_of_the_partition_table_on_6_1() -> Result<()> {
    finds("bookworm")
}

#[test]
fn one_of_128_is_found_by_one_read_of_the_partition_table_on_6_12() -> Result<()> {
    finds("trixie")
}
