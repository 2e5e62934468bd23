//! A machine with Secure Boot, the releases that it boots, and a volume that its TPM opens by a signed policy.

use std::{
    path::Path,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use iofs_policy::{manifest::TpmUse, pcr_signature::PcrSignatures};
use iofs_sign::{
    seal::{SealRequest, config::VolumeSection},
    uki::Part,
};
use serde_json::{Value, json};
use swtpm_tests::{
    Disk, Ending, FirmwareImage, Line, Machine, PcrKey, ScratchDisk, SecureBoot, TpmState, Vm, attester,
    chain::{Chain, ROOT_REACHED},
    image::section,
    shared,
    volume::{VolumeFile, data_volume, disk_of},
    workshop::Workshop,
};

/// From power-on to the end of a tiny root, and of a Debian up to its shell, on a busy machine.
pub(super) const BOOT: Duration = Duration::from_secs(300);
pub(super) const PASSPHRASE: &str = "correct horse battery staple";
pub(super) const CONTENT: &str = "from before the updates";
/// What a tiny root says of the volume.
pub(super) const SCRIPT: &str = "echo \"VOLUME $(cat /state/name)\"";
/// What nobody is asked for.
pub(super) const ASKS: &str = "Passphrase or recovery key for volume state (try 1 of 3): ";
pub(super) const SHUT: &str = "BOOT REFUSED before stage \"unlocked\": volume state stays shut";

/// A release's image, as far as these tests vary it.
pub(super) struct Release<'a> {
    pub(super) keys: &'a SecureBoot,
    pub(super) pcr: &'a PcrKey,
    pub(super) stub: &'a str,
    pub(super) words: &'a str,
    pub(super) unlock: Value,
}

impl Release<'_> {
    /// What `seal` is asked for: one file that firmware checks, with signatures for register 11 in it, and a volume.
    pub(super) fn request(&self) -> Result<impl FnOnce(&mut SealRequest)> {
        let image = FirmwareImage::new(self.keys, self.stub, self.words)?.with_registers(self.pcr.signer()?);
        let volume: VolumeSection = serde_json::from_value(data_volume("state", "/state", &self.unlock))?;
        Ok(|request: &mut SealRequest| {
            image.ask(request);
            request.config.tpm.usage = TpmUse::Required;
            request.config.volumes = vec![volume];
        })
    }

    /// One that says what is in the volume, and switches the machine off.
    pub(super) fn tiny(&self, suite: &str, change: impl FnOnce(&mut SealRequest)) -> Result<Chain> {
        let ask = self.request()?;
        Chain::tiny(suite, SCRIPT, |request| {
            ask(request);
            change(request);
        })
    }

    /// One that can enrol the volume.
    pub(super) fn with_tools(&self) -> Result<Chain> {
        attester::quick(self.request()?)
    }
}

/// The signatures that an image brings.
pub(super) fn signatures_of(image: &[u8]) -> Result<PcrSignatures> {
    Ok(PcrSignatures::parse(&section(image, Part::PcrSignature)?)?)
}

/// A machine whose firmware trusts keys of ours, with its TPM, and a volume that its first release enrolled.
pub(super) struct Enrolled {
    pub(super) keys: SecureBoot,
    pub(super) pcr: PcrKey,
    pub(super) tpm: TpmState,
    pub(super) volumes: ScratchDisk,
}

