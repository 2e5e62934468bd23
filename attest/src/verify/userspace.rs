//! What user space measured: one release's sequence, and then only what the policy accepts.

use std::{borrow::Cow, collections::BTreeSet};

use iofs_policy::{
    measurement::Measurement,
    measurement_log::Record,
    pcr::{PcrBank, PcrDigest, PcrIndex},
};

use super::{Reference, Refusal, Verification, identity::is_of_identity};
use crate::{
    policy_file::{IMAGE_PCRS, Policy},
    tcg::shown,
};

const LOG: &str = "measurement log";
/// How the text of a volume key's event begins, in systemd's form. Its digest is no digest of the text but an HMAC by that key.
const VOLUME_KEY: &str = "cryptsetup:";
/// What systemd measures as the real system comes up and goes down (systemd-pcrphase), in this order.
pub(crate) const SYSTEMD_PHASES: [&str; 4] = ["sysinit", "ready", "shutdown", "final"];

/// What a log says that was booted.
pub(crate) struct Booted<'a> {
    pub(crate) reference: &'a Reference,
    pub(super) command_line: String,
    pub(super) phases: Vec<String>,
    pub(super) notes: Vec<String>,
}

/// A record with its place in the log.
type Numbered<'a> = (usize, &'a Record);

/// Holds the records against the sequence that a boot of one of the references makes.
pub(super) fn judge<'a>(
    request: &Verification<'a>,
    banks: &BTreeSet<PcrBank>,
    records: &[Record],
) -> Result<Booted<'a>, Refusal> {
    let (covered, others): (Vec<Numbered<'_>>, Vec<Numbered<'_>>) =
        records.iter().enumerate().partition(|(_, record)| is_selected(request.policy, record));
    if let Some((event, record)) = covered.iter().find(|(_, record)| label_lies(record, banks)) {
        let text = shown(record.content.string.as_deref().unwrap_or_default());
        return Err(Refusal::Relabelled { event: *event, pcr: record.pcr, text });
    }
    let (image, other): (Vec<Numbered<'_>>, Vec<Numbered<'_>>) =
        covered.into_iter().partition(|(_, record)| record.index().is_some_and(|pcr| IMAGE_PCRS.contains(&pcr)));
    let mut image = image.into_iter();
    let mut booted = sequence(request, banks, &mut image)?;
    // Register 15 is judged by itself: its events are the machine's, and no release's.
    let other = other.into_iter().filter(|(_, record)| !is_of_identity(record));
    let mut rest: Vec<Numbered<'_>> = image.chain(other).collect();
    rest.sort_by_key(|(number, _)| *number);
    booted.phases = afterwards(request.policy, banks, &rest)?;
    if !others.is_empty() {
        let count = others.len();
        booted.notes.push(format!("{count} records of user space are about registers that were not quoted"));
    }
    Ok(booted)
}

fn is_selected(policy: &Policy, record: &Record) -> bool {
    record.index().is_some_and(|pcr| policy.pcrs.contains(&pcr))
}

/// Whether a record's text is not what its digests are of. No text is no lie, and of a volume key's nobody can tell without the
/// key: it is never believed.
pub(crate) fn label_lies(record: &Record, banks: &BTreeSet<PcrBank>) -> bool {
    let Some(text) = &record.content.string else { return false };
    let digest_lies =
        |bank: &PcrBank| record.digest(*bank).is_some_and(|digest| digest != PcrDigest::of(*bank, &[text.as_bytes()]));
    !is_volume_key(record) && banks.iter().any(digest_lies)
}

/// Whether a record says of itself that it is of a volume key.
pub(crate) fn is_volume_key(record: &Record) -> bool {
    let text = record.content.string.as_deref();
    record.index() == Some(PcrIndex::SYSTEM_IDENTITY) && text.is_some_and(|text| text.starts_with(VOLUME_KEY))
}

/// Whether a record is of this measurement, in every bank.
pub(crate) fn is_measured(record: &Record, measurement: &Measurement<'_>, banks: &BTreeSet<PcrBank>) -> bool {
    let digest_is = |bank: &PcrBank| record.digest(*bank) == Some(measurement.digest(*bank));
    record.index() == Some(measurement.pcr()) && banks.iter().all(digest_is)
}

/// The four steps of a boot, in order across all registers.
fn sequence<'a, 'r>(
    request: &Verification<'a>,
    banks: &BTreeSet<PcrBank>,
    records: &mut impl Iterator<Item = Numbered<'r>>,
) -> Result<Booted<'a>, Refusal> {
    expect(records.next(), &Measurement::EnterInitrd, banks)?;
    let line = expect_in(records.next(), PcrIndex::COMMAND_LINE, "the command line in PCR 12", banks)?;
    let manifest = expect_in(records.next(), PcrIndex::MANIFEST, "the manifest in PCR 13", banks)?;
    expect(records.next(), &Measurement::LeaveInitrd, banks)?;
    let reference = reference_of(request, banks, manifest)?;
    let command_line = command_line_of(request.policy, banks, reference, line)?;
    Ok(Booted { reference, command_line, phases: Vec::new(), notes: Vec::new() })
}

