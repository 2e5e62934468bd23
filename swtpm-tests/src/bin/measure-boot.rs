//! Prints what measuring adds to a boot: the same image on the same machine, with its TPM off and on, in turn.
//!
//! One line a figure, `NAME VALUE`, in milliseconds as verify-init recorded them: the medians of the runs.

use std::time::Duration;

use anyhow::{Context, Result};
use iofs_policy::{boot_record::BootRecord, failure::Stage, manifest::TpmUse, paths::BOOT_RECORD};
use swtpm_tests::{TpmState, attester::quick, chain::Chain};

const BOOT: Duration = Duration::from_secs(120);
/// Runs of each, unless `BENCH_RUNS` says otherwise.
const RUNS: usize = 5;

fn main() -> Result<()> {
    let runs = std::env::var("BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS);
    let [off, on] = [TpmUse::Off, TpmUse::Required].map(|usage| quick(|request| request.config.tpm.usage = usage));
    let (off, on) = (off?, on?);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        without.push(boot(&off)?);
        with.push(boot(&on)?);
    }
    println!("pid1_to_exec_without {:.2}", median(&without, total));
    println!("pid1_to_exec_with {:.2}", median(&with, total));
    println!("stages_without {:.2}", median(&without, measuring));
    println!("stages_with {:.2}", median(&with, measuring));
    Ok(())
}

/// With a TPM in both cases, so that firmware and kernel do the same.
fn boot(chain: &Chain) -> Result<BootRecord> {
    let (disk, _) = chain.disk()?;
    let tpm = TpmState::new()?;
    let mut vm = chain.machine("measure_boot", &disk).memory_mib(1024).tpm(&tpm).start()?;
    let mut shell = vm.device_shell(BOOT)?;
    serde_json::from_slice(&shell.output(&format!("cat {BOOT_RECORD}"), BOOT)?).context("the boot record")
}

fn milliseconds(record: &BootRecord, wanted: impl Fn(Stage) -> bool) -> f64 {
    let stages = record.stages.iter().filter(|time| wanted(time.stage));
    stages.map(|time| time.took_ns as f64 / 1e6).sum()
}

fn total(record: &BootRecord) -> f64 {
    milliseconds(record, |_| true)
}

fn measuring(record: &BootRecord) -> f64 {
    milliseconds(record, |stage| matches!(stage, Stage::Measured | Stage::Capped))
}

fn median(records: &[BootRecord], figure: impl Fn(&BootRecord) -> f64) -> f64 {
    let mut figures: Vec<f64> = records.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}
