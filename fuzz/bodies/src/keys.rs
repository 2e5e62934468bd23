//! The releases that moved the keys.

use iofs_policy::keys::{KeyHistory, KeyRing, KeySequence, MAX_HISTORY_SIZE, MAX_LINKS};

use crate::sealed;

/// Two moves that the example keys signed.
const SIGNED: &[u8] = include_bytes!("../../corpus/key_history/two-moves");

/// A history that parses is written so that it parses to the same, and has as many links as its numbers say. Wherever it leads to
/// from the first example key, it does so by what the example keys signed, in that order: no forgery, however it is spelled.
pub fn key_history(data: &[u8]) -> bool {
    let Ok(history) = KeyHistory::parse(data) else { return false };
    assert!(data.len() <= MAX_HISTORY_SIZE);
    assert_eq!(KeyHistory::parse(&history.to_bytes()).as_ref(), Ok(&history));
    let numbers: Vec<KeySequence> = history.numbered().map(|(number, _)| number).collect();
    assert!(numbers.len() <= MAX_LINKS && numbers.last() == Some(&history.last()));
    assert_eq!(history.extended_by(&history).as_ref(), Ok(&history));
    let start = KeyRing::of(&sealed::trust());
    if let Ok(end) = start.clone().follow(&history) {
        check_signed(&history);
        assert_eq!(end.sequence(), history.last());
        assert!(end.keys().keys().iter().all(|key| !end.revoked().contains(&key.id())));
        assert_eq!(end.clone().follow(&history), Ok(end));
    }
    true
}

fn check_signed(history: &KeyHistory) {
    let signed =
        KeyHistory::parse(SIGNED).expect("the corpus holds what this version seals: see fuzz/corpus/README.md");
    let known = |(number, link): (KeySequence, &iofs_policy::dsse::Envelope)| {
        signed
            .numbered()
            .any(|(other, theirs)| other == number && theirs.unverified_payload() == link.unverified_payload())
    };
    assert!(history.numbered().all(known), "nobody signed this");
}
