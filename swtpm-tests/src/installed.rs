//! Debians as their distribution installs them: on disks with its own boot loader, kernel and initramfs.
//!
//! `scripts/make-machine` says which there are. A test gets a copy of a machine's disks, which keeps what was written from boot to
//! boot, and commands run there as root:
//!
//! ```no_run
//! # use std::time::Duration;
//! # fn main() -> anyhow::Result<()> {
//! use swtpm_tests::installed::Installed;
//!
//! let machine = Installed::machine("bookworm-initramfs-tools")?.carrying(&["target/iofs-sign.deb"])?;
//! let mut booted = machine.boot()?;
//! booted.output("dpkg --install /mnt/iofs-sign.deb")?;
//! booted.power_off()?;
//! let booted = machine.boot()?; // the next boot, with the package
//! # Ok(())
//! # }
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{DeviceShell, Disk, Ending, Machine, Ran, ScratchDisk, Vm, attester, cache, tools};

/// What the initramfs of an encrypted machine asks for.
pub const PASSPHRASE: &str = "an installed machine";
/// How it asks, by initramfs-tools' askpass.
pub const PROMPT: &str = "Please unlock disk root_crypt: ";

/// From power on until the shell answers, on a busy host.
const BOOT: Duration = Duration::from_secs(240);
/// A command there: installing a kernel makes an initramfs.
const COMMAND: Duration = Duration::from_secs(600);
/// Stopping all services.
const POWER_OFF: Duration = Duration::from_secs(120);
/// Where [`Installed::carrying`] puts files.
const FILES: &str = "/mnt";

/// An installed machine of one test's own. Its disks are removed when it is dropped.
#[derive(Debug)]
pub struct Installed {
    folder: PathBuf,
    machine: Machine,
    disks: Vec<ScratchDisk>,
    files: Option<ScratchDisk>,
    passphrase: Option<&'static str>,
}

impl Installed {
    /// A copy of the machine that `scripts/make-machine` calls so.
    ///
    /// # Errors
    ///
    /// Where it is not in the cache, or cannot be copied.
    pub fn machine(name: &str) -> Result<Self> {
        let folder = cache::machine(name)?;
        let images =
            ["disk0.raw", "disk1.raw"].map(|name| folder.join(name)).into_iter().filter(|image| image.exists());
        let disks = images.map(ScratchDisk::copy_of).collect::<Result<Vec<_>>>()?;
        let machine = Machine::named(&format!("installed {name}")).uefi().memory_mib(1024);
        let machine = disks.iter().fold(machine, |machine, disk| machine.disk(Disk::raw(disk.path())));
        let passphrase = name.ends_with("-luks").then_some(PASSPHRASE);
        Ok(Self { folder, machine, disks, files: None, passphrase })
    }

    /// Changes the machine around the disks: a TPM, firmware that enforces Secure Boot, more disks, more memory.
    #[must_use]
    pub fn with(self, change: impl FnOnce(Machine) -> Machine) -> Self {
        Self { machine: change(self.machine), ..self }
    }

    /// Puts these files into the machine, by a disk that each boot mounts read-only at `/mnt`.
    ///
    /// # Errors
    ///
    /// Where one cannot be read.
    pub fn carrying(self, files: &[impl AsRef<Path>]) -> Result<Self> {
        let disk = disk_of_files(files)?;
        let attached = Disk::raw(disk.path()).serial("files").read_only();
        Ok(Self { files: Some(disk), ..self.with(|machine| machine.disk(attached)) })
    }

    /// One of its disks, to look into or to tamper with while the machine is off.
    pub fn disk(&self, number: usize) -> &ScratchDisk {
        &self.disks[number]
    }

    /// The version of the kernel that is installed.
    ///
    /// # Errors
    ///
    /// Where the cache is incomplete.
    pub fn kernel(&self) -> Result<String> {
        self.note("kernel")
    }

    /// The next kernel of its suite, another ABI than the installed one: its version, and the package, which depends on nothing
    /// that is not installed.
    ///
    /// # Errors
    ///
    /// Where the cache is incomplete.
    pub fn newer_kernel(&self) -> Result<(String, PathBuf)> {
        let package = fs::read_dir(self.folder.join("newer"))?.next().context("a package of the newer kernel")??;
        Ok((self.note("newer-kernel")?, package.path()))
    }

    /// Switches it on, and does nothing more.
    ///
    /// # Errors
    ///
    /// As [`Machine::start`].
    pub fn start(&self) -> Result<Vm> {
        self.machine.start()
    }

    /// Switches it on, answers what it asks for, and waits until it is up.
    ///
    /// # Errors
    ///
    /// Where it does not come up in time, with the console's last lines.
    pub fn boot(&self) -> Result<Booted> {
        let started = Instant::now();
        let mut vm = self.start()?;
        if let Some(passphrase) = self.passphrase {
            vm.console().wait_for_text(PROMPT, BOOT)?;
            vm.type_line(passphrase)?;
        }
        let shell = vm.device_shell(BOOT)?;
        let mut booted = Booted { vm, shell, took: started.elapsed() };
        if self.files.is_some() {
            booted.output(&format!("mount -o ro /dev/disk/by-id/virtio-files {FILES}"))?;
        }
        Ok(booted)
    }

    fn note(&self, name: &str) -> Result<String> {
        let path = self.folder.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }
}

/// An installed machine that is up.
#[derive(Debug)]
pub struct Booted {
    /// The machine.
    pub vm: Vm,
    /// Root's shell there.
    pub shell: DeviceShell,
    /// From power on until the shell answered.
    pub took: Duration,
}

impl Booted {
    /// Runs a command with bash.
    ///
    /// # Errors
    ///
    /// As [`DeviceShell::run`].
    pub fn run(&mut self, command: &str) -> Result<Ran> {
        self.shell.run(command, COMMAND)
    }

    /// Runs a command that must succeed, and returns its output as text without the last line end.
    ///
    /// # Errors
    ///
    /// As [`DeviceShell::output`].
    pub fn output(&mut self, command: &str) -> Result<String> {
        let output = String::from_utf8(self.shell.output(command, COMMAND)?)?;
        Ok(output.trim_end_matches('\n').to_owned())
    }

    /// Has it shut down as its owner would, and waits until its power is off.
    ///
    /// # Errors
    ///
    /// Where it does not end in time, or otherwise.
    pub fn power_off(mut self) -> Result<()> {
        // Later, as its answer would be overtaken by the end of the shell.
        self.output("(sleep 1; systemctl poweroff) >/dev/null 2>&1 &")?;
        let ending = self.vm.wait_for_end(POWER_OFF)?;
        ensure!(ending == Ending::PoweredOff, "expected the machine to switch itself off, found {ending:?}");
        Ok(())
    }
}

/// An ext4 file system, which each of these kernels has built in, with these files and some room.
fn disk_of_files(files: &[impl AsRef<Path>]) -> Result<ScratchDisk> {
    const ROOM: u64 = 16 << 20;
    let folder = tempfile::tempdir()?;
    let mut size = ROOM;
    for file in files.iter().map(AsRef::as_ref) {
        let name = file.file_name().with_context(|| format!("{} names no file", file.display()))?;
        size += fs::copy(file, folder.path().join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    // Some of it is the file system's own.
    let disk = ScratchDisk::empty((size + size / 8).next_multiple_of(4096))?;
    let mke2fs = tools::require("mke2fs", "apt-get install e2fsprogs")?;
    let mut format = Command::new(mke2fs);
    format.args(["-q", "-F", "-t", "ext4", "-d"]).arg(folder.path()).arg(disk.path());
    attester::run(&mut format)?;
    Ok(disk)
}
