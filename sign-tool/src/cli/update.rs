//! `iofs-sign update`.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use iofs_policy::{
    paths::{BOOT_RECORD, TRUST_COPY},
    slots::SlotName,
    trust::TrustPolicy,
};
use iofs_sign::{
    report::{ExitStatus, Failure, Output},
    slots::{
        loader::LoaderFiles,
        rules,
        source::Source,
        storage::Disk,
        target::{RunningSlot, Target},
        update::{self, Outcome, UpdateJob, UpdateReport},
    },
    status,
};

/// Write a release into the slot that does not run, for the next boot to try
///
/// The release must be signed by the keys that this boot trusted, be of the same image, and be newer than what runs. Its signature
/// and its whole hash tree are verified first, and each block before it is used. Only blocks that differ from what the slot holds
/// are written; those that the running slot has are copied from there. All of it is read back from the device before the slot
/// counts as written. Where the boot loader chooses, the release's unified kernel image is written for it last. Whenever it is interrupted, what runs is whole, and running it again goes on from there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign update /media/stick/gateway-7.iofs
  iofs-sign update sealed --dry-run
  iofs-sign update sealed --slot b --device /dev/sdb3 --state /dev/sdb4 --trust sealed/trust.json

Exit codes: 1 system, 2 usage, or the slot is in use or the fallback of a release on trial, 3 malformed, or too large for the slot, 4 not verified, not newer, or below the
floor, 5 the slot is not there.")]
pub(crate) struct Arguments {
    /// A directory of 'iofs-sign seal', or a file of 'iofs-sign bundle'
    source: PathBuf,
    /// What verify-init left of this boot [default: /run/iofs/boot.json, without --device]
    #[arg(long, value_name = "FILE")]
    boot_record: Option<PathBuf>,
    /// What the machine to update trusts
    #[arg(long, value_name = "FILE", default_value = TRUST_COPY)]
    trust: PathBuf,
    /// The slot to write, where it is not this boot's other one: a or b
    #[arg(long, value_name = "SLOT", value_parser = slot, requires_all = ["device", "state"])]
    slot: Option<SlotName>,
    /// That slot's device, or a file in its place
    #[arg(long, value_name = "PATH", requires_all = ["slot", "state"])]
    device: Option<PathBuf>,
    /// The partition with the record of tries that belongs to that slot
    #[arg(long, value_name = "PATH", requires_all = ["slot", "device"])]
    state: Option<PathBuf>,
    /// Where the boot loader's file system is mounted, if it chooses [default: the one of /boot, /efi, /boot/efi with EFI/Linux]
    #[arg(long, value_name = "DIR")]
    esp_path: Option<PathBuf>,
    /// Verify all, say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Write although nobody has confirmed what runs, and the other slot is what it would fall back to
    #[arg(long)]
    give_up_fallback: bool,
    /// The most threads to use [default: one per processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let trust = rules::read_trust(&arguments.trust)?;
    let target = target(arguments, &trust)?;
    let loader = LoaderFiles::find(&trust, arguments.esp_path.as_deref())?;
    let source = Source::open(&arguments.source)?;
    let report = update::update(&UpdateJob {
        source: &source,
        trust: &trust,
        target: &target,
        dry_run: arguments.dry_run,
        give_up_fallback: arguments.give_up_fallback,
        threads: super::threads(arguments.threads),
        loader: loader.as_ref(),
        storage: &Disk,
        output,
    })?;
    output.result(&report, || text(&report));
    Ok(())
}

fn target(arguments: &Arguments, trust: &TrustPolicy) -> Result<Target, Failure> {
    let record = |path: &Path| status::read(path);
    let (Some(slot), Some(device), Some(state)) = (arguments.slot, &arguments.device, &arguments.state) else {
        let record = record(arguments.boot_record.as_deref().unwrap_or(Path::new(BOOT_RECORD)))?;
        return Target::of_boot(&record, rules::of(trust)?);
    };
    let running = |path: &Path| RunningSlot::of_boot(&record(path)?, rules::of(trust)?, device);
    let running = arguments.boot_record.as_deref().map(running).transpose()?;
    if running.as_ref().is_some_and(|running| running.candidate.slot == slot) {
        let fact = format!("--slot: expected the slot that does not run, found {slot}, which does");
        return Err(Failure::new(ExitStatus::Usage, fact).next(format!("write slot {}", slot.other())));
    }
    Ok(Target { slot, device: device.clone(), state: state.clone(), running })
}

fn slot(text: &str) -> Result<SlotName, String> {
    SlotName::ALL.into_iter().find(|slot| slot.to_string() == text).ok_or_else(|| "expected a or b".to_owned())
}

fn text(report: &UpdateReport) -> String {
    let UpdateReport { slot, device, version, rollback_index, blocks, .. } = report;
    let what = match report.outcome {
        Outcome::Written => "written, and read back; the next boot tries it",
        Outcome::AlreadyThere => "there already, and whole; nothing was written",
        Outcome::WouldWrite => "verified; nothing was written",
    };
    format!(
        "release: {version} (rollback index {rollback_index}): {what}\nslot:    {slot} on {}\nblocks:  {}: {} in place, {} from the \
         running slot, {} from the source\nbytes:   {} read from the source, {} written\n",
        device.display(),
        blocks.total,
        blocks.in_place,
        blocks.reused,
        blocks.read,
        report.bytes_read,
        report.bytes_written,
    )
}
