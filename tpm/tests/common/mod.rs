//! A software TPM and tpm2-tools for it.
#![allow(dead_code)] // Each test file uses a part of it.
#![allow(unreachable_pub)]

use std::{
    collections::BTreeSet,
    env, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use iofs_policy::pcr::{PcrBank, PcrDigest, PcrIndex};
use iofs_tpm::{Tpm, transport::Socket};
use tempfile::TempDir;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// Finds a program, or says how to install it: a test that is skipped would look like one that passed.
pub fn require(program: &str, package: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(program)).find(|candidate| candidate.is_file());
    found.unwrap_or_else(|| panic!("{program} is not installed\n  run: apt-get install {package}"))
}

/// A software TPM with a folder of its own. It dies with this value.
pub struct SoftwareTpm {
    pub process: Child,
    pub folder: TempDir,
}

impl SoftwareTpm {
    /// A TPM that firmware has started.
    pub fn started() -> Self {
        Self::new("not-need-init,startup-clear")
    }

    pub fn new(flags: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().canonicalize().unwrap();
        let log = fs::File::create(at.join("log")).unwrap();
        let process = Command::new(require("swtpm", "swtpm"))
            .args(["socket", "--tpm2", "--flags", flags])
            .arg("--tpmstate")
            .arg(format!("dir={}", at.display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", at.join("data").display()))
            // Where tpm2-tools look for it.
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", at.join("data.ctrl").display()))
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn()
            .unwrap();
        Self { process, folder }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Connects to the TPM. It serves one connection at a time.
    pub fn connect(&mut self) -> Tpm<Socket> {
        let start = Instant::now();
        loop {
            match Socket::unix(self.data(), PATIENCE) {
                Ok(socket) => return Tpm::new(socket),
                Err(error) => {
                    let ended = self.process.try_wait().unwrap();
                    let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                    assert!(ended.is_none(), "swtpm: {}\n{}", ended.unwrap(), log());
                    assert!(start.elapsed() < PATIENCE, "{error}\n{}", log());
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }
}

impl Drop for SoftwareTpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl SoftwareTpm {
    /// Runs one of tpm2-tools in the TPM's folder, and returns what it wrote. Nothing else is connected meanwhile.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> String {
        let text = self.one_tool(program, arguments);
        if program.starts_with("tpm2_create") {
            // There is no resource manager that would do it, and room for three objects.
            self.one_tool("tpm2_flushcontext", &["-Q", "-t"]);
        }
        text
    }

    fn one_tool(&self, program: &str, arguments: &[&str]) -> String {
        let start = Instant::now();
        loop {
            let output = Command::new(require(program, "tpm2-tools"))
                .args(arguments)
                .current_dir(self.folder.path())
                .env("TPM2TOOLS_TCTI", format!("swtpm:path={}", self.data().display()))
                .output()
                .unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            if output.status.success() {
                return text(&output.stdout);
            }
            // The TPM may not have noticed yet that the connection before has ended. It was asked for nothing then.
            let unconnected = text(&output.stderr).contains("Failed to connect");
            let (status, errors) = (output.status, text(&output.stderr));
            assert!(unconnected && start.elapsed() < PATIENCE, "{program} {arguments:?}: {status}: {errors}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// A file that a tool wrote.
    pub fn file(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(name)).unwrap()
    }

    /// Puts a file where tools find it.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.folder.path().join(name), bytes).unwrap();
    }

    /// Makes the storage root key by the usual template, and keeps it at its usual handle.
    pub fn make_srk(&self) {
        let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";
        self.tool("tpm2_createprimary", &["-Q", "-C", "o", "-G", "ecc", "-a", attributes, "-c", "srk.ctx"]);
        self.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "srk.ctx", "0x81000001"]);
    }
}

pub fn index(index: u8) -> PcrIndex {
    PcrIndex::new(index).unwrap()
}

/// Digests for all banks: their bytes do not matter to the TPM.
pub fn digests(byte: u8) -> Vec<PcrDigest> {
    PcrBank::ALL.iter().map(|bank| PcrDigest::new(*bank, &vec![byte; bank.digest_size()]).unwrap()).collect()
}

pub fn registers(indices: &[u8]) -> BTreeSet<(PcrBank, PcrIndex)> {
    indices.iter().flat_map(|number| PcrBank::ALL.map(|bank| (bank, index(*number)))).collect()
}

/// An object that `tpm2_create` sealed under the storage root key: its policy is these registers of the SHA-256 bank, and
/// its authorization value where there is one. Returns the policy's digest and the object.
pub fn seal(software: &SoftwareTpm, secret: &[u8], list: &str, pin: Option<&str>) -> (Vec<u8>, Vec<u8>) {
    software.write("secret", secret);
    software.tool("tpm2_startauthsession", &["-Q", "-S", "trial.ctx"]);
    software.tool("tpm2_policypcr", &["-Q", "-S", "trial.ctx", "-l", &format!("sha256:{list}"), "-L", "policy"]);
    if pin.is_some() {
        software.tool("tpm2_policyauthvalue", &["-Q", "-S", "trial.ctx", "-L", "policy"]);
    }
    software.tool("tpm2_flushcontext", &["-Q", "trial.ctx"]);
    let mut arguments =
        vec!["-Q", "-C", "0x81000001", "-i", "secret", "-L", "policy", "-u", "seal.pub", "-r", "seal.priv"];
    arguments.extend(["-a", "fixedtpm|fixedparent|noda"]);
    if let Some(pin) = pin {
        arguments.extend(["-p", pin]);
    }
    software.tool("tpm2_create", &arguments);
    (software.file("policy"), [software.file("seal.priv"), software.file("seal.pub")].concat())
}

/// Defines and writes an NV index that authorizes itself by this value, if there is one.
pub fn write_nv(software: &SoftwareTpm, index: &str, data: &[u8], auth: Option<&str>) {
    let size = data.len().to_string();
    let mut arguments = vec!["-Q", "-C", "o", "-s", &size, "-a", "authread|authwrite|no_da", index];
    let mut write = vec!["-Q", "-C", index, "-i", "nv", index];
    if let Some(auth) = auth {
        arguments.extend(["-p", auth]);
        write.extend(["-P", auth]);
    }
    software.write("nv", data);
    software.tool("tpm2_nvdefine", &arguments);
    software.tool("tpm2_nvwrite", &write);
}
