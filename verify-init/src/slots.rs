//! Two slots, of which one is booted: the newest release that verifies, is not below the floor and has tries left.
//!
//! What is on the disk is believed as little as anywhere: the end of a slot says where a manifest is, which trusted keys must have
//! signed; and the record of tries chooses among slots that verified. That a slot is tried is on the disk before anything
//! of it is used.

use iofs_policy::{
    boot_record::BootedSlot,
    cmdline::AcceptedCommandLine,
    failure::{FailureAction, FailureReport, Stage},
    keys::{KeyRing, KeySequence},
    manifest::{Architecture, Place, VerifiedManifest},
    slots::{
        Candidate, Chooser, FloorKeeper, RECORD_COPIES, RECORD_SIZE, SlotName, SlotRecord, SlotRules, Trial as Worth,
    },
    verity::CorruptionAction,
};

use crate::{
    attached::attach,
    boot::Boot,
    devices::BlockDevice,
    found::{ImageDevices, Wanted, search},
    mapped,
    measured::Measured,
    report::{refusal, text},
    slot_keys,
    started::characters,
    system::System,
    verified::{Verified, check_release},
};

const STAGE: Stage = Stage::Chosen;
const RECOVER: &str = "write a signed release to one of the slots from another system: iofs-sign update --slot";

/// The slots of this machine, once they were looked at.
pub(crate) struct Trial {
    rules: SlotRules,
    state: BlockDevice,
    record: SlotRecord,
    write_first: usize,
    candidates: Vec<Candidate>,
    /// What was found at their places.
    devices: [Option<BlockDevice>; 2],
    /// The slot that is booted.
    chosen: Option<Chosen>,
    /// Whether the record knows of this boot.
    begun: bool,
}

/// The slot that is booted.
struct Chosen {
    name: SlotName,
    device: BlockDevice,
    keys: SlotKeys,
}

/// What verified a slot's manifest.
#[derive(Clone)]
struct SlotKeys {
    sequence: KeySequence,
    history: Option<Vec<u8>>,
}

/// A slot that may be booted as far as its manifest goes.
struct Slot {
    candidate: Candidate,
    device: BlockDevice,
    keys: SlotKeys,
    manifest: VerifiedManifest,
    command_line: AcceptedCommandLine,
}

impl Verified {
    /// Chooses a slot, where there are slots, and measures what is booted.
    pub(crate) fn choose<S: System>(self, boot: &mut Boot<'_, S>) -> Result<Measured, FailureReport> {
        let Some(rules) = self.trust.slots.clone() else { return self.measure(boot) };
        let mut why = Vec::new();
        let (mut trial, mut slots) = look(boot, &self, rules, &mut why)?;
        loop {
            let Some(slot) = trial.best(&mut slots) else { return Err(trial.nothing_left(boot, &why)) };
            if let Some(damage) = trial.damage(boot, &slot) {
                why.push(format!("slot {}: {damage}", slot.candidate.slot));
                continue;
            }
            trial.begin(boot, &slot);
            boot.slots = Some(trial);
            match self.with(slot).measure(boot) {
                // Nothing was measured yet: the other slot can still take its place.
                Err(refusal) if boot.measuring.is_none() => {
                    trial = boot.slots.take().expect("it was just put there");
                    why.push(trial.passed_over(boot, &refusal));
                }
                measured => return measured,
            }
        }
    }

    /// The same boot, of what is in that slot.
    fn with(&self, slot: Slot) -> Self {
        Self {
            manifest: slot.manifest,
            command_line: slot.command_line,
            trust: self.trust.clone(),
            raw_command_line: self.raw_command_line.clone(),
            release: self.release.clone(),
        }
    }
}

/// Finds slots and state, and reads them.
fn look<S: System>(
    boot: &mut Boot<'_, S>,
    verified: &Verified,
    rules: SlotRules,
    why: &mut Vec<String>,
) -> Result<(Trial, Vec<Slot>), FailureReport> {
    let mut wanted = vec![Wanted::new(&rules.state, "the slots' state".to_owned(), false)];
    wanted.extend(SlotName::ALL.map(|slot| Wanted::new(rules.place(slot), format!("slot {slot}"), true)));
    let mut found = search(boot, verified, wanted)?.into_iter();
    let state = found.next().flatten().expect("it was waited for");
    let devices = [found.next().flatten(), found.next().flatten()];
    let (record, write_first) = read_record(boot, &state);
    let keys = slot_keys::confirmed(boot, &verified.trust, &state, &record);
    let mut slots = Vec::new();
    for (slot, device) in SlotName::ALL.into_iter().zip(devices.clone()) {
        match read_slot(boot, verified, &rules, (&record, &keys), slot, device) {
            Ok(slot) => slots.push(slot),
            Err(reason) => {
                boot.debug(&format!("slot {slot}: {reason}"));
                why.push(format!("slot {slot}: {reason}"));
            }
        }
    }
    let candidates = slots.iter().map(|slot| slot.candidate.clone()).collect();
    Ok((Trial { rules, state, record, write_first, candidates, devices, chosen: None, begun: false }, slots))
}

