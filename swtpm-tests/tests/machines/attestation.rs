//! Devices that boot under QEMU with a TPM each, and a verifier that knows their keys and the releases, and nothing else.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use iofs_attest::base64_bytes::Base64Bytes;
use iofs_policy::{
    manifest::{RollbackIndex, TpmUse},
    measurement::Measurement,
    measurement_log::{self, Record},
    pcr::{PcrBank, PcrDigest},
};
use iofs_sign::seal::SealRequest;
use swtpm_tests::{
    DeviceShell, ScratchDisk, TpmState, Vm,
    attester::{self, command_lines, quick},
    chain::Chain,
    verifier::{Quoted, Verifier},
};

const BOOT: Duration = Duration::from_secs(300);
const COMMAND: Duration = Duration::from_secs(60);

/// The release that every device here ought to run.
fn reference() -> Result<&'static Chain> {
    static SEALED: OnceLock<Result<Chain, String>> = OnceLock::new();
    let sealed = SEALED.get_or_init(|| quick(|_| ()).map_err(|error| format!("{error:#}")));
    sealed.as_ref().map_err(|error| anyhow::Error::msg(error.clone()))
}

/// A device under power.
struct Device {
    shell: DeviceShell,
    _vm: Vm,
    _disk: ScratchDisk,
}

impl Device {
    fn boot(name: &str, chain: &Chain, tpm: &TpmState, words: &str) -> Result<Self> {
        let (disk, _) = chain.disk()?;
        let machine = chain.machine(name, &disk).memory_mib(1024).tpm(tpm);
        let machine = if words.is_empty() { machine } else { machine.append(words) };
        let mut vm = machine.start()?;
        let shell = vm.device_shell(BOOT)?;
        Ok(Self { shell, _vm: vm, _disk: disk })
    }
}

/// Boots something on an enrolled device, which answers to a nonce.
fn boots(name: &str, change: impl FnOnce(&mut SealRequest), words: &str) -> Result<(Verifier, PathBuf, Quoted)> {
    let chain = quick(change)?;
    let (verifier, tpm) = (Verifier::new()?, TpmState::new()?);
    let mut device = Device::boot(name, &chain, &tpm, words)?;
    let record = verifier.enrol(name, &mut device.shell, None)?;
    let quoted = verifier.ask(&mut device.shell, "")?;
    Ok((verifier, record, quoted))
}

fn is_refused(name: &str, change: impl FnOnce(&mut SealRequest), words: &str, because: &str) -> Result<()> {
    let (verifier, record, quoted) = boots(name, change, words)?;
    verifier.decide(&record, &quoted, &[reference()?], &[])?.refused(because)
}

#[test]
fn an_honest_boot_of_debian_13_is_attested_by_a_certified_tpm() -> Result<()> {
    let chain = Chain::seal("trixie", &attester::root()?, |request| {
        request.config.boot.command_lines = command_lines();
        request.config.tpm.usage = TpmUse::Required;
    })?;
    let (verifier, tpm, (disk, _)) = (Verifier::new()?, TpmState::certified()?, chain.disk()?);
    let machine = chain.machine("an_honest_boot", &disk).memory_mib(1024).uefi().tpm(&tpm);
    let mut vm = machine.start()?;
    let mut shell = vm.device_shell(BOOT)?;
    let record = verifier.enrol("gate-7", &mut shell, Some(&tpm))?;
    let quoted = verifier.ask(&mut shell, "")?;
    let verdict = verifier.decide(&record, &quoted, &[&chain], &["--update"])?.attested()?;
    let manifest = chain.manifest()?;
    ensure!(verdict["image"]["id"] == manifest.image.id.to_string(), "{verdict:#}");
    ensure!(verdict["image"]["version"] == manifest.image.version.to_string(), "{verdict:#}");
    ensure!(verdict["release"] == format!("{} {}", manifest.image.id, manifest.image.version), "{verdict:#}");

    // With what this firmware measured pinned, the kernel and the initramfs are matched with the release too.
    let policy = verifier.file("policy.toml");
    let mut learn = vec!["attest".into(), "learn".into(), "--evidence".into(), quoted.evidence.clone().into()];
    learn.extend(["--device".into(), record.clone().into(), "--nonce".into(), quoted.nonce.clone().into()]);
    learn.extend(verifier.references(&[&chain]));
    learn.extend(["--out".into(), policy.clone().into()]);
    let learnt = verifier.run(&learn)?;
    ensure!(learnt.code == 0, "{}", learnt.stderr);
    let again = verifier.ask(&mut shell, "")?;
    let policy = policy.to_str().context("UTF-8")?;
    let verdict = verifier.decide(&record, &again, &[&chain], &["--policy", policy, "--update"])?.attested()?;
    ensure!(verdict["ignored_pcrs"].as_array().is_some_and(Vec::is_empty), "{verdict:#}");
    // A nonce counts once, and for its own quote alone.
    let replayed = Quoted { nonce: again.nonce.clone(), evidence: quoted.evidence };
    verifier.decide(&record, &replayed, &[&chain], &[])?.refused("nonce: expected")?;
    forged_logs_are_refused(&verifier, &record, &again, &chain)
}

