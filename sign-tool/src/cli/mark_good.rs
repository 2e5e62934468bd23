//! `iofs-sign mark-good`.

use std::path::PathBuf;

use iofs_policy::{
    boot_record::{BootRecord, BootedSlot},
    paths::{BOOT_RECORD, KEY_HISTORY_COPY, TRUST_COPY},
};
use iofs_sign::{
    enroll::{rollback, tpm::TpmSide, volume::Volume},
    report::{ExitStatus, Failure, Output},
    slots::{
        confirm::{self, BootFiles, Confirmed},
        keys::KeysView,
        loader::LoaderFiles,
        rules,
    },
    status,
};
use iofs_tpm::rollback::DEFAULT_INDEX;
use serde::Serialize;

use super::attest_tpm::{Handle, TpmArguments, parse_nv_index};

/// Confirm that the running release is good: older ones are refused from now on
///
/// On a machine with slots it ends the release's trial first, so that it is booted from now on, however often it is started; where
/// the boot loader chooses, by renaming the unified kernel image, as systemd-bless-boot does.
///
/// Raises the TPM's rollback counter to what the running release's tokens allow. From then on the TPM opens the volumes for
/// no release with a lower rollback index, whatever is written to the disks, and images with the rule [tpm] rollback refuse to
/// boot. There is no way back: run it when the machine does what it is for, and not earlier.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  iofs-sign mark-good /dev/vda4

Exit codes: 1 system, 2 usage, 3 a volume has no token for the running release, 4 the running release was superseded.")]
pub(crate) struct Arguments {
    /// All volumes that this machine's TPM opens: one that is left out may never open again. None where the image has the rule
    volume: Vec<PathBuf>,
    /// The counter's NV index
    #[arg(long, value_name = "INDEX", value_parser = parse_nv_index, default_value_t = Handle(DEFAULT_INDEX))]
    rollback_counter: Handle,
    /// What verify-init left of this boot
    #[arg(long, value_name = "FILE", default_value = BOOT_RECORD)]
    boot_record: PathBuf,
    /// What verify-init left of its trust policy, on a machine with slots
    #[arg(long, value_name = "FILE", default_value = TRUST_COPY)]
    trust: PathBuf,
    /// Where the boot loader's file system is mounted, if it chooses [default: the one of /boot, /efi, /boot/efi with EFI/Linux]
    #[arg(long, value_name = "DIR")]
    esp_path: Option<PathBuf>,
    /// What verify-init left of the release's key history, where that moved the keys
    #[arg(long, value_name = "FILE", default_value = KEY_HISTORY_COPY)]
    key_history: PathBuf,
    /// Note instead that the confirmed system is shut down in order: else the next boot reads the whole slot, for it cannot tell
    /// a lost power supply from a corrupt block
    #[arg(long, conflicts_with_all = ["volume", "dry_run"])]
    shutdown: bool,
    /// Say what would be done, and raise nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    tpm: TpmArguments,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Marked {
    /// The slot whose trial ended, where there are slots.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    confirmed: Option<Confirmed>,
    /// The TPM's counter, where there is one to raise.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    raised: Option<Raised>,
}

/// What became of the TPM's counter.
#[derive(Debug, Serialize)]
struct Raised {
    counter: String,
    rollback_index: u64,
    before: u64,
    after: u64,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let record = status::read(&arguments.boot_record)?;
    if arguments.shutdown {
        return shutdown(&record, output);
    }
    let confirmed = record.slot.as_ref().map(|slot| confirm_slot(arguments, &record, slot)).transpose()?;
    // A machine with slots may well have no TPM.
    let has_counter = !arguments.volume.is_empty() || record.rollback.is_some() || confirmed.is_none();
    let raised = has_counter.then(|| raise_counter(arguments, &record)).transpose()?;
    let marked = Marked { confirmed, raised };
    output.result(&marked, || text(&marked, arguments.dry_run));
    Ok(())
}