/// The record; a new one where neither copy can be read: the slots verify all the same.
fn read_record<S: System>(boot: &mut Boot<'_, S>, state: &BlockDevice) -> (SlotRecord, usize) {
    let read = boot.system.read_at(&state.path, 0, RECORD_COPIES * RECORD_SIZE);
    let bytes = read.unwrap_or_else(|error| {
        boot.warn(format!("{}: {}", state.path, text(&error)));
        Vec::new()
    });
    let (record, write_first) = SlotRecord::newest(&bytes);
    let record = record.unwrap_or_else(|error| {
        boot.warn(format!("{}: {error}: every slot counts as new", state.path));
        SlotRecord::default()
    });
    (record, write_first)
}

/// Reads a slot's manifest, and everything that can speak against it.
fn read_slot<S: System>(
    boot: &mut Boot<'_, S>,
    verified: &Verified,
    rules: &SlotRules,
    (record, confirmed): (&SlotRecord, &KeyRing),
    slot: SlotName,
    device: Option<BlockDevice>,
) -> Result<Slot, String> {
    let place = rules.place(slot);
    let role = verified.trust.role;
    let device = attach(boot, role, &format!("slot-{slot}"), place, device).map_err(|refusal| refusal.found)?;
    let device = device.ok_or_else(|| format!("no device {place}"))?;
    let end = slot_keys::read_end(boot, &device)?;
    let keys = slot_keys::of_slot(&end, confirmed)?;
    let manifest = VerifiedManifest::verify(&end.envelope, &verified.trust, &keys, Architecture::CURRENT)
        .map_err(|error| error.to_string())?;
    check(verified, rules, record, &manifest)?;
    let command_line = AcceptedCommandLine::check(&characters(&verified.raw_command_line), &manifest)
        .map_err(|error| format!("command line: expected {}, found {}", error.expected, error.parameter))?;
    let keys = SlotKeys { sequence: keys.sequence(), history: end.history };
    Ok(Slot { candidate: Candidate::new(slot, &manifest), device, keys, manifest, command_line })
}

fn check(verified: &Verified, rules: &SlotRules, record: &SlotRecord, found: &VerifiedManifest) -> Result<(), String> {
    let manifest = found.manifest();
    let index = manifest.image.rollback_index;
    if manifest.data != Place::Slot {
        return Err(format!("manifest: data: expected slot, found {}", manifest.data));
    }
    if index < record.floor {
        return Err(format!("rollback index: expected at least {}, found {index}", record.floor));
    }
    if rules.floor == FloorKeeper::Tpm && manifest.tpm.rollback.is_none() {
        return Err("manifest: tpm.rollback: expected a rule, since the TPM keeps the floor, found none".to_owned());
    }
    if rules.chooser == Chooser::BootLoader && found.digest() != verified.manifest.digest() {
        let (expected, found) = (verified.manifest.digest(), found.digest());
        return Err(format!("manifest: expected that of the initramfs ({expected}), found {found}"));
    }
    check_release(manifest, &verified.release).map_err(|refusal| format!("{}: {}", refusal.fact, refusal.expected))
}

impl Trial {
    /// The device that holds the image.
    pub(crate) fn device(&self) -> Option<&BlockDevice> {
        self.chosen.as_ref().map(|chosen| &chosen.device)
    }

    /// For the record of the boot.
    pub(crate) fn record(&self) -> Option<BootedSlot> {
        let Chosen { name, keys, .. } = self.chosen.as_ref()?;
        let devices = self.devices.clone().map(|device| device.map(|device| device.path));
        let (state_device, key_sequence) = (self.state.path.clone(), keys.sequence);
        Some(BootedSlot { name: *name, state_device, devices, key_sequence })
    }

    /// The key history of the slot, for who confirms it.
    pub(crate) fn key_history(&self) -> Option<&[u8]> {
        self.chosen.as_ref()?.keys.history.as_deref()
    }

    /// Takes the best slot out of those that are left.
    fn best(&mut self, slots: &mut Vec<Slot>) -> Option<Slot> {
        let left: Vec<Candidate> = slots.iter().map(|slot| slot.candidate.clone()).collect();
        if self.rules.chooser == Chooser::BootLoader {
            left.iter().for_each(|one| self.renew(one));
        }
        let first = self.record.order(&left, self.rules.tries).into_iter().next()?;
        let position = slots.iter().position(|slot| slot.candidate == first)?;
        Some(slots.remove(position))
    }

    /// The boot loader counts: what it starts has tries left.
    fn renew(&mut self, candidate: &Candidate) {
        let Candidate { slot, manifest, .. } = *candidate;
        if self.record.trial(slot, manifest, self.rules.tries) == Worth::Trying(0) {
            self.record.install(slot, manifest, self.rules.tries);
        }
    }

