//! Everything that PID 1 does to the machine, behind one trait, so that a test can let each call fail.

use std::{io, time::Duration};

use iofs_policy::{failure::FailureAction, verity::DeviceNumber};
use iofs_tpm::transport::TransportError;
use nix::mount::MsFlags;
use zeroize::Zeroizing;

/// A mount to make.
#[derive(Debug, Clone, Copy)]
pub struct Mount<'a> {
    /// A device, or a word for file systems without one.
    pub source: &'a str,
    /// The mount point.
    pub target: &'a str,
    /// The file system's name.
    pub kind: &'a str,
    /// The flags that every file system shares.
    pub flags: MsFlags,
    /// The file system's own options.
    pub options: &'a str,
}

/// Whether a mapping can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// A key in a keyring of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySerial(pub i32);

/// Who may do what with a key in a keyring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// The kernel's own code alone reads it: a volume key.
    Logon,
    /// Whoever has the keyring reads it, too: a signature, which is no secret.
    User,
}

/// A question on the console, whose answer is not shown.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// What is asked.
    pub prompt: &'a str,
    /// The longest answer, in bytes. A longer one is none.
    pub limit: usize,
    /// How long to wait for it.
    pub patience: Duration,
}

/// A kernel module to load.
#[derive(Debug, Clone)]
pub struct ModuleFile {
    /// Where it lies.
    pub path: String,
    /// Its parameters, as on the kernel's command line but without its name.
    pub parameters: String,
}

/// What came of a kernel module that was to be loaded.
#[derive(Debug)]
pub struct Loaded {
    /// Loaded, now or before.
    pub result: io::Result<()>,
    /// How long that took.
    pub took: Duration,
}

/// A device-mapper device with one target.
#[derive(Debug, Clone)]
pub struct Mapping<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its UUID.
    pub uuid: &'a str,
    /// Its length in 512-byte sectors.
    pub sectors: u64,
    /// The target's name.
    pub target: &'a str,
    /// The target's parameters. No key is ever among them.
    pub parameters: &'a str,
    /// Whether it can be written to.
    pub access: Access,
}

/// What device-mapper says of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedTarget {
    /// First sector.
    pub start: u64,
    /// Length in sectors.
    pub sectors: u64,
    /// The target's name.
    pub target: String,
    /// The table's parameters, or the status, whichever was asked for.
    pub text: String,
}

/// A file that has become a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The device's node.
    pub path: String,
    /// Its number.
    pub number: DeviceNumber,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether reads go past the page cache to the disk.
    pub direct: bool,
}

/// The machine, as seen by PID 1. Every descriptor behind it is close-on-exec.
pub trait System {
    /// What is left when this program was replaced or the machine stopped: nothing, but in tests.
    type Gone;

    /// The time since the kernel started (CLOCK_BOOTTIME).
    fn now(&mut self) -> Duration;
    /// What a panic does from here on, besides its report.
    fn arm(&mut self, action: FailureAction);
    /// Makes sure that the standard streams exist: init inherits them.
    fn open_console(&mut self) -> io::Result<()>;
    /// Writes to the console.
    fn print(&mut self, text: &str) -> io::Result<()>;
    /// Writes one record to the kernel log.
    fn log(&mut self, record: &str) -> io::Result<()>;

