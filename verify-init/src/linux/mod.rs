//! The real machine.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, symlink},
    time::Duration,
};

use iofs_policy::{failure::FailureAction, paths::MEASUREMENT_LOG, verity::DeviceNumber};
use iofs_tpm::transport::{Device, Transport, TransportError};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags},
    time::{ClockId, clock_gettime},
};
use zeroize::Zeroizing;

use crate::system::{
    Access, Attached, KeyKind, KeySerial, Loaded, MappedTarget, Mapping, ModuleFile, Mount, Question, System,
};

mod console;
mod end;
mod keyring;
mod log;
mod loops;
mod mapper;
mod modules;
mod priority;
mod program;
pub(crate) mod root;
mod secret;
mod uevents;

pub use console::Console;
pub use end::report_panics;
pub use priority::raise as raise_priority;

/// The machine that this program is PID 1 of.
#[derive(Debug, Default)]
pub struct Linux {
    console: Console,
    events: Option<uevents::Socket>,
    tpm: Option<Device>,
    log: Option<log::Begun>,
    /// Loop devices that nothing else holds yet.
    loops: Vec<File>,
}

/// The time since the kernel started, also while the machine slept.
fn since_start() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

impl System for Linux {
    type Gone = std::convert::Infallible;

    fn now(&mut self) -> Duration {
        since_start()
    }

    fn arm(&mut self, action: FailureAction) {
        end::arm(action);
    }

    fn open_console(&mut self) -> io::Result<()> {
        console::open_standard_streams()
    }

    fn print(&mut self, text: &str) -> io::Result<()> {
        self.console.print(text)
    }

    fn log(&mut self, record: &str) -> io::Result<()> {
        self.console.log(record)
    }

    fn read(&mut self, path: &str, limit: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > limit {
            return Err(Errno::EFBIG.into());
        }
        Ok(bytes)
    }

    fn read_at(&mut self, path: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        File::open(path)?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn write_at(&mut self, path: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let device = OpenOptions::new().write(true).open(path)?;
        device.write_all_at(bytes, offset)?;
        device.sync_data()
    }

    fn list(&mut self, folder: &str) -> io::Result<Vec<String>> {
        // The kernel's names are ASCII; what is not cannot be asked for.
        let names = fs::read_dir(folder)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        Ok(names)
    }

    fn write(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?.write_all(bytes)
    }

    fn create_folder(&mut self, path: &str, mode: u32) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(mode).create(path)
    }

    fn link(&mut self, target: &str, path: &str) -> io::Result<()> {
        symlink(target, path)
    }

    fn mount(&mut self, mount: &Mount<'_>) -> io::Result<()> {
        let options = Some(mount.options).filter(|options| !options.is_empty());
        match nix::mount::mount(Some(mount.source), mount.target, Some(mount.kind), mount.flags, options) {
            // The kernel's own, which it may have mounted itself. Anything else that is in the way is an error.
            Err(Errno::EBUSY) if matches!(mount.kind, "devtmpfs" | "proc" | "sysfs") => Ok(()),
            result => Ok(result?),
        }
    }

    fn mount_in_root(&mut self, root: &str, mount: &Mount<'_>) -> io::Result<()> {
        root::mount_in(root, mount)
    }

    fn unmount(&mut self, target: &str) -> io::Result<()> {
        Ok(nix::mount::umount2(target, MntFlags::MNT_DETACH)?)
    }

    fn attach_file(&mut self, folder: &str, path: &str) -> io::Result<Attached> {
        let (device, attached) = loops::attach(folder, path)?;
        self.loops.push(device);
        Ok(attached)
    }

    fn bind_contents(&mut self, from: &str, to: &str) -> io::Result<()> {
        root::bind_contents(from, to)
    }

    fn move_mount(&mut self, from: &str, to: &str) -> io::Result<()> {
        const NONE: Option<&str> = None;
        Ok(nix::mount::mount(Some(from), to, NONE, MsFlags::MS_MOVE, NONE)?)
    }

    fn load_modules(&mut self, modules: &[ModuleFile]) -> Vec<Loaded> {
        modules::load(modules)
    }

    fn watch_devices(&mut self) -> io::Result<()> {
        self.events = Some(uevents::Socket::open()?);
        Ok(())
    }

    fn next_event(&mut self, wait: Duration) -> io::Result<Option<Vec<u8>>> {
        match &self.events {
            Some(events) => events.next(wait),
            None => {
                std::thread::sleep(wait);
                Ok(None)
            }
        }
    }

    fn mapper_targets(&mut self) -> io::Result<Vec<String>> {
        mapper::targets()
    }

    fn create_mapping(&mut self, mapping: &Mapping<'_>) -> io::Result<DeviceNumber> {
        mapper::create(mapping)
    }

    fn remove_mapping(&mut self, name: &str) -> io::Result<()> {
        mapper::remove(name)
    }

    fn remove_mapping_later(&mut self, name: &str) -> io::Result<()> {
        mapper::remove_later(name)
    }

    fn mapping_table(&mut self, name: &str, access: Access) -> io::Result<Vec<MappedTarget>> {
        mapper::table(name, access)
    }

    fn mapping_status(&mut self, name: &str, access: Access) -> io::Result<Vec<MappedTarget>> {
        mapper::status(name, access)
    }

    fn ask_secret(&mut self, question: &Question<'_>) -> io::Result<Zeroizing<Vec<u8>>> {
        secret::ask(console::CONSOLE.as_ref(), question)
    }

    fn add_key(&mut self, kind: KeyKind, description: &str, key: &[u8]) -> io::Result<KeySerial> {
        keyring::add(kind, description, key)
    }

    fn remove_key(&mut self, key: KeySerial) -> io::Result<()> {
        keyring::remove(key)
    }

    fn open_tpm(&mut self, wait: Duration) -> Result<(), TransportError> {
        self.tpm = Some(Device::open_first(wait)?);
        Ok(())
    }

    fn tpm(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        match &mut self.tpm {
            Some(tpm) => tpm.exchange(command),
            None => Err(TransportError::OutOfStep),
        }
    }

    fn begin_log_record(&mut self) -> io::Result<()> {
        // One that was begun and never finished stays marked; its lock must not keep us out.
        self.log = None;
        self.log = Some(log::begin(MEASUREMENT_LOG.as_ref())?);
        Ok(())
    }

    fn finish_log_record(&mut self, record: &[u8]) -> io::Result<()> {
        self.log.take().ok_or(Errno::EBADF)?.finish(record)
    }

    fn mode_in_root(&mut self, root: &str, path: &str) -> io::Result<u32> {
        root::mode(root, path)
    }

    fn delete_initramfs(&mut self) -> io::Result<()> {
        root::delete_initramfs()
    }

    fn enter(&mut self, root: &str) -> io::Result<()> {
        root::enter(root)
    }

    fn exec(&mut self, path: &str, arguments: &[String]) -> io::Result<Self::Gone> {
        // Close-on-exec would do; an event socket must not outlive its use in any case.
        (self.events, self.tpm, self.log) = (None, None, None);
        program::read_ahead(path);
        priority::restore()?;
        root::exec(path, arguments)
    }

    fn stop(&mut self, action: FailureAction) -> Self::Gone {
        end::stop(&self.console, action)
    }
}
