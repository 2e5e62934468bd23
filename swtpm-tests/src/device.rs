//! A shell on a booted device: commands go in, what they wrote comes out, byte for byte, beside the console.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::console::scaled;

/// A socket's deadline cannot be zero.
const SHORTEST: Duration = Duration::from_millis(20);
/// What the guest's side says when it listens.
const READY: &str = "DEVICE READY";

/// The connection to the guest's `device-shell`.
#[derive(Debug)]
pub struct DeviceShell {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

/// What a command on the device did.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl DeviceShell {
    /// Waits until the guest listens.
    pub(crate) fn waiting(stream: UnixStream, patience: Duration) -> Result<Self> {
        let deadline = Instant::now() + scaled(patience);
        let mut shell = Self { reader: BufReader::new(stream.try_clone()?), writer: stream };
        // UEFI firmware, boot loaders and the kernel's EFI stub talk on this port too, and need not end their last line.
        while !shell.line(deadline.saturating_duration_since(Instant::now()))?.ends_with(READY) {}
        Ok(shell)
    }

    /// Runs a command with bash.
    ///
    /// # Errors
    ///
    /// Where it does not end in time, or the device ends first.
    pub fn run(&mut self, command: &str, patience: Duration) -> Result<Ran> {
        writeln!(self.writer, "{}", STANDARD.encode(command))?;
        let line = self.line(scaled(patience)).with_context(|| format!("on the device: {command}"))?;
        let mut words = line.split(' ');
        let (Some(code), Some(stdout), Some(stderr)) = (words.next(), words.next(), words.next()) else {
            bail!("the device answered {line:?}");
        };
        let stderr = String::from_utf8_lossy(&STANDARD.decode(stderr)?).into_owned();
        Ok(Ran { code: code.parse()?, stdout: STANDARD.decode(stdout)?, stderr })
    }

    /// Has the device switch itself off, a moment from now.
    ///
    /// # Errors
    ///
    /// As [`DeviceShell::output`].
    pub fn power_off(&mut self) -> Result<()> {
        let later = "(sleep 1; echo o >/proc/sysrq-trigger) >/dev/null 2>&1 &";
        self.output(later, Duration::from_secs(60)).map(|_| ())
    }

    /// Runs a command that must succeed, and returns its output.
    ///
    /// # Errors
    ///
    /// As [`DeviceShell::run`], and where it fails.
    pub fn output(&mut self, command: &str, patience: Duration) -> Result<Vec<u8>> {
        let ran = self.run(command, patience)?;
        ensure!(ran.code == 0, "on the device, {command} ended with {}: {}", ran.code, ran.stderr);
        Ok(ran.stdout)
    }

    /// Writes a small file on the device.
    ///
    /// # Errors
    ///
    /// As [`DeviceShell::output`].
    pub fn put(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let command = format!("base64 -d >{path} <<<'{}'", STANDARD.encode(bytes));
        self.output(&command, Duration::from_secs(60)).map(|_| ())
    }

    fn line(&mut self, patience: Duration) -> Result<String> {
        self.reader.get_ref().set_read_timeout(Some(patience.max(SHORTEST)))?;
        let mut line = Vec::new();
        let read = self.reader.read_until(b'\n', &mut line).context("wait for the device")?;
        ensure!(read != 0, "the device ended");
        // A boot loader's menu has frames in the letters of a PC's screen.
        Ok(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_firmware_and_boot_loader_say_before_the_shell_is_passed_over() {
        let (guest, host) = UnixStream::pair().unwrap();
        (&guest).write_all(b"BdsDxe: starting\r\n\xda\xc4\xc4\xbf menu\n\x1b[1mDEVICE READY\n0 b2s= \n").unwrap();
        let mut shell = DeviceShell::waiting(host, Duration::from_secs(20)).unwrap();
        assert_eq!(shell.output("echo ok", Duration::from_secs(20)).unwrap(), b"ok");
    }
}
