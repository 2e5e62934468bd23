//! Register 15, which is one machine's own: its events are those that were learnt from it, all of them and no others.
//!
//! A prefix of them would let a boot pass that left a volume shut, and one more event is a volume that somebody else opened or an
//! identity that somebody else took.

use std::collections::BTreeSet;

use iofs_policy::{
    measurement_log::Record,
    pcr::{PcrBank, PcrIndex},
};

use super::Refusal;
use crate::{
    policy_file::{Identity, IdentityEvent, Policy},
    tcg::shown,
};

/// What an event of register 15 is beside what was learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing<'a> {
    /// It is the event of its place.
    Learnt,
    /// It is one of those that may follow.
    Later,
    /// Another one was learnt for its place.
    Instead(&'a IdentityEvent),
    /// Nothing more was learnt, or it may not follow once more.
    TooMuch,
}

/// All events of register 15 beside what was learnt.
pub(crate) struct Comparison<'a> {
    /// By their numbers in the log.
    pub(crate) events: Vec<(usize, Standing<'a>)>,
    /// The first event that was learnt and is not there.
    pub(crate) missing: Option<&'a IdentityEvent>,
}

/// Holds the log's events of register 15 against what was learnt.
pub(crate) fn compare<'a>(identity: &'a Identity, banks: &BTreeSet<PcrBank>, records: &[Record]) -> Comparison<'a> {
    let mut expected = identity.events.iter();
    let mut later: Vec<&IdentityEvent> = identity.later.iter().collect();
    let mut standing = |record: &Record| {
        let is_of = |event: &IdentityEvent| event.is_of(banks, |bank| record.digest(bank));
        if let Some(learnt) = expected.next() {
            return if is_of(learnt) { Standing::Learnt } else { Standing::Instead(learnt) };
        }
        match later.iter().position(|event| is_of(event)) {
            Some(place) => {
                later.remove(place);
                Standing::Later
            }
            None => Standing::TooMuch,
        }
    };
    let records = records.iter().enumerate().filter(|(_, record)| is_of_identity(record));
    let events = records.map(|(number, record)| (number, standing(record))).collect();
    Comparison { events, missing: expected.next() }
}

/// Whether a record is of register 15.
pub(crate) fn is_of_identity(record: &Record) -> bool {
    record.index() == Some(PcrIndex::SYSTEM_IDENTITY)
}

/// What there is to expect where an event is too much.
pub(crate) fn nothing_more(identity: &Identity) -> &'static str {
    if identity.later.is_empty() { "nothing more" } else { "nothing but the events of identity.later, each once" }
}

/// A policy that demands register 15 and does not know the machine's events proves nothing by it.
pub(super) fn check(policy: &Policy) -> Result<(), Refusal> {
    let demanded = policy.pcrs.contains(&PcrIndex::SYSTEM_IDENTITY);
    if demanded && policy.identity.is_none() { Err(Refusal::IdentityUnknown) } else { Ok(()) }
}

/// Checks that the machine is the one that was learnt.
pub(super) fn judge(policy: &Policy, banks: &BTreeSet<PcrBank>, records: &[Record]) -> Result<(), Refusal> {
    let Some(identity) = &policy.identity else { return check(policy) };
    let comparison = compare(identity, banks, records);
    for (number, standing) in &comparison.events {
        let expected = match standing {
            Standing::Learnt | Standing::Later => continue,
            Standing::Instead(learnt) => learnt.name(banks),
            Standing::TooMuch => nothing_more(identity).to_owned(),
        };
        let record = records.get(*number).ok_or(Refusal::Internal)?;
        return Err(Refusal::Identity { expected, found: format!("event {number}: {}", found(record, banks)) });
    }
    match comparison.missing {
        Some(learnt) => Err(Refusal::Identity { expected: learnt.name(banks), found: "the end of the log".to_owned() }),
        None => Ok(()),
    }
}

/// An event's label and digest: a volume key's label may say anything.
pub(crate) fn found(record: &Record, banks: &BTreeSet<PcrBank>) -> String {
    let digest = banks.iter().next_back().and_then(|bank| record.digest(*bank));
    let digest = digest.map_or("no digest".to_owned(), |digest| digest.to_string());
    match &record.content.string {
        Some(text) => format!("{} ({digest})", shown(text)),
        None => digest,
    }
}