impl Enrolled {
    /// All tests that run at the same time share one, and boot copies of it.
    pub(super) fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Enrolled>> = Mutex::new(Weak::new());
        shared(&SHARED, || Self::by("enrolled_once", ""))
    }

    /// The first boot: somebody types the passphrase, and enrols the volume on the running system, by more words than it
    /// always takes.
    pub(super) fn by(name: &str, words: &str) -> Result<Self> {
        let (keys, pcr, tpm) = (SecureBoot::new()?, PcrKey::p256()?, TpmState::new()?);
        let volume = VolumeFile::with_file(PASSPHRASE, "name", CONTENT)?;
        let enrolled = Self { keys, pcr, tpm, volumes: disk_of(&[("state", &volume)])? };
        let first = enrolled.release("first=1", json!({ "passphrase": true })).with_tools()?;
        let (disk, _) = first.disk()?;
        let mut vm = enrolled.as_is().machine(name, &disk).start()?;
        vm.console().wait_for_prompt(ASKS, BOOT)?;
        vm.type_line(PASSPHRASE)?;
        let mut device = Workshop::of(vm, disk)?;
        device.put("/run/passphrase", PASSPHRASE.as_bytes())?;
        device.put("/run/pcr.pub.pem", enrolled.pcr.signer()?.public_pem().as_bytes())?;
        let always = "--unlock-key-file /run/passphrase --pcr-policy /run/pcr.pub.pem --pcrs 7";
        device.run(&format!("iofs-sign enroll /dev/vdb1 {always} {words}"))?;
        device.close()?;
        Ok(enrolled)
    }

    /// A release by the same keys.
    pub(super) fn release<'a>(&'a self, words: &'a str, unlock: Value) -> Release<'a> {
        Release { keys: &self.keys, pcr: &self.pcr, stub: "trixie", words, unlock }
    }

    pub(super) fn as_is(&self) -> Hardware<'_> {
        Hardware { keys: &self.keys, tpm: &self.tpm, volumes: self.volumes.path() }
    }
}

/// What a release boots on.
pub(super) struct Hardware<'a> {
    pub(super) keys: &'a SecureBoot,
    pub(super) tpm: &'a TpmState,
    pub(super) volumes: &'a Path,
}

impl Hardware<'_> {
    pub(super) fn machine(&self, name: &str, disk: &ScratchDisk) -> Machine {
        let disks = [disk.path(), self.volumes];
        let machine = Machine::named(name).secure_boot(self.keys).tpm(self.tpm).memory_mib(1024);
        disks.into_iter().fold(machine, |machine, disk| machine.disk(Disk::raw(disk)))
    }

    /// Boots a chain by an image that firmware takes.
    pub(super) fn boot(&self, name: &str, chain: &Chain, image: &[u8]) -> Result<(Vm, ScratchDisk)> {
        let (disk, _) = chain.disk_that_starts(image)?;
        Ok((self.machine(name, &disk).start()?, disk))
    }

    pub(super) fn opens(&self, name: &str, chain: &Chain, image: &[u8]) -> Result<()> {
        let (mut vm, _disk) = self.boot(name, chain, image)?;
        vm.wait_for_line(&Line::containing("verify-init: unlocked volume state by the TPM"), BOOT)?;
        reaches_the_root(&mut vm).with_context(|| name.to_owned())
    }

    /// Firmware and verify-init take the image; the TPM does not, and says why with all these words.
    pub(super) fn stays_shut(&self, name: &str, chain: &Chain, image: &[u8], told: &[&str]) -> Result<()> {
        let (mut vm, _disk) = self.boot(name, chain, image)?;
        vm.wait_for_line(&Line::containing("secureboot: Secure boot enabled"), BOOT)?;
        vm.wait_for_line(&Line::containing(SHUT), BOOT)?;
        ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
        let found = vm.console().find(&Line::containing("found:    ")).context("the refusal says what was found")?;
        ensure!(told.iter().all(|words| found.text.contains(words)), "{name}: {}", found.text);
        ensure!(vm.console().find(&Line::containing(ROOT_REACHED)).is_none(), "{name}: the root was reached");
        Ok(())
    }
}

pub(super) fn reaches_the_root(vm: &mut Vm) -> Result<()> {
    vm.wait_for_line(&Line::containing(ROOT_REACHED), BOOT)?;
    vm.wait_for_line(&Line::containing(&format!("VOLUME {CONTENT}")), BOOT)?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}
