//! The owner's side of encrypted volumes: a Debian with the programs that format, enrol and open them.
//!
//! Its boot measures nothing into the registers that volumes are bound to: a test brings them by hand into the state that
//! `verify-init` will have reached, as [`Workshop::reach`] does.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use iofs_policy::{hex, manifest::TpmUse, measurement::Measurement, pcr::PcrBank};
use iofs_sign::seal::SealRequest;

use crate::{
    DeviceShell, Disk, Ran, ScratchDisk, TpmState, Vm,
    attester::{self, SHELL_INIT},
    cache,
    chain::Chain,
    tools,
    volume::{QUICK, SMALL_HEADER, VolumeFile, partitioned},
};

/// Until the shell answers, on a busy host.
const BOOT: Duration = Duration::from_secs(180);
/// A command there. Formatting with integrity writes each block.
const COMMAND: Duration = Duration::from_secs(180);
/// What Debian's kernels load for volumes (their ext4 is built in), and for firmware's variables, by which systemd knows that a
/// stub measured: below `kernel/` in the modules' folder.
const MODULES: [&str; 6] = ["arch/x86/crypto", "crypto", "drivers/block/loop.ko", "drivers/md", "fs/efivarfs", "lib"];

/// The root with tools of a Debian suite, its kernel's modules and the shell in it, as an erofs image: made once per test
/// program.
///
/// # Errors
///
/// Where the cache lacks the root or the kernel, or sealing fails.
pub fn image(suite: &str) -> Result<PathBuf> {
    static MADE: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let made = made.get_or_insert_default();
    if let Some(image) = made.get(suite) {
        return Ok(image.clone());
    }
    let added = tempfile::tempdir()?;
    attester::add_shell(added.path())?;
    add_modules(suite, added.path())?;
    let name = format!("workshop-{suite}");
    let root = attester::extended(&cache::root(&format!("{suite}-disks"))?, added.path(), &name)?;
    let image = attester::erofs(suite, &root, &name)?;
    fs::remove_file(root)?;
    made.insert(suite.to_owned(), image.clone());
    Ok(image)
}

fn add_modules(suite: &str, added: &Path) -> Result<()> {
    let kernel = cache::kernel(suite)?;
    let modules = added.join("usr/lib/modules").join(&kernel.version);
    for name in MODULES {
        let from = kernel.modules.join("kernel").join(name);
        let to = modules.join("kernel").join(name);
        fs::create_dir_all(to.parent().context("below a folder")?)?;
        // Debian 13 compresses its modules.
        let packed = PathBuf::from(format!("{}.xz", from.display()));
        let from = if from.exists() { from } else { packed };
        let to = to.with_file_name(from.file_name().context("it has a name")?);
        attester::run(Command::new("cp").arg("--recursive").args([&from, &to]))?;
    }
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        attester::copy(&kernel.modules.join(name), &modules.join(name), 0o644)?;
    }
    let depmod = tools::require("depmod", "apt-get install kmod")?;
    // depmod looks below lib/ of its base, and Debian's lib is usr/lib.
    attester::run(Command::new(depmod).arg("--basedir").arg(added.join("usr")).arg(&kernel.version)).map(|_| ())
}

/// A sealed device with all these tools that boots right into the shell, and what `change` makes of its manifest.
///
/// # Errors
///
/// As [`image`], and where sealing fails.
pub fn device(suite: &str, change: impl FnOnce(&mut SealRequest)) -> Result<Chain> {
    Chain::seal(suite, &image(suite)?, |request| {
        request.config.boot.init = Some(SHELL_INIT.parse().expect("valid"));
        request.config.boot.command_lines = attester::command_lines();
        request.config.tpm.usage = TpmUse::Required;
        change(request);
    })
}

/// What a release measures with this command line until it unlocks volumes.
///
/// # Errors
///
/// Where the release statement cannot be read.
pub fn measured_at_unlock<'a>(chain: &Chain, command_line: &'a str) -> Result<Vec<Measurement<'a>>> {
    let release = chain.release()?;
    let until_unlocked = release.measurements(command_line).into_iter();
    Ok(until_unlocked.filter(|measured| *measured != Measurement::LeaveInitrd).collect())
}

/// How a volume is formatted.
#[derive(Debug, Clone, Copy)]
pub struct Format<'a> {
    /// Its first key.
    pub passphrase: &'a str,
    /// More words for `cryptsetup luksFormat`.
    pub options: &'a str,
}

/// The size of [`protected`]'s volumes.
pub const PROTECTED_BYTES: u64 = 24 << 20;

/// An integrity-protected volume with an ext4 in it, which takes a kernel to make.
///
/// # Errors
///
/// As [`Workshop::open`].
pub fn protected(tpm: &TpmState, passphrase: &str) -> Result<VolumeFile> {
    let disk = partitioned(&[("protected", PROTECTED_BYTES)])?;
    let mut workshop = Workshop::open("workshop_protected", "trixie", tpm, &[&disk])?;
    let options = format!("{QUICK} {SMALL_HEADER} --integrity hmac-sha256");
    workshop.format("/dev/vdb1", Format { passphrase, options: &options })?;
    workshop.close()?;
    VolumeFile::of_partition(&disk, 0, PROTECTED_BYTES, passphrase)
}

/// A booted workshop.
#[derive(Debug)]
pub struct Workshop {
    shell: DeviceShell,
    vm: Vm,
    _disk: ScratchDisk,
}

