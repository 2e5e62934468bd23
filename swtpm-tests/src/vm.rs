//! A running machine.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write,
    os::unix::{
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{
    cache,
    console::{Console, ConsoleError, ConsoleLine, Line, scaled},
    device::DeviceShell,
    machine::Machine,
    qmp::Qmp,
    tools,
    tpm::Swtpm,
};

/// The socket of the second serial port, in the machine's folder.
const SHELL: &str = "shell";

/// How often the machine is asked whether it has ended.
const POLL: Duration = Duration::from_millis(10);

/// How long QEMU may take from its start to its control socket: a fraction of a second, if the host is not overloaded.
const STARTING: Duration = Duration::from_secs(30);

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It switched itself off.
    PoweredOff,
    /// It reset itself, and would now boot again.
    Reset,
    /// Its kernel halted the processors and left the power on.
    Halted,
    /// Its kernel panicked, with this message, and then reset or stood still.
    Panicked(String),
}

/// A machine that was switched on. Dropped, it is switched off the hard way.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    console: Console,
    qmp: Qmp,
    ending: Option<Ending>,
    tpm: Option<Swtpm>,
    shell: Option<UnixStream>,
    folder: TempDir,
}

impl Vm {
    pub(crate) fn start(machine: &Machine) -> Result<Self> {
        let qemu = tools::require("qemu-system-x86_64", "apt-get install qemu-system-x86")?;
        // In /tmp, since a socket's path may have 107 bytes and no more.
        let folder = tempfile::Builder::new().prefix("iofs-vm.").tempdir()?;
        let socket = folder.path().join("qmp");
        let listener = UnixListener::bind(&socket)?;
        let tpm = machine.tpm.as_deref().map(|state| Swtpm::start(state, folder.path())).transpose()?;
        let mut child = spawn(&qemu, machine, tpm.as_ref(), folder.path())?;
        let log = cache::target_folder("vm-logs")?.join(log_name(&machine.name));
        let output = child.stdout.take().context("the console is piped")?;
        let console = Console::reading(output, &log)?;
        let qmp = accept(&listener, &mut child).and_then(|socket| Ok(Qmp::negotiate(socket, STARTING)?));
        let qmp = match qmp {
            Ok(qmp) => qmp,
            Err(error) => {
                end_process(&mut child);
                let complaint = complaint(folder.path());
                return Err(error.context(format!("cannot start the machine {:?}: {complaint}", machine.name)));
            }
        };
        // Before the machine runs: what a guest says while nobody listens is lost.
        let shell = Some(UnixStream::connect(folder.path().join(SHELL))?);
        let mut vm = Self { child, console, qmp, ending: None, tpm, shell, folder };
        vm.qmp.execute("cont")?;
        Ok(vm)
    }

    /// Its serial console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Waits for a line; see [`Console::wait_for_line`].
    ///
    /// # Errors
    ///
    /// Where it does not come in time.
    pub fn wait_for_line(&self, line: &Line, patience: Duration) -> Result<ConsoleLine, ConsoleError> {
        self.console.wait_for_line(line, patience)
    }

    /// Waits for the block by which verify-init refuses a boot: before which stage, then the fact, what was expected and what was
    /// found, as far as these are told here.
    ///
    /// # Errors
    ///
    /// Where it does not come in time.
    pub fn says_why(
        &self,
        stage: &str,
        [fact, expected, found]: [&str; 3],
        patience: Duration,
    ) -> Result<(), ConsoleError> {
        for line in [
            format!("BOOT REFUSED before stage \"{stage}\": {fact}"),
            format!("expected: {expected}"),
            format!("found:    {found}"),
            "next:     ".to_owned(),
        ] {
            self.wait_for_line(&Line::containing(&line), patience)?;
        }
        Ok(())
    }

    /// Types `text` and the Enter key on the serial console.
    ///
    /// # Errors
    ///
    /// Where the machine has ended.
    pub fn type_line(&mut self, text: &str) -> Result<()> {
        let keyboard = self.child.stdin.as_mut().context("the machine has ended")?;
        keyboard.write_all(format!("{text}\r").as_bytes())?;
        Ok(keyboard.flush()?)
    }

    /// Waits for the shell that a guest with `device-shell` offers on its second serial port.
    ///
    /// # Errors
    ///
    /// Where it does not listen in time, with the console's last lines.
    pub fn device_shell(&mut self, patience: Duration) -> Result<DeviceShell> {
        let stream = self.shell.take().context("the shell was taken already")?;
        let shell = DeviceShell::waiting(stream, patience);
        shell.map_err(|error| error.context(self.console.error("the device's shell", "it does not answer")))
    }

    /// Waits until the machine has ended by its own doing.
    ///
    /// # Errors
    ///
    /// Where it still runs after `patience`, with the console's last lines, and where QEMU itself failed.
    pub fn wait_for_end(&mut self, patience: Duration) -> Result<Ending> {
        let patience = scaled(patience);
        let deadline = Instant::now() + patience;
        loop {
            if let Some(ending) = self.ended()? {
                return Ok(ending);
            }
            if Instant::now() >= deadline {
                return Err(self.console.error("the machine's end", &format!("{patience:?} are over")).into());
            }
            thread::sleep(POLL);
        }
    }

