//! The other side of attestation: enrols devices, asks them for quotes, and decides, all by `iofs-sign`.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use iofs_attest::evidence::Evidence;
use serde_json::Value;
use tempfile::TempDir;

use crate::{DeviceShell, Ran, TpmState, attester, cache, chain::Chain};

/// A command on the device, under emulation.
const COMMAND: Duration = Duration::from_secs(120);

/// A verifier with a folder of its own.
#[derive(Debug)]
pub struct Verifier {
    folder: TempDir,
    program: PathBuf,
    numbers: AtomicU32,
}

/// What a device answered to a nonce.
#[derive(Debug, Clone)]
pub struct Quoted {
    /// The nonce in hexadecimal.
    pub nonce: String,
    /// The evidence, a file.
    pub evidence: PathBuf,
}

/// What the verifier decided.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The exit code.
    pub code: i32,
    /// The verdict or the error, as JSON.
    pub json: Value,
}

impl Verifier {
    /// Builds `iofs-sign` where that was not done yet.
    ///
    /// # Errors
    ///
    /// Where it does not build.
    pub fn new() -> Result<Self> {
        let program = attester::program("iofs-sign")?;
        Ok(Self { folder: tempfile::tempdir()?, program, numbers: AtomicU32::new(0) })
    }

    /// A file of its own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `iofs-sign` here.
    ///
    /// # Errors
    ///
    /// Where it cannot be run.
    pub fn run(&self, arguments: &[OsString]) -> Result<Ran> {
        let output = Command::new(&self.program).args(arguments).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Ran { code: output.status.code().context("killed")?, stdout: output.stdout, stderr })
    }

    /// Enrols a device: request, challenge, answer, record. Without `maker`, nobody vouches for its endorsement key.
    ///
    /// # Errors
    ///
    /// Where one of the steps fails.
    pub fn enrol(&self, name: &str, device: &mut DeviceShell, maker: Option<&TpmState>) -> Result<PathBuf> {
        let (request, challenge, answer) = (self.file("request"), self.file("challenge"), self.file("answer"));
        let (state, record) = (self.file("state"), self.file(&format!("{name}.device")));
        fs::write(&request, device.output("iofs-sign attest enroll request", COMMAND)?)?;
        let mut arguments = words(&["attest", "enroll", "challenge", "--name", name, "--state"]);
        arguments.extend([state.clone().into(), "--out".into(), challenge.clone().into()]);
        match maker {
            Some(tpm) => arguments.extend([
                "--ek-root".into(),
                tpm.ca_root().into(),
                "--ek-intermediate".into(),
                tpm.ca_issuer().into(),
            ]),
            None => arguments.push("--allow-unverified-ek".into()),
        }
        arguments.push(request.into());
        self.must(&arguments)?;
        device.put("/run/challenge", &fs::read(&challenge)?)?;
        fs::write(&answer, device.output("iofs-sign attest enroll activate /run/challenge", COMMAND)?)?;
        let mut arguments = words(&["attest", "enroll", "accept", "--state"]);
        arguments.extend([state.into(), "--out".into(), record.clone().into(), answer.into()]);
        self.must(&arguments)?;
        Ok(record)
    }

    /// Asks for a quote with a nonce of its own.
    ///
    /// # Errors
    ///
    /// Where the device does not give one.
    pub fn ask(&self, device: &mut DeviceShell, options: &str) -> Result<Quoted> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let nonce = format!("{number:08x}").repeat(8);
        let command = format!("iofs-sign attest quote --nonce {nonce} {options}");
        let evidence = self.file(&format!("evidence-{number}"));
        fs::write(&evidence, device.output(&command, COMMAND)?)?;
        Ok(Quoted { nonce, evidence })
    }

    /// The same quote in evidence that somebody changed.
    ///
    /// # Errors
    ///
    /// Where the evidence cannot be read or changed.
    pub fn forged(&self, quoted: &Quoted, change: impl FnOnce(&mut Evidence) -> Result<()>) -> Result<Quoted> {
        let mut evidence = Evidence::from_json(&fs::read(&quoted.evidence)?)?;
        change(&mut evidence)?;
        let path = self.file(&format!("forged-{}", self.numbers.fetch_add(1, Ordering::Relaxed)));
        fs::write(&path, evidence.to_json())?;
        Ok(Quoted { nonce: quoted.nonce.clone(), evidence: path })
    }

    /// Decides on a quote, with these chains' releases as references.
    ///
    /// # Errors
    ///
    /// Where the program cannot be run, or prints something else than JSON.
    pub fn decide(&self, record: &Path, quoted: &Quoted, references: &[&Chain], options: &[&str]) -> Result<Decision> {
        let mut arguments = words(&["--json", "attest", "verify", "--nonce", &quoted.nonce, "--evidence"]);
        arguments.extend([quoted.evidence.clone().into(), "--device".into(), record.into()]);
        arguments.extend(self.references(references));
        arguments.extend(words(options));
        let ran = self.run(&arguments)?;
        let text = if ran.stdout.is_empty() { ran.stderr.as_bytes() } else { &ran.stdout };
        let json = serde_json::from_slice(text).with_context(|| String::from_utf8_lossy(text).into_owned())?;
        Ok(Decision { code: ran.code, json })
    }

    /// `--release … --key …`
    pub fn references(&self, chains: &[&Chain]) -> Vec<OsString> {
        let releases = chains.iter().map(|chain| chain.directory().file(iofs_sign::sealed::RELEASE));
        let key = cache::workspace().join("keys-example/DO-NOT-SHIP-example-1.pub.pem");
        let named = releases.flat_map(|release| ["--release".into(), release.into()]);
        named.chain(["--key".into(), key.into()]).collect()
    }

    fn must(&self, arguments: &[OsString]) -> Result<Ran> {
        let ran = self.run(arguments)?;
        ensure!(ran.code == 0, "iofs-sign {arguments:?} ended with {}: {}", ran.code, ran.stderr);
        Ok(ran)
    }
}

impl Decision {
    /// It must be "attested".
    ///
    /// # Errors
    ///
    /// With the verdict, where it is not.
    pub fn attested(self) -> Result<Value> {
        ensure!(self.code == 0, "expected a device that is attested, found exit code {}: {:#}", self.code, self.json);
        Ok(self.json["attested"].clone())
    }

    /// It must be refused, for the reason that this text is a part of.
    ///
    /// # Errors
    ///
    /// With the verdict, where it is another.
    pub fn refused(self, because: &str) -> Result<()> {
        let text = self.json["message"].as_str().unwrap_or_default();
        ensure!(self.code == 4, "expected a refusal, found exit code {}: {:#}", self.code, self.json);
        ensure!(text.contains(because), "expected a refusal because of {because:?}, found {:#}", self.json);
        Ok(())
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}