    /// Reads a file once; a file larger than `limit` is an error.
    fn read(&mut self, path: &str, limit: usize) -> io::Result<Vec<u8>>;
    /// Reads exactly `length` bytes of a device.
    fn read_at(&mut self, path: &str, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Writes to a device, and waits until that lies there.
    fn write_at(&mut self, path: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// The names in a folder.
    fn list(&mut self, folder: &str) -> io::Result<Vec<String>>;
    /// Writes a file that everyone may read.
    fn write(&mut self, path: &str, bytes: &[u8]) -> io::Result<()>;
    /// Makes a folder with its parents. One that is there stays as it is.
    fn create_folder(&mut self, path: &str, mode: u32) -> io::Result<()>;
    /// Makes a symbolic link.
    fn link(&mut self, target: &str, path: &str) -> io::Result<()>;

    /// Mounts a file system. One of the kernel's own that is there already is fine.
    fn mount(&mut self, mount: &Mount<'_>) -> io::Result<()>;
    /// Mounts at a path of another root, in which no part of the path may be a link.
    fn mount_in_root(&mut self, root: &str, mount: &Mount<'_>) -> io::Result<()>;
    /// Takes a mount away from its place. What is in use of it stays until it is not.
    fn unmount(&mut self, target: &str) -> io::Result<()>;
    /// Makes a block device of a file below `folder`, on the file system there, with no link on the way. It goes by itself
    /// once nothing uses it.
    fn attach_file(&mut self, folder: &str, path: &str) -> io::Result<Attached>;
    /// Puts what is in a folder into an empty one: links as they are, and of everything else a mount.
    fn bind_contents(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Moves a mount.
    fn move_mount(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Loads kernel modules that do not need each other, at once where that helps, and says in the same order what came of
    /// each. One that is loaded already is fine.
    fn load_modules(&mut self, modules: &[ModuleFile]) -> Vec<Loaded>;
    /// Starts to collect the kernel's device events.
    fn watch_devices(&mut self) -> io::Result<()>;
    /// The next event, or `None` after that time. An error means that events were lost.
    fn next_event(&mut self, wait: Duration) -> io::Result<Option<Vec<u8>>>;

    /// The targets that device-mapper has.
    fn mapper_targets(&mut self) -> io::Result<Vec<String>>;
    /// Creates a mapping, loads its table and starts it.
    fn create_mapping(&mut self, mapping: &Mapping<'_>) -> io::Result<DeviceNumber>;
    /// Removes a mapping that nobody uses.
    fn remove_mapping(&mut self, name: &str) -> io::Result<()>;
    /// Removes a mapping once nobody uses it any more.
    fn remove_mapping_later(&mut self, name: &str) -> io::Result<()>;
    /// The active table of a mapping, which must be of that access.
    fn mapping_table(&mut self, name: &str, access: Access) -> io::Result<Vec<MappedTarget>>;
    /// The status of a mapping's targets, which must be of that access.
    fn mapping_status(&mut self, name: &str, access: Access) -> io::Result<Vec<MappedTarget>>;

    /// Asks on the console, without showing the answer. An error where there is no console, where it was closed, and
    /// where nobody answered in time.
    fn ask_secret(&mut self, question: &Question<'_>) -> io::Result<Zeroizing<Vec<u8>>>;
    /// Puts a key where device-mapper finds it: into a keyring of this process.
    fn add_key(&mut self, kind: KeyKind, description: &str, key: &[u8]) -> io::Result<KeySerial>;
    /// Takes a key out of the keyring, and makes it useless.
    fn remove_key(&mut self, key: KeySerial) -> io::Result<()>;

    /// Opens the TPM, and waits for it that long where it is not there yet.
    fn open_tpm(&mut self, wait: Duration) -> Result<(), TransportError>;
    /// Sends a command to the TPM that was opened, and returns its response.
    fn tpm(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError>;
    /// Locks the measurement log and marks it as torn.
    fn begin_log_record(&mut self) -> io::Result<()>;
    /// Appends a record to the log that was locked, clears the mark and unlocks.
    fn finish_log_record(&mut self, record: &[u8]) -> io::Result<()>;

    /// The file type and permission bits of a path, resolved as if `root` were `/`.
    fn mode_in_root(&mut self, root: &str, path: &str) -> io::Result<u32>;
    /// Frees the memory of the initramfs, once everything that matters was moved out of it.
    fn delete_initramfs(&mut self) -> io::Result<()>;
    /// Makes the mount at `root` the root of this process.
    fn enter(&mut self, root: &str) -> io::Result<()>;
    /// Becomes another program.
    fn exec(&mut self, path: &str, arguments: &[String]) -> io::Result<Self::Gone>;
    /// Ends the boot. Never returns to the caller on a real machine.
    fn stop(&mut self, action: FailureAction) -> Self::Gone;
}
