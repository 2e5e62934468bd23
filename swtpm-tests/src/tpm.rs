//! A software TPM for a machine.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use iofs_policy::manifest::{RollbackIndex, RollbackRule};
use tempfile::TempDir;

use crate::tools;

#[path = "../../tpm/tests/host_common/ports.rs"]
mod ports;

use ports::Ports;

/// How long swtpm may take to open its socket, or to write its state and end.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
/// Where swtpm complains.
const COMPLAINT: &str = "tpm-stderr";
/// The NV index of the rollback counter, where `iofs-sign` has it.
const COUNTER: u32 = iofs_tpm::rollback::DEFAULT_INDEX;
/// The issuing certificate's file.
const ISSUER: &str = "issuer-cert.pem";

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

    /// A TPM as it leaves its maker: with endorsement keys and their certificates, issued by a CA of its own in the folder
    /// `ca`. Its root is [`TpmState::ca_root`], the issuer [`TpmState::ca_issuer`].
    ///
    /// # Errors
    ///
    /// Where `swtpm_setup` is not installed or fails.
    pub fn certified() -> Result<Self> {
        let setup = tools::require("swtpm_setup", "apt-get install swtpm-tools")?;
        let localca = tools::require("swtpm_localca", "apt-get install swtpm-tools")?;
        let state = Self::new()?;
        let (at, ca) = (state.path().display(), state.path().join("ca"));
        fs::create_dir(&ca)?;
        let ca = ca.display();
        let paths = format!(
            "statedir = {ca}\nsigningkey = {ca}/key.pem\nissuercert = {ca}/{ISSUER}\ncertserial = {ca}/serial\n"
        );
        fs::write(state.path().join("localca.conf"), paths)?;
        let platform = "--platform-manufacturer QEMU\n--platform-version 1\n--platform-model Q35\n";
        fs::write(state.path().join("localca.options"), platform)?;
        let localca = localca.display();
        let tools = format!(
            "create_certs_tool={localca}\ncreate_certs_tool_config={at}/localca.conf\n\
             create_certs_tool_options={at}/localca.options\n"
        );
        fs::write(state.path().join("setup.conf"), tools)?;
        let made = Command::new(setup)
            .args(["--tpm2", "--create-ek-cert", "--pcr-banks", "sha256,sha384", "--tpmstate"])
            .arg(state.path())
            .arg("--config")
            .arg(state.path().join("setup.conf"))
            .output()?;
        ensure!(made.status.success(), "swtpm_setup: {}", String::from_utf8_lossy(&made.stdout));
        Ok(state)
    }

    /// The same TPM once more, as it is now and without power: what one does with it, the other does not know.
    ///
    /// # Errors
    ///
    /// Where a file cannot be copied.
    pub fn copied(&self) -> Result<Self> {
        let copy = Self::new()?;
        for entry in fs::read_dir(self.path())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
            }
        }
        Ok(copy)
    }

    /// Makes a storage root key at its usual handle, and returns its public area as `tpm2_readpublic` writes it.
    ///
    /// # Errors
    ///
    /// Where swtpm or tpm2-tools are not installed or fail.
    pub fn storage_root_key(&self) -> Result<Vec<u8>> {
        let powered = self.powered()?;
        powered.tool("tpm2_createprimary", "-Q -C o -G ecc -c key")?;
        powered.tool("tpm2_evictcontrol", "-Q -C o -c key 0x81000001")?;
        powered.tool("tpm2_readpublic", "-Q -c 0x81000001 -o srk.pub")?;
        let public = fs::read(powered.file("srk.pub"))?;
        powered.off()?;
        Ok(public)
    }

    /// Makes a rollback counter, counts it up once, and says that this value stands for a rollback index.
    ///
    /// # Errors
    ///
    /// Where swtpm or tpm2-tools are not installed or fail.
    pub fn rollback_counter(&self, index: u64) -> Result<RollbackRule> {
        let powered = self.powered()?;
        let attributes = "ownerwrite|nt=counter|ownerread|authread|no_da";
        powered.tool("tpm2_nvdefine", &format!("-Q -C o -a {attributes} {COUNTER:#x}"))?;
        powered.tool("tpm2_nvincrement", &format!("-Q -C o {COUNTER:#x}"))?;
        let value = powered.tool("tpm2_nvread", &format!("-C o -s 8 {COUNTER:#x}"))?;
        powered.off()?;
        let value = u64::from_be_bytes(value.try_into().ok().context("a counter has 8 bytes")?);
        Ok(RollbackRule { counter: COUNTER, value, index: RollbackIndex(index) })
    }

    /// Counts that counter up, as `mark-good` does.
    ///
    /// # Errors
    ///
    /// As [`TpmState::rollback_counter`].
    pub fn count_up(&self) -> Result<()> {
        let powered = self.powered()?;
        powered.tool("tpm2_nvincrement", &format!("-Q -C o {COUNTER:#x}"))?;
        powered.off()
    }

    /// The TPM under power and without a machine, for programs that talk to its socket.
    ///
    /// # Errors
    ///
    /// Where swtpm is not installed or does not start.
    pub fn powered(&self) -> Result<PoweredTpm> {
        let folder = tempfile::Builder::new().prefix("iofs-tpm.").tempdir()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Between finding a port and swtpm's taking it, another program may take it.
            match Swtpm::alone(self.path(), folder.path()) {
                Ok((swtpm, ports)) => return Ok(PoweredTpm { swtpm, ports, folder }),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// The certificate at the root of [`TpmState::certified`]'s CA.
    pub fn ca_root(&self) -> PathBuf {
        self.path().join("ca/swtpm-localca-rootca-cert.pem")
    }

    /// The certificate that issued those of the endorsement keys.
    pub fn ca_issuer(&self) -> PathBuf {
        self.path().join("ca").join(ISSUER)
    }

    /// Where it is kept.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A TPM under power that no machine uses, and a folder for what tools make with it.
#[derive(Debug)]
pub struct PoweredTpm {
    swtpm: Swtpm,
    ports: Ports,
    folder: TempDir,
}

impl PoweredTpm {
    /// How programs reach it: those of ours, and all that use libtss2.
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.ports.first)
    }

    /// A file in its folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a program of tpm2-tools in its folder.
    ///
    /// # Errors
    ///
    /// Where tpm2-tools are not installed or fail.
    pub fn tool(&self, program: &str, arguments: &str) -> Result<Vec<u8>> {
        let found = tools::require(program, "apt-get install tpm2-tools")?;
        let ran = Command::new(found)
            .args(arguments.split(' ').filter(|argument| !argument.is_empty()))
            .current_dir(self.folder.path())
            .env("TPM2TOOLS_TCTI", self.tcti())
            .output()?;
        ensure!(ran.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&ran.stderr));
        Ok(ran.stdout)
    }

    /// Takes the power away in good order: otherwise the TPM counts the cut as an attempt to guess.
    ///
    /// # Errors
    ///
    /// Where the TPM does not shut down.
    pub fn off(mut self) -> Result<()> {
        self.tool("tpm2_shutdown", "-c")?;
        self.swtpm.child.kill()?;
        self.swtpm.child.wait()?;
        Ok(())
    }
}