fn confirm_slot(arguments: &Arguments, record: &BootRecord, slot: &BootedSlot) -> Result<Confirmed, Failure> {
    let trust = rules::read_trust(&arguments.trust)?;
    let loader = LoaderFiles::find(&trust, arguments.esp_path.as_deref())?;
    let files = BootFiles { trust: &trust, history: &arguments.key_history, loader: loader.as_ref() };
    confirm::confirm(record, slot, files, arguments.dry_run)
}

/// Notes the end of a boot that was confirmed.
fn shutdown(record: &BootRecord, output: Output) -> Result<(), Failure> {
    let noted = record.slot.as_ref().map_or(Ok(false), |slot| confirm::end(record, slot))?;
    output.result(&serde_json::json!({ "noted": noted }), || match noted {
        true => "noted:   the system is shut down in order\n".to_owned(),
        false => "noted nothing: the running release is not confirmed\n".to_owned(),
    });
    Ok(())
}

fn raise_counter(arguments: &Arguments, record: &BootRecord) -> Result<Raised, Failure> {
    let (counter, index) = (arguments.rollback_counter.0, record.rollback_index);
    let volumes = arguments.volume.iter().map(|path| Volume::read(path)).collect::<Result<Vec<_>, _>>()?;
    let rule = record.rollback.filter(|rule| rule.counter == counter);
    let target = rollback::target(&volumes, rule, counter, index)?;
    let mut tpm = arguments.tpm.open_side()?;
    let before = present(&mut tpm, counter)?;
    if before > target {
        let fact =
            format!("rollback index {index}: the counter {counter:#010x} is at {before}, above its limit {target}");
        return Err(Failure::new(ExitStatus::NotVerified, fact)
            .next("a newer release was confirmed on this machine: boot that one"));
    }
    let steps = rollback::steps(counter, before, target)?;
    let after = if arguments.dry_run { target } else { raise(&mut tpm, counter, steps)? };
    Ok(Raised { counter: format!("{counter:#010x}"), rollback_index: index.0, before, after })
}

/// One step after the other: after a power cut in between the counter stands at one of the values on the way, at which the
/// running release still opens, and the next run goes on.
fn raise(tpm: &mut TpmSide, counter: u32, steps: u64) -> Result<u64, Failure> {
    for _ in 0..steps {
        tpm.count_up(counter)?;
    }
    present(tpm, counter)
}

fn present(tpm: &mut TpmSide, counter: u32) -> Result<u64, Failure> {
    tpm.rollback_counter(counter)?.ok_or_else(|| {
        Failure::new(ExitStatus::Missing, format!("rollback counter {counter:#010x}: expected a counter, found none"))
            .next("enrol the volumes again with 'iofs-sign enroll --rollback-counter'")
    })
}

fn text(marked: &Marked, dry_run: bool) -> String {
    let slot = marked.confirmed.as_ref().map(|confirmed| confirmed_text(confirmed, dry_run));
    slot.unwrap_or_default() + &marked.raised.as_ref().map(|raised| raised_text(raised, dry_run)).unwrap_or_default()
}

fn confirmed_text(confirmed: &Confirmed, dry_run: bool) -> String {
    let Confirmed { slot, floor, keys } = confirmed;
    let text = match dry_run {
        true => format!("would confirm the release in slot {slot}\n"),
        false => format!("good:    the release in slot {slot}; floor in the record of tries: rollback index {floor}\n"),
    };
    text + &keys.as_ref().map(KeysView::text).unwrap_or_default()
}

fn raised_text(raised: &Raised, dry_run: bool) -> String {
    let Raised { counter, rollback_index, before, after } = raised;
    match (before == after, dry_run) {
        (true, _) => format!("good:    rollback index {rollback_index}, as before (counter {counter} at {after})\n"),
        (_, true) => {
            format!("would raise counter {counter} from {before} to {after}, for rollback index {rollback_index}\n")
        }
        _ => format!(
            "good:    rollback index {rollback_index}; older releases are refused (counter {counter} from {before} to {after})\n"
        ),
    }
}
