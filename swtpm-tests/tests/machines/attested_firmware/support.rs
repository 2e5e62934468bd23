//! What these tests share: a machine that was enrolled once, whose every later boot happens on copies of what it keeps.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use iofs_sign::{
    pcr_policy::PolicySigner,
    seal::{SealRequest, config::VolumeSection},
};
use serde_json::json;
use swtpm_tests::{
    DeviceShell, Disk, FirmwareImage, Machine, ScratchDisk, SecureBoot, TpmState, Vm, attester,
    chain::Chain,
    shared,
    verifier::{Quoted, Verifier},
    volume::{VolumeFile, data_volume, disk_of},
};

/// From power-on to the shell, on a busy machine.
pub(crate) const BOOT: Duration = Duration::from_secs(300);
pub(crate) const COMMAND: Duration = Duration::from_secs(60);
/// What everybody here types, and whoever makes a volume of his own.
pub(crate) const PASSPHRASE: &str = "correct horse battery staple";
const ASKS: &str = "Passphrase or recovery key for volume state (try 1 of 1): ";
/// The registers that a policy demands here: the program and its signer, the image, and the machine itself.
pub(crate) const PCRS: &str = "4,7,11,12,13,15";

/// A release whose device answers to commands.
pub(crate) fn attester(keys: &SecureBoot, words: &str, change: impl FnOnce(&mut SealRequest)) -> Result<Chain> {
    let image = FirmwareImage::new(keys, "trixie", words)?;
    attester::quick(|request| {
        image.ask(request);
        change(request);
    })
}

/// A volume that is opened by typing. What is wrong once stays shut.
pub(crate) fn volume_section() -> Result<VolumeSection> {
    let unlock = json!({ "passphrase": true, "tpm": false, "tries": 1 });
    Ok(serde_json::from_value(data_volume("state", "/state", &unlock))?)
}

pub(crate) fn volume() -> Result<VolumeFile> {
    VolumeFile::with_file(PASSPHRASE, "name", "content")
}

/// A machine up to its shell.
pub(crate) struct Running {
    pub(crate) shell: DeviceShell,
    vm: Vm,
    _disk: ScratchDisk,
}

impl Running {
    /// Waits until the machine has ended, with all that its TPM keeps.
    fn ends(mut self) -> Result<()> {
        self.vm.wait_for_end(BOOT).map(|_| ())
    }
}

/// What an image boots on.
pub(crate) struct Hardware<'a> {
    pub(crate) keys: &'a SecureBoot,
    pub(crate) tpm: &'a TpmState,
    pub(crate) volumes: &'a Path,
}

impl Hardware<'_> {
    /// Boots a chain by an image that firmware takes, and types a passphrase for its volume.
    pub(crate) fn boot(&self, name: &str, chain: &Chain, image: &[u8], passphrase: &str) -> Result<Running> {
        let (disk, _) = chain.disk_that_starts(image)?;
        let machine = Machine::named(name).secure_boot(self.keys).tpm(self.tpm).memory_mib(1024);
        let disks = [disk.path(), self.volumes];
        let machine =
            disks.into_iter().fold(machine, |machine, disk| machine.disk(Disk::raw(disk).discarding_writes()));
        let mut vm = machine.start()?;
        vm.console().wait_for_prompt(ASKS, BOOT)?;
        vm.type_line(passphrase)?;
        Ok(Running { shell: vm.device_shell(BOOT)?, vm, _disk: disk })
    }
}

/// What `attest verify` and `attest explain` say of a quote.
pub(crate) struct Told {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) explained: String,
}

impl Told {
    /// A difference that has all of these words.
    pub(crate) fn explains(&self, words: &[&str]) -> Result<()> {
        let mut lines =
            self.explained.lines().filter(|line| line.starts_with("first difference: ") || line.starts_with("then: "));
        ensure!(lines.any(|line| words.iter().all(|word| line.contains(word))), "{words:?} in {}", self.explained);
        Ok(())
    }
}

/// A machine whose firmware trusts keys of ours, with its TPM and its volume, as the verifier got to know it.
pub(crate) struct Enrolled {
    pub(crate) keys: SecureBoot,
    pub(crate) tpm: TpmState,
    pub(crate) volumes: ScratchDisk,
    pub(crate) chain: Chain,
    pub(crate) verifier: Verifier,
    pub(crate) record: PathBuf,
    pub(crate) policy: PathBuf,
}

