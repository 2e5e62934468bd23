//! What firmware measured, held against the policy; and what is worth a note.

use std::collections::BTreeSet;

use iofs_policy::{
    digest::Sha256Digest,
    pcr::{PcrBank, PcrDigest, PcrIndex},
    uki::BankDigests,
};

use super::{Reference, Refusal, Registers, Verification, stub};
use crate::{
    policy_file::{Policy, Rule},
    tcg::{DataCheck, Event, EventLog, load_options},
};

const LOG: &str = "firmware log";
/// The files of a release that firmware or a boot loader starts; it measures some of them whole.
const BOOT_FILES: [&str; 2] = ["vmlinuz", "initramfs.img"];
/// What stands for a file's name where it is the release's command line.
pub(crate) const LOAD_OPTIONS: &str = "command line";
/// No more notes about contradicting labels than this: a log could have thousands.
const MOST_NOTES: usize = 8;

/// Checks every register that is not ignored. Gives notes.
pub(super) fn judge(
    request: &Verification<'_>,
    banks: &BTreeSet<PcrBank>,
    log: Option<&EventLog>,
    registers: &Registers,
    reference: &Reference,
) -> Result<Vec<String>, Refusal> {
    let events: Vec<&Event> = log.into_iter().flat_map(|log| &log.events).collect();
    let files = release_files(reference);
    stub::judge(banks, &events, reference.release(), &reference.name())?;
    for event in events.iter().filter(|event| !stub::is_of_stub(event, reference.release())) {
        check_event(request.policy, banks, event, &files)?;
    }
    for (pcr, rule) in &request.policy.firmware.rules {
        check_value(*pcr, rule, banks, registers)?;
        let is_file = |event: &Event| file_of(event, &files).is_some_and(|name| name != LOAD_OPTIONS);
        let measured = |event: &&Event| event.extends() == Some(*pcr) && is_file(event);
        if rule.release && !events.iter().any(measured) {
            return Err(Refusal::ReleaseFile { pcr: *pcr, release: reference.name() });
        }
    }
    Ok(notes(request.policy, banks, &events, registers, &files))
}

/// The digests by which firmware and the kernel's EFI stub would measure what a release boots, with the files' names, and those
/// of its command lines.
pub(crate) fn release_files(reference: &Reference) -> Vec<(Sha256Digest, String)> {
    let release = reference.release();
    let kernel = release.kernel_authenticode.map(|digest| (digest, "kernel".to_owned()));
    let of_uki = |digests: &BankDigests, name: &str| {
        let digest = digests.get(PcrBank::Sha256)?;
        let digest = <[u8; 32]>::try_from(digest.as_bytes()).ok()?;
        Some((Sha256Digest::from_bytes(digest), name.to_owned()))
    };
    let uki = release.uki.iter().flat_map(|uki| {
        [of_uki(&uki.authenticode, "uki.efi"), of_uki(&uki.initrd, "uki.efi: its initramfs")].into_iter().flatten()
    });
    let booted = release.artifacts.iter().filter(|file| BOOT_FILES.contains(&file.name.as_str()));
    let lines =
        release.command_lines.iter().map(|line| (Sha256Digest::of(&load_options(line)), LOAD_OPTIONS.to_owned()));
    kernel.into_iter().chain(uki).chain(booted.map(|file| (file.sha256, file.name.clone()))).chain(lines).collect()
}

/// The release's file that an event is of. Releases have SHA-256 digests, so that only this bank tells.
pub(crate) fn file_of<'a>(event: &Event, files: &'a [(Sha256Digest, String)]) -> Option<&'a str> {
    let digest = event.digest(PcrBank::Sha256)?;
    files.iter().find(|(file, _)| file.as_bytes() == digest.as_bytes()).map(|(_, name)| name.as_str())
}

fn check_event(
    policy: &Policy,
    banks: &BTreeSet<PcrBank>,
    event: &Event,
    files: &[(Sha256Digest, String)],
) -> Result<(), Refusal> {
    let Some(pcr) = event.extends().filter(|pcr| policy.pcrs.contains(pcr)) else { return Ok(()) };
    if policy.firmware.ignore.contains(&pcr) {
        return Ok(());
    }
    let accepted = policy.firmware.rules.get(&pcr).is_some_and(|rule| {
        let file = rule.release && banks.contains(&PcrBank::Sha256) && file_of(event, files).is_some();
        rule.is_value_only() || file || is_listed(&rule.events, banks, |bank| event.digest(bank))
    });
    if accepted {
        return Ok(());
    }
    let digest = banks.iter().next_back().and_then(|bank| event.digest(*bank));
    let digest = digest.map_or("no digest".to_owned(), |digest| digest.to_string());
    let what = format!("{} ({}, {digest})", event.description(), event.kind);
    Err(Refusal::UnknownEvent { log: LOG, event: event.number, pcr, what })
}

/// Whether a digest is listed in each demanded bank of which the list has digests; it has those of a strong one.
fn is_listed(list: &[PcrDigest], banks: &BTreeSet<PcrBank>, digest: impl Fn(PcrBank) -> Option<PcrDigest>) -> bool {
    let told = banks.iter().filter(|bank| list.iter().any(|listed| listed.bank() == **bank));
    let told: Vec<PcrBank> = told.copied().collect();
    let strong = told.iter().any(|bank| *bank != PcrBank::Sha1);
    strong && told.into_iter().all(|bank| digest(bank).is_some_and(|digest| list.contains(&digest)))
}

fn check_value(pcr: PcrIndex, rule: &Rule, banks: &BTreeSet<PcrBank>, registers: &Registers) -> Result<(), Refusal> {
    if rule.values.is_empty() || is_listed(&rule.values, banks, |bank| registers.quoted(bank, pcr)) {
        return Ok(());
    }
    let found = banks.iter().next_back().and_then(|bank| registers.quoted(*bank, pcr));
    Err(Refusal::FirmwareValue { pcr, found: found.map_or("no value".to_owned(), |value| value.to_string()) })
}

/// What people should know: which registers say nothing, what of the release was found there all the same, and labels that
/// contradict their digests.
fn notes(
    policy: &Policy,
    banks: &BTreeSet<PcrBank>,
    events: &[&Event],
    registers: &Registers,
    files: &[(Sha256Digest, String)],
) -> Vec<String> {
    let mut notes = Vec::new();
    let ignored: Vec<String> = policy.firmware.ignore.iter().map(PcrIndex::to_string).collect();
    if !ignored.is_empty() {
        notes.push(format!("PCRs {} are ignored: nothing is proven about firmware by them", ignored.join(", ")));
    }
    let explained = |pcr: PcrIndex| banks.iter().all(|bank| registers.is_explained(*bank, pcr));
    for pcr in policy.pcrs.iter().filter(|pcr| !explained(**pcr)) {
        notes.push(format!("PCR {pcr}: firmware's log does not lead to its value"));
    }
    for event in events {
        let pcr = event.extends().filter(|pcr| policy.pcrs.contains(pcr) && explained(*pcr));
        if let (Some(pcr), Some(file)) = (pcr.filter(|_| banks.contains(&PcrBank::Sha256)), file_of(event, files)) {
            notes.push(format!("PCR {pcr}: event {} is the release's {file}", event.number));
        }
    }
    let lies = events.iter().filter(|event| event.data_check() == DataCheck::Contradicts);
    let lie = |event: &&Event| {
        format!("firmware log: event {}: {}, but it measured something else", event.number, event.description())
    };
    notes.extend(lies.map(lie).take(MOST_NOTES));
    notes
}
