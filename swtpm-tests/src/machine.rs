//! Describes the machine that a test wants.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use crate::{
    secure_boot::{OVMF_VARIABLES, SecureBoot},
    tpm::TpmState,
    vm::Vm,
};

/// How a disk is attached: each bus is another driver in the guest, and another way for its device to appear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// `/dev/vda`
    VirtioBlk,
    /// `/dev/sda`, behind a virtio SCSI controller
    VirtioScsi,
    /// `/dev/nvme0n1`
    Nvme,
    /// `/dev/sda`, behind the machine's SATA controller. Not in Debian 12's cloud kernel.
    Ahci,
    /// `/dev/sda`, a USB stick: it appears seconds late. Not in Debian's cloud kernels.
    Usb,
}

/// A raw disk image attached to a machine.
#[derive(Debug, Clone)]
pub struct Disk {
    image: PathBuf,
    bus: Bus,
    serial: Option<String>,
    read_only: bool,
    discarding: bool,
}

impl Disk {
    /// The image at `image`, written in place, as a virtio block device.
    pub fn raw(image: impl AsRef<Path>) -> Self {
        let image = image.as_ref().to_owned();
        Self { image, bus: Bus::VirtioBlk, serial: None, read_only: false, discarding: false }
    }

    /// Attaches it to another bus.
    #[must_use]
    pub fn on(self, bus: Bus) -> Self {
        Self { bus, ..self }
    }

    /// Sets the serial number that the guest reads.
    #[must_use]
    pub fn serial(self, serial: &str) -> Self {
        Self { serial: Some(serial.to_owned()), ..self }
    }

    /// The guest sees a write-protected disk. Not on [`Bus::Ahci`]: SATA has no such thing.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// What the guest writes is dropped with the machine, so that tests can share one image.
    #[must_use]
    pub fn discarding_writes(self) -> Self {
        Self { discarding: true, ..self }
    }

    fn arguments(&self, number: usize) -> Vec<OsString> {
        let image = in_an_option(&self.image);
        let onoff = |on: bool| if on { "on" } else { "off" };
        let drive = format!(
            "if=none,id=disk{number},format=raw,file={image},readonly={},snapshot={}",
            onoff(self.read_only),
            onoff(self.discarding)
        );
        let serial = self.serial.clone().unwrap_or_else(|| format!("disk{number}"));
        let common = format!("drive=disk{number},serial={serial}");
        let mut arguments = vec!["-drive".into(), drive.into()];
        let mut device = |device: String| arguments.extend(["-device".into(), device.into()]);
        match self.bus {
            Bus::VirtioBlk => device(format!("virtio-blk-pci,{common}")),
            Bus::VirtioScsi => {
                device(format!("virtio-scsi-pci,id=scsi{number}"));
                device(format!("scsi-hd,bus=scsi{number}.0,{common}"));
            }
            Bus::Nvme => device(format!("nvme,{common}")),
            Bus::Ahci => device(format!("ide-hd,bus=ide.{number},{common}")),
            Bus::Usb => {
                device(format!("qemu-xhci,id=xhci{number}"));
                device(format!("usb-storage,bus=xhci{number}.0,{common}"));
            }
        }
        arguments
    }
}

/// The description of a machine. It can be started again and again: each start is a power cycle on the same disks.
#[derive(Debug, Clone)]
pub struct Machine {
    pub(crate) name: String,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    command_line: Vec<String>,
    disks: Vec<Disk>,
    memory_mib: u32,
    processors: u32,
    deterministic: bool,
    firmware: Firmware,
    pub(crate) tpm: Option<PathBuf>,
    arguments: Vec<OsString>,
}

/// What starts before the kernel.
#[derive(Debug, Clone)]
enum Firmware {
    Bios,
    Uefi,
    /// UEFI with this variable store.
    SecureBoot(PathBuf),
}

impl Firmware {
    /// Code and variables; a BIOS is QEMU's own.
    fn files(&self) -> Option<[&Path; 2]> {
        match self {
            Self::Bios => None,
            Self::Uefi => Some([Path::new(OVMF_CODE), Path::new(OVMF_VARIABLES)]),
            Self::SecureBoot(store) => Some([Path::new(OVMF_SECURE_CODE), store]),
        }
    }