    /// How the machine ended, if it has.
    ///
    /// # Errors
    ///
    /// Where QEMU itself failed.
    pub fn ended(&mut self) -> Result<Option<Ending>> {
        if self.ending.is_none() {
            self.ending = self.look()?;
        }
        Ok(self.ending.clone())
    }

    /// Cuts the power: nothing in the guest, and no cache of the emulator, gets to finish anything.
    pub fn cut_power(mut self) {
        end_process(&mut self.child);
    }

    fn look(&mut self) -> Result<Option<Ending>> {
        if let Some(reason) = self.qmp.shutdown_reason() {
            self.quit()?;
            return self.ending_by(&reason).map(Some);
        }
        if let Some(ending) = self.standstill() {
            self.quit()?;
            return Ok(Some(ending));
        }
        if let Some(status) = self.child.try_wait()? {
            self.console.finish();
            bail!(self.failure(status));
        }
        Ok(None)
    }

    fn ending_by(&self, reason: &str) -> Result<Ending> {
        match (reason, self.panic_message()) {
            ("guest-reset" | "guest-panic", Some(message)) => Ok(Ending::Panicked(message)),
            ("guest-reset", None) => Ok(Ending::Reset),
            ("guest-shutdown", _) => Ok(Ending::PoweredOff),
            _ => Err(self.console.error("how the machine ended", &format!("QEMU said {reason}")).into()),
        }
    }

    /// A halted kernel tells nobody but the console.
    fn standstill(&self) -> Option<Ending> {
        if self.console.find(&Line::containing("reboot: System halted")).is_some() {
            return Some(Ending::Halted);
        }
        // The kernel's last line, printed where it does not reset after the panic.
        self.console.find(&Line::containing("---[ end Kernel panic"))?;
        self.panic_message().map(Ending::Panicked)
    }

    fn panic_message(&self) -> Option<String> {
        const INTRODUCTION: &str = "Kernel panic - not syncing: ";
        let line = self.console.find(&Line::containing(INTRODUCTION))?;
        line.text.split_once(INTRODUCTION).map(|(_, message)| message.to_owned())
    }

    /// Lets QEMU write out what the guest wrote, and collects the rest of the console.
    fn quit(&mut self) -> Result<()> {
        // Where QEMU is gone already the socket is closed, and there is nothing left to ask for.
        let _ = self.qmp.execute("quit");
        let status = self.child.wait()?;
        self.console.finish();
        if let Some(tpm) = &mut self.tpm {
            tpm.wait();
        }
        ensure!(status.success(), self.failure(status));
        Ok(())
    }

    fn failure(&self, status: ExitStatus) -> String {
        let complaint = complaint(self.folder.path());
        let console = self.console.error("the machine's end", "the emulator failed");
        format!("QEMU ended with {status}: {complaint}\n{console}")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        end_process(&mut self.child);
    }
}

fn spawn(qemu: &Path, machine: &Machine, tpm: Option<&Swtpm>, folder: &Path) -> Result<Child> {
    // setpriv becomes QEMU, which then dies with the thread that owns it, even if that is killed. In a process group of
    // its own it does not get the terminal's Ctrl-C in the middle of a test that is about to clean up.
    let setpriv = tools::require("setpriv", "apt-get install util-linux")?;
    Command::new(setpriv)
        .args(["--pdeathsig", "KILL", "--"])
        .arg(qemu)
        .args(machine.arguments())
        .args(tpm.map(Swtpm::arguments).into_iter().flatten())
        .args(["-S", "-serial", "stdio", "-serial"])
        .arg(format!("unix:{},server=on,wait=off", folder.join(SHELL).display()))
        .args(["-mon", "chardev=control,mode=control", "-chardev"])
        .arg(format!("socket,id=control,path={}", folder.join("qmp").display()))
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(folder.join("stderr"))?)
        .spawn()
        .context("cannot run setpriv")
}

/// Waits for QEMU's connection, but not longer than QEMU lives.
fn accept(listener: &UnixListener, child: &mut Child) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + STARTING;
    while Instant::now() < deadline {
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(false)?;
                return Ok(socket);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = child.try_wait()? {
            bail!("QEMU ended with {status}");
        }
        thread::sleep(POLL);
    }
    bail!("QEMU did not open its control socket within {STARTING:?}")
}

fn complaint(folder: &Path) -> String {
    let text = fs::read(folder.join("stderr")).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().to_owned()
}

fn end_process(child: &mut Child) {
    // Both fail only where it has ended and been waited for, which is what is wanted.
    let _ = child.kill();
    let _ = child.wait();
}

/// The name of the log, numbered from the second start of the same machine on.
fn log_name(name: &str) -> PathBuf {
    static STARTS: Mutex<Option<HashMap<String, u32>>> = Mutex::new(None);
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let mut starts = STARTS.lock().unwrap_or_else(PoisonError::into_inner);
    let count = starts.get_or_insert_default().entry(name.clone()).or_default();
    *count += 1;
    let number = if *count == 1 { String::new() } else { format!("-{count}") };
    format!("{name}{number}.log").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_of_a_machine_has_a_log_of_its_own() {
        assert_eq!(log_name("two starts/x"), Path::new("two-starts-x.log"));
        assert_eq!(log_name("two starts/x"), Path::new("two-starts-x-2.log"));
    }
}