/// The same quote with another story to it.
fn forged_logs_are_refused(verifier: &Verifier, record: &Path, quoted: &Quoted, chain: &Chain) -> Result<()> {
    type Forgery = fn(&mut Vec<Record>);
    let forgeries: [(&str, Forgery); 5] = [
        ("PCR 11 (sha256): expected", |log| drop(log.pop())),
        ("PCR 11 (sha256): expected", |log| log.swap(0, 3)),
        ("PCR 13 (sha256): expected", |log| log.push(log[2].clone())),
        ("it says \"sysinit\", which is not what was measured", |log| {
            log[3].content.string = Some("sysinit".to_owned());
        }),
        ("PCR 12 (sha256): expected", |log| {
            let line = Measurement::CommandLine(b"quiet".as_slice().into());
            let digests: Vec<PcrDigest> = [PcrBank::Sha256, PcrBank::Sha384].map(|bank| line.digest(bank)).to_vec();
            log[1] = Record::new(&line, &digests, None, 1);
        }),
    ];
    for (because, forge) in forgeries {
        let forged = verifier.forged(quoted, |evidence| {
            let mut log = measurement_log::parse(evidence.measurement_log.as_deref().unwrap_or_default())?;
            forge(&mut log);
            evidence.measurement_log = Some(Base64Bytes(log.iter().flat_map(Record::to_bytes).collect()));
            Ok(())
        })?;
        verifier.decide(record, &forged, &[chain], &[])?.refused(because)?;
    }
    let torn = verifier.forged(quoted, |evidence| {
        let log = evidence.measurement_log.as_mut().context("a log")?;
        log.0.truncate(log.0.len() - 1);
        Ok(())
    })?;
    verifier.decide(record, &torn, &[chain], &[])?.refused("the log is torn")
}

#[test]
fn attestation_forgery_another_image_is_refused() -> Result<()> {
    let other = |request: &mut SealRequest| request.config.image.id = Some("org.example.other".parse().expect("valid"));
    is_refused("another_image", other, "", "image: expected the manifest of a reference release, found manifest:")
}

#[test]
fn attestation_forgery_a_debug_image_is_refused() -> Result<()> {
    let (verifier, record, quoted) = boots("a_debug_image", |request| request.config.image.debug = true, "")?;
    let debug = quick(|request| request.config.image.debug = true)?;
    // Even where it is among the releases.
    verifier.decide(&record, &quoted, &[&debug], &[])?.refused("expected a production image, found a debug image")?;
    verifier.decide(&record, &quoted, &[reference()?], &[])?.refused("debug-manifest:")
}

#[test]
fn attestation_forgery_an_older_image_is_refused() -> Result<()> {
    let older = |request: &mut SealRequest| {
        request.config.image.version = Some("3".parse().expect("valid"));
        request.config.image.rollback_index = RollbackIndex(3);
    };
    let (verifier, record, quoted) = boots("an_older_image", older, "")?;
    let policy = verifier.file("policy.toml");
    std::fs::write(&policy, "minimum_rollback_index = 7\n")?;
    let policy = ["--policy", policy.to_str().context("UTF-8")?];
    let old = quick(older)?;
    verifier.decide(&record, &quoted, &[&old, reference()?], &policy)?.refused("expected 7 or more, found 3")
}

#[test]
fn attestation_forgery_a_changed_command_line_is_refused() -> Result<()> {
    is_refused("a_changed_command_line", |_| (), "mitigations=off", "command line: expected one that the release")
}

