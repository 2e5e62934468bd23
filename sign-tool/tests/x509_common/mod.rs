//! What the tests with X.509 share: keys and certificates as OpenSSL makes them.
#![allow(dead_code)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use iofs_sign::x509::X509Signer;
use tempfile::TempDir;

/// A directory with what a test makes.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// Makes `NAME.pem` and `NAME.crt`; `kind` is what `openssl req -newkey` takes.
    pub(crate) fn pair(&self, name: &str, kind: &str) -> (PathBuf, PathBuf) {
        let (key, certificate) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.crt")));
        let subject = format!("/CN={name}/");
        let mut request = Command::new("openssl");
        request.args(["req", "-x509", "-nodes", "-days", "10", "-subj", &subject, "-newkey"]).args(kind.split(' '));
        run(request.arg("-keyout").arg(&key).arg("-out").arg(&certificate));
        (key, certificate)
    }

    pub(crate) fn signer(&self, name: &str) -> X509Signer {
        let (key, certificate) = self.pair(name, "rsa:2048");
        X509Signer::read(&key, &certificate).unwrap()
    }
}

/// Runs a program that must succeed; its standard output.
pub(crate) fn run(command: &mut Command) -> Vec<u8> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|error| panic!("{name}: {error}\n  run: scripts/install-deps test"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}{}", String::from_utf8_lossy(&output.stdout));
    output.stdout
}

/// A file of the cache that `make cache` fills.
pub(crate) fn cached(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}\n  run: make cache", path.display()))
}

/// systemd's stub.
pub(crate) fn stub() -> Vec<u8> {
    let path = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
    fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}\n  run: apt-get install systemd-boot-efi"))
}
