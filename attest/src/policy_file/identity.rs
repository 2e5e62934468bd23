//! What a policy says of register 15: the events of one machine, as they were learnt from it.

use std::collections::BTreeSet;

use iofs_policy::pcr::{PcrBank, PcrDigest, PcrIndex};
use serde::Deserialize;

use super::{PolicyError, digests, field_error};

/// The events of register 15 of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// All of these must have been measured first, in this order.
    pub(crate) events: Vec<IdentityEvent>,
    /// These may follow, each once, in any order.
    pub(crate) later: Vec<IdentityEvent>,
}

/// One event, told by its digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdentityEvent {
    /// For people: of a volume key, nothing can be computed from it.
    pub(crate) label: Option<String>,
    pub(crate) digests: Vec<PcrDigest>,
}

impl IdentityEvent {
    /// Whether these digests are of this event: in each demanded bank of which it has a digest, one of them a strong one.
    pub(crate) fn is_of(&self, banks: &BTreeSet<PcrBank>, digest: impl Fn(PcrBank) -> Option<PcrDigest>) -> bool {
        let told: Vec<&PcrDigest> = self.digests.iter().filter(|told| banks.contains(&told.bank())).collect();
        let strong = told.iter().any(|told| told.bank() != PcrBank::Sha1);
        strong && told.iter().all(|told| digest(told.bank()) == Some(**told))
    }

    /// Label and digest, of the strongest demanded bank.
    pub(crate) fn name(&self, banks: &BTreeSet<PcrBank>) -> String {
        let told = banks.iter().rev().find_map(|bank| self.digests.iter().find(|told| told.bank() == *bank));
        let told = told.map_or("no digest of a demanded bank".to_owned(), PcrDigest::to_string);
        match &self.label {
            Some(label) => format!("{} ({told})", crate::tcg::shown(label)),
            None => told,
        }
    }
}

/// `[identity]`. It says what must be there, even where that is nothing: its events have no default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IdentityTable {
    events: Vec<IdentityEventTable>,
    #[serde(default)]
    later: Vec<IdentityEventTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityEventTable {
    label: Option<String>,
    digests: Vec<String>,
}

impl IdentityTable {
    pub(super) fn check(self, pcrs: &BTreeSet<PcrIndex>) -> Result<Identity, PolicyError> {
        if !pcrs.contains(&PcrIndex::SYSTEM_IDENTITY) {
            return Err(field_error("identity", "15 among `pcrs`", "a rule for a register that is not quoted"));
        }
        let events = |name: &str, tables: Vec<IdentityEventTable>| {
            tables.into_iter().map(|table| table.check(name)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Identity { events: events("identity.events", self.events)?, later: events("identity.later", self.later)? })
    }
}

impl IdentityEventTable {
    fn check(self, name: &str) -> Result<IdentityEvent, PolicyError> {
        let field = format!("{name}: digests");
        let digests = digests(&field, &self.digests)?;
        let banks: BTreeSet<PcrBank> = digests.iter().map(PcrDigest::bank).collect();
        if digests.is_empty() || banks.len() != digests.len() {
            return Err(field_error(field, "one digest a bank, of one bank at least", &format!("{:?}", self.digests)));
        }
        Ok(IdentityEvent { label: self.label, digests })
    }
}