/// A TPM under power. Dropped, it loses it.
#[derive(Debug)]
pub(crate) struct Swtpm {
    child: Child,
    socket: PathBuf,
}

impl Swtpm {
    /// Starts the TPM for a machine, with its control socket in a folder whose path is short.
    pub(crate) fn start(state: &Path, folder: &Path) -> Result<Self> {
        let socket = folder.join("tpm");
        let control = format!("type=unixio,path={}", socket.display());
        let child = spawn(state, folder, &["--ctrl", &control, "--terminate"])?;
        let mut swtpm = Self { child, socket };
        let socket = swtpm.socket.clone();
        swtpm.wait_until(folder, || socket.exists())?;
        Ok(swtpm)
    }

    /// Starts the TPM as firmware does, for tools that talk to it at a port of this machine.
    fn alone(state: &Path, folder: &Path) -> Result<(Self, Ports)> {
        let ports = Ports::take();
        let port = ports.first;
        // Where libtss2 looks for it.
        let control = format!("type=tcp,bindaddr=127.0.0.1,port={}", port + 1);
        let server = format!("type=tcp,bindaddr=127.0.0.1,port={port}");
        let options = ["--flags", "not-need-init,startup-clear", "--server", &server, "--ctrl", &control];
        let mut swtpm = Self { child: spawn(state, folder, &options)?, socket: PathBuf::new() };
        swtpm.wait_until(folder, || ports.listen())?;
        Ok((swtpm, ports))
    }

    fn wait_until(&mut self, folder: &Path, listens: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !listens() {
            if let Some(status) = self.child.try_wait()? {
                bail!("swtpm ended with {status}: {}", fs::read_to_string(folder.join(COMPLAINT))?.trim());
            }
            if Instant::now() >= deadline {
                bail!("swtpm did not listen within {PATIENCE:?}");
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

fn spawn(state: &Path, folder: &Path, options: &[&str]) -> Result<Child> {
    let swtpm = tools::require("swtpm", "apt-get install swtpm")?;
    let setpriv = tools::require("setpriv", "apt-get install util-linux")?;
    Command::new(setpriv)
        .args(["--pdeathsig", "KILL", "--"])
        .arg(swtpm)
        .args(["socket", "--tpm2", "--tpmstate"])
        .arg(format!("dir={}", state.display()))
        .args(options)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(folder.join(COMPLAINT))?)
        .spawn()
        .context("cannot run setpriv")
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // Both fail only where it has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
