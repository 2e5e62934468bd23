//! What an operator demands of a device: a TOML file, every field of which has a default.
//!
//! `docs/attestation.md` has the reference.

mod identity;

pub(crate) use identity::{Identity, IdentityEvent};

use std::collections::{BTreeMap, BTreeSet};

use iofs_policy::{
    hex,
    manifest::RollbackIndex,
    pcr::{PcrBank, PcrDigest, PcrIndex},
};
use serde::Deserialize;

use self::identity::IdentityTable;

/// The largest policy that is parsed, in bytes.
pub const MAX_SIZE: usize = 1 << 20;

/// The registers that are quoted where the policy names none: all that firmware and verify-init measure into on every machine
/// alike. IMA's (10) is left out, because its log is not part of the evidence, and 15, because it is each machine's own: its
/// events must be learnt first. 16 and above are for debugging and dynamic launches.
pub const DEFAULT_PCRS: [u8; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14];

/// The registers that say which image runs. They are always demanded and never ignored.
pub(crate) const IMAGE_PCRS: [PcrIndex; 3] = [PcrIndex::PHASES, PcrIndex::COMMAND_LINE, PcrIndex::MANIFEST];

/// Why nothing can be said of firmware about register 15: it has no part in it.
const NO_FIRMWARE: &str = "a register of firmware: the events of 15 are in [identity], or leave it out of `pcrs`";

/// A checked policy. [`Policy::default`] is that of an empty file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub(crate) banks: Option<BTreeSet<PcrBank>>,
    pub(crate) pcrs: BTreeSet<PcrIndex>,
    pub(crate) allow_debug: bool,
    pub(crate) minimum_rollback_index: RollbackIndex,
    pub(crate) command_lines: Vec<String>,
    pub(crate) allow_systemd_phases: bool,
    pub(crate) events: Vec<AllowedEvent>,
    pub(crate) firmware: Firmware,
    /// The machine's own events of register 15: a policy that demands the register accepts nothing without.
    pub(crate) identity: Option<Identity>,
}

/// A measurement of user space that is accepted behind `leave-initrd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AllowedEvent {
    pub(crate) pcr: PcrIndex,
    pub(crate) text: String,
}

/// What firmware may have measured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Firmware {
    /// These may hold anything.
    pub(crate) ignore: BTreeSet<PcrIndex>,
    pub(crate) rules: BTreeMap<PcrIndex, Rule>,
}

/// What one register of firmware may hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rule {
    /// It holds one of these.
    pub(crate) values: Vec<PcrDigest>,
    /// Each event is one of these.
    pub(crate) events: Vec<PcrDigest>,
    /// Or it is a file of the release, and one is.
    pub(crate) release: bool,
}

impl Rule {
    /// Whether only the value counts, so that no log is needed.
    pub(crate) fn is_value_only(&self) -> bool {
        !self.values.is_empty() && self.events.is_empty() && !self.release
    }
}

