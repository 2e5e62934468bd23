//! From logs to register values, and whether those are the quoted ones.

use std::collections::BTreeMap;

use iofs_policy::{
    hex,
    pcr::{PcrBank, PcrDigest, PcrIndex, extend},
};

use super::{Logs, Refusal};
use crate::{evidence::Evidence, policy_file::Policy, quote::Quote, tcg};

/// Values by bank and register.
pub(crate) type Values = BTreeMap<(PcrBank, PcrIndex), PcrDigest>;

/// What the quoted registers hold.
pub(crate) struct Registers {
    quoted: Values,
    replayed: Values,
}

impl Registers {
    /// Finds values whose digest is the quoted one. Those of registers whose log does not count may come from beside the
    /// quote: the digest is over all of them together, so that none of them can be another than quoted.
    pub(super) fn authenticate(
        policy: &Policy,
        evidence: &Evidence,
        logs: &Logs,
        quote: &Quote,
        hash: PcrBank,
    ) -> Result<Self, Refusal> {
        let order = in_order(quote);
        let replayed = replay_registers(logs, &order)?;
        let beside = beside(evidence, &order);
        let is_quoted = |values: &Values| digest_of(values, &order, hash).as_bytes() == quote.pcr_digest;
        let mut mixed = replayed.clone();
        let free = |((_, pcr), _): &(&(PcrBank, PcrIndex), &PcrDigest)| policy.is_free(*pcr);
        mixed.extend(beside.iter().filter(free).map(|(register, value)| (*register, *value)));
        for candidate in [mixed, replayed.clone()] {
            if is_quoted(&candidate) {
                return Ok(Self { quoted: candidate, replayed });
            }
        }
        // Where the values beside the quote are the quoted ones, they name the register that the logs do not explain.
        if beside.len() == order.len() && is_quoted(&beside) {
            let differs = |((bank, pcr), quoted): (&(PcrBank, PcrIndex), &PcrDigest)| {
                let replayed = replayed.get(&(*bank, *pcr)).filter(|replayed| *replayed != quoted)?;
                let (quoted, replayed) = (hex::encode(quoted.as_bytes()), hex::encode(replayed.as_bytes()));
                Some(Refusal::Replay { bank: *bank, pcr: *pcr, quoted, replayed }).filter(|_| !policy.is_free(*pcr))
            };
            if let Some(refusal) = beside.iter().find_map(differs) {
                return Err(refusal);
            }
        }
        let found = hex::encode(digest_of(&replayed, &order, hash).as_bytes());
        Err(Refusal::PcrDigest { expected: hex::encode(&quote.pcr_digest), found })
    }

    /// What a register holds.
    pub(crate) fn quoted(&self, bank: PcrBank, pcr: PcrIndex) -> Option<PcrDigest> {
        self.quoted.get(&(bank, pcr)).copied()
    }

    /// Whether the logs explain a register in a bank.
    pub(crate) fn is_explained(&self, bank: PcrBank, pcr: PcrIndex) -> bool {
        self.quoted.get(&(bank, pcr)) == self.replayed.get(&(bank, pcr))
    }
}

/// The registers in the order in which the quote's digest takes them (TPM 2.0 Library, Part 3, section 22.4: bank by bank as
/// selected, each in ascending order).
fn in_order(quote: &Quote) -> Vec<(PcrBank, PcrIndex)> {
    let registers = |bank: PcrBank, pcrs: &std::collections::BTreeSet<PcrIndex>| {
        pcrs.iter().map(move |pcr| (bank, *pcr)).collect::<Vec<_>>()
    };
    quote.selection.iter().filter_map(|one| Some(registers(one.bank()?, &one.pcrs))).flatten().collect()
}

fn digest_of(values: &Values, order: &[(PcrBank, PcrIndex)], hash: PcrBank) -> PcrDigest {
    let parts: Vec<&[u8]> = order.iter().filter_map(|register| Some(values.get(register)?.as_bytes())).collect();
    PcrDigest::of(hash, &parts)
}

/// The values that came beside the quote. What is malformed helps nobody and is passed over.
fn beside(evidence: &Evidence, order: &[(PcrBank, PcrIndex)]) -> Values {
    let value = |(bank, pcr): &(PcrBank, PcrIndex)| {
        let digits = evidence.pcrs.get(bank.name())?.get(&pcr.get())?;
        let value = PcrDigest::new(*bank, &hex::decode(digits).ok()?).ok()?;
        Some(((*bank, *pcr), value))
    };
    order.iter().filter_map(value).collect()
}

/// Replays both logs, firmware's first, for the given registers.
///
/// # Errors
/// [`Refusal::BankNotExtended`] where an event lacks a digest of a register's bank.
pub(crate) fn replay_registers(logs: &Logs, registers: &[(PcrBank, PcrIndex)]) -> Result<Values, Refusal> {
    let locality = logs.firmware.as_ref().map_or(0, |log| log.startup_locality);
    let start = |(bank, pcr): &(PcrBank, PcrIndex)| ((*bank, *pcr), tcg::initial_value(*bank, *pcr, locality));
    let mut values: Values = registers.iter().map(start).collect();
    let firmware = logs.firmware.iter().flat_map(|log| &log.events);
    for event in firmware {
        let Some(pcr) = event.extends() else { continue };
        step(&mut values, pcr, |bank| event.digest(bank), ("firmware log", event.number))?;
    }
    for (number, record) in logs.records.iter().enumerate() {
        let Some(pcr) = record.index() else { continue };
        step(&mut values, pcr, |bank| record.digest(bank), ("measurement log", number))?;
    }
    Ok(values)
}

fn step(
    values: &mut Values,
    pcr: PcrIndex,
    digest: impl Fn(PcrBank) -> Option<PcrDigest>,
    (log, event): (&'static str, usize),
) -> Result<(), Refusal> {
    for bank in PcrBank::ALL {
        let Some(value) = values.get_mut(&(bank, pcr)) else { continue };
        let digest = digest(bank).ok_or(Refusal::BankNotExtended { log, event, pcr, bank })?;
        *value = extend(value, &digest).map_err(|_| Refusal::Internal)?;
    }
    Ok(())
}
