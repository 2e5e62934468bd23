//! What is in both slots, and what became of it: for people, and for who chooses what to update.

use std::{fmt::Write, path::Path};

use iofs_policy::{
    boot_record::{BootRecord, BootedSlot},
    digest::Sha256Digest,
    dsse::{Envelope, PayloadType},
    manifest::{Manifest, RollbackIndex},
    slots::{BootEntry, Outcome, SlotName, SlotRecord, Trial},
};
use serde::Serialize;

use super::{held, record::RecordFile, storage::SlotDevice};

/// Both slots of a machine.
#[derive(Debug, Serialize)]
pub struct Survey {
    /// Slot a, slot b.
    pub slots: Vec<SlotView>,
    /// The oldest rollback index that boots, as far as the record says.
    pub floor: RollbackIndex,
    /// The last boots, the newest last.
    pub boots: Vec<BootEntry>,
    /// What could not be read.
    pub problems: Vec<String>,
}

/// One slot.
#[derive(Debug, Serialize)]
pub struct SlotView {
    /// Which.
    pub name: SlotName,
    /// Whether the running system is in it.
    pub running: bool,
    /// Its device, if it was there at the boot.
    pub device: Option<String>,
    /// The version in it; nothing where the slot is empty or damaged. Its signature is not checked here.
    pub version: Option<String>,
    /// Its rollback index.
    pub rollback_index: Option<RollbackIndex>,
    /// What it is worth, as far as anything is known of it.
    pub trial: Option<Trial>,
}

/// Reads both slots and the record.
pub fn survey(boot: &BootRecord, booted: &BootedSlot) -> Survey {
    let mut problems = Vec::new();
    let record = RecordFile::open(Path::new(&booted.state_device), false);
    let record = match record {
        Ok(file) => {
            problems.extend(file.damaged.map(|why| format!("{}: {why}", booted.state_device)));
            file.record
        }
        Err(failure) => {
            problems.push(failure.fact);
            SlotRecord::default()
        }
    };
    let slots = SlotName::ALL.into_iter().zip(&booted.devices).map(|(name, device)| {
        let running = name == booted.name;
        let found = device.as_deref().map(|device| manifest(Path::new(device)));
        let found = found.and_then(|found| match found {
            Ok(found) => Some(found),
            Err(error) => {
                problems.push(format!("slot {name}: {error}"));
                None
            }
        });
        let digest = if running { Some(boot.manifest_digest) } else { found.as_ref().map(|(_, digest)| *digest) };
        let trial = record.state(name).filter(|known| Some(known.manifest) == digest).map(|known| known.trial);
        let image = found.map(|(manifest, _)| manifest.image);
        let version = image.as_ref().map(|image| image.version.to_string());
        let version = version.or_else(|| running.then(|| boot.image_version.clone()));
        let rollback_index = image.map(|image| image.rollback_index).or(running.then_some(boot.rollback_index));
        SlotView { name, running, device: device.clone(), version, rollback_index, trial }
    });
    let slots = slots.collect();
    Survey { slots, floor: record.floor, boots: record.boots, problems }
}

/// The manifest at a slot's end, whoever signed it.
fn manifest(device: &Path) -> Result<(Manifest, Sha256Digest), String> {
    let other = |error: &dyn std::fmt::Display| format!("{}: {error}", device.display());
    let slot = SlotDevice::open_to_read(device).map_err(|failure| failure.fact)?;
    let bytes = held::envelope(&slot).map_err(|error| other(&error))?;
    let envelope = Envelope::parse(&bytes, PayloadType::Manifest).map_err(|error| other(&error))?;
    let manifest = Manifest::from_json(envelope.unverified_payload()).map_err(|error| other(&error))?;
    Ok((manifest, Sha256Digest::of(envelope.unverified_payload())))
}

/// Line by line.
pub fn text(survey: &Survey) -> String {
    let mut text = String::new();
    for slot in &survey.slots {
        let release = match (&slot.version, slot.rollback_index) {
            (Some(version), Some(index)) => format!("{version} (rollback index {index}), {}", worth(slot.trial)),
            _ => "empty".to_owned(),
        };
        let running = if slot.running { ", running" } else { "" };
        let _ = writeln!(text, "slot {}:    {release}{running}", slot.name);
    }
    let _ = writeln!(text, "floor:     rollback index {} in the record of tries", survey.floor);
    for boot in &survey.boots {
        let BootEntry { number, slot, version, .. } = boot;
        let _ = writeln!(text, "  boot {number:<5} slot {slot}  {version:<16} {}", told(boot.outcome));
    }
    for problem in &survey.problems {
        let _ = writeln!(text, "warning:   {problem}");
    }
    text
}

fn worth(trial: Option<Trial>) -> String {
    match trial {
        None => "not tried yet".to_owned(),
        Some(Trial::Good) => "confirmed".to_owned(),
        Some(Trial::Corrupt) => "corrupt".to_owned(),
        Some(Trial::Trying(0)) => "not confirmed, no tries left".to_owned(),
        Some(Trial::Trying(1)) => "on trial, 1 more try".to_owned(),
        Some(Trial::Trying(left)) => format!("on trial, {left} more tries"),
    }
}

fn told(outcome: Outcome) -> String {
    match outcome {
        Outcome::Started => "started, and nobody confirmed it".to_owned(),
        Outcome::Refused(stage) => format!("refused before stage {stage}"),
        Outcome::Good => "confirmed".to_owned(),
        Outcome::Ended => "confirmed, and shut down in order".to_owned(),
        Outcome::Corrupt => "ended abruptly, and its image is corrupt".to_owned(),
    }
}
