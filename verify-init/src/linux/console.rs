//! Console and kernel log.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::{
    fcntl::{OFlag, open},
    sys::{stat::Mode, termios::tcdrain},
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout},
};

pub(super) const CONSOLE: &str = "/dev/console";
const KERNEL_LOG: &str = "/dev/kmsg";
const LAST_STANDARD_STREAM: i32 = 2;

/// Opened at first use and kept: the path changes when `/dev` moves.
#[derive(Debug, Default)]
pub struct Console {
    console: Option<File>,
    kernel_log: Option<File>,
}

impl Console {
    /// Writes to the console.
    ///
    /// # Errors
    /// If there is none.
    pub fn print(&mut self, text: &str) -> io::Result<()> {
        opened(&mut self.console, CONSOLE)?.write_all(text.as_bytes())
    }

    /// Writes one record to the kernel log.
    ///
    /// # Errors
    /// If there is none, or the record is too long.
    pub fn log(&mut self, record: &str) -> io::Result<()> {
        opened(&mut self.kernel_log, KERNEL_LOG)?.write_all(record.as_bytes())
    }

    /// Waits until a serial port has sent all that was written: a reset would cut it off.
    pub(super) fn drain(&self) {
        if let Some(console) = &self.console {
            let _ = tcdrain(console);
        }
    }
}

/// Without O_NOCTTY the console would become PID 1's controlling terminal, and Ctrl-C its signal.
fn opened<'a>(file: &'a mut Option<File>, path: &str) -> io::Result<&'a mut File> {
    if file.is_none() {
        *file = Some(OpenOptions::new().write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(path)?);
    }
    file.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Gives init its standard streams: the console of the `/dev` that moves along, or nothing at all.
///
/// What the kernel opened before is the initramfs' own node, which is deleted later; on a machine without console it
/// opened nothing, and new descriptors would take the numbers 0 to 2.
pub(super) fn open_standard_streams() -> io::Result<()> {
    let mut kept = Vec::new();
    let console = loop {
        let descriptor = either(CONSOLE, "/dev/null")?;
        if descriptor.as_raw_fd() > LAST_STANDARD_STREAM {
            break descriptor;
        }
        kept.push(descriptor);
    };
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    // These numbers are the standard streams now, and not to be closed.
    kept.into_iter().for_each(std::mem::forget);
    Ok(())
}

fn either(first: &str, second: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    Ok(open(first, flags, Mode::empty()).or_else(|_| open(second, flags, Mode::empty()))?)
}
