//! From the evidence of a device that is known to be good, a policy that pins what its firmware measured, and what is the
//! machine's own.

use std::{collections::BTreeSet, fmt::Write};

use iofs_policy::{
    digest::Sha256Digest,
    measurement_log::Record,
    pcr::{PcrBank, PcrIndex},
};

use crate::{
    evidence::Evidence,
    policy_file::{IMAGE_PCRS, IdentityEvent, Policy},
    tcg::{Event, shown},
    verify::{Proven, Refusal, Verification, file_of, is_of_identity, is_of_stub, prove, release_files},
};

/// Writes a policy that accepts what this evidence shows, for somebody to review: digests pin, the comments beside them are
/// labels that nobody signed. What the request's policy says of firmware and of the machine's events does not count, but for those
/// that may come later; everything else does.
///
/// # Errors
/// [`Refusal`]: nothing is learnt from evidence that proves nothing.
pub fn learn(request: &Verification<'_>, evidence: &Evidence) -> Result<String, Refusal> {
    let mut policy = request.policy.clone();
    policy.firmware.rules.clear();
    let of_firmware = |pcr: &PcrIndex| !IMAGE_PCRS.contains(pcr) && *pcr != PcrIndex::SYSTEM_IDENTITY;
    policy.firmware.ignore = policy.pcrs.iter().copied().filter(of_firmware).collect();
    let request = Verification { policy: &policy, ..*request };
    let proven = prove(&request, evidence)?;
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_policy(&mut text, &policy, &proven);
    Ok(text)
}

fn write_policy(text: &mut String, policy: &Policy, proven: &Proven<'_>) -> std::fmt::Result {
    let release = proven.booted.reference.release();
    let banks: Vec<String> = proven.banks.iter().map(|bank| format!("{:?}", bank.name())).collect();
    let pcrs: Vec<String> = policy.pcrs.iter().map(PcrIndex::to_string).collect();
    let lines: Vec<String> =
        policy.command_lines.iter().cloned().map(|line| toml::Value::from(line).to_string()).collect();
    writeln!(text, "# Learnt from one quote, on release {}. Review it:", proven.booted.reference.name())?;
    writeln!(text, "# what is listed here is what that device's firmware did, good or bad.")?;
    writeln!(text, "banks = [{}]", banks.join(", "))?;
    writeln!(text, "pcrs = [{}]", pcrs.join(", "))?;
    writeln!(text, "allow_debug = {}", release.image.debug)?;
    writeln!(text, "minimum_rollback_index = {}", release.image.rollback_index)?;
    writeln!(text, "command_lines = [{}]", lines.join(", "))?;
    writeln!(text, "allow_systemd_phases = {}", policy.allow_systemd_phases)?;
    for event in &policy.events {
        writeln!(text, "\n[[events]]\npcr = {}\ntext = {}", event.pcr, toml::Value::from(event.text.as_str()))?;
    }
    writeln!(text, "\n[firmware]\nignore = []")?;
    let files = release_files(proven.booted.reference);
    policy.pcrs.iter().try_for_each(|pcr| write_register(text, *pcr, proven, &files))?;
    if policy.pcrs.contains(&PcrIndex::SYSTEM_IDENTITY) {
        write_identity(text, policy, proven)?;
    }
    Ok(())
}

/// All events of register 15 in their order, but for those that may come later.
fn write_identity(text: &mut String, policy: &Policy, proven: &Proven<'_>) -> std::fmt::Result {
    let later = policy.identity.as_ref().map_or(&[][..], |identity| &identity.later);
    let is_later = |record: &&Record| later.iter().any(|event| event.is_of(&proven.banks, |bank| record.digest(bank)));
    let records = proven.logs.records.iter().filter(|record| is_of_identity(record) && !is_later(record));
    let events: Vec<IdentityEvent> = records.map(|record| identity_event(record, &proven.banks)).collect();
    writeln!(
        text,
        "\n# What is this machine's own, all of it and in this order: its volumes, as HMACs by their keys, whose labels"
    )?;
    writeln!(
        text,
        "# nobody can check; and what systemd added before the quote. What may come after it: [[identity.later]]."
    )?;
    writeln!(text, "[identity]")?;
    for (name, events) in [("events", &events[..]), ("later", later)] {
        if events.is_empty() {
            writeln!(text, "{name} = []")?;
        }
    }
    for (name, events) in [("events", &events[..]), ("later", later)] {
        events.iter().try_for_each(|event| write_identity_event(text, name, event))?;
    }
    Ok(())
}

fn identity_event(record: &Record, banks: &BTreeSet<PcrBank>) -> IdentityEvent {
    let digests = banks.iter().filter_map(|bank| record.digest(*bank)).collect();
    IdentityEvent { label: record.content.string.as_deref().map(shown), digests }
}

fn write_identity_event(text: &mut String, name: &str, event: &IdentityEvent) -> std::fmt::Result {
    writeln!(text, "\n[[identity.{name}]]")?;
    if let Some(label) = &event.label {
        writeln!(text, "label = {}", toml::Value::from(label.as_str()))?;
    }
    let digests: Vec<String> = event.digests.iter().map(|digest| format!("\"{digest}\"")).collect();
    writeln!(text, "digests = [{}]", digests.join(", "))
}

fn write_register(
    text: &mut String,
    pcr: PcrIndex,
    proven: &Proven<'_>,
    files: &[(Sha256Digest, String)],
) -> std::fmt::Result {
    let bank = if proven.banks.contains(&PcrBank::Sha256) { Some(&PcrBank::Sha256) } else { proven.banks.last() };
    let Some(bank) = bank.copied() else { return Ok(()) };
    if !proven.banks.iter().all(|bank| proven.registers.is_explained(*bank, pcr)) {
        let Some(value) = proven.registers.quoted(bank, pcr) else { return Ok(()) };
        return writeln!(
            text,
            "\n# Firmware's log does not lead to this value.\n[firmware.pcr.{pcr}]\nvalues = [\"{value}\"]"
        );
    }
    let events = proven.logs.firmware.iter().flat_map(|log| &log.events).filter(|event| event.extends() == Some(pcr));
    // What the stub measures, the release says.
    let events: Vec<&Event> = events.filter(|event| !is_of_stub(event, proven.booted.reference.release())).collect();
    if events.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n[firmware.pcr.{pcr}]")?;
    if events.iter().any(|event| is_file(event, bank, files)) {
        writeln!(text, "release = true")?;
    }
    write_events(text, &events, bank, files)
}

fn is_file(event: &Event, bank: PcrBank, files: &[(Sha256Digest, String)]) -> bool {
    bank == PcrBank::Sha256 && file_of(event, files).is_some()
}

fn write_events(
    text: &mut String,
    events: &[&Event],
    bank: PcrBank,
    files: &[(Sha256Digest, String)],
) -> std::fmt::Result {
    writeln!(text, "events = [")?;
    let mut written = Vec::new();
    for event in events {
        let label = format!("{}: {}", event.kind, event.description());
        match (event.digest(bank), is_file(event, bank, files)) {
            (_, true) => writeln!(text, "    # the release's: {label}")?,
            (Some(digest), _) if !written.contains(&digest) => {
                writeln!(text, "    \"{digest}\", # {label}")?;
                written.push(digest);
            }
            _ => {}
        }
    }
    writeln!(text, "]")
}
