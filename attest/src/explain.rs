//! What the logs say, event by event, beside what was predicted. For people: no verdict follows from it, since nothing here
//! is checked against a signature.

mod firmware;

use std::{borrow::Cow, collections::BTreeSet, fmt};

use iofs_policy::{
    hex,
    measurement::Measurement,
    measurement_log::{self, Record},
    pcr::{PcrBank, PcrDigest, PcrIndex},
};
use serde::Serialize;

use crate::{
    evidence::Evidence,
    policy_file::{IMAGE_PCRS, Policy},
    tcg::{EventLog, shown},
    verify::{
        Comparison, Logs, Reference, SYSTEMD_PHASES, Standing, Verification, accepted_lines, compare_identity,
        found_in_identity, is_measured, is_of_identity, is_volume_key, label_lies, nothing_more, replay_registers,
        required_banks,
    },
};

/// No more differences than this: a log could have thousands.
const MOST_DIFFERENCES: usize = 32;

/// Everything that the logs say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The release that the prediction is of: the one that was measured, or else the first.
    pub release: Option<String>,
    /// Where the logs first depart from what is expected.
    pub first_difference: Option<String>,
    /// All such places, in the order of the logs, as far as they are worth telling: not more than some dozens.
    pub differences: Vec<String>,
    /// What could not be read or compared.
    pub problems: Vec<String>,
    /// Firmware's events, then user space's.
    pub events: Vec<ExplainedEvent>,
    /// The registers of the policy.
    pub registers: Vec<ExplainedRegister>,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedEvent {
    /// Which log.
    pub log: Source,
    /// Its number in that log.
    pub event: usize,
    /// The register; `None` where nothing is extended.
    pub pcr: Option<u8>,
    /// Its type: a label.
    pub event_type: String,
    /// What it says: a label.
    pub description: String,
    /// What the register was extended by, `BANK:HEX`, in the strongest of the demanded banks.
    pub digest: Option<String>,
    /// What is known of it.
    pub status: Status,
    /// More about that.
    pub remark: Option<String>,
}

/// A log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Firmware's.
    Firmware,
    /// User space's.
    UserSpace,
}

/// What is known of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It is what the release predicts.
    Predicted,
    /// Something else was predicted in its place.
    Different,
    /// It is a file of the release.
    ReleaseFile,
    /// The policy lists it, or it is one of systemd's phases.
    Accepted,
    /// The policy ignores its register, or does not demand it.
    Ignored,
    /// Nobody accounts for it.
    Unknown,
    /// Its label is not what was measured.
    Contradiction,
    /// It extends nothing.
    Informational,
}

/// One register in one bank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedRegister {
    /// The bank.
    pub bank: &'static str,
    /// The register.
    pub pcr: u8,
    /// What the logs lead to, in hexadecimal; `None` where an event lacks the bank.
    pub replayed: Option<String>,
    /// What came beside the quote, in hexadecimal.
    pub reported: Option<String>,
}

impl ExplainedRegister {
    /// Whether the two differ.
    pub fn differs(&self) -> bool {
        matches!((&self.replayed, &self.reported), (Some(replayed), Some(reported)) if replayed != reported)
    }
}

/// Explains evidence, as far as it can be read.
pub fn explain(request: &Verification<'_>, evidence: &Evidence) -> Explanation {
    let mut problems = Vec::new();
    let logs = read(evidence, &mut problems);
    let banks = required_banks(request).unwrap_or_else(|refusal| {
        problems.push(refusal.to_string());
        [PcrBank::Sha256].into()
    });
    let explainer = Explainer { policy: request.policy, reference: reference_of(request, &logs, &banks), banks };
    let mut differences = Vec::new();
    let mut events = explainer.firmware(&logs, &mut differences);
    events.extend(explainer.user_space(&logs, &mut differences));
    let registers = explainer.registers(&logs, evidence, &mut problems);
    differences.extend(explainer.values(&registers));
    differences.extend(explainer.release());
    differences.truncate(MOST_DIFFERENCES);
    Explanation {
        release: explainer.reference.map(Reference::name),
        first_difference: differences.first().cloned(),
        differences,
        events,
        registers,
        problems,
    }
}