    /// Code that enforces Secure Boot runs in the processor's management mode, which alone may write the variables.
    fn machine(&self) -> &'static str {
        if matches!(self, Self::SecureBoot(_)) { "q35,smm=on" } else { "q35" }
    }
}

/// Firmware as Debian's package `ovmf` has it.
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_SECURE_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";

/// The command line of a kernel that is told these words, too; none if empty.
pub fn command_line(words: &str) -> String {
    BASE_COMMAND_LINE.into_iter().chain(Some(words).filter(|words| !words.is_empty())).collect::<Vec<_>>().join(" ")
}

/// What every kernel is told: talk on the serial port, reset at once after a panic, and believe the timer. On a busy
/// host an emulated timer can miss the short test that the kernel gives it, which then panics.
pub const BASE_COMMAND_LINE: [&str; 3] = ["console=ttyS0", "panic=-1", "no_timer_check"];

impl Machine {
    /// A machine with 512 MiB, one processor and no disk. `name`, best the test's own, is also that of its log.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kernel: None,
            initrd: None,
            command_line: Vec::new(),
            disks: Vec::new(),
            memory_mib: 512,
            processors: 1,
            deterministic: false,
            firmware: Firmware::Bios,
            tpm: None,
            arguments: Vec::new(),
        }
    }

    /// Boots this kernel directly, without firmware in between.
    #[must_use]
    pub fn kernel(self, image: impl AsRef<Path>) -> Self {
        Self { kernel: Some(image.as_ref().to_owned()), ..self }
    }

    /// Hands the kernel this initramfs.
    #[must_use]
    pub fn initrd(self, image: impl AsRef<Path>) -> Self {
        Self { initrd: Some(image.as_ref().to_owned()), ..self }
    }

    /// Adds words to the kernel's command line, behind [`BASE_COMMAND_LINE`].
    #[must_use]
    pub fn append(mut self, words: &str) -> Self {
        self.command_line.push(words.to_owned());
        self
    }

    /// Attaches a disk, behind those attached before.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Sets the size of the memory.
    #[must_use]
    pub fn memory_mib(self, memory_mib: u32) -> Self {
        Self { memory_mib, ..self }
    }

    /// Sets the number of processors.
    #[must_use]
    pub fn processors(self, processors: u32) -> Self {
        Self { processors, ..self }
    }

    /// Lets guest time follow the instructions executed, a nanosecond each, on one processor: for comparing boots with each other.
    #[must_use]
    pub fn deterministic(self) -> Self {
        Self { deterministic: true, processors: 1, ..self }
    }

    /// Starts from UEFI firmware instead of a BIOS. What it writes to its variables is gone when the machine ends.
    #[must_use]
    pub fn uefi(self) -> Self {
        Self { firmware: Firmware::Uefi, ..self }
    }

    /// Starts from UEFI firmware that enforces Secure Boot by these keys. What it writes to its variables is gone when the
    /// machine ends.
    #[must_use]
    pub fn secure_boot(self, keys: &SecureBoot) -> Self {
        Self { firmware: Firmware::SecureBoot(keys.store().to_owned()), ..self }
    }

    /// Gives it a TPM.
    #[must_use]
    pub fn tpm(self, state: &TpmState) -> Self {
        Self { tpm: Some(state.path().to_owned()), ..self }
    }

    /// Adds a raw QEMU argument, for devices that this type does not know.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Switches the machine on.
    ///
    /// # Errors
    ///
    /// Where QEMU is not installed or refuses the description.
    pub fn start(&self) -> Result<Vm> {
        let mut files = self.firmware.files().into_iter().flatten();
        if let Some(missing) = files.find(|path| !path.exists()) {
            bail!("{} is missing\n  run: apt-get install ovmf", missing.display());
        }
        Vm::start(self)
    }

    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let accelerator = env::var("IOFS_TEST_ACCEL").unwrap_or_else(|_| "tcg".to_owned());
        self.arguments_under(&accelerator)
    }

    fn arguments_under(&self, accelerator: &str) -> Vec<OsString> {
        // A thread for each emulated processor lets one run into code that another is just patching: the kernel then dies
        // of its own breakpoint ("Oops: int3"). Counting instructions, too, is a thing of the one-threaded emulator alone.
        let emulated = self.deterministic || accelerator == "tcg";
        // A byte that is written to a page from which code was translated has all translations of that page looked at. After a
        // switch of roots the kernel clears pages that were the old root's programs, translated at another address for each
        // process: with the default of up to 1 GiB of translations, which are never dropped, minutes go by. A few drops cost less.
        let accelerator = if emulated { "tcg,thread=single,tb-size=128" } else { accelerator };
        let mut arguments: Vec<OsString> =
            ["-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"].map(OsString::from).to_vec();
        let mut pair = |option: &str, value: OsString| arguments.extend([option.into(), value]);
        pair("-machine", self.firmware.machine().into());
        pair("-accel", accelerator.into());
        pair("-cpu", "max".into());
        pair("-m", self.memory_mib.to_string().into());
        pair("-smp", self.processors.to_string().into());
        // A reset ends the machine, and an ended machine stays until asked to quit: its event is not lost that way.
        pair("-action", "reboot=shutdown,shutdown=pause".into());
        if self.deterministic {
            pair("-icount", "shift=0,sleep=off".into());
            pair("-rtc", "base=2026-01-01,clock=vm".into());
        }
        if let Some([code, variables]) = self.firmware.files().map(|files| files.map(in_an_option)) {
            pair("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={code}").into());
            pair("-drive", format!("if=pflash,unit=1,format=raw,snapshot=on,file={variables}").into());
        }
        if matches!(self.firmware, Firmware::SecureBoot(_)) {
            pair("-global", "driver=cfi.pflash01,property=secure,value=on".into());
        }
        if let Some(kernel) = &self.kernel {
            pair("-kernel", kernel.into());
            let words = self.command_line.iter().map(String::as_str);
            let words: Vec<&str> = BASE_COMMAND_LINE.into_iter().chain(words).collect();
            pair("-append", words.join(" ").into());
        }
        if let Some(initrd) = &self.initrd {
            pair("-initrd", initrd.into());
        }
        let disks = self.disks.iter().enumerate();
        arguments.extend(disks.flat_map(|(number, disk)| disk.arguments(number)));
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }
}

