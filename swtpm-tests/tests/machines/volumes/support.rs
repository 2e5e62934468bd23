//! What the tests of volumes share.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use iofs_luks::VolumeKey;
use iofs_policy::{
    boot_record::{BootRecord, UnlockedBy},
    hex,
    paths::BOOT_RECORD,
    pcr::{PcrBank, PcrDigest, extend},
};
use iofs_sign::{seal::config::VolumeSection, sealed};
use serde_json::{Value, json};
use swtpm_tests::{
    BASE_COMMAND_LINE, Disk, Line, Machine, Newc, ScratchDisk, TpmState, Vm, chain::Chain, volume::VolumeFile,
    workshop::Workshop,
};
use uuid::Uuid;
use zeroize::Zeroizing;

/// Until verify-init asks or refuses.
pub(crate) const BOOT: Duration = Duration::from_secs(120);
/// The passphrase of every volume here.
pub(crate) const PASSPHRASE: &str = "correct horse battery staple";
/// The PIN of those that have one.
pub(crate) const PIN: &str = "271828";
/// What verify-init calls a PIN when it asks for one.
pub(crate) const ASKS_PIN: &str = "PIN";
/// And a passphrase.
pub(crate) const ASKS_PASSPHRASE: &str = "Passphrase or recovery key";

/// Only what the TPM gives without anybody present.
pub(crate) fn by_tpm() -> Value {
    json!({})
}

/// These volumes for an `iofs.toml`.
pub(crate) fn sealed_volumes(volumes: &[Value]) -> Vec<VolumeSection> {
    volumes.iter().map(|volume| serde_json::from_value(volume.clone()).expect("a volume")).collect()
}

/// What the kernel is told, where a test adds nothing.
pub(crate) fn command_line() -> String {
    BASE_COMMAND_LINE.join(" ")
}

/// Has the TPM that a machine will have open a volume for a release before it was ever booted.
pub(crate) fn enroll(volume: &VolumeFile, tpm: &TpmState, chain: &Chain, words: &[&str]) -> Result<()> {
    volume.enroll_for(chain, &command_line(), tpm, words)
}

/// A file with a text, for a program's option.
pub(crate) fn file_with(folder: &Path, name: &str, text: &str) -> Result<String> {
    let path = folder.join(name);
    fs::write(&path, text)?;
    Ok(path.to_str().context("UTF-8")?.to_owned())
}

/// A machine that boots a chain with a disk of volumes as its second.
pub(crate) fn machine(name: &str, chain: &Chain, root: &ScratchDisk, volumes: &ScratchDisk, tpm: &TpmState) -> Machine {
    chain.machine(name, root).memory_mib(1024).tpm(tpm).disk(Disk::raw(volumes.path()))
}

/// Puts signatures for the registers where a boot loader would, beside the sealed initramfs and not in it.
pub(crate) fn with_signatures(machine: Machine, chain: &Chain, signatures: &str, folder: &Path) -> Result<Machine> {
    let mut bytes = fs::read(chain.directory().file(sealed::INITRAMFS))?;
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let extra = Newc::new().folder(".extra").file(".extra/tpm2-pcr-signature.json", signatures.as_bytes());
    bytes.extend(extra.finish());
    let path = folder.join("initramfs-with-signatures.img");
    fs::write(&path, bytes)?;
    Ok(machine.initrd(path))
}

/// The boot record that the running system has.
pub(crate) fn boot_record(device: &mut Workshop) -> Result<BootRecord> {
    Ok(serde_json::from_str(&device.run(&format!("cat {BOOT_RECORD}"))?)?)
}

/// How each volume was opened, by name.
pub(crate) fn opened(record: &BootRecord) -> Vec<(String, UnlockedBy)> {
    record.volumes.iter().map(|volume| (volume.name.to_string(), volume.by)).collect()
}

/// Register 15 after volumes were opened in this order, in hexadecimal.
pub(crate) fn identity(bank: PcrBank, opened: &[Identity]) -> Result<String> {
    let mut value = PcrDigest::zero(bank);
    for Identity { name, uuid, key } in opened {
        value = extend(&value, &key.measured(bank, name, uuid))?;
    }
    Ok(hex::encode(value.as_bytes()))
}

/// What a volume is known by.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The name that it is opened by.
    pub(crate) name: &'static str,
    /// Its header's.
    pub(crate) uuid: Uuid,
    /// Its volume key.
    pub(crate) key: VolumeKey,
}

impl Identity {
    /// That of a volume which is opened by this name.
    pub(crate) fn of(name: &'static str, volume: &VolumeFile) -> Result<Self> {
        let key = VolumeKey::from_bytes(Zeroizing::new(volume.volume_key()?));
        Ok(Self { name, uuid: volume.uuid()?.parse()?, key })
    }

    /// What an image pins.
    pub(crate) fn pin(&self) -> String {
        hex::encode(self.key.id(self.name, &self.uuid).as_bytes())
    }
}

/// Register 15 of the running system, in every bank, must be what these volumes make it.
pub(crate) fn is_latched(device: &mut Workshop, opened: &[Identity]) -> Result<()> {
    for bank in device.banks()? {
        let (expected, found) = (identity(bank, opened)?, device.register(bank, 15)?);
        ensure!(expected == found, "register 15, {bank}: expected {expected}, found {found}");
    }
    Ok(())
}

/// Waits for the refusal, and for the lines of its report that follow.
pub(crate) fn refused(vm: &Vm, lines: &[&str]) -> Result<()> {
    let (fact, rest) = lines.split_first().context("a refusal has a reason")?;
    told(vm, &["BOOT REFUSED before stage ", fact])?;
    rest.iter().try_for_each(|line| told(vm, &[line]))
}

/// Waits for a line with all of these in it.
pub(crate) fn told(vm: &Vm, parts: &[&str]) -> Result<()> {
    let wanted: Vec<String> = parts.iter().map(ToString::to_string).collect();
    let line = Line::matching(&format!("a line with {parts:?}"), move |line| {
        wanted.iter().all(|part| line.text.contains(part))
    });
    vm.wait_for_line(&line, BOOT)?;
    Ok(())
}

/// Waits until the console asks for this, and types an answer.
pub(crate) fn answer(vm: &mut Vm, asked: &str, volume: &str, number: u8, of: u8, answer: &str) -> Result<()> {
    vm.console().wait_for_prompt(&format!("{asked} for volume {volume} (try {number} of {of}): "), BOOT)?;
    vm.type_line(answer)
}
