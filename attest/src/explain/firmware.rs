//! Firmware's events beside the release's image and what the policy pins.

use std::collections::{BTreeMap, BTreeSet};

use iofs_policy::{
    digest::Sha256Digest,
    pcr::{PcrBank, PcrDigest, PcrIndex},
};

use super::{ExplainedEvent, Explainer, Source, Status};
use crate::{
    policy_file::Rule,
    tcg::{DataCheck, Event, EventType},
    verify::{LOAD_OPTIONS, Logs, Reference, file_of, is_of_stub, release_files, stub_expected},
};

/// No more digests of a policy than this are shown where one of them is expected.
const MOST_EXPECTED: usize = 4;

/// The release's unified kernel image, as its files are named.
const UKI: &str = "uki.efi";

/// A file of a release by its digest, as it is measured, and its name.
type ReleaseFile = (Sha256Digest, String);

impl Explainer<'_> {
    /// Firmware's events.
    pub(super) fn firmware(&self, logs: &Logs, differences: &mut Vec<String>) -> Vec<ExplainedEvent> {
        let events: Vec<&Event> = logs.firmware.iter().flat_map(|log| &log.events).collect();
        let stub = self.of_stub(&events);
        let files = self.reference.map(release_files).unwrap_or_default();
        let (mut explained, mut differing) = (Vec::new(), BTreeSet::new());
        for event in &events {
            let known = stub.known.get(&event.number).cloned();
            let (status, remark) = known.unwrap_or_else(|| self.of_firmware(event, &events, &files));
            if matches!(status, Status::Different | Status::Unknown) {
                differences.extend(self.difference(event, remark.as_deref()));
                differing.extend(event.extends());
            }
            explained.push(self.explained_of_firmware(event, status, remark));
        }
        differences.extend(stub.missing);
        differences.extend(self.missing_files(&events, &files, &differing));
        explained
    }

    fn explained_of_firmware(&self, event: &Event, status: Status, remark: Option<String>) -> ExplainedEvent {
        ExplainedEvent {
            log: Source::Firmware,
            event: event.number,
            pcr: event.extends().map(PcrIndex::get),
            event_type: event.kind.to_string(),
            description: event.description(),
            digest: event.extends().and(self.strongest(|bank| event.digest(bank))),
            status,
            remark,
        }
    }

    /// The sentence about an event that is not what it should be, with its digest in the bank of what was expected.
    fn difference(&self, event: &Event, remark: Option<&str>) -> Option<String> {
        let (pcr, number) = (event.extends()?, event.number);
        let bank = self.banks.iter().rev().find(|bank| remark.is_some_and(|text| text.contains(&format!("{bank}:"))));
        let found = match bank {
            Some(bank) => event.digest(*bank).map(|digest| digest.to_string()),
            None => self.strongest(|bank| event.digest(bank)),
        };
        let found = found.unwrap_or_else(|| "no digest".to_owned());
        let remark = remark.unwrap_or("nothing in the policy accounts for it");
        Some(format!("PCR {pcr}, firmware log, event {number}: {}: {remark}; found {found}", event.description()))
    }

    /// What is known of an event that no stub measured.
    fn of_firmware(&self, event: &Event, events: &[&Event], files: &[ReleaseFile]) -> (Status, Option<String>) {
        let file = file_of(event, files).map(|name| format!("the release's {name}"));
        let status = self.firmware_status(event, file.is_some());
        let remark = file.or_else(|| (status == Status::Unknown).then(|| self.accounted_for(event, events, files))?);
        let lies = status == Status::Unknown && event.data_check() == DataCheck::Contradicts;
        (status, remark.map(|remark| if lies { format!("a false label; {remark}") } else { remark }))
    }

    /// What a register's rule has for events like this one that the log does not have.
    fn accounted_for(&self, event: &Event, events: &[&Event], files: &[ReleaseFile]) -> Option<String> {
        let rule = self.policy.firmware.rules.get(&event.extends()?)?;
        // Firmware starts the kernel itself only where nothing else contains it.
        let is_contained = |name: &str| name == "kernel" && files.iter().any(|(_, name)| name == UKI);
        let files = files.iter().filter(|(_, name)| rule.release && is_measured_as(event, name) && !is_contained(name));
        let mut expected: Vec<String> =
            files.map(|(digest, name)| format!("the release's {name}, sha256:{digest}")).collect();
        let bank = self.banks.iter().rev().find(|bank| rule.events.iter().any(|listed| listed.bank() == **bank));
        let is_there = |listed: &&PcrDigest| events.iter().any(|event| event.digest(listed.bank()) == Some(**listed));
        let listed = rule.events.iter().filter(|listed| Some(&listed.bank()) == bank && !is_there(listed));
        let absent: Vec<String> = listed.map(PcrDigest::to_string).collect();
        expected.extend(absent.iter().take(MOST_EXPECTED).map(|digest| format!("{digest} of the policy")));
        if absent.len() > MOST_EXPECTED {
            expected.push(format!("{} more of the policy", absent.len() - MOST_EXPECTED));
        }
        let expected = if expected.is_empty() { "nothing more".to_owned() } else { expected.join(", or ") };
        Some(format!("expected {expected}"))
    }

    /// What the stub measured of a unified kernel image, by the event's number, beside the release's image.
    fn of_stub(&self, events: &[&Event]) -> OfStub {
        let Some((reference, bank)) = self.reference.zip(self.banks.last().copied()) else { return OfStub::default() };
        let expected = stub_expected(reference.release(), bank);
        let measured = events.iter().filter(|event| is_of_stub(event, reference.release()));
        let measured: Vec<(usize, Option<PcrDigest>)> =
            measured.map(|event| (event.number, event.digest(bank))).collect();
        if measured.is_empty() {
            return OfStub::default();
        }
        // A section more or less shifts all that follow: beside their own sections they are as predicted.
        let by_place = OfStub::by_place(&expected, &measured);
        let by_section = OfStub::by_section(&expected, &measured).filter(OfStub::differs);
        if by_place.differs() { by_section.unwrap_or(by_place) } else { by_place }
    }

    /// Registers that want a file of the release and have none.
    fn missing_files(&self, events: &[&Event], files: &[ReleaseFile], differing: &BTreeSet<PcrIndex>) -> Vec<String> {
        // Where another event was found, it has been told what was expected in its place.
        let rules = self.policy.firmware.rules.iter().filter(|(pcr, rule)| rule.release && !differing.contains(pcr));
        let has_file = |pcr: &PcrIndex| {
            let of = |event: &&&Event| event.extends() == Some(*pcr);
            events.iter().filter(of).any(|event| file_of(event, files).is_some_and(|name| name != LOAD_OPTIONS))
        };
        let release = self.reference.map(Reference::name).unwrap_or_default();
        let missing = rules.filter(|(pcr, _)| !has_file(pcr)).map(|(pcr, _)| {
            format!("PCR {pcr}, firmware log: expected an event of a file of release {release}; found none")
        });
        missing.collect()
    }

    fn firmware_status(&self, event: &Event, is_file: bool) -> Status {
        let Some(pcr) = event.extends() else { return Status::Informational };
        let rule = self.policy.firmware.rules.get(&pcr);
        let listed = |bank: &PcrBank| {
            event.digest(*bank).is_some_and(|digest| rule.is_some_and(|rule| rule.events.contains(&digest)))
        };
        let accepted = self.banks.iter().any(listed) || rule.is_some_and(Rule::is_value_only);
        let ignored = self.policy.firmware.ignore.contains(&pcr) || !self.policy.pcrs.contains(&pcr);
        match event.data_check() {
            _ if is_file => Status::ReleaseFile,
            _ if !accepted && !ignored => Status::Unknown,
            DataCheck::Contradicts => Status::Contradiction,
            _ if accepted => Status::Accepted,
            _ => Status::Ignored,
        }
    }
}