impl Enrolled {
    /// All tests that run at the same time share one.
    pub(crate) fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Enrolled>> = Mutex::new(Weak::new());
        shared(&SHARED, Self::new)
    }

    /// The first boot, which is good: the machine is enrolled, and what is its own is learnt. Its image has all that a stub
    /// measures or hands on: os-release, signatures for register 11, and their key. It also boots where the volume stays shut.
    fn new() -> Result<Self> {
        let (keys, tpm, verifier) = (SecureBoot::new()?, TpmState::new()?, Verifier::new()?);
        let firmware = FirmwareImage::new(&keys, "trixie", "quiet")?;
        let firmware = firmware.with_registers(PolicySigner::read(keys.image_signer().key())?);
        let mut volume_of = volume_section()?;
        volume_of.optional = true;
        let chain = attester::whole(|request| {
            firmware.ask(request);
            request.config.volumes = vec![volume_of];
        })?;
        let volumes = disk_of(&[("state", &volume()?)])?;
        let hardware = Hardware { keys: &keys, tpm: &tpm, volumes: volumes.path() };
        let mut running = hardware.boot("enrolled", &chain, &chain.firmware_image()?, PASSPHRASE)?;
        let record = verifier.enrol("enrolled", &mut running.shell, None)?;
        let quoted = verifier.ask(&mut running.shell, &format!("--pcrs {PCRS}"))?;
        running.shell.power_off()?;
        running.ends()?;
        let (selecting, policy) = (verifier.file("selecting.toml"), verifier.file("policy.toml"));
        fs::write(&selecting, format!("pcrs = [{PCRS}]\n"))?;
        let enrolled = Self { keys, tpm, volumes, chain, verifier, record, policy };
        enrolled.learn(&quoted, &selecting, &enrolled.policy, &[&enrolled.chain])?;
        Ok(enrolled)
    }

    pub(crate) fn hardware<'a>(&'a self, tpm: &'a TpmState) -> Hardware<'a> {
        Hardware { keys: &self.keys, tpm, volumes: self.volumes.path() }
    }

    /// Learns a policy from a quote that is good, with another policy for the rest.
    pub(crate) fn learn(&self, quoted: &Quoted, policy: &Path, out: &Path, references: &[&Chain]) -> Result<()> {
        let mut learn = vec!["attest".into(), "learn".into(), "--evidence".into(), quoted.evidence.clone().into()];
        learn.extend(["--device".into(), self.record.clone().into(), "--nonce".into(), quoted.nonce.clone().into()]);
        learn.extend(self.verifier.references(references));
        learn.extend(["--policy".into(), policy.into(), "--out".into(), out.into()]);
        let learnt = self.verifier.run(&learn)?;
        ensure!(learnt.code == 0, "{}", learnt.stderr);
        Ok(())
    }

    pub(crate) fn attested(&self, quoted: &Quoted, policy: &Path, references: &[&Chain]) -> Result<()> {
        let options = ["--policy", policy.to_str().context("UTF-8")?];
        let verdict = self.verifier.decide(&self.record, quoted, references, &options)?.attested()?;
        ensure!(verdict["ignored_pcrs"].as_array().is_some_and(Vec::is_empty), "{verdict:#}");
        Ok(())
    }

    /// It must be refused. Says why, and how that is explained.
    pub(crate) fn refused(&self, quoted: &Quoted, policy: &Path, references: &[&Chain]) -> Result<Told> {
        let options = ["--policy", policy.to_str().context("UTF-8")?];
        let decision = self.verifier.decide(&self.record, quoted, references, &options)?;
        ensure!(decision.code == 4, "expected a refusal, found exit code {}: {:#}", decision.code, decision.json);
        let word = |name: &str| decision.json[name].as_str().unwrap_or_default().to_owned();
        let mut explain = vec!["attest".into(), "explain".into(), "--evidence".into(), quoted.evidence.clone().into()];
        explain.extend(["--device".into(), self.record.clone().into(), "--policy".into(), policy.into()]);
        explain.extend(self.verifier.references(references));
        let explained = self.verifier.run(&explain)?;
        ensure!(explained.code == 0, "{}", explained.stderr);
        let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
        Ok(Told { reason: word("reason"), message: word("message"), explained })
    }

    /// Boots an image of the enrolled chain on copies of what the machine keeps, and asks for a quote of these registers.
    pub(crate) fn quote(&self, name: &str, keys: &SecureBoot, image: &[u8], pcrs: &str) -> Result<Quoted> {
        let tpm = self.tpm.copied()?;
        let hardware = Hardware { keys, ..self.hardware(&tpm) };
        let mut running = hardware.boot(name, &self.chain, image, PASSPHRASE)?;
        self.verifier.ask(&mut running.shell, &format!("--pcrs {pcrs}"))
    }
}
