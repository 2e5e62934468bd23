//! Encrypted volumes made on the build machine, without device-mapper: `cryptsetup` encrypts a file in place.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use iofs_sign::sealed;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    ScratchDisk, TpmState, attester,
    cache::{self, target_folder},
    chain::Chain,
    tools,
};

/// A key derivation that is good for tests alone: formatting and opening take no time.
pub const QUICK: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
/// A header with room for eight keyslots, which leaves a small volume most of its size.
pub const SMALL_HEADER: &str = "--luks2-metadata-size 16k --luks2-keyslots-size 2m";
/// What the header and the keyslots take at the volume's start.
const HEADER_MIB: u64 = 4;
/// A volume's size unless a test needs more.
const DATA_MIB: u64 = 12;

/// A LUKS2 volume in a file.
#[derive(Debug)]
pub struct VolumeFile {
    folder: TempDir,
    passphrase: String,
}

impl VolumeFile {
    /// A volume that is opened by a passphrase and holds an ext4 with one file in its root.
    ///
    /// # Errors
    ///
    /// Where `mkfs.ext4` or `cryptsetup` are not installed or fail.
    pub fn with_file(passphrase: &str, name: &str, content: &str) -> Result<Self> {
        let tree = tempfile::tempdir()?;
        fs::write(tree.path().join(name), content)?;
        let plain = tempfile::NamedTempFile::new_in(target_folder("vm-scratch")?)?;
        plain.as_file().set_len(DATA_MIB << 20)?;
        let mkfs = tools::require("mkfs.ext4", "apt-get install e2fsprogs")?;
        attester::run(
            Command::new(mkfs).args(["-q", "-F", "-E", "root_owner=0:0", "-d"]).args([tree.path(), plain.path()]),
        )?;
        Self::holding(plain.path(), passphrase, "")
    }

    /// A volume that holds the bytes of a file. `options` are more words for `cryptsetup reencrypt`.
    ///
    /// # Errors
    ///
    /// Where `cryptsetup` is not installed or fails.
    pub fn holding(plain: &Path, passphrase: &str, options: &str) -> Result<Self> {
        let volume =
            Self { folder: tempfile::tempdir_in(target_folder("vm-scratch")?)?, passphrase: passphrase.to_owned() };
        fs::copy(plain, volume.path())?;
        let size = fs::metadata(plain)?.len();
        File::options().write(true).open(volume.path())?.set_len(size + (HEADER_MIB << 20))?;
        let words = format!(
            "reencrypt --encrypt --type luks2 --reduce-device-size {HEADER_MIB}M {QUICK} {SMALL_HEADER} {options}"
        );
        volume.cryptsetup(&words)?;
        Ok(volume)
    }

    /// A copy of the volume in partition `number`, counted from 0, of a disk that [`partitioned`] made with partitions of
    /// this one size.
    ///
    /// # Errors
    ///
    /// Where it does not lie on the disk.
    pub fn of_partition(disk: &ScratchDisk, number: u64, size: u64, passphrase: &str) -> Result<Self> {
        let volume =
            Self { folder: tempfile::tempdir_in(target_folder("vm-scratch")?)?, passphrase: passphrase.to_owned() };
        fs::write(volume.path(), disk.read(offset(number, size), usize::try_from(size)?)?)?;
        Ok(volume)
    }

    /// Where the volume is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("volume.img")
    }

    /// The file that holds its passphrase, for programs that take one.
    ///
    /// # Errors
    ///
    /// Where it cannot be written.
    pub fn passphrase_file(&self) -> Result<PathBuf> {
        let path = self.folder.path().join("passphrase");
        fs::write(&path, &self.passphrase)?;
        Ok(path)
    }

    /// Runs `cryptsetup WORDS VOLUME` with the passphrase on its input.
    ///
    /// # Errors
    ///
    /// Where it fails.
    pub fn cryptsetup(&self, words: &str) -> Result<Vec<u8>> {
        let cryptsetup = tools::require("cryptsetup", "apt-get install cryptsetup-bin")?;
        let mut child = Command::new(cryptsetup)
            .args(words.split_whitespace())
            .args(["--batch-mode", "--key-file", "-"])
            .arg(self.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("piped")?.write_all(self.passphrase.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "cryptsetup {words}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    /// Has a TPM open it: `iofs-sign enroll VOLUME` with these words.
    ///
    /// # Errors
    ///
    /// Where it fails.
    pub fn enroll(&self, tpm: &TpmState, words: &[&str]) -> Result<()> {
        let powered = tpm.powered()?;
        let mut command = Command::new(attester::program("iofs-sign")?);
        command.arg("enroll").arg(self.path()).arg("--unlock-key-file").arg(self.passphrase_file()?);
        attester::run(command.args(["--tcti", &powered.tcti()]).args(words))?;
        powered.off()
    }

    /// The same for what a release measures with this kernel command line, before it was ever booted.
    ///
    /// # Errors
    ///
    /// Where it fails.
    pub fn enroll_for(&self, release: &Chain, command_line: &str, tpm: &TpmState, words: &[&str]) -> Result<()> {
        let key = cache::workspace().join("keys-example/DO-NOT-SHIP-example-1.pub.pem");
        let release = release.directory().file(sealed::RELEASE);
        let (release, key) = (release.to_str().context("UTF-8")?, key.to_str().context("UTF-8")?);
        let bound = ["--release", release, "--key", key, "--command-line", command_line];
        self.enroll(tpm, &[&bound, words].concat())
    }

    /// Its header's UUID.
    ///
    /// # Errors
    ///
    /// Where `cryptsetup` fails.
    pub fn uuid(&self) -> Result<String> {
        Ok(String::from_utf8(self.cryptsetup("luksUUID")?)?.trim().to_owned())
    }

    /// The volume key, as `cryptsetup` shows it.
    ///
    /// # Errors
    ///
    /// Where `cryptsetup` fails.
    pub fn volume_key(&self) -> Result<Vec<u8>> {
        // Into a file, which must not be there before: what is printed beside it differs by version.
        let key = self.folder.path().join("volume-key");
        self.cryptsetup(&format!("luksDump --dump-volume-key --volume-key-file {}", key.display()))?;
        let bytes = fs::read(&key)?;
        fs::remove_file(&key)?;
        Ok(bytes)
    }

    /// Its metadata, the JSON part of the header.
    ///
    /// # Errors
    ///
    /// Where `cryptsetup` fails.
    pub fn metadata(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.cryptsetup("luksDump --dump-json-metadata")?)?)
    }
}