/// In QEMU's option syntax a comma ends the value, and two stand for one.
fn in_an_option(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(machine: &Machine) -> String {
        let arguments = machine.arguments_under("tcg");
        arguments.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_comma_in_a_path_stays_part_of_it() {
        let line = line(&Machine::named("x").disk(Disk::raw("/a,b.img")));
        assert!(line.contains("file=/a,,b.img,"), "{line}");
    }

    #[test]
    fn firmware_that_enforces_secure_boot_alone_may_write_its_variables() {
        let firmware = Firmware::SecureBoot(PathBuf::from("/keys.fd"));
        let line = line(&Machine { firmware, ..Machine::named("x") });
        assert!(line.contains("-machine q35,smm=on ") && line.contains("property=secure,value=on"), "{line}");
        assert!(line.contains("unit=1,format=raw,snapshot=on,file=/keys.fd"), "{line}");
    }

    #[test]
    fn every_disk_has_a_number_of_its_own() {
        let line = line(&Machine::named("x").disk(Disk::raw("a").on(Bus::Usb)).disk(Disk::raw("b").on(Bus::Ahci)));
        assert!(line.contains("usb-storage,bus=xhci0.0,drive=disk0"), "{line}");
        assert!(line.contains("ide-hd,bus=ide.1,drive=disk1"), "{line}");
    }

    #[test]
    fn a_deterministic_machine_has_one_processor_and_counts_instructions() {
        let line = line(&Machine::named("x").processors(4).deterministic());
        assert!(line.contains("-accel tcg,thread=single") && line.contains("-smp 1 "), "{line}");
        assert!(line.contains("-icount shift=0,sleep=off"), "{line}");
    }

    #[test]
    fn emulated_processors_share_one_thread() {
        let machine = Machine::named("x").processors(2);
        assert!(line(&machine).contains("-accel tcg,thread=single") && line(&machine).contains("-smp 2 "));
        let other = machine.arguments_under("kvm").iter().any(|argument| argument == "kvm");
        assert!(other, "another accelerator stays as it is");
    }

    #[test]
    fn words_appended_come_after_the_harnesss_own_so_that_they_win() {
        let line = line(&Machine::named("x").kernel("k").append("panic=0").append("quiet"));
        assert!(line.contains("-append console=ttyS0 panic=-1 no_timer_check panic=0 quiet"), "{line}");
    }
}
