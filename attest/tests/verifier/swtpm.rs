//! Quotes by a software TPM, made and checked by tpm2-tools.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use iofs_attest::{
    base64_bytes::Base64Bytes,
    evidence::{EVIDENCE_VERSION, Evidence},
    learn::learn,
    policy_file::DEFAULT_PCRS,
    quote::{AttestationKey, Quote},
    tcg::EventLog,
};
use iofs_policy::{
    hex,
    pcr::{PcrBank, PcrDigest},
};
use tempfile::TempDir;

use crate::{logs, support::*};

const PATIENCE: Duration = Duration::from_secs(60);

/// Finds a program, or says how to install it: a test that is skipped would look like one that passed.
fn require(program: &str, package: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| candidate.is_file());
    found.unwrap_or_else(|| panic!("{program} is not installed\n  run: apt-get install {package}"))
}

/// A software TPM with a folder of its own. It dies with this value.
struct SoftwareTpm {
    process: Child,
    folder: TempDir,
}

impl Drop for SoftwareTpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl SoftwareTpm {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().canonicalize().unwrap();
        let socket = |name: &str| format!("type=unixio,path={}", at.join(name).display());
        let process = Command::new(require("swtpm", "swtpm"))
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
            .arg(format!("dir={}", at.display()))
            .args(["--server", &socket("data"), "--ctrl", &socket("data.ctrl")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while !["data", "data.ctrl"].iter().all(|name| at.join(name).exists()) {
            assert!(start.elapsed() < PATIENCE, "swtpm does not start");
            thread::sleep(Duration::from_millis(10));
        }
        Self { process, folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn run(&self, tool: &str, arguments: &[&str]) -> String {
        let output = Command::new(require(tool, "tpm2-tools"))
            .args(arguments)
            .env("TPM2TOOLS_TCTI", format!("swtpm:path={}", self.path("data")))
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} {arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Makes an endorsement key and an attestation key below it.
    fn create_key(&self, key: &str, digest: &str, scheme: &str) {
        self.run("tpm2_createek", &["-c", "ek.ctx", "-G", "ecc", "-u", "ek.pub"]);
        self.run("tpm2_flushcontext", &["-t"]);
        let ak =
            ["-C", "ek.ctx", "-c", "ak.ctx", "-G", key, "-g", digest, "-s", scheme, "-u", "ak.pub", "-n", "ak.name"];
        self.run("tpm2_createak", &ak);
        self.run("tpm2_flushcontext", &["-t"]);
    }

    fn extend(&self, pcr: u8, digests: &[PcrDigest]) {
        let list: Vec<String> =
            digests.iter().map(|digest| format!("{}={}", digest.bank(), hex::encode(digest.as_bytes()))).collect();
        self.run("tpm2_pcrextend", &[&format!("{pcr}:{}", list.join(","))]);
    }

    /// tpm2_checkquote takes every RSA signature for one of PKCS #1 v1.5 (5.4), so that OpenSSL checks the others.
    fn second_opinion(&self, nonce: &str, digest: &str, scheme: &str) {
        if scheme != "rsapss" {
            let check = ["-u", "ak.pub", "-m", "msg", "-s", "sig", "-f", "pcrs", "-q", nonce, "-g", digest];
            self.run("tpm2_checkquote", &check);
            return;
        }
        self.run("tpm2_readpublic", &["-c", "ak.ctx", "-f", "pem", "-o", "ak.pem"]);
        self.run("tpm2_flushcontext", &["-t"]);
        fs::write(self.path("raw"), &self.read("sig")[6..]).unwrap();
        let padding = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:auto"];
        let checked = Command::new(require("openssl", "openssl"))
            .args(["dgst", &format!("-{digest}"), "-verify", "ak.pem", "-signature", "raw"])
            .args(padding)
            .arg("msg")
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    }

    /// Quotes the default registers of the banks, has somebody else check it, and packs it up.
    fn quote(&self, banks: &[PcrBank], digest: &str, scheme: &str) -> Evidence {
        let pcrs = DEFAULT_PCRS.map(|pcr| pcr.to_string()).join(",");
        let list: Vec<String> = banks.iter().map(|bank| format!("{bank}:{pcrs}")).collect();
        let nonce = hex::encode(NONCE);
        let quote = [
            "-c",
            "ak.ctx",
            "-l",
            &list.join("+"),
            "--scheme",
            scheme,
            "-q",
            &nonce,
            "-m",
            "msg",
            "-s",
            "sig",
            "-o",
            "pcrs",
            "-g",
            digest,
        ];
        self.run("tpm2_quote", &quote);
        self.run("tpm2_flushcontext", &["-t"]);
        self.second_opinion(&nonce, digest, scheme);
        Evidence {
            evidence_version: EVIDENCE_VERSION,
            quote: Base64Bytes(self.read("msg")),
            signature: Base64Bytes(self.read("sig")),
            ak_public: Base64Bytes(self.read("ak.pub")),
            pcrs: Default::default(),
            firmware_log: None,
            measurement_log: None,
            measurement_log_torn: false,
        }
    }
}

/// Extends a software TPM as a boot of the release does, with firmware's events of a real boot before, and checks that the
/// quote by tpm2_quote is attested.
fn quotes_by_tpm2_quote_pass(key: &str, digest: &str, scheme: &str, expected: &str, banks: &[PcrBank]) {
    let tpm = SoftwareTpm::start();
    tpm.create_key(key, digest, scheme);
    let release = reference("13.2-4", |_| {});
    let log = EventLog::parse(&logs::log("ovmf")).unwrap();
    for event in &log.events {
        if let Some(pcr) = event.extends() {
            tpm.extend(pcr.get(), &event.digests);
        }
    }
    let mut machine = Machine::new(&PcrBank::ALL);
    for measurement in release.release().measurements(LINE) {
        tpm.extend(measurement.pcr().get(), &PcrBank::ALL.map(|bank| measurement.digest(bank)));
        machine.measure(&measurement);
    }
    let mut evidence = tpm.quote(banks, digest, scheme);
    evidence.firmware_log = Some(Base64Bytes(logs::log("ovmf")));
    evidence.measurement_log = Some(Base64Bytes(machine.log()));
    let mut verifier = Verifier::new(banks, vec![release]);
    verifier.device.ak_public = evidence.ak_public.clone();
    let parsed = AttestationKey::parse(&evidence.ak_public).unwrap();
    assert_eq!(parsed.name().as_bytes(), tpm.read("ak.name"));
    assert_eq!(parsed.scheme().to_string(), expected);
    let attested = verifier.verify(&evidence).unwrap();
    assert_eq!(attested.release(), "org.example.gateway 13.2-4");
    keep(&evidence, &format!("{key}-{scheme}"));
    check_changes(&verifier, &evidence);
    let policy = learn(&verifier.request(), &evidence).unwrap();
    assert!(verifier.policy(&policy).verify(&evidence).unwrap().ignored_pcrs().is_empty());
}

/// `scripts/fuzz-corpus` takes seeds from here.
fn keep(evidence: &Evidence, name: &str) {
    if let Some(folder) = env::var_os("IOFS_KEEP_EVIDENCE") {
        fs::write(Path::new(&folder).join(name), evidence.to_json()).unwrap();
    }
}

/// A bit of each byte of quote, signature and key; and each cut of them.
fn check_changes(verifier: &Verifier, evidence: &Evidence) {
    let parts: [fn(&mut Evidence) -> &mut Vec<u8>; 3] =
        [|evidence| &mut evidence.quote.0, |evidence| &mut evidence.signature.0, |evidence| &mut evidence.ak_public.0];
    for part in parts {
        let mut changed = evidence.clone();
        for byte in 0..part(&mut changed).len() {
            part(&mut changed)[byte] ^= 1 << (byte % 8);
            assert!(verifier.verify(&changed).is_err(), "byte {byte}");
            part(&mut changed)[byte] ^= 1 << (byte % 8);
            let mut cut = evidence.clone();
            part(&mut cut).truncate(byte);
            assert!(verifier.verify(&cut).is_err(), "cut to {byte}");
        }
    }
    assert!(Quote::parse(&evidence.quote).unwrap().clock.safe);
}

#[test]
fn quotes_by_an_ecdsa_key_pass_in_one_bank() {
    quotes_by_tpm2_quote_pass("ecc", "sha256", "ecdsa", "ecdsa with sha256", SHA256);
}

#[test]
fn quotes_by_an_ecdsa_key_on_p384_pass_in_two_banks() {
    quotes_by_tpm2_quote_pass("ecc384", "sha384", "ecdsa", "ecdsa with sha384", &[PcrBank::Sha256, PcrBank::Sha384]);
}

#[test]
fn quotes_by_an_rsassa_key_pass_in_all_banks() {
    quotes_by_tpm2_quote_pass("rsa", "sha256", "rsassa", "rsassa with sha256", &PcrBank::ALL);
}

#[test]
fn quotes_by_an_rsapss_key_pass_in_two_banks() {
    quotes_by_tpm2_quote_pass("rsa", "sha256", "rsapss", "rsapss with sha256", BOTH);
}

#[test]
fn an_rsa_key_with_sha512_passes() {
    quotes_by_tpm2_quote_pass("rsa", "sha512", "rsassa", "rsassa with sha512", SHA256);
}