impl Workshop {
    /// Boots a Debian suite's workshop with a TPM, and these disks as `/dev/vdb`, `/dev/vdc`, …
    ///
    /// # Errors
    ///
    /// As [`image`], and where it does not boot.
    pub fn open(name: &str, suite: &str, tpm: &TpmState, disks: &[&ScratchDisk]) -> Result<Self> {
        let chain = device(suite, |request| request.config.tpm.usage = TpmUse::Off)?;
        let (disk, _) = chain.disk()?;
        let machine = chain.machine(name, &disk).memory_mib(1024).tpm(tpm);
        let machine = disks.iter().fold(machine, |machine, disk| machine.disk(Disk::raw(disk.path())));
        Self::of(machine.start()?, disk)
    }

    /// Waits for the shell of a machine that runs; the disk lives as long as it does.
    ///
    /// # Errors
    ///
    /// Where it does not answer.
    pub fn of(mut vm: Vm, disk: ScratchDisk) -> Result<Self> {
        let shell = vm.device_shell(BOOT)?;
        Ok(Self { shell, vm, _disk: disk })
    }

    /// The machine.
    pub fn vm(&mut self) -> &mut Vm {
        &mut self.vm
    }

    /// Runs a command that must succeed, and returns what it printed, without the line end.
    ///
    /// # Errors
    ///
    /// Where it fails, with all that it said.
    pub fn run(&mut self, command: &str) -> Result<String> {
        let ran = self.attempt(command)?;
        let printed = String::from_utf8_lossy(&ran.stdout).trim_end().to_owned();
        ensure!(ran.code == 0, "in the workshop, {command} ended with {}: {printed}{}", ran.code, ran.stderr);
        Ok(printed)
    }

    /// Runs one that takes longer than most.
    ///
    /// # Errors
    ///
    /// Where it fails, or takes longer than that.
    pub fn run_for(&mut self, command: &str, patience: Duration) -> Result<()> {
        let ran = self.shell.run(command, patience)?;
        ensure!(ran.code == 0, "in the workshop, {command} ended with {}: {}", ran.code, ran.stderr);
        Ok(())
    }

    /// Runs a command that may fail.
    ///
    /// # Errors
    ///
    /// Where it does not end in time, or the workshop ends first.
    pub fn attempt(&mut self, command: &str) -> Result<Ran> {
        self.shell.run(command, COMMAND)
    }

    /// Writes a small file.
    ///
    /// # Errors
    ///
    /// Where it cannot be written.
    pub fn put(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.shell.put(path, bytes)
    }

    /// Extends the registers of all banks by measurements, as `verify-init` does.
    ///
    /// # Errors
    ///
    /// Where tpm2-tools fail.
    pub fn reach(&mut self, measurements: &[Measurement]) -> Result<()> {
        for measured in measurements {
            let banks = self.banks()?;
            let digests: Vec<String> =
                banks.iter().map(|bank| format!("{bank}={}", hex::encode(measured.digest(*bank).as_bytes()))).collect();
            self.run(&format!("tpm2_pcrextend {}:{}", measured.pcr().get(), digests.join(",")))?;
        }
        Ok(())
    }

    /// The TPM's active banks.
    ///
    /// # Errors
    ///
    /// Where the kernel names one that is not known here.
    pub fn banks(&mut self) -> Result<Vec<PcrBank>> {
        let names = self.run("cd /sys/class/tpm/tpm0 && ls -d pcr-*")?;
        names.lines().map(|name| Ok(name.trim_start_matches("pcr-").parse()?)).collect()
    }

    /// A register, in hexadecimal.
    ///
    /// # Errors
    ///
    /// Where there is no TPM.
    pub fn register(&mut self, bank: PcrBank, index: u32) -> Result<String> {
        Ok(self.run(&format!("cat /sys/class/tpm/tpm0/pcr-{bank}/{index}"))?.to_lowercase())
    }

    /// Makes a LUKS2 volume with an ext4 in it.
    ///
    /// # Errors
    ///
    /// Where one of the programs fails.
    pub fn format(&mut self, device: &str, format: Format) -> Result<()> {
        let Format { passphrase, options } = format;
        self.run(&format!(
            "set -e; printf %s '{passphrase}' >/run/passphrase
             cryptsetup luksFormat --batch-mode --type luks2 --key-file /run/passphrase {options} {device}
             cryptsetup open --key-file /run/passphrase {device} formatting
             mkfs.ext4 -q /dev/mapper/formatting
             cryptsetup close formatting"
        ))
        .map(|_| ())
    }

    /// The volume key, as `cryptsetup` shows it.
    ///
    /// # Errors
    ///
    /// Where the passphrase is wrong.
    pub fn volume_key(&mut self, device: &str, passphrase: &str) -> Result<Vec<u8>> {
        let key = self.run(&format!(
            "set -e; printf %s '{passphrase}' >/run/passphrase; rm -f /run/volume-key
             cryptsetup luksDump --batch-mode --dump-volume-key --volume-key-file /run/volume-key \
             --key-file /run/passphrase {device} >/dev/null
             od -An -v -tx1 /run/volume-key | tr -d ' \\n'"
        ))?;
        Ok(hex::decode(&key)?)
    }

    /// Cuts the power, as [`Vm::cut_power`].
    pub fn cut_power(self) {
        self.vm.cut_power();
    }

    /// Switches it off, with all that it wrote on its disks.
    ///
    /// # Errors
    ///
    /// Where it does not end.
    pub fn close(mut self) -> Result<()> {
        self.run("sync; umount -a -t ext4 2>/dev/null; dmsetup remove_all 2>/dev/null; sync")?;
        self.shell.power_off()?;
        self.vm.wait_for_end(BOOT).map(|_| ())
    }
}
