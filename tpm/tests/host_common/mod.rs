//! A software TPM that libtss2 reaches by TCP, and tpm2-tools on it.
#![allow(dead_code)]

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub(crate) mod ports;

use ports::Ports;

const PATIENCE: Duration = Duration::from_secs(60);

/// Finds a program, or says how to install it: a test that is skipped would look like one that passed.
pub(crate) fn require(program: &str, package: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(program)).find(|candidate| candidate.is_file());
    found.unwrap_or_else(|| panic!("{program} is not installed\n  run: apt-get install {package}"))
}

/// A software TPM with a folder of its own. It dies with this value.
pub(crate) struct SoftwareTpm {
    process: Child,
    folder: TempDir,
    ports: Ports,
}

impl SoftwareTpm {
    /// A TPM that firmware has started.
    pub(crate) fn started() -> Self {
        Self::on(tempfile::tempdir().unwrap())
    }

    /// A TPM whose state `swtpm_setup` has prepared in this folder.
    pub(crate) fn on(folder: TempDir) -> Self {
        let mut folder = folder;
        let start = Instant::now();
        loop {
            // Between finding a port and swtpm's taking it, another program may take it.
            match Self::try_on(folder) {
                Ok(software) => return software,
                Err(back) => folder = back,
            }
            assert!(start.elapsed() < PATIENCE, "no swtpm: {}", fs::read_to_string(folder.path().join("log")).unwrap());
        }
    }

    fn try_on(folder: TempDir) -> Result<Self, TempDir> {
        let ports = Ports::take();
        let port = ports.first;
        let output = fs::File::create(folder.path().join("output")).unwrap();
        let process = Command::new(require("swtpm", "swtpm"))
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
            .arg(format!("dir={}", folder.path().display()))
            .arg("--server")
            .arg(format!("type=tcp,bindaddr=127.0.0.1,port={port}"))
            .arg("--ctrl")
            .arg(format!("type=tcp,bindaddr=127.0.0.1,port={}", port + 1))
            // Level 20 has every command and response in it.
            .arg("--log")
            .arg(format!("file={},level=20", folder.path().join("log").display()))
            .stdin(Stdio::null())
            .stderr(output.try_clone().unwrap())
            .stdout(output)
            .spawn()
            .unwrap();
        let mut software = Self { process, folder, ports };
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if software.process.try_wait().unwrap().is_some() {
                let folder = std::mem::replace(&mut software.folder, tempfile::tempdir().unwrap());
                return Err(folder);
            }
            if software.ports.listen() {
                return Ok(software);
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("swtpm does not listen")
    }

    /// As libtss2 and tpm2-tools take it.
    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port())
    }

    pub(crate) fn port(&self) -> u16 {
        self.ports.first
    }

    /// A file beside the TPM's state.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Runs one of tpm2-tools in the folder.
    pub(crate) fn try_tool(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(require(program, "tpm2-tools"))
            .args(arguments)
            .env("TPM2TOOLS_TCTI", self.tcti())
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    /// Runs one of tpm2-tools, which must succeed. What it leaves in the TPM is flushed.
    pub(crate) fn tool(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.try_tool(program, arguments);
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        self.try_tool("tpm2_flushcontext", &["--transient-object"]);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Where the log ends now.
    pub(crate) fn log_position(&self) -> usize {
        self.read("log").len()
    }

    /// The codes of the commands that came since then, by swtpm's log.
    pub(crate) fn commands_since(&self, position: usize) -> Vec<u32> {
        let log = self.read("log");
        let text = String::from_utf8_lossy(&log[position..]);
        let mut codes = Vec::new();
        // A command's bytes follow in lines of hexadecimal: its code comes behind tag and size.
        for (_, command) in text.match_indices("SWTPM_IO_Read: length ").map(|(at, _)| text[at..].split_at(22)) {
            let bytes = command.split_ascii_whitespace().skip(1).take(10);
            let header: Vec<u8> = bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            codes.push(u32::from_be_bytes(header[6..10].try_into().unwrap()));
        }
        codes
    }

    /// Extends a register of the SHA-256 bank.
    pub(crate) fn extend(&self, index: u8, digest: &[u8]) {
        self.tool("tpm2_pcrextend", &[&format!("{index}:sha256={}", iofs_policy::hex::encode(digest))]);
    }

    /// Removes the sessions that a program left behind, as a resource manager would do.
    pub(crate) fn flush_sessions(&self) {
        self.try_tool("tpm2_flushcontext", &["--loaded-session"]);
        self.try_tool("tpm2_flushcontext", &["--transient-object"]);
    }

    /// The handles of objects and sessions that are in the TPM.
    pub(crate) fn leftovers(&self) -> String {
        ["handles-transient", "handles-loaded-session", "handles-saved-session"]
            .map(|kind| self.tool("tpm2_getcap", &[kind]))
            .concat()
    }
}

impl Drop for SoftwareTpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Listeners on two ports in a row, and the first port.
pub(crate) fn two_listeners() -> (u16, TcpListener, TcpListener) {
    loop {
        let data = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = data.local_addr().unwrap().port();
        let control = port.checked_add(1).and_then(|next| TcpListener::bind(("127.0.0.1", next)).ok());
        if let Some(control) = control {
            return (port, data, control);
        }
    }
}

/// A folder with the state of a TPM whose endorsement keys have certificates by a certificate authority in `ca`, which is
/// made where there is none. Its root is `ca/swtpm-localca-rootca-cert.pem`, the intermediate `ca/issuercert.pem`.
pub(crate) fn with_certificates(ca: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(ca).unwrap();
    let at = ca.display();
    let conf = format!(
        "statedir = {at}\nsigningkey = {at}/signkey.pem\nissuercert = {at}/issuercert.pem\ncertserial = {at}/certserial\n"
    );
    fs::write(ca.join("localca.conf"), conf).unwrap();
    fs::write(ca.join("localca.options"), "--tpm-manufacturer IBM\n--tpm-model swtpm-libtpms\n--tpm-version 2\n--platform-manufacturer Test\n--platform-version 1\n--platform-model QEMU\n").unwrap();
    let localca = require("swtpm_localca", "swtpm-tools");
    let setup = format!(
        "create_certs_tool = {}\ncreate_certs_tool_config = {at}/localca.conf\ncreate_certs_tool_options = {at}/localca.options\n",
        localca.display()
    );
    fs::write(ca.join("setup.conf"), setup).unwrap();
    let output = Command::new(require("swtpm_setup", "swtpm-tools"))
        .args(["--tpm2", "--create-ek-cert", "--lock-nvram", "--not-overwrite", "--pcr-banks", "sha1,sha256,sha384"])
        .arg("--tpm-state")
        .arg(folder.path())
        .arg("--config")
        .arg(ca.join("setup.conf"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "swtpm_setup: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    folder
}