fn read(evidence: &Evidence, problems: &mut Vec<String>) -> Logs {
    if evidence.measurement_log_torn {
        problems.push("the measurement log is torn: its last record may be missing".to_owned());
    }
    let firmware = evidence.firmware_log.as_deref().map(EventLog::parse).transpose();
    let firmware = firmware.map_err(|error| problems.push(error.to_string())).ok().flatten();
    let records = evidence.measurement_log.as_deref().map(measurement_log::parse).transpose();
    let records = records.map_err(|error| problems.push(error.to_string())).ok().flatten().unwrap_or_default();
    Logs { firmware, records }
}

fn manifest_of(reference: &Reference) -> Measurement<'static> {
    let release = reference.release();
    Measurement::Manifest { digest: release.manifest_digest, debug: release.image.debug }
}

fn reference_of<'a>(request: &Verification<'a>, logs: &Logs, banks: &BTreeSet<PcrBank>) -> Option<&'a Reference> {
    let measured = |reference: &&Reference| {
        let manifest = manifest_of(reference);
        logs.records.iter().any(|record| is_measured(record, &manifest, banks))
    };
    request.references.iter().find(measured).or(request.references.first())
}

struct Explainer<'a> {
    policy: &'a Policy,
    reference: Option<&'a Reference>,
    banks: BTreeSet<PcrBank>,
}

