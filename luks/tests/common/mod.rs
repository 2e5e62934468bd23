//! Volumes by the real `cryptsetup`, on files: it needs no device-mapper for that.
#![allow(dead_code)] // each test file uses a part

pub(crate) mod edit;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use iofs_luks::{Header, HeaderError, Limits, OpenError, SlotId, VolumeKey};
use tempfile::TempDir;

/// What opens the volumes' first keyslot.
pub(crate) const PASSPHRASE: &str = "correct horse";
/// Costs as low as cryptsetup takes them.
pub(crate) const CHEAP: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

/// A file with a LUKS2 header.
pub(crate) struct Volume {
    directory: TempDir,
    pub(crate) bytes: u64,
}

impl Volume {
    /// `cryptsetup luksFormat` with these options, on a file of 24 MiB.
    pub(crate) fn format(options: &[&str]) -> Self {
        Self::format_sized(24 << 20, options)
    }

    pub(crate) fn format_sized(bytes: u64, options: &[&str]) -> Self {
        let volume = Self::empty(bytes);
        volume.cryptsetup("luksFormat", &[&["--type", "luks2"], options].concat());
        volume
    }

    pub(crate) fn empty(bytes: u64) -> Self {
        let directory = TempDir::new().unwrap();
        let volume = Self { directory, bytes };
        File::create(volume.path()).unwrap().set_len(bytes).unwrap();
        fs::write(volume.key_file(), PASSPHRASE).unwrap();
        volume
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.file("volume")
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.file("passphrase")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs `cryptsetup VERB OPTIONS… --key-file PASSPHRASE VOLUME` and returns what it prints.
    pub(crate) fn cryptsetup(&self, verb: &str, options: &[&str]) -> String {
        let key_file = self.key_file();
        let mut command = Command::new("cryptsetup");
        command.args([verb, "--batch-mode", "--key-file"]).arg(&key_file).args(options).arg(self.path());
        run(&mut command)
    }

    /// The volume key, as cryptsetup knows it.
    pub(crate) fn volume_key(&self) -> Vec<u8> {
        let path = self.file("volume-key");
        let text = path.to_str().unwrap();
        self.cryptsetup("luksDump", &["--dump-volume-key", "--volume-key-file", text]);
        let key = fs::read(&path).unwrap();
        fs::remove_file(path).unwrap();
        key
    }

    pub(crate) fn source(&self) -> File {
        File::open(self.path()).unwrap()
    }

    pub(crate) fn header(&self) -> Result<Header, HeaderError> {
        Header::read(&mut self.source(), self.bytes)
    }

    pub(crate) fn open(&self, number: u8, passphrase: &str) -> Result<VolumeKey, OpenError> {
        let header = self.header().unwrap();
        header.open(&mut self.source(), slot(number), passphrase.as_bytes(), &Limits::default())
    }

    /// All bytes of the file up to the end of both headers.
    pub(crate) fn headers(&self) -> Vec<u8> {
        let mut bytes = fs::read(self.path()).unwrap();
        let size = self.header().unwrap().header_size as usize;
        bytes.truncate(2 * size);
        bytes
    }
}

pub(crate) fn slot(number: u8) -> SlotId {
    SlotId::new(number).unwrap()
}

/// Runs a program that has to succeed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; 'scripts/install-deps test' installs what the tests need")
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
