//! What is in both slots, and what became of it: for people, and for who chooses what to update.

use std::{fmt::Write, path::Path};

use iofs_policy::{
    boot_record::{BootRecord, BootedSlot},
    digest::Sha256Digest,
    dsse::{Envelope, PayloadType},
    manifest::{Architecture, Manifest, RollbackIndex, VerifiedManifest},
    slots::{BootEntry, Outcome, SlotName, SlotRecord, Trial},
    trust::TrustPolicy,
};
use serde::Serialize;

use super::{
    held::{self, SlotEnd},
    keys::{KeysView, MachineKeys},
    record::RecordFile,
    rules,
    storage::SlotDevice,
};

/// Both slots of a machine.
#[derive(Debug, Serialize)]
pub struct Survey {
    /// Slot a, slot b.
    pub slots: Vec<SlotView>,
    /// The oldest rollback index that boots, as far as the record says.
    pub floor: RollbackIndex,
    /// The keys that this machine has confirmed; nothing where the trust policy of the boot is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeysView>,
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
    /// The version in it; nothing where the slot is empty or damaged. `refused` says whether its signature counts.
    pub version: Option<String>,
    /// Its rollback index.
    pub rollback_index: Option<RollbackIndex>,
    /// What it is worth, as far as anything is known of it.
    pub trial: Option<Trial>,
    /// Why it boots no more, where its keys were moved away or the trust policy speaks against it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Reads both slots and the record. `trust` is the trust policy that verify-init left of the boot.
pub fn survey(boot: &BootRecord, booted: &BootedSlot, trust: &Path) -> Survey {
    let mut problems = Vec::new();
    let mut note = |problem: String| problems.push(problem);
    let trust = rules::read_trust(trust).map_err(|failure| note(failure.fact)).ok();
    let file = RecordFile::open(Path::new(&booted.state_device), false).map_err(|failure| note(failure.fact)).ok();
    let keys = trust.as_ref().zip(file.as_ref()).map(|(trust, file)| MachineKeys::of(trust, file));
    for why in file.iter().filter_map(|file| file.damaged.as_ref()) {
        note(format!("{}: {why}", booted.state_device));
    }
    for why in keys.iter().filter_map(|keys| keys.problem.as_ref()) {
        note(format!("{}: {why}: the keys of the trust policy count", booted.state_device));
    }
    let record = file.map(|file| file.record).unwrap_or_default();
    let mut slots = Vec::new();
    for (name, device) in SlotName::ALL.into_iter().zip(&booted.devices) {
        let found = device.as_deref().map(|device| Found::read(Path::new(device))).transpose();
        let found = found.unwrap_or_else(|error| {
            note(format!("slot {name}: {error}"));
            None
        });
        let refused = trust.as_ref().zip(keys.as_ref()).zip(found.as_ref());
        let refused = refused.and_then(|((trust, keys), found)| found.refused(trust, keys));
        slots.push(view(boot, booted, &record, (name, device.clone()), found, refused));
    }
    let keys = keys.map(|keys| KeysView::from(&keys.ring));
    Survey { slots, floor: record.floor, keys, boots: record.boots, problems }
}

fn view(
    boot: &BootRecord,
    booted: &BootedSlot,
    record: &SlotRecord,
    (name, device): (SlotName, Option<String>),
    found: Option<Found>,
    refused: Option<String>,
) -> SlotView {
    let running = name == booted.name;
    let digest = if running { Some(boot.manifest_digest) } else { found.as_ref().map(|found| found.digest) };
    let trial = record.state(name).filter(|known| Some(known.manifest) == digest).map(|known| known.trial);
    let image = found.map(|found| found.manifest.image);
    let version = image.as_ref().map(|image| image.version.to_string());
    let version = version.or_else(|| running.then(|| boot.image_version.clone()));
    let rollback_index = image.map(|image| image.rollback_index).or(running.then_some(boot.rollback_index));
    SlotView { name, running, device, version, rollback_index, trial, refused }
}

/// What lies at a slot's end, whoever signed it.
struct Found {
    end: SlotEnd,
    manifest: Manifest,
    digest: Sha256Digest,
}

impl Found {
    fn read(device: &Path) -> Result<Self, String> {
        let other = |error: &dyn std::fmt::Display| format!("{}: {error}", device.display());
        let slot = SlotDevice::open_to_read(device).map_err(|failure| failure.fact)?;
        let end = held::end(&slot).map_err(|error| other(&error))?;
        let envelope = Envelope::parse(&end.envelope, PayloadType::Manifest).map_err(|error| other(&error))?;
        let manifest = Manifest::from_json(envelope.unverified_payload()).map_err(|error| other(&error))?;
        Ok(Self { end, manifest, digest: Sha256Digest::of(envelope.unverified_payload()) })
    }

    /// Why the keys that count now do not accept it, or the trust policy does not.
    fn refused(&self, trust: &TrustPolicy, confirmed: &MachineKeys) -> Option<String> {
        let keys = match self.end.keys(&confirmed.ring) {
            Ok(keys) => keys,
            Err(error) => return Some(error.to_string()),
        };
        VerifiedManifest::verify(&self.end.envelope, trust, &keys, Architecture::CURRENT)
            .err()
            .map(|why| why.to_string())
    }
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
        if let Some(why) = &slot.refused {
            let _ = writeln!(text, "  boots no more: {why}");
        }
    }
    let _ = writeln!(text, "floor:     rollback index {} in the record of tries", survey.floor);
    text += &survey.keys.as_ref().map(KeysView::text).unwrap_or_default();
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
