//! What systemd's stub measured of a unified kernel image, which firmware's log has too: all of the release's image in its
//! order, or nothing. A release without an image leaves such events to the policy.

use std::collections::BTreeSet;

use iofs_policy::{
    pcr::{PcrBank, PcrDigest},
    release::Release,
    uki::UkiMeasurements,
};

use super::Refusal;
use crate::tcg::Event;

/// Whether an event is one that a release's image answers for: nobody but the stub measures into that register before user space.
pub(crate) fn is_of_stub(event: &Event, release: &Release) -> bool {
    release.uki.is_some() && event.extends() == Some(UkiMeasurements::PCR)
}

/// What the release's image leads to in a bank, each with what it is of. Nothing where it has none.
pub(crate) fn expected(release: &Release, bank: PcrBank) -> Vec<(String, PcrDigest)> {
    release.uki.as_ref().and_then(|uki| uki.measured(bank)).unwrap_or_default()
}

/// Checks that the stub measured the release's image, if it measured anything.
pub(super) fn judge(
    banks: &BTreeSet<PcrBank>,
    events: &[&Event],
    release: &Release,
    name: &str,
) -> Result<(), Refusal> {
    let measured: Vec<&&Event> = events.iter().filter(|event| is_of_stub(event, release)).collect();
    if measured.is_empty() {
        return Ok(());
    }
    for bank in banks {
        let expected = expected(release, *bank);
        for (place, event) in measured.iter().enumerate() {
            let digest = event.digest(*bank);
            let expected = expected.get(place);
            if expected.map(|(_, digest)| *digest) != digest {
                return Err(Refusal::Uki {
                    event: event.number,
                    release: name.to_owned(),
                    expected: expected.map_or("nothing more".to_owned(), |(what, _)| what.clone()),
                    found: digest.map_or("no digest".to_owned(), |digest| digest.to_string()),
                });
            }
        }
        if let Some((what, _)) = expected.get(measured.len()) {
            let event = measured.last().map_or(0, |event| event.number);
            let (expected, found) = (what.clone(), "the end of what the stub measured".to_owned());
            return Err(Refusal::Uki { event, release: name.to_owned(), expected, found });
        }
    }
    Ok(())
}
