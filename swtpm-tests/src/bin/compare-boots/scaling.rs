//! Boots of images of growing size, of which each reads the same: ours, and a classic initramfs that has all of it in memory.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use anyhow::{Result, ensure};
use iofs_policy::manifest::TpmUse;
use swtpm_tests::{Machine, cache, chain::Chain, tools};
use tempfile::TempDir;

use crate::{
    stopwatch::{self, STOPWATCH},
    with_stopwatch,
};

/// The Debian whose kernel is booted.
const SUITE: &str = "trixie";
/// What each boot reads, MiB; an image of that size has little else.
const READ: usize = 10;
/// The applets that the stopwatch calls.
const APPLETS: [&str; 7] = ["sh", "cat", "dmesg", "grep", "mount", "sleep", "tr"];

/// Prints content in MiB, when all was read by the classic one and by ours, what the latter read in units of 4 KiB, and of how many.
pub(crate) fn measure(size: usize) -> Result<()> {
    // Gigabytes, and /tmp may be memory.
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let root = folder.path().join("root");
    fill(&root, size)?;
    let classic = stopwatch::boot(&classic(&folder, &root, size)?)?;
    let chain = Chain::seal(SUITE, &root, |request| with_stopwatch(request, TpmUse::Off))?;
    let (disk, report) = chain.disk()?;
    let ours = stopwatch::boot(&chain.machine("compare_boots", &disk).memory_mib(1024))?;
    let image = report.partitions.iter().map(|partition| partition.size / 4096).max().unwrap_or_default();
    println!("{size:12} {:12.1} {:12.1} {:12} {image:12}", classic.all_read, ours.all_read, ours.sectors / 8);
    Ok(())
}

/// A busybox with what is read, and files that nobody reads.
fn fill(root: &Path, size: usize) -> Result<()> {
    for name in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "usr/lib/stopwatch", "usr/sbin", "var/ballast"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    fs::copy(tools::require("busybox", "apt-get install busybox-static")?, root.join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::copy(stopwatch::program(), root.join("usr/sbin/stopwatch"))?;
    let mut bytes = Ballast(1);
    bytes.write_mib(&root.join("usr/lib/stopwatch/read"), READ)?;
    (READ..size).try_for_each(|number| bytes.write_mib(&root.join(format!("var/ballast/{number}")), 1))
}

/// Numbers of a linear congruential generator, of which half are zeros, so that they compress to half.
struct Ballast(u64);

impl Ballast {
    fn write_mib(&mut self, path: &Path, size: usize) -> Result<()> {
        let words = (0..size << 17).flat_map(|number| {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if number % 16 < 8 { self.0.to_le_bytes() } else { [0; 8] }
        });
        Ok(File::create(path)?.write_all(&words.collect::<Vec<u8>>())?)
    }
}

/// All of it in one compressed archive, which the kernel unpacks before it starts anything.
fn classic(folder: &TempDir, root: &Path, size: usize) -> Result<Machine> {
    let path = folder.path().join("classic.img");
    let pack = "cd \"$1\" && find . | cpio --quiet -o -H newc -R 0:0 | zstd -q -T0 >\"$2\"";
    let output = Command::new("sh").args(["-ec", pack, "sh"]).args([root, &path]).output()?;
    ensure!(output.status.success(), "{pack}: {}", String::from_utf8_lossy(&output.stderr));
    // The archive and what it becomes, which may take half of the memory.
    let memory = u32::try_from(1024 + size * 3)?;
    Ok(Machine::named("compare_boots")
        .kernel(cache::kernel(SUITE)?.vmlinuz)
        .initrd(&path)
        .memory_mib(memory)
        .append(&format!("rdinit={STOPWATCH}")))
}
