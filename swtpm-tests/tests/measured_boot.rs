//! Boots that are measured into a TPM, seen from the system that they lead to.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iofs_policy::{
    boot_record::BootRecord,
    manifest::TpmUse,
    measurement::predict,
    measurement_log,
    paths::{BOOT_RECORD, MEASUREMENT_LOG},
    pcr::PcrBank,
    release::Release,
};
use swtpm_tests::{
    DeviceShell, Ending, Machine, TpmState,
    attester::{self, SHELL_INIT},
    chain::Chain,
};

const BOOT: Duration = Duration::from_secs(120);
const COMMAND: Duration = Duration::from_secs(60);

/// A sealed device that boots right into the test's shell.
fn device(usage: TpmUse) -> Result<Chain> {
    Chain::seal("trixie", &attester::root()?, |request| {
        request.config.tpm.usage = usage;
        request.config.boot.init = SHELL_INIT.parse().expect("valid");
    })
}

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
    let release = release(chain)?;
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
    shell.last("echo o >/proc/sysrq-trigger")?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}

fn release(chain: &Chain) -> Result<Release> {
    let statement = chain.directory().envelope(iofs_sign::sealed::RELEASE, iofs_policy::dsse::PayloadType::Release)?;
    Ok(Release::from_json(statement.unverified_payload())?)
}

#[test]
fn a_boot_by_uefi_firmware_is_measured_as_predicted() -> Result<()> {
    let chain = device(TpmUse::Required)?;
    let (disk, _) = chain.disk()?;
    let tpm = TpmState::new()?;
    measured_as_predicted(&chain, &chain.machine("measured_by_uefi", &disk).memory_mib(1024).uefi().tpm(&tpm))
}

#[test]
fn a_boot_by_a_bios_is_measured_as_predicted() -> Result<()> {
    let chain = device(TpmUse::Required)?;
    let (disk, _) = chain.disk()?;
    let tpm = TpmState::new()?;
    measured_as_predicted(&chain, &chain.machine("measured_by_a_bios", &disk).memory_mib(1024).tpm(&tpm))
}
