//! A volume that was enrolled once, for whatever the PCR key signs on this machine with Secure Boot: which releases open it
//! with nobody present, and which do not.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use iofs_policy::{manifest::TpmUse, pcr::PcrBank, pcr_signature::PcrSignatures};
use iofs_sign::{
    authenticode,
    pcr_policy::{self, Phase, PolicySigner},
    pe::Headers,
    seal::{SealRequest, config::VolumeSection},
    sealed,
    uki::{self, Part},
};
use serde_json::{Value, json};
use swtpm_tests::{
    Disk, Ending, FirmwareImage, Line, Machine, ScratchDisk, SecureBoot, TpmState, Vm, attester, cache,
    chain::{Chain, ROOT_REACHED, example_key},
    tools,
    volume::{VolumeFile, data_volume, disk_of},
    workshop::Workshop,
};
use tempfile::TempDir;

/// From power-on to the end of a tiny root, and of a Debian up to its shell, on a busy machine.
const BOOT: Duration = Duration::from_secs(300);
const PASSPHRASE: &str = "correct horse battery staple";
const CONTENT: &str = "from before the updates";
/// What a tiny root says of the volume.
const SCRIPT: &str = "echo \"VOLUME $(cat /state/name)\"";
/// What nobody is asked for.
const ASKS: &str = "Passphrase or recovery key for volume state (try 1 of 3): ";
const SHUT: &str = "BOOT REFUSED before stage \"unlocked\": volume state stays shut";

/// What signs register 11.
struct PcrKey {
    private: PathBuf,
    _folder: TempDir,
}

impl PcrKey {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let private = folder.path().join("pcr.pem");
        let openssl = tools::require("openssl", "apt-get install openssl")?;
        let words = "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out";
        let ran = std::process::Command::new(openssl).args(words.split(' ')).arg(&private).output()?;
        ensure!(ran.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&ran.stderr));
        Ok(Self { private, _folder: folder })
    }

    fn signer(&self) -> Result<PolicySigner> {
        Ok(PolicySigner::read(&self.private)?)
    }

    /// Signatures for an image in one phase of its boot.
    fn sign(&self, image: &[u8], phase: &str) -> Result<PcrSignatures> {
        let (banks, phases) = (BTreeSet::from([PcrBank::Sha256]), BTreeSet::from([phase.parse::<Phase>()?]));
        Ok(pcr_policy::sign_image(image, &self.signer()?, &banks, &phases)?)
    }
}

/// A release's image, as far as these tests vary it.
struct Release<'a> {
    keys: &'a SecureBoot,
    pcr: &'a PcrKey,
    stub: &'a str,
    words: &'a str,
    unlock: Value,
}

impl Release<'_> {
    /// What `seal` is asked for: one file that firmware checks, with signatures for register 11 in it, and a volume.
    fn request(&self) -> Result<impl FnOnce(&mut SealRequest)> {
        let image = FirmwareImage::new(self.keys, self.stub, self.words)?.with_registers(self.pcr.signer()?);
        let volume: VolumeSection = serde_json::from_value(data_volume("state", "/state", &self.unlock))?;
        Ok(|request: &mut SealRequest| {
            image.ask(request);
            request.config.tpm.usage = TpmUse::Required;
            request.config.volumes = vec![volume];
        })
    }

    /// One that says what is in the volume, and switches the machine off.
    fn tiny(&self, suite: &str, change: impl FnOnce(&mut SealRequest)) -> Result<Chain> {
        let ask = self.request()?;
        Chain::tiny(suite, SCRIPT, |request| {
            ask(request);
            change(request);
        })
    }

    /// One that can enrol the volume.
    fn with_tools(&self) -> Result<Chain> {
        attester::quick(self.request()?)
    }
}

/// What `seal` made of it.
fn image(chain: &Chain) -> Result<Vec<u8>> {
    Ok(fs::read(chain.directory().file(sealed::UKI))?)
}

/// The same image with other signatures for register 11, or with none, signed for firmware by the right key.
fn resigned(image: &[u8], stub: &str, signatures: Option<&PcrSignatures>, keys: &SecureBoot) -> Result<Vec<u8>> {
    let headers = Headers::parse(image)?;
    let signatures = signatures.map(PcrSignatures::to_json);
    let parts: Vec<(Part, &[u8])> = Part::ALL
        .into_iter()
        .filter_map(|part| match part {
            Part::PcrSignature => Some((part, signatures.as_deref()?)),
            _ => Some((part, headers.find(part.section())?.contents(image))),
        })
        .collect();
    keys.image_signer().sign(&uki::assemble(&fs::read(cache::stub(stub)?)?, &parts)?.bytes)
}