impl Explainer<'_> {
    fn strongest(&self, digest: impl Fn(PcrBank) -> Option<PcrDigest>) -> Option<String> {
        self.banks.iter().rev().find_map(|bank| digest(*bank)).map(|digest| digest.to_string())
    }

    fn user_space(&self, logs: &Logs, differences: &mut Vec<String>) -> Vec<ExplainedEvent> {
        let predicted = self.predicted(&logs.records);
        let identity = self.policy.identity.as_ref();
        let identity = identity.map(|identity| compare_identity(identity, &self.banks, &logs.records));
        let mut seen = [0_usize; iofs_policy::pcr::PCR_COUNT as usize];
        let mut events = Vec::new();
        for (number, record) in logs.records.iter().enumerate() {
            let Some(pcr) = record.index() else { continue };
            let place = &mut seen[usize::from(pcr.get())];
            let expected = predicted.iter().filter(|measurement| measurement.pcr() == pcr).nth(*place);
            *place += 1;
            let (status, remark) = match self.identity_status(number, record, *place, identity.as_ref()) {
                Some(known) => known,
                None => self.record_status(record, pcr, *place, expected),
            };
            if matches!(status, Status::Different | Status::Unknown | Status::Contradiction) {
                differences.extend(remark.clone());
            }
            events.push(self.explained(number, record, status, remark));
        }
        differences.extend(self.first_missing(&predicted, &seen));
        differences.extend(identity.and_then(|identity| self.missing_of_identity(&identity)));
        events
    }

    /// What is known of an event of register 15, where the policy demands it.
    fn identity_status(
        &self,
        number: usize,
        record: &Record,
        place: usize,
        comparison: Option<&Comparison<'_>>,
    ) -> Option<(Status, Option<String>)> {
        if !is_of_identity(record)
            || !self.policy.pcrs.contains(&PcrIndex::SYSTEM_IDENTITY)
            || label_lies(record, &self.banks)
        {
            return None;
        }
        let found = found_in_identity(record, &self.banks);
        let standing = comparison.and_then(|known| known.events.iter().find(|(event, _)| *event == number));
        let expected = match (standing, &self.policy.identity) {
            (Some((_, Standing::Learnt | Standing::Later)), _) => return Some((Status::Accepted, label_note(record))),
            (Some((_, Standing::Instead(learnt))), _) => {
                let remark = format!(
                    "PCR 15 event {place}: expected {}, as learnt; the log has {found}",
                    learnt.name(&self.banks)
                );
                return Some((Status::Different, Some(remark)));
            }
            (_, Some(identity)) => format!("expected {}, as learnt", nothing_more(identity)),
            (_, None) => "the policy has no [identity] to compare with".to_owned(),
        };
        Some((Status::Unknown, Some(format!("PCR 15 event {place}: {expected}; the log has {found}"))))
    }

    fn missing_of_identity(&self, comparison: &Comparison<'_>) -> Option<String> {
        let (learnt, place) = (comparison.missing?, comparison.events.len() + 1);
        let expected = learnt.name(&self.banks);
        Some(format!("PCR 15 event {place}: expected {expected}, as learnt; the log has nothing more"))
    }

    fn explained(&self, number: usize, record: &Record, status: Status, remark: Option<String>) -> ExplainedEvent {
        ExplainedEvent {
            log: Source::UserSpace,
            event: number,
            pcr: Some(record.pcr),
            event_type: shown(record.content.event_type.as_deref().unwrap_or("no type")),
            description: shown(record.content.string.as_deref().unwrap_or("no text")),
            digest: self.strongest(|bank| record.digest(bank)),
            status,
            remark,
        }
    }

    /// What the release measures with the command line that was measured, or else the first accepted one.
    fn predicted(&self, records: &[Record]) -> Vec<Measurement<'_>> {
        let Some(reference) = self.reference else { return Vec::new() };
        let mut lines = accepted_lines(self.policy, reference);
        let is_line = |line: &&String| {
            let measurement = Measurement::CommandLine(Cow::Borrowed(line.as_bytes()));
            records.iter().any(|record| is_measured(record, &measurement, &self.banks))
        };
        let first = accepted_lines(self.policy, reference).next();
        let line = lines.find(is_line).or(first).map_or("", String::as_str);
        reference.release().measurements(line).into()
    }

    fn record_status(
        &self,
        record: &Record,
        pcr: PcrIndex,
        place: usize,
        expected: Option<&Measurement<'_>>,
    ) -> (Status, Option<String>) {
        let text = record.content.string.as_deref().map(shown);
        let logged = text.or(self.strongest(|bank| record.digest(bank))).unwrap_or_else(|| "no digest".to_owned());
        if label_lies(record, &self.banks) {
            let remark = format!("PCR {pcr} event {place}: the log has {logged}, which is not what was measured");
            return (Status::Contradiction, Some(remark));
        }
        if let Some(expected) = expected {
            if is_measured(record, expected, &self.banks) {
                return (Status::Predicted, None);
            }
            let predicted = self.prediction(expected);
            let remark = format!("PCR {pcr} event {place}: predicted {predicted}; the log has {logged}");
            return (Status::Different, Some(remark));
        }
        if self.is_accepted(record, pcr) {
            return (Status::Accepted, None);
        }
        if !IMAGE_PCRS.contains(&pcr) && !self.policy.pcrs.contains(&pcr) {
            return (Status::Ignored, None);
        }
        (Status::Unknown, Some(format!("PCR {pcr} event {place}: predicted nothing more; the log has {logged}")))
    }

    fn prediction(&self, expected: &Measurement<'_>) -> String {
        let bytes = expected.bytes();
        let release = self.reference.map(Reference::name).unwrap_or_default();
        format!("{} of release {release}", shown(&String::from_utf8_lossy(&bytes)))
    }

    fn is_accepted(&self, record: &Record, pcr: PcrIndex) -> bool {
        let is_of = |text: &str| {
            let bank_is_of = |bank: &PcrBank| record.digest(*bank) == Some(PcrDigest::of(*bank, &[text.as_bytes()]));
            self.banks.iter().all(bank_is_of)
        };
        let phase = || pcr == PcrIndex::PHASES && SYSTEMD_PHASES.iter().any(|word| is_of(word));
        let systemd = self.policy.allow_systemd_phases && self.policy.pcrs.contains(&pcr) && phase();
        systemd || self.policy.events.iter().any(|event| event.pcr == pcr && is_of(&event.text))
    }

    fn first_missing(&self, predicted: &[Measurement<'_>], seen: &[usize]) -> Option<String> {
        let mut counted = [0_usize; iofs_policy::pcr::PCR_COUNT as usize];
        predicted.iter().find_map(|measurement| {
            let pcr = measurement.pcr();
            let place = &mut counted[usize::from(pcr.get())];
            *place += 1;
            let missing = *place > *seen.get(usize::from(pcr.get()))?;
            let text = || {
                format!("PCR {pcr} event {place}: predicted {}; the log has nothing more", self.prediction(measurement))
            };
            missing.then(text)
        })
    }

    /// Registers that hold none of the policy's values, by what the device reports of them.
    fn values(&self, registers: &[ExplainedRegister]) -> Vec<String> {
        let differs = |register: &&ExplainedRegister| {
            let rule = self.policy.firmware.rules.iter().find(|(pcr, _)| pcr.get() == register.pcr);
            let mut values =
                rule.iter().flat_map(|(_, rule)| &rule.values).filter(|value| value.bank().name() == register.bank);
            let found = register.reported.as_ref().or(register.replayed.as_ref());
            let told = values.clone().next().is_some();
            told && !values.any(|value| Some(&hex::encode(value.as_bytes())) == found)
        };
        let told = registers.iter().filter(differs).map(|ExplainedRegister { bank, pcr, reported, replayed }| {
            let found = reported.as_ref().or(replayed.as_ref()).map_or("nothing", String::as_str);
            format!("PCR {pcr}: expected one of the policy's values; found {bank}:{found}")
        });
        told.collect()
    }

    /// What of the measured release itself the policy does not accept.
    fn release(&self) -> Vec<String> {
        let Some(reference) = self.reference else { return Vec::new() };
        let (image, name) = (&reference.release().image, reference.name());
        let floor = self.policy.minimum_rollback_index;
        let debug = (image.debug && !self.policy.allow_debug)
            .then(|| format!("PCR 13: release {name}: expected a production image; found a debug image"));
        let old = (image.rollback_index < floor).then(|| {
            format!("PCR 13: release {name}: expected rollback index {floor} or more; found {}", image.rollback_index)
        });
        debug.into_iter().chain(old).collect()
    }

    fn registers(&self, logs: &Logs, evidence: &Evidence, problems: &mut Vec<String>) -> Vec<ExplainedRegister> {
        let wanted = self.banks.iter().flat_map(|bank| self.policy.pcrs.iter().map(move |pcr| (*bank, *pcr)));
        let wanted: Vec<(PcrBank, PcrIndex)> = wanted.collect();
        let replayed = replay_registers(logs, &wanted).map_err(|refusal| problems.push(refusal.to_string()));
        let replayed = replayed.unwrap_or_default();
        let register = |(bank, pcr): (PcrBank, PcrIndex)| ExplainedRegister {
            bank: bank.name(),
            pcr: pcr.get(),
            replayed: replayed.get(&(bank, pcr)).map(|value| hex::encode(value.as_bytes())),
            reported: evidence.pcrs.get(bank.name()).and_then(|bank| bank.get(&pcr.get())).map(|digits| shown(digits)),
        };
        wanted.into_iter().map(register).collect()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Firmware => "firmware",
            Self::UserSpace => "user space",
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Predicted => "as predicted",
            Self::Different => "DIFFERENT",
            Self::ReleaseFile => "release file",
            Self::Accepted => "accepted",
            Self::Ignored => "ignored",
            Self::Unknown => "UNKNOWN",
            Self::Contradiction => "FALSE LABEL",
            Self::Informational => "-",
        })
    }
}