/// A disk with a GPT and a partition for each of these labels, of these sizes in bytes.
///
/// # Errors
///
/// Where `sfdisk` is missing or fails.
pub fn partitioned(partitions: &[(&str, u64)]) -> Result<ScratchDisk> {
    let partitions = partitions.iter().map(|(label, size)| (format!("name=\"{label}\""), *size));
    with_table(&partitions.collect::<Vec<_>>())
}

/// A disk with a GPT and a partition for each of these: what `sfdisk` is told of it besides its place, and its size in bytes.
pub(crate) fn with_table(partitions: &[(String, u64)]) -> Result<ScratchDisk> {
    let total: u64 = partitions.iter().map(|(_, size)| size.next_multiple_of(1 << 20)).sum();
    let disk = ScratchDisk::empty(total + (2 << 20))?;
    let sfdisk = tools::require("sfdisk", "apt-get install fdisk")?;
    let lines: String = partitions
        .iter()
        .map(|(fields, size)| format!("size={}, {fields}\n", size.next_multiple_of(1 << 20) / 512))
        .collect();
    let script = tempfile::NamedTempFile::new()?;
    fs::write(script.path(), format!("label: gpt\n{lines}"))?;
    let mut command = Command::new(sfdisk);
    command.args(["--quiet", "--no-tell-kernel"]).arg(disk.path()).stdin(script.reopen()?);
    attester::run(&mut command)?;
    Ok(disk)
}

/// The same with a file in each partition, as large as that.
pub(crate) fn with_contents(partitions: &[(String, PathBuf)]) -> Result<ScratchDisk> {
    let sized = partitions.iter().map(|(fields, content)| Ok((fields.clone(), fs::metadata(content)?.len())));
    let sized = sized.collect::<Result<Vec<_>>>()?;
    let disk = with_table(&sized)?;
    let mut at = 1 << 20;
    for ((_, content), (_, size)) in partitions.iter().zip(&sized) {
        splice(content, &disk, at)?;
        at += size.next_multiple_of(1 << 20);
    }
    Ok(disk)
}

/// Where partition `number`, counted from 0, of [`partitioned`]'s disks begins, if all before have this size.
pub fn offset(number: u64, size: u64) -> u64 {
    (1 << 20) + number * size.next_multiple_of(1 << 20)
}

/// A disk with these volumes in partitions of these labels.
///
/// # Errors
///
/// As [`partitioned`].
pub fn disk_of(volumes: &[(&str, &VolumeFile)]) -> Result<ScratchDisk> {
    let partitions = volumes.iter().map(|(label, volume)| (format!("name=\"{label}\""), volume.path()));
    with_contents(&partitions.collect::<Vec<_>>())
}

/// Writes a file's bytes to a place of the disk.
///
/// # Errors
///
/// Where they do not fit.
pub fn splice(file: &Path, disk: &ScratchDisk, offset: u64) -> Result<()> {
    let file = File::open(file)?;
    let size = file.metadata()?.len();
    let mut block = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let count = block.len().min(usize::try_from(size - at)?);
        file.read_exact_at(&mut block[..count], at)?;
        disk.write(offset + at, &block[..count])?;
        at += count as u64;
    }
    Ok(())
}

/// A sealed data volume as `iofs.toml` has it, to be changed and parsed.
pub fn data_volume(name: &str, path: &str, unlock: &Value) -> Value {
    json!({
        "name": name,
        "place": format!("PARTLABEL={name}"),
        "use": { "data": { "path": path, "file_system": "ext4" } },
        "unlock": unlock,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_becomes_a_volume_in_place_and_lies_in_its_partition() {
        let volume = VolumeFile::with_file("a passphrase", "name", "content").unwrap();
        let metadata = volume.metadata().unwrap();
        assert_eq!(metadata["segments"]["0"]["type"], "crypt", "{metadata:#}");
        assert_eq!(metadata["segments"].as_object().unwrap().len(), 1, "{metadata:#}");
        assert_eq!(volume.volume_key().unwrap().len(), 64);

        let disk = disk_of(&[("first", &volume), ("second", &volume)]).unwrap();
        let size = fs::metadata(volume.path()).unwrap().len();
        for number in [0, 1] {
            assert_eq!(disk.read(offset(number, size), 6).unwrap(), b"LUKS\xba\xbe");
        }
    }
}