/// A machine whose firmware trusts keys of ours, with its TPM, and a volume that its first release enrolled.
struct Enrolled {
    keys: SecureBoot,
    pcr: PcrKey,
    tpm: TpmState,
    volumes: ScratchDisk,
}

impl Enrolled {
    /// All tests that run at the same time share one, and boot copies of it.
    fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Enrolled>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(enrolled) = shared.upgrade() {
            return Ok(enrolled);
        }
        let enrolled = Arc::new(Self::new()?);
        *shared = Arc::downgrade(&enrolled);
        Ok(enrolled)
    }

    /// The first boot: somebody types the passphrase, and enrols the volume on the running system.
    fn new() -> Result<Self> {
        let (keys, pcr, tpm) = (SecureBoot::new()?, PcrKey::new()?, TpmState::new()?);
        let volume = VolumeFile::with_file(PASSPHRASE, "name", CONTENT)?;
        let enrolled = Self { keys, pcr, tpm, volumes: disk_of(&[("state", &volume)])? };
        let first = enrolled.release("first=1", json!({ "passphrase": true })).with_tools()?;
        let (disk, _) = first.disk()?;
        let mut vm = enrolled.as_is().machine("enrolled_once", &disk).start()?;
        vm.console().wait_for_prompt(ASKS, BOOT)?;
        vm.type_line(PASSPHRASE)?;
        let mut device = Workshop::of(vm, disk)?;
        device.put("/run/passphrase", PASSPHRASE.as_bytes())?;
        device.put("/run/pcr.pub.pem", enrolled.pcr.signer()?.public_pem().as_bytes())?;
        device.run(
            "iofs-sign enroll /dev/vdb1 --unlock-key-file /run/passphrase --pcr-policy /run/pcr.pub.pem --pcrs 7",
        )?;
        device.close()?;
        Ok(enrolled)
    }

    /// A release by the same keys.
    fn release<'a>(&'a self, words: &'a str, unlock: Value) -> Release<'a> {
        Release { keys: &self.keys, pcr: &self.pcr, stub: "trixie", words, unlock }
    }

    fn as_is(&self) -> Hardware<'_> {
        Hardware { keys: &self.keys, tpm: &self.tpm, volumes: self.volumes.path() }
    }
}

/// What a release boots on.
struct Hardware<'a> {
    keys: &'a SecureBoot,
    tpm: &'a TpmState,
    volumes: &'a Path,
}

