//! The partitions of a device that updates itself: slot a with the release, slot b without one, and the record of tries.

use iofs_policy::{
    digest::Sha256Digest,
    dsse::{MAX_ENVELOPE_SIZE, PayloadType},
    manifest::{Manifest, Place},
    slots::{Footer, SlotName, SlotRecord, SlotRules},
};
use uuid::Uuid;

use super::{
    ALIGNMENT, Content, Piece,
    plan::{Wanted, derived_uuid},
    types,
};
use crate::{
    report::{ExitStatus, Failure},
    sealed::{self, SealedDirectory, bad_input},
    slots::layout::SlotLayout,
};

/// Slots, then the record.
pub(super) fn partitions(
    directory: &SealedDirectory,
    manifest: &Manifest,
    type_uuid: Uuid,
    size: Option<u64>,
) -> Result<Vec<Wanted>, Failure> {
    let rules = directory.trust()?.slots.ok_or_else(|| {
        bad_input(&directory.file(sealed::TRUST), &"slots: expected rules, as the manifest is for a slot, found none")
    })?;
    let envelope = directory.read(sealed::MANIFEST, MAX_ENVELOPE_SIZE)?;
    let history = directory.key_history()?.map(|history| history.to_bytes());
    let layout = SlotLayout::new(manifest, envelope.len(), history.as_ref().map(Vec::len))?;
    let size = slot_size(size, layout.least_size)?;
    let wanted = |place: &Place, what: &str, type_uuid, size, pieces| {
        let derived = derived_uuid(&format!("iofs {what} partuuid"), &manifest.verity.root_hash);
        let (label, partuuid) = match place {
            Place::PartUuid(uuid) => (what.to_owned(), *uuid),
            Place::PartLabel(label) => (label.to_string(), derived),
            other => return Err(no_partition(what, other)),
        };
        // Updates write it.
        Ok(Wanted { label, partuuid, type_uuid, flags: 0, size, content: Content::Pieces(pieces) })
    };
    let release = release(directory, &layout, (&envelope, history), size)?;
    let record = first_record(directory, &rules)?;
    Ok(vec![
        wanted(rules.place(SlotName::A), "system_a", type_uuid, size, release)?,
        wanted(rules.place(SlotName::B), "system_b", type_uuid, size, Vec::new())?,
        wanted(&rules.state, "iofs_state", types::GENERIC, ALIGNMENT, vec![(Piece::Bytes(record), 0)])?,
    ])
}

fn slot_size(wanted: Option<u64>, least: u64) -> Result<u64, Failure> {
    let size = wanted.unwrap_or(least + least / 2).next_multiple_of(ALIGNMENT);
    if size < least {
        let fact = format!("slot size: expected at least {least} bytes for this release, found {size}");
        return Err(Failure::new(ExitStatus::Usage, fact).next("give more with --slot-size"));
    }
    Ok(size)
}

fn no_partition(what: &str, place: &Place) -> Failure {
    Failure::new(ExitStatus::Usage, format!("{what} is sealed to lie at {place}, which is no partition of ours"))
        .next("let 'iofs-sign update --slot' write the slot")
}

/// What lies in a slot of that size.
fn release(
    directory: &SealedDirectory,
    layout: &SlotLayout,
    (envelope, history): (&[u8], Option<Vec<u8>>),
    size: u64,
) -> Result<Vec<(Piece, u64)>, Failure> {
    let at_history = history.as_deref().map(|history| (layout.history_offset, history));
    let footer = Footer::new((layout.envelope_offset, envelope), at_history)
        .map_err(|error| bad_input(&directory.file(sealed::MANIFEST), &error))?;
    let mut pieces = vec![
        (Piece::File(directory.file(sealed::IMAGE)), 0),
        (Piece::File(directory.file(sealed::TREE)), layout.hash_offset),
        (Piece::Bytes(envelope.to_vec()), layout.envelope_offset),
        (Piece::Bytes(footer.encode().to_vec()), SlotLayout::footer_offset(size)),
    ];
    pieces.extend(history.map(|history| (Piece::Bytes(history), layout.history_offset)));
    Ok(pieces)
}

/// Both copies of a record in which the release is on trial.
fn first_record(directory: &SealedDirectory, rules: &SlotRules) -> Result<Vec<u8>, Failure> {
    let envelope = directory.envelope(sealed::MANIFEST, PayloadType::Manifest)?;
    let mut record = SlotRecord { sequence: 1, ..SlotRecord::default() };
    record.install(SlotName::A, Sha256Digest::of(envelope.unverified_payload()), rules.tries);
    Ok(record.encode_both())
}