#[test]
fn attestation_forgery_a_boot_that_is_not_measured_is_refused() -> Result<()> {
    is_refused(
        "not_measured",
        |request| request.config.tpm.usage = TpmUse::Off,
        "",
        "measurement log: expected enter-initrd",
    )
}

/// TPM2_PCR_Extend of register 13 by zeros in the SHA-256 bank alone, with the empty password.
const EXTEND_ONE_BANK: &str = "80020000004100000182 0000000d 00000009 40000009 0000 00 0000 00000001 000b \
     0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn attestation_forgery_one_bank_extended_and_not_the_other_is_refused() -> Result<()> {
    let (verifier, tpm) = (Verifier::new()?, TpmState::new()?);
    let mut device = Device::boot("one_bank", reference()?, &tpm, "")?;
    let record = verifier.enrol("one-bank", &mut device.shell, None)?;
    let honest = verifier.ask(&mut device.shell, "")?;
    verifier.decide(&record, &honest, &[reference()?], &[])?.attested()?;
    device.shell.put("/run/extend", &iofs_policy::hex::decode(&EXTEND_ONE_BANK.replace(' ', ""))?)?;
    device.shell.output("cat /run/extend >/dev/tpmrm0", COMMAND)?;
    let extended = verifier.ask(&mut device.shell, "")?;
    verifier.decide(&record, &extended, &[reference()?], &[])?.refused("PCR 13 (sha256): expected")?;
    // Leaving out the bank, or the register, does not help.
    let without = verifier.ask(&mut device.shell, "--banks sha1,sha384,sha512")?;
    verifier.decide(&record, &without, &[reference()?], &[])?.refused("registers of the sha256 bank, found none")?;
    let without = verifier.ask(&mut device.shell, "--pcrs 0-9,11,12,14")?;
    verifier.decide(&record, &without, &[reference()?], &[])?.refused("expected 13 too, found them left out")
}

#[test]
fn attestation_forgery_a_quote_by_the_key_of_another_tpm_is_refused() -> Result<()> {
    let (verifier, honest, rogue) = (Verifier::new()?, TpmState::new()?, TpmState::new()?);
    let mut device = Device::boot("the_honest_one", reference()?, &honest, "")?;
    let record = verifier.enrol("honest", &mut device.shell, None)?;
    drop(device);
    let mut device = Device::boot("the_other_tpm", reference()?, &rogue, "")?;
    verifier.enrol("rogue", &mut device.shell, None)?;
    let quoted = verifier.ask(&mut device.shell, "")?;
    verifier.decide(&record, &quoted, &[reference()?], &[])?.refused("attestation key: expected the enrolled one")
}

#[test]
fn attestation_forgery_a_quote_from_before_a_reset_is_refused() -> Result<()> {
    let (verifier, tpm) = (Verifier::new()?, TpmState::new()?);
    let mut device = Device::boot("before_the_reset", reference()?, &tpm, "")?;
    let record = verifier.enrol("reset", &mut device.shell, None)?;
    let before = verifier.ask(&mut device.shell, "")?;
    verifier.decide(&record, &before, &[reference()?], &[])?.attested()?;
    drop(device);
    let mut device = Device::boot("after_the_reset", reference()?, &tpm, "")?;
    let after = verifier.ask(&mut device.shell, "")?;
    verifier.decide(&record, &after, &[reference()?], &["--update"])?.attested()?;
    verifier.decide(&record, &before, &[reference()?], &[])?.refused("it was made before a reset that was already seen")
}

#[test]
fn power_cut_between_a_register_and_its_record_is_called_torn() -> Result<()> {
    let (verifier, tpm) = (Verifier::new()?, TpmState::new()?);
    let mut device = Device::boot("torn", reference()?, &tpm, "")?;
    let record = verifier.enrol("torn", &mut device.shell, None)?;
    let killed = "coproc half-measure; read -r line <&\"${COPROC[0]}\"; echo \"$line\"; kill -9 $COPROC_PID; wait";
    let said = device.shell.run(killed, COMMAND)?;
    ensure!(said.stdout == b"EXTENDED\n", "{said:?}");
    let quoted = verifier.ask(&mut device.shell, "")?;
    verifier.decide(&record, &quoted, &[reference()?], &[])?.refused("a register was extended and not noted")
}