fn expect(found: Option<Numbered<'_>>, step: &Measurement<'_>, banks: &BTreeSet<PcrBank>) -> Result<(), Refusal> {
    if found.is_some_and(|(_, record)| is_measured(record, step, banks)) {
        return Ok(());
    }
    let expected = format!("{} in PCR {}", String::from_utf8_lossy(&step.bytes()), step.pcr());
    Err(Refusal::StepMissing { expected, found: name_of(found, banks) })
}

fn expect_in<'r>(
    found: Option<Numbered<'r>>,
    pcr: PcrIndex,
    expected: &str,
    banks: &BTreeSet<PcrBank>,
) -> Result<&'r Record, Refusal> {
    match found {
        Some((_, record)) if record.index() == Some(pcr) => Ok(record),
        _ => Err(Refusal::StepMissing { expected: expected.to_owned(), found: name_of(found, banks) }),
    }
}

fn name_of(found: Option<Numbered<'_>>, banks: &BTreeSet<PcrBank>) -> String {
    found.map_or_else(
        || "the end of the log".to_owned(),
        |(number, record)| format!("event {number} in PCR {}: {}", record.pcr, what(record, banks)),
    )
}

/// A record in a few words. Its text was compared with its digests before.
fn what(record: &Record, banks: &BTreeSet<PcrBank>) -> String {
    let digest = banks.iter().next_back().and_then(|bank| record.digest(*bank));
    match (&record.content.string, digest) {
        (Some(text), _) => shown(text),
        (None, Some(digest)) => digest.to_string(),
        (None, None) => "no digest".to_owned(),
    }
}

fn reference_of<'a>(
    request: &Verification<'a>,
    banks: &BTreeSet<PcrBank>,
    manifest: &Record,
) -> Result<&'a Reference, Refusal> {
    let is_of = |reference: &&Reference| {
        let release = reference.release();
        let measurement = Measurement::Manifest { digest: release.manifest_digest, debug: release.image.debug };
        is_measured(manifest, &measurement, banks)
    };
    let reference = request.references.iter().find(is_of);
    let reference = reference.ok_or_else(|| Refusal::UnknownImage { found: what(manifest, banks) })?;
    let (image, name) = (&reference.release().image, reference.name());
    if image.debug && !request.policy.allow_debug {
        return Err(Refusal::Debug { release: name });
    }
    let floor = request.policy.minimum_rollback_index;
    if image.rollback_index < floor {
        return Err(Refusal::Rollback { release: name, floor: floor.0, found: image.rollback_index.0 });
    }
    Ok(reference)
}

/// The command lines that are accepted for a release: its own, and the policy's.
pub(crate) fn accepted_lines<'a>(policy: &'a Policy, reference: &'a Reference) -> impl Iterator<Item = &'a String> {
    reference.release().command_lines.iter().chain(&policy.command_lines)
}

fn command_line_of(
    policy: &Policy,
    banks: &BTreeSet<PcrBank>,
    reference: &Reference,
    record: &Record,
) -> Result<String, Refusal> {
    let mut lines = accepted_lines(policy, reference).peekable();
    if lines.peek().is_none() {
        return Err(Refusal::NoCommandLine { release: reference.name() });
    }
    let is_of = |line: &&String| is_measured(record, &Measurement::CommandLine(Cow::Borrowed(line.as_bytes())), banks);
    let line = lines.find(is_of);
    line.cloned().ok_or_else(|| Refusal::CommandLine { found: what(record, banks) })
}

/// What may follow: systemd's phases in their order, and what the policy lists. Gives the words.
fn afterwards(policy: &Policy, banks: &BTreeSet<PcrBank>, records: &[Numbered<'_>]) -> Result<Vec<String>, Refusal> {
    let mut coming = SYSTEMD_PHASES.iter();
    let mut words = Vec::new();
    for (event, record) in records {
        let Some(pcr) = record.index() else { return Err(Refusal::Internal) };
        let is_of = |text: &str| {
            banks.iter().all(|bank| record.digest(*bank) == Some(PcrDigest::of(*bank, &[text.as_bytes()])))
        };
        let allowed = policy.events.iter().find(|event| event.pcr == pcr && is_of(&event.text));
        if let Some(allowed) = allowed {
            words.push(allowed.text.clone());
        } else if policy.allow_systemd_phases && pcr == PcrIndex::PHASES {
            let phase = coming.find(|phase| is_of(phase));
            words.push((*phase.ok_or_else(|| unknown(*event, pcr, record, banks))?).to_owned());
        } else {
            return Err(unknown(*event, pcr, record, banks));
        }
    }
    Ok(words)
}

fn unknown(event: usize, pcr: PcrIndex, record: &Record, banks: &BTreeSet<PcrBank>) -> Refusal {
    Refusal::UnknownEvent { log: LOG, event, pcr, what: what(record, banks) }
}
