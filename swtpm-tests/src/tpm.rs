//! A software TPM for a machine.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::tools;

/// How long swtpm may take to open its socket, or to write its state and end.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// What a TPM keeps while it has no power: keys, counters, NV indices. Each start of a machine with it is a power cycle.
#[derive(Debug)]
pub struct TpmState {
    folder: TempDir,
}

impl TpmState {
    /// A TPM that was never started.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be made.
    pub fn new() -> Result<Self> {
        Ok(Self { folder: tempfile::Builder::new().prefix("iofs-tpm.").tempdir()? })
    }

    /// Where it is kept.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A TPM under power. Dropped, it loses it.
#[derive(Debug)]
pub(crate) struct Swtpm {
    child: Child,
    socket: PathBuf,
}

impl Swtpm {
    /// Starts the TPM, with its control socket in a folder whose path is short.
    pub(crate) fn start(state: &Path, folder: &Path) -> Result<Self> {
        let swtpm = tools::require("swtpm", "apt-get install swtpm")?;
        let setpriv = tools::require("setpriv", "apt-get install util-linux")?;
        let socket = folder.join("tpm");
        let child = Command::new(setpriv)
            .args(["--pdeathsig", "KILL", "--"])
            .arg(swtpm)
            .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
            .arg(format!("dir={}", state.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", socket.display()))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.join("tpm-stderr"))?)
            .spawn()
            .context("cannot run setpriv")?;
        let mut swtpm = Self { child, socket };
        swtpm.wait_for_socket(&folder.join("tpm-stderr"))?;
        Ok(swtpm)
    }

    fn wait_for_socket(&mut self, complaint: &Path) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.socket.exists() {
            if let Some(status) = self.child.try_wait()? {
                bail!("swtpm ended with {status}: {}", std::fs::read_to_string(complaint)?.trim());
            }
            if Instant::now() >= deadline {
                bail!("swtpm did not open {} within {PATIENCE:?}", self.socket.display());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// What QEMU is told of it.
    pub(crate) fn arguments(&self) -> [String; 6] {
        let path = self.socket.display();
        [
            "-chardev".to_owned(),
            format!("socket,id=tpm-socket,path={path}"),
            "-tpmdev".to_owned(),
            "emulator,id=tpm0,chardev=tpm-socket".to_owned(),
            "-device".to_owned(),
            "tpm-crb,tpmdev=tpm0".to_owned(),
        ]
    }

    /// Waits until its state is written, after the machine has ended.
    pub(crate) fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(POLL);
        }
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // Both fail only where it has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
