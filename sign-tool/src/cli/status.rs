//! `iofs-sign status`.

use std::path::{Path, PathBuf};

use iofs_policy::{
    boot_record::BootRecord,
    paths::{BOOT_RECORD, TRUST_COPY},
};
use iofs_sign::{
    atomic,
    report::{Failure, Output},
    slots::{
        loader::{LoaderFile, LoaderFiles},
        rules,
        survey::{self, Survey, survey},
    },
    status::{self, timeline},
};
use serde::Serialize;

/// Show what this machine booted: the verified image, its volumes, what was measured, and how long each stage took
///
/// It is what verify-init left of the boot. It tells the machine's owner, and proves nothing to anybody else: for that, see
/// 'attest'.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign status
  iofs-sign status --timeline boot.svg
  iofs-sign status --boot-record boot.json --json

Exit codes: 1 system, 2 usage, 3 malformed record.")]
pub(crate) struct Arguments {
    /// What verify-init left of the boot
    #[arg(long, value_name = "FILE", default_value = BOOT_RECORD)]
    boot_record: PathBuf,
    /// What verify-init left of its trust policy, on a machine with slots
    #[arg(long, value_name = "FILE", default_value = TRUST_COPY)]
    trust: PathBuf,
    /// Where the boot loader's file system is mounted, if it chooses [default: the one of /boot, /efi, /boot/efi with EFI/Linux]
    #[arg(long, value_name = "DIR")]
    esp_path: Option<PathBuf>,
    /// Draw the stages into this file too, as SVG
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Status {
    /// The boot record.
    boot: BootRecord,
    /// Both slots and the last boots, where there are slots.
    #[serde(skip_serializing_if = "Option::is_none")]
    slots: Option<Survey>,
    /// What the boot loader starts of them, where it chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    loader: Option<Vec<LoaderFile>>,
    /// The picture, or null.
    timeline: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let boot = status::read(&arguments.boot_record)?;
    if let Some(path) = &arguments.timeline {
        atomic::write(path, 0o644, timeline::draw(&boot).to_string().as_bytes())?;
    }
    let mut slots = boot.slot.as_ref().map(|slot| survey(&boot, slot, &arguments.trust));
    let files = slots.as_mut().map(|slots| {
        // The rest is worth showing all the same.
        loader_files(&arguments.trust, arguments.esp_path.as_deref()).unwrap_or_else(|failure| {
            slots.problems.push(failure.fact);
            None
        })
    });
    let status = Status { boot, slots, loader: files.flatten(), timeline: arguments.timeline.clone() };
    output.result(&status, || text(&status));
    Ok(())
}

fn loader_files(trust: &Path, esp_path: Option<&Path>) -> Result<Option<Vec<LoaderFile>>, Failure> {
    let files = LoaderFiles::find(&rules::read_trust(trust)?, esp_path)?;
    files.map(|files| files.list()).transpose()
}

fn text(status: &Status) -> String {
    let slots = status.slots.as_ref().map(survey::text).unwrap_or_default();
    let loader = status.loader.iter().flatten().map(|file| {
        let worth = file.tries_left.map_or_else(|| "good".to_owned(), |left| format!("tries left: {left}"));
        format!("loader:    slot {}: {} ({worth})\n", file.slot, file.path.display())
    });
    slots + &loader.collect::<String>() + &status::text(&status.boot)
}