    /// What is wrong with the blocks of a slot, where there is a reason to look: where the kernel stops the machine at a corrupt
    /// block, a boot that ended abruptly may have ended so.
    fn damage<S: System>(&mut self, boot: &mut Boot<'_, S>, slot: &Slot) -> Option<String> {
        let Candidate { slot: name, manifest, .. } = slot.candidate;
        let sealed = slot.manifest.manifest();
        let stops = sealed.verity.on_corruption != CorruptionAction::Eio;
        if !stops || !self.record.ended_abruptly(name, manifest) {
            return None;
        }
        let device = || slot.device.clone();
        let image = match ImageDevices::new(STAGE, sealed, device(), device()) {
            Ok(image) => image,
            Err(refusal) => return Some(refusal.fact),
        };
        boot.debug(&format!("slot {name}: its last boot ended abruptly: reading all of it"));
        let damage = mapped::read_all(boot, &image, &sealed.verity)?;
        boot.warn(format!("slot {name} is corrupt and out until it is written again: {damage}"));
        self.record.corrupt(name, manifest);
        self.save(boot);
        Some(damage)
    }

    /// That it is tried is written down before anything of it is used.
    fn begin<S: System>(&mut self, boot: &mut Boot<'_, S>, slot: &Slot) {
        let tries = self.rules.tries;
        self.record.begin(&slot.candidate, tries);
        self.begun = true;
        self.save(boot);
        let Candidate { slot: name, manifest, .. } = slot.candidate;
        self.chosen = Some(Chosen { name, device: slot.device.clone(), keys: slot.keys.clone() });
        boot.set_action(slot.manifest.manifest().on_failure);
        let worth = match self.record.trial(name, manifest, tries) {
            Worth::Trying(left) => format!("on trial, {left} more tries"),
            _ => "confirmed".to_owned(),
        };
        let image = &slot.manifest.manifest().image;
        boot.reached(STAGE, &format!("chose slot {name} with {} {} ({worth})", image.id, image.version));
    }

    /// The slot was refused, and the machine is as before. Says why.
    fn passed_over<S: System>(&mut self, boot: &mut Boot<'_, S>, refusal: &FailureReport) -> String {
        let name = self.chosen.take().map_or(SlotName::A, |chosen| chosen.name);
        self.record.refused(refusal.stage, self.rules.tries);
        self.save(boot);
        let why = format!("slot {name}: {}: expected {}, found {}", refusal.fact, refusal.expected, refusal.found);
        boot.warn(why.clone());
        why
    }

    /// Raises the sequence and writes both copies. A disk that takes no writes must not stop a boot that verified.
    fn save<S: System>(&mut self, boot: &mut Boot<'_, S>) {
        self.record.sequence = self.record.sequence.saturating_add(1);
        let bytes = self.record.encode();
        for copy in [self.write_first, 1 - self.write_first] {
            if let Err(error) = boot.system.write_at(&self.state.path, (copy * RECORD_SIZE) as u64, &bytes) {
                boot.warn(format!("{}: the slots' state was not written: {}", self.state.path, text(&error)));
                return;
            }
        }
    }

    /// Both slots are out. Whoever starts the machine again has one more try.
    fn nothing_left<S: System>(mut self, boot: &mut Boot<'_, S>, why: &[String]) -> FailureReport {
        let no_tries = self
            .candidates
            .iter()
            .filter(|one| self.record.trial(one.slot, one.manifest, self.rules.tries) == Worth::Trying(0));
        let mut found: Vec<String> = why.to_vec();
        found.extend(no_tries.map(|one| format!("slot {}: release {} has no tries left", one.slot, one.version)));
        match (self.rules.chooser, self.candidates.first().cloned()) {
            (Chooser::BootLoader, Some(started)) => self.count_for_loader(boot, &started),
            _ => {
                self.record.one_more_try();
                self.save(boot);
            }
        }
        let expected = "a slot with a release that trusted keys signed, not older than the floor, with tries left";
        refusal(STAGE, "neither slot can be booted", expected, found.join("; "), RECOVER)
    }

    /// What the boot loader started cannot be booted: that counts as a boot, too, or it would be started for ever.
    fn count_for_loader<S: System>(mut self, boot: &mut Boot<'_, S>, started: &Candidate) {
        if !self.begun {
            self.record.begin(started, self.rules.tries);
        }
        boot.slots = Some(self);
    }

    /// Whether the boot loader may still come to the other slot: not if it starts the same release more often than that has tries.
    fn loader_moves_on(&self) -> bool {
        let last = self.record.boots.last().map(|last| last.manifest);
        last.is_some_and(|manifest| self.record.refused_in_a_row(manifest) <= usize::from(self.rules.tries))
    }
}

/// What follows a refusal: the next boot, as long as that has something to try; then the sealed action.
pub(crate) fn action_after<S: System>(boot: &mut Boot<'_, S>, stage: Stage, sealed: FailureAction) -> FailureAction {
    let Some(mut trial) = boot.slots.take() else { return sealed };
    let tries = trial.rules.tries;
    trial.record.refused(stage, tries);
    let left = match trial.rules.chooser {
        Chooser::VerifyInit => !trial.record.order(&trial.candidates, tries).is_empty(),
        Chooser::BootLoader => trial.loader_moves_on(),
    };
    if !left {
        trial.record.one_more_try();
    }
    trial.save(boot);
    if left { FailureAction::Reboot } else { sealed }
}
