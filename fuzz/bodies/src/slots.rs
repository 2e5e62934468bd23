//! The end of a slot and the record of tries, which whoever has the disk can write.

use iofs_policy::{
    digest::Sha256Digest,
    failure::Stage,
    slots::{Candidate, FOOTER_SIZE, Footer, RECORD_SIZE, SlotName, SlotRecord, Trial},
};

/// What the footer's digest covers.
const SUMMED: usize = 104;
/// Magic, length and digest in front of the record's JSON.
const HEADER: usize = 44;

/// A footer that is accepted leads to an envelope and perhaps a key history inside its slot, and is written as it was read. Nothing but luck finds a
/// digest, so it is also read with the right one.
pub fn slot_footer(data: &[u8]) -> bool {
    let mut bytes = data.to_vec();
    bytes.resize(FOOTER_SIZE, 0);
    let mut fixed = bytes.clone();
    let sum = Sha256Digest::of(&fixed[..SUMMED]);
    fixed[SUMMED..SUMMED + 32].copy_from_slice(sum.as_bytes());
    read_footer(&fixed);
    read_footer(&bytes)
}

fn read_footer(bytes: &[u8]) -> bool {
    let size = 1 << 30;
    let Ok(footer) = Footer::parse(bytes, size) else { return false };
    for part in [Some(footer.envelope), footer.history].into_iter().flatten() {
        let end = part.offset.checked_add(part.length.into()).expect("it ends somewhere");
        assert!(part.length > 0 && end <= size - FOOTER_SIZE as u64);
    }
    assert_eq!(footer.encode()[..SUMMED + 32], bytes[..SUMMED + 32]);
    true
}

/// Whatever a record says, it can be written again, and a boot that goes on with it chooses among what verified, and ends.
pub fn slot_record(data: &[u8]) -> bool {
    if let Some(json) = data.get(HEADER..) {
        let mut fixed = data.to_vec();
        fixed[8..12].copy_from_slice(&(json.len() as u32).to_le_bytes());
        fixed[12..HEADER].copy_from_slice(Sha256Digest::of(json).as_bytes());
        read_record(&fixed);
    }
    read_record(data)
}

fn read_record(data: &[u8]) -> bool {
    let (Ok(mut record), first) = SlotRecord::newest(data) else { return false };
    assert!(first < 2);
    let known = |state: Option<iofs_policy::slots::SlotState>| {
        state.map_or(Sha256Digest::of(b"another release"), |state| state.manifest)
    };
    let candidates = [(SlotName::A, known(record.a)), (SlotName::B, known(record.b))].map(|(slot, manifest)| {
        let (version, rollback_index) = ("1".parse().expect("valid"), record.floor);
        Candidate { slot, manifest, version, rollback_index }
    });
    // More than may be sealed: a record can claim any number.
    let most = 2 * (usize::from(u8::MAX) + 2);
    for tries in 0.. {
        assert!(tries <= most, "a loop");
        let Some(chosen) = record.order(&candidates, 3).into_iter().next() else { break };
        assert!(candidates.contains(&chosen));
        record.begin(&chosen, 3);
        assert!(record.ended_abruptly(chosen.slot, chosen.manifest));
        record.refused(Stage::Mapped, 3);
        let copy = SlotRecord::parse(&record.encode()).expect("what is written is read");
        assert_eq!(copy, record);
    }
    for candidate in &candidates {
        record.corrupt(candidate.slot, candidate.manifest);
        assert_eq!(record.trial(candidate.slot, candidate.manifest, 3), Trial::Corrupt);
    }
    record.one_more_try();
    assert!(record.order(&candidates, 3).is_empty());
    assert!(data.len() >= HEADER && record.encode().len() == RECORD_SIZE);
    true
}