/// Why a policy was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It is larger than any real one.
    #[error("policy: expected at most {MAX_SIZE} bytes, found {0}")]
    TooLarge(usize),
    /// It is not UTF-8, or not the TOML of a policy.
    #[error("policy: {0}")]
    Toml(String),
    /// A field has a value that it cannot have.
    #[error("policy: {field}: expected {expected}, found {found}")]
    Field {
        /// The field.
        field: String,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

impl Default for Policy {
    fn default() -> Self {
        let pcrs: BTreeSet<PcrIndex> = DEFAULT_PCRS.into_iter().filter_map(|pcr| PcrIndex::new(pcr).ok()).collect();
        Self {
            banks: None,
            firmware: Firmware { ignore: firmware_pcrs(&pcrs), rules: BTreeMap::new() },
            pcrs,
            allow_debug: false,
            minimum_rollback_index: RollbackIndex(0),
            command_lines: Vec::new(),
            allow_systemd_phases: true,
            events: Vec::new(),
            identity: None,
        }
    }
}

/// The registers that are ignored where a policy says nothing of firmware: all but those that say which image runs.
fn firmware_pcrs(pcrs: &BTreeSet<PcrIndex>) -> BTreeSet<PcrIndex> {
    pcrs.iter().copied().filter(|pcr| pcr.get() <= 14 && !IMAGE_PCRS.contains(pcr)).collect()
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// [`PolicyError`]: unknown fields, values that no register can have, rules that could never be checked.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        if bytes.len() > MAX_SIZE {
            return Err(PolicyError::TooLarge(bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| PolicyError::Toml(error.to_string()))?;
        let document: Document = toml::from_str(text).map_err(|error| PolicyError::Toml(error.to_string()))?;
        document.check()
    }

    /// The registers that a quote must cover, no more and no fewer.
    pub fn pcrs(&self) -> &BTreeSet<PcrIndex> {
        &self.pcrs
    }

    /// The banks that a quote must cover, where they are not those of the device's enrolment.
    pub fn banks(&self) -> Option<&BTreeSet<PcrBank>> {
        self.banks.as_ref()
    }

    /// The registers that may hold anything.
    pub fn ignored(&self) -> &BTreeSet<PcrIndex> {
        &self.firmware.ignore
    }

    /// Whether a register's value need not follow from a log.
    pub(crate) fn is_free(&self, pcr: PcrIndex) -> bool {
        self.firmware.ignore.contains(&pcr) || self.firmware.rules.get(&pcr).is_some_and(Rule::is_value_only)
    }
}

/// The file's shape.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    banks: Option<Vec<String>>,
    pcrs: Option<Vec<u8>>,
    #[serde(default)]
    allow_debug: bool,
    #[serde(default)]
    minimum_rollback_index: u64,
    #[serde(default)]
    command_lines: Vec<String>,
    #[serde(default = "yes")]
    allow_systemd_phases: bool,
    #[serde(default)]
    events: Vec<EventTable>,
    firmware: Option<FirmwareTable>,
    identity: Option<IdentityTable>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventTable {
    pcr: u8,
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FirmwareTable {
    #[serde(default)]
    ignore: Vec<u8>,
    /// TOML's keys are text.
    #[serde(default)]
    pcr: BTreeMap<String, RuleTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    #[serde(default)]
    values: Vec<String>,
    #[serde(default)]
    events: Vec<String>,
    #[serde(default)]
    release: bool,
}

impl Document {
    fn check(self) -> Result<Policy, PolicyError> {
        let pcrs = match &self.pcrs {
            Some(pcrs) => selected(pcrs)?,
            None => Policy::default().pcrs,
        };
        let firmware = match self.firmware {
            Some(table) => table.check(&pcrs)?,
            None => Firmware { ignore: firmware_pcrs(&pcrs), rules: BTreeMap::new() },
        };
        Ok(Policy {
            banks: self.banks.as_deref().map(banks).transpose()?,
            allow_debug: self.allow_debug,
            minimum_rollback_index: RollbackIndex(self.minimum_rollback_index),
            command_lines: self.command_lines,
            allow_systemd_phases: self.allow_systemd_phases,
            events: self.events.into_iter().map(|event| event.check(&pcrs)).collect::<Result<_, _>>()?,
            firmware,
            identity: self.identity.map(|table| table.check(&pcrs)).transpose()?,
            pcrs,
        })
    }
}

fn field_error<D: std::fmt::Display + ?Sized>(
    field: impl Into<String>,
    expected: &'static str,
    found: &D,
) -> PolicyError {
    PolicyError::Field { field: field.into(), expected, found: found.to_string() }
}

fn register(field: &str, index: u8) -> Result<PcrIndex, PolicyError> {
    PcrIndex::new(index).map_err(|_| field_error(field, "0 to 23", &index))
}

fn selected(pcrs: &[u8]) -> Result<BTreeSet<PcrIndex>, PolicyError> {
    let set = pcrs.iter().map(|pcr| register("pcrs", *pcr)).collect::<Result<BTreeSet<_>, _>>()?;
    if set.len() != pcrs.len() {
        return Err(field_error("pcrs", "each register once", &format!("{pcrs:?}")));
    }
    if !IMAGE_PCRS.iter().all(|pcr| set.contains(pcr)) {
        return Err(field_error("pcrs", "11, 12 and 13 among them", &format!("{pcrs:?}")));
    }
    Ok(set)
}

fn banks(names: &[String]) -> Result<BTreeSet<PcrBank>, PolicyError> {
    let bank = |name: &String| name.parse().map_err(|_| field_error("banks", "sha1, sha256, sha384 or sha512", name));
    let set = names.iter().map(bank).collect::<Result<BTreeSet<_>, _>>()?;
    if set.iter().all(|bank| *bank == PcrBank::Sha1) {
        return Err(field_error("banks", "a bank stronger than sha1", &format!("{names:?}")));
    }
    Ok(set)
}

impl EventTable {
    fn check(self, pcrs: &BTreeSet<PcrIndex>) -> Result<AllowedEvent, PolicyError> {
        let pcr = register("events: pcr", self.pcr)?;
        if !pcrs.contains(&pcr) {
            return Err(field_error("events: pcr", "one of `pcrs`", &pcr));
        }
        if pcr == PcrIndex::SYSTEM_IDENTITY {
            return Err(field_error("events: pcr", "a register other than 15, whose events are in [identity]", &pcr));
        }
        Ok(AllowedEvent { pcr, text: self.text })
    }
}

impl FirmwareTable {
    fn check(self, pcrs: &BTreeSet<PcrIndex>) -> Result<Firmware, PolicyError> {
        let mut firmware = Firmware::default();
        for index in self.ignore {
            let pcr = register("firmware.ignore", index)?;
            if IMAGE_PCRS.contains(&pcr) {
                return Err(field_error("firmware.ignore", "a register that does not say which image runs", &pcr));
            }
            if !pcrs.contains(&pcr) {
                return Err(field_error("firmware.ignore", "one of `pcrs`", &pcr));
            }
            if pcr == PcrIndex::SYSTEM_IDENTITY {
                return Err(field_error("firmware.ignore", NO_FIRMWARE, &pcr));
            }
            firmware.ignore.insert(pcr);
        }
        for (key, table) in self.pcr {
            let field = format!("firmware.pcr.{key}");
            let index = key.parse().map_err(|_| field_error(&field, "0 to 23", &key))?;
            let pcr = register(&field, index)?;
            if !pcrs.contains(&pcr) || firmware.ignore.contains(&pcr) || firmware.rules.contains_key(&pcr) {
                return Err(field_error(&field, "one of `pcrs`, once and not in `ignore`", &pcr));
            }
            if pcr == PcrIndex::SYSTEM_IDENTITY {
                return Err(field_error(field, NO_FIRMWARE, &pcr));
            }
            firmware.rules.insert(pcr, table.check(&field, pcr)?);
        }
        Ok(firmware)
    }
}

impl RuleTable {
    fn check(self, field: &str, pcr: PcrIndex) -> Result<Rule, PolicyError> {
        let values = digests(&format!("{field}.values"), &self.values)?;
        let events = digests(&format!("{field}.events"), &self.events)?;
        if values.is_empty() && events.is_empty() && !self.release {
            return Err(field_error(field, "values, events or release = true", "none of them"));
        }
        // User space goes on extending these: their last value is no matter of firmware.
        if IMAGE_PCRS.contains(&pcr) && !values.is_empty() {
            return Err(field_error(field, "events, for a register that user space extends too", "values"));
        }
        Ok(Rule { values, events, release: self.release })
    }
}

/// `BANK:HEX` each. A list of SHA-1 digests alone would let collisions pass.
fn digests(field: &str, texts: &[String]) -> Result<Vec<PcrDigest>, PolicyError> {
    let digest = |text: &String| digest(text).ok_or_else(|| field_error(field, "BANK:HEX, such as sha256:00…", text));
    let digests = texts.iter().map(digest).collect::<Result<Vec<_>, _>>()?;
    if !digests.is_empty() && digests.iter().all(|digest| digest.bank() == PcrBank::Sha1) {
        return Err(field_error(field, "a digest stronger than sha1", "none"));
    }
    Ok(digests)
}

fn digest(text: &str) -> Option<PcrDigest> {
    let (bank, digits) = text.split_once(':')?;
    PcrDigest::new(bank.parse().ok()?, &hex::decode(digits).ok()?).ok()
}

#[cfg(test)]
mod tests;