/// One line an event.
impl fmt::Display for ExplainedEvent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pcr = self.pcr.map_or("-".to_owned(), |pcr| pcr.to_string());
        let Self { log, event, status, event_type, description, .. } = self;
        write!(formatter, "{log:10} {event:4}  PCR {pcr:>2}  {status:12}  {event_type}: {description}")?;
        match &self.remark {
            Some(remark) => write!(formatter, "\n  {remark}"),
            None => Ok(()),
        }
    }
}

/// Text for a terminal, each line ended by a newline.
impl fmt::Display for Explanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.release {
            Some(release) => writeln!(formatter, "predicted from release {release}")?,
            None => writeln!(formatter, "no release to predict from")?,
        }
        self.problems.iter().try_for_each(|problem| writeln!(formatter, "problem: {problem}"))?;
        self.events.iter().try_for_each(|event| writeln!(formatter, "{event}"))?;
        for register in self.registers.iter().filter(|register| register.differs()) {
            let ExplainedRegister { bank, pcr, .. } = register;
            writeln!(formatter, "PCR {pcr} ({bank}): the logs do not lead to the value that the device reports")?;
        }
        match &self.differences[..] {
            [] => writeln!(formatter, "user space measured what was predicted"),
            [first, others @ ..] => {
                writeln!(formatter, "first difference: {first}")?;
                others.iter().try_for_each(|other| writeln!(formatter, "then: {other}"))
            }
        }
    }
}

/// Whoever reads a volume key's label should know what it is worth.
fn label_note(record: &Record) -> Option<String> {
    is_volume_key(record)
        .then(|| "its digest is learnt; its label is not covered: only who has the volume key can check it".to_owned())
}