impl Hardware<'_> {
    fn machine(&self, name: &str, disk: &ScratchDisk) -> Machine {
        let disks = [disk.path(), self.volumes];
        let machine = Machine::named(name).secure_boot(self.keys).tpm(self.tpm).memory_mib(1024);
        disks.into_iter().fold(machine, |machine, disk| machine.disk(Disk::raw(disk)))
    }

    /// Boots a chain by an image that firmware takes.
    fn boot(&self, name: &str, chain: &Chain, image: &[u8]) -> Result<(Vm, ScratchDisk)> {
        let (disk, _) = chain.disk_that_starts(image)?;
        Ok((self.machine(name, &disk).start()?, disk))
    }

    fn opens(&self, name: &str, chain: &Chain, image: &[u8]) -> Result<()> {
        let (mut vm, _disk) = self.boot(name, chain, image)?;
        vm.wait_for_line(&Line::containing("verify-init: unlocked volume state by the TPM"), BOOT)?;
        reaches_the_root(&mut vm).with_context(|| name.to_owned())
    }

    /// Firmware and verify-init take the image; the TPM does not, and says why with all these words.
    fn stays_shut(&self, name: &str, chain: &Chain, image: &[u8], told: &[&str]) -> Result<()> {
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

fn reaches_the_root(vm: &mut Vm) -> Result<()> {
    vm.wait_for_line(&Line::containing(ROOT_REACHED), BOOT)?;
    vm.wait_for_line(&Line::containing(&format!("VOLUME {CONTENT}")), BOOT)?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn a_volume_that_was_enrolled_once_opens_after_each_update_with_nobody_present() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let (tpm, volumes) = (enrolled.tpm.copied()?, ScratchDisk::copy_of(enrolled.volumes.path())?);
    let hardware = Hardware { keys: &enrolled.keys, tpm: &tpm, volumes: volumes.path() };
    // Nobody can be asked: only the TPM opens it.
    let of = |stub, words| Release { stub, ..enrolled.release(words, json!({})) };
    for (name, suite, release) in [
        ("another_image", "trixie", of("trixie", "first=1")),
        ("another_command_line", "trixie", of("trixie", "second=1")),
        ("another_stub", "trixie", of("bookworm", "second=1")),
        ("another_kernel", "bookworm", of("bookworm", "second=1")),
    ] {
        let chain = release.tiny(suite, |_| ())?;
        hardware.opens(name, &chain, &image(&chain)?)?;
    }
    Ok(())
}

/// The new release key comes with the initramfs that trusts it. The new PCR key is in the image, whose values the old one
/// signs once more.
#[test]
fn a_volume_that_was_enrolled_once_opens_after_all_signing_keys_were_replaced_if_the_old_pcr_key_signs_too()
-> Result<()> {
    let enrolled = Enrolled::shared()?;
    let (tpm, volumes) = (enrolled.tpm.copied()?, ScratchDisk::copy_of(enrolled.volumes.path())?);
    let hardware = Hardware { keys: &enrolled.keys, tpm: &tpm, volumes: volumes.path() };
    let (pcr, release_key) = (PcrKey::new()?, example_key(2)?);
    let release = Release { pcr: &pcr, ..enrolled.release("third=1", json!({})) };
    let chain = release.tiny("trixie", |request| request.keys.release = vec![release_key])?;
    let sealed = image(&chain)?;
    let mut signatures = pcr.sign(&sealed, "enter-initrd")?;
    signatures.merge(enrolled.pcr.sign(&sealed, "enter-initrd")?);
    let both = resigned(&sealed, "trixie", Some(&signatures), &enrolled.keys)?;
    hardware.opens("replaced_keys", &chain, &both)?;
    // By the new key alone the volume stays shut: this is why the old one has to sign.
    let found = "found 0 for other values";
    hardware.stays_shut("replaced_keys_alone", &chain, &sealed, &["expected a signature by key", found])
}

#[test]
fn a_volume_that_was_enrolled_once_stays_shut_for_images_that_the_pcr_key_did_not_sign_for_the_initramfs() -> Result<()>
{
    let enrolled = Enrolled::shared()?;
    let (tpm, volumes) = (enrolled.tpm.copied()?, ScratchDisk::copy_of(enrolled.volumes.path())?);
    let hardware = Hardware { keys: &enrolled.keys, tpm: &tpm, volumes: volumes.path() };
    let chain = enrolled.release("first=1", json!({})).tiny("trixie", |_| ())?;
    let sealed = image(&chain)?;
    let with = |signatures: Option<&PcrSignatures>| resigned(&sealed, "trixie", signatures, &enrolled.keys);
    // What is exchanged below is all that differs from the image that opens the volume.
    let same = with(Some(&enrolled.pcr.sign(&sealed, "enter-initrd")?))?;
    ensure!(authenticode::digest(&same)? == authenticode::digest(&sealed)?);
    let other = PcrKey::new()?.sign(&sealed, "enter-initrd")?;
    let later = enrolled.pcr.sign(&sealed, "enter-initrd:leave-initrd")?;
    let none = "its policy is signed: expected signatures in /.extra/tpm2-pcr-signature.json or \
                /etc/iofs/tpm2-pcr-signature.json, found neither";
    let key = enrolled.pcr.signer()?.public().fingerprint();
    let unsigned = |found| {
        format!("expected a signature by key {key} for what registers sha256:11 hold, found {found} for other values")
    };
    for (name, signatures, told) in [
        ("unsigned_registers", None, none.to_owned()),
        ("registers_by_another_key", Some(&other), unsigned(0)),
        ("registers_of_another_phase", Some(&later), unsigned(1)),
    ] {
        hardware.stays_shut(name, &chain, &with(signatures)?, &[&told])?;
    }
    Ok(())
}

#[test]
fn a_volume_that_was_enrolled_once_needs_its_owner_where_secure_boot_is_off() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let (tpm, volumes) = (enrolled.tpm.copied()?, ScratchDisk::copy_of(enrolled.volumes.path())?);
    let off = enrolled.keys.switched_off()?;
    let hardware = Hardware { keys: &off, tpm: &tpm, volumes: volumes.path() };
    let chain = enrolled.release("first=1", json!({ "passphrase": true })).tiny("trixie", |_| ())?;
    let (mut vm, _disk) = hardware.boot("secure_boot_is_off", &chain, &image(&chain)?)?;
    vm.wait_for_line(&Line::containing("secureboot: Secure boot disabled"), BOOT)?;
    vm.wait_for_line(
        &Line::containing("expected the values of enrolment in registers sha256:7+11, found others"),
        BOOT,
    )?;
    vm.console().wait_for_prompt(ASKS, BOOT)?;
    vm.type_line(PASSPHRASE)?;
    reaches_the_root(&mut vm)
}
