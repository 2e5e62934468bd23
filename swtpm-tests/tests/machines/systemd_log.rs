//! systemd's own tools in a Debian 13 that was measured by us: they read our log, and go on with it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iofs_policy::{measurement_log, paths::MEASUREMENT_LOG, pcr::PcrBank};
use serde_json::Value;
use swtpm_tests::{DeviceShell, TpmState, attester, chain::Chain};

const BOOT: Duration = Duration::from_secs(300);
const COMMAND: Duration = Duration::from_secs(120);

fn logged(shell: &mut DeviceShell) -> Result<Vec<measurement_log::Record>> {
    Ok(measurement_log::parse(&shell.output(&format!("cat {MEASUREMENT_LOG}"), COMMAND)?)?)
}

/// What `systemd-pcrlock log` says of user space's events.
fn pcrlock(shell: &mut DeviceShell) -> Result<Vec<Value>> {
    let text = shell.output("/usr/lib/systemd/systemd-pcrlock log --json=short", COMMAND)?;
    let log: Value = serde_json::from_slice(&text).with_context(|| String::from_utf8_lossy(&text).into_owned())?;
    let events = log["log"].as_array().context("pcrlock shows a log")?;
    Ok(events.iter().filter(|event| [11, 12, 13].contains(&event["pcr"].as_u64().unwrap_or(99))).cloned().collect())
}

#[test]
fn systemd_reads_our_log_and_goes_on_with_it() -> Result<()> {
    let chain = Chain::seal("trixie", &attester::root()?, |_| ())?;
    let (disk, _) = chain.disk()?;
    let tpm = TpmState::new()?;
    let machine = chain.machine("systemd_reads_our_log", &disk).memory_mib(1024).uefi().tpm(&tpm);
    let mut vm = machine.start()?;
    let mut shell = vm.device_shell(BOOT)?;
    let ours = logged(&mut shell)?;
    ensure!(ours.len() == 4, "{ours:?}");

    let seen = pcrlock(&mut shell)?;
    ensure!(seen.len() == ours.len(), "pcrlock: {seen:#?}");
    for (seen, ours) in seen.iter().zip(&ours) {
        ensure!(seen["pcr"] == ours.pcr && seen["description"].as_str() == ours.content.string.as_deref(), "{seen:#?}");
        for logged in &ours.digests {
            ensure!(seen[&logged.algorithm] == logged.digest.as_str(), "{seen:#?}");
        }
    }
    // Its own definitions of the phases apply to ours.
    ensure!(seen[0]["component"] == "750-enter-initrd" && seen[0]["match"] == true, "{seen:#?}");
    ensure!(seen[3]["component"] == "800-leave-initrd" && seen[3]["match"] == true, "{seen:#?}");

    // Only kernels that systemd's own stub measured are extended for, unless it is told otherwise.
    shell.output("SYSTEMD_FORCE_MEASURE=1 /usr/lib/systemd/systemd-pcrextend sysinit", COMMAND)?;
    let both = logged(&mut shell)?;
    ensure!(both[..4] == ours[..] && both.len() == 5, "{both:?}");
    ensure!(both[4].content.string.as_deref() == Some("sysinit"), "{both:?}");
    let banks = |record: &measurement_log::Record| PcrBank::ALL.map(|bank| record.digest(bank).is_some());
    ensure!(banks(&both[0]) == banks(&both[4]), "the same banks: {both:?}");
    Ok(())
}
