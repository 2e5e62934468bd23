//! Boots that are measured into a TPM, seen from the system that they lead to.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iofs_policy::{
    boot_record::BootRecord,
    measurement::predict,
    measurement_log,
    paths::{BOOT_RECORD, MEASUREMENT_LOG},
    pcr::PcrBank,
};
use swtpm_tests::{DeviceShell, Ending, Line, Machine, ScratchDisk, TpmState, attester::quick, chain::Chain};

const BOOT: Duration = Duration::from_secs(120);
const COMMAND: Duration = Duration::from_secs(60);

fn text(shell: &mut DeviceShell, command: &str) -> Result<String> {
    Ok(String::from_utf8(shell.output(command, COMMAND)?)?.trim().to_owned())
}

/// Boots, and compares each register that we measure into, in each bank, with the prediction.
fn measured_as_predicted(chain: &Chain, machine: &Machine) -> Result<()> {
    let mut vm = machine.start()?;
    let mut shell = vm.device_shell(BOOT)?;
    let line = text(&mut shell, "cat /proc/cmdline")?;
    let record: BootRecord = serde_json::from_slice(&shell.output(&format!("cat {BOOT_RECORD}"), COMMAND)?)?;
    ensure!(!record.measured_banks.is_empty(), "{:?}", record.warnings);
    let release = chain.release()?;
    for bank in &record.measured_banks {
        let bank: PcrBank = bank.parse()?;
        let events = predict(&release.measurements(&line), bank)?;
        for index in [11, 12, 13] {
            let last = events.iter().rfind(|event| event.pcr == index).context("predicted")?;
            let found = text(&mut shell, &format!("cat /sys/class/tpm/tpm0/pcr-{bank}/{index}"))?;
            ensure!(found.to_lowercase() == last.value, "register {index}, {bank}: predicted {last:?}, found {found}");
        }
    }
    let log = shell.output(&format!("cat {MEASUREMENT_LOG}"), COMMAND)?;
    ensure!(measurement_log::parse(&log)?.len() == 4, "{}", String::from_utf8_lossy(&log));
    ensure!(text(&mut shell, &format!("stat -c %a {MEASUREMENT_LOG}"))? == "600");
    shows_its_status(&mut shell, &record)?;
    shell.power_off()?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}

/// What `iofs-sign status` says on the device is its boot record, and the picture has a bar for each stage.
fn shows_its_status(shell: &mut DeviceShell, record: &BootRecord) -> Result<()> {
    let shown = text(shell, "iofs-sign status --timeline /run/boot.svg --json")?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    ensure!(shown == serde_json::json!({ "boot": record, "timeline": "/run/boot.svg" }), "{shown:#}");
    let bars = text(shell, "grep -c '<rect' /run/boot.svg")?;
    ensure!(bars == (record.stages.len() + 1).to_string(), "{bars} bars, of which one is the ground");
    let told = text(shell, "iofs-sign status")?;
    ensure!(record.stages.iter().all(|stage| told.contains(stage.stage.name())), "{told}");
    Ok(())
}

#[test]
fn a_boot_by_uefi_firmware_is_measured_as_predicted() -> Result<()> {
    let chain = quick(|_| ())?;
    let (disk, _) = chain.disk()?;
    let tpm = TpmState::new()?;
    measured_as_predicted(&chain, &chain.machine("measured_by_uefi", &disk).memory_mib(1024).uefi().tpm(&tpm))
}

#[test]
fn a_boot_by_a_bios_is_measured_as_predicted() -> Result<()> {
    let chain = quick(|_| ())?;
    let (disk, _) = chain.disk()?;
    let tpm = TpmState::new()?;
    measured_as_predicted(&chain, &chain.machine("measured_by_a_bios", &disk).memory_mib(1024).tpm(&tpm))
}

/// A device that is sealed for the TPM of this state.
fn pinned(name: &str, pinned: &TpmState) -> Result<(Chain, Machine, ScratchDisk)> {
    let key = tempfile::NamedTempFile::new()?;
    std::fs::write(key.path(), pinned.storage_root_key()?)?;
    let chain = quick(|request| request.config.tpm.srk = Some(key.path().to_owned()))?;
    let (disk, _) = chain.disk()?;
    let machine = chain.machine(name, &disk).memory_mib(1024);
    Ok((chain, machine, disk))
}

#[test]
fn a_boot_on_the_pinned_tpm_is_measured_within_its_session() -> Result<()> {
    let tpm = TpmState::new()?;
    let (chain, machine, _disk) = pinned("on_the_pinned_tpm", &tpm)?;
    measured_as_predicted(&chain, &machine.tpm(&tpm))
}

#[test]
fn bus_interposer_a_boot_on_another_tpm_than_the_pinned_one_is_refused() -> Result<()> {
    let (_chain, machine, _disk) = pinned("on_another_tpm", &TpmState::new()?)?;
    let other = TpmState::new()?;
    other.storage_root_key()?;
    let refused = "BOOT REFUSED before stage \"measured\": this TPM is not the pinned one";
    let mut vm = machine.tpm(&other).start()?;
    vm.wait_for_line(&Line::containing(refused), BOOT)?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn a_boot_that_requires_a_tpm_is_refused_without_one() -> Result<()> {
    let chain = quick(|_| ())?;
    let (disk, _) = chain.disk()?;
    let mut vm = chain.machine("without_a_tpm", &disk).memory_mib(1024).start()?;
    let refused = "BOOT REFUSED before stage \"measured\": there is no TPM to measure into";
    vm.wait_for_line(&Line::containing(refused), BOOT)?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}