/// What the stub measured beside the release's image.
#[derive(Default)]
struct OfStub {
    known: BTreeMap<usize, (Status, Option<String>)>,
    missing: Vec<String>,
}

impl OfStub {
    fn differs(&self) -> bool {
        !self.missing.is_empty() || self.known.values().any(|(status, _)| *status == Status::Different)
    }

    fn know(&mut self, event: usize, found: Option<PcrDigest>, expected: Option<&(String, PcrDigest)>, nothing: &str) {
        let known = match expected {
            Some((what, predicted)) if Some(*predicted) == found => (Status::Predicted, Some(what.clone())),
            Some((what, predicted)) => (Status::Different, Some(format!("predicted: {what}, {predicted}"))),
            None => (Status::Different, Some(format!("predicted: {nothing}"))),
        };
        self.known.insert(event, known);
    }

    fn miss(&mut self, (what, predicted): &(String, PcrDigest)) {
        let end = "found the end of what the stub measured";
        self.missing.push(format!("PCR 11, firmware log: predicted: {what}, {predicted}; {end}"));
    }

    /// Event by event, as the verifier compares.
    fn by_place(expected: &[(String, PcrDigest)], measured: &[(usize, Option<PcrDigest>)]) -> Self {
        let mut found = Self::default();
        for (place, (event, digest)) in measured.iter().enumerate() {
            found.know(*event, *digest, expected.get(place), "nothing more");
        }
        if let Some(next) = expected.get(measured.len()) {
            found.miss(next);
        }
        found
    }

    /// Each section, which is its name and then its contents, beside the one of its name. Not where something else was measured.
    fn by_section(expected: &[(String, PcrDigest)], measured: &[(usize, Option<PcrDigest>)]) -> Option<Self> {
        let mut sections: Vec<&[(String, PcrDigest)]> = expected.chunks(2).collect();
        let mut found = Self::default();
        for section in measured.chunks(2) {
            let [(name_event, name), (event, contents)] = section else { return None };
            let place = sections.iter().position(|section| section.first().map(|(_, name)| *name) == *name);
            let section = place.map(|place| sections.remove(place));
            let part = |number: usize| section.and_then(|section| section.get(number));
            found.know(*name_event, *name, part(0), "no such section");
            found.know(*event, *contents, part(1), "no such section");
        }
        sections.iter().flat_map(|section| section.iter()).for_each(|part| found.miss(part));
        Some(found)
    }
}

/// Whether firmware or the kernel's stub would measure this file of a release by an event of this kind. Kinds are labels: they
/// decide what people are told to expect, and nothing else.
fn is_measured_as(event: &Event, name: &str) -> bool {
    let of_kernel = event.kind == EventType::EVENT_TAG;
    match name {
        LOAD_OPTIONS => of_kernel && event.description().contains("LoadOptions"),
        "kernel" | UKI => event.kind == EventType::EFI_BOOT_SERVICES_APPLICATION,
        _ => of_kernel && !event.description().contains("LoadOptions"),
    }
}
