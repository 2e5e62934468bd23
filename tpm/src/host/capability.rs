//! What the TPM says of itself (TPM2_GetCapability, Part 3, section 30.2).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use iofs_policy::pcr::{PcrBank, PcrIndex};
use tss_esapi::{
    constants::{CapabilityType, PropertyTag},
    handles::TpmHandle,
    interface_types::algorithm::HashingAlgorithm,
    structures::CapabilityData,
};

use super::{Host, HostError};

const COMMAND: &str = "TPM2_GetCapability";
/// `inLockout` of TPMA_PERMANENT (Part 2, section 8.6).
const IN_LOCKOUT: u32 = 1 << 9;
/// More banks than any TPM has.
const MAX_BANKS: u32 = 16;

/// The state of the protection against guessing (Part 1, section 19.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lockout {
    /// Whether the TPM refuses passwords now.
    pub locked: bool,
    /// Failed attempts that count.
    pub failures: u32,
    /// How many of them lock the TPM.
    pub limit: u32,
    /// After how many seconds one of them is forgotten: 0 for at once, that is, no protection.
    pub interval: u32,
    /// After how many seconds the lockout password may be tried again: 0 for after a restart.
    pub recovery: u32,
}

impl fmt::Display for Lockout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.locked { "locked" } else { "open" };
        let Self { failures, limit, interval, .. } = self;
        write!(formatter, "{state}, {failures} of {limit} failed attempts, one is forgotten every {interval} s")
    }
}

impl Host {
    /// Reads the state of the protection against guessing.
    ///
    /// # Errors
    /// The TPM does not say.
    pub fn lockout(&mut self) -> Result<Lockout, HostError> {
        Ok(Lockout {
            locked: self.property(PropertyTag::Permanent)? & IN_LOCKOUT != 0,
            failures: self.property(PropertyTag::LockoutCounter)?,
            limit: self.property(PropertyTag::MaxAuthFail)?,
            interval: self.property(PropertyTag::LockoutInterval)?,
            recovery: self.property(PropertyTag::LockoutRecovery)?,
        })
    }

    /// One property, asked for by itself: libtss2's binding refuses answers with properties that it does not know.
    pub(super) fn property(&mut self, tag: PropertyTag) -> Result<u32, HostError> {
        let ask =
            |context: &mut tss_esapi::Context| context.get_capability(CapabilityType::TpmProperties, tag.into(), 1);
        // Not `explain`: that asks for properties.
        let answer = self.context.execute_without_session(ask);
        let (data, _) = answer.map_err(|source| HostError::Command { command: COMMAND, source })?;
        let CapabilityData::TpmProperties(properties) = data else {
            return Err(HostError::Answer { command: COMMAND, expected: "TPM properties" });
        };
        let found = properties.into_iter().find(|property| property.property() == tag);
        let found = found.ok_or(HostError::Answer { command: COMMAND, expected: "the property that was asked for" })?;
        Ok(found.value())
    }

    /// The active banks with their registers, as far as this toolkit knows them; at least one.
    ///
    /// # Errors
    /// [`HostError::NoBank`], or the TPM does not say.
    pub fn banks(&mut self) -> Result<BTreeMap<PcrBank, BTreeSet<PcrIndex>>, HostError> {
        let (data, _) =
            self.plain(COMMAND, |context| context.get_capability(CapabilityType::AssignedPcr, 0, MAX_BANKS))?;
        let CapabilityData::AssignedPcr(selections) = data else {
            return Err(HostError::Answer { command: COMMAND, expected: "assigned registers" });
        };
        let mut banks = BTreeMap::new();
        for selection in selections.get_selections() {
            let registers: BTreeSet<PcrIndex> = selection.selected().into_iter().filter_map(register).collect();
            if let Some(bank) = bank(selection.hashing_algorithm()).filter(|_| !registers.is_empty()) {
                banks.insert(bank, registers);
            }
        }
        if banks.is_empty() { Err(HostError::NoBank) } else { Ok(banks) }
    }

    /// Whether there is a persistent object or an NV index. Asking is quieter than failing to open it: libtss2 writes each
    /// failure to standard error.
    pub(super) fn exists(&mut self, handle: TpmHandle) -> Result<bool, HostError> {
        let number = u32::from(handle);
        let (data, _) = self.plain(COMMAND, |context| context.get_capability(CapabilityType::Handles, number, 1))?;
        let CapabilityData::Handles(handles) = data else {
            return Err(HostError::Answer { command: COMMAND, expected: "handles" });
        };
        Ok(handles.into_inner().first().is_some_and(|found| u32::from(*found) == number))
    }
}

/// The register of one of libtss2's bits.
pub(super) fn register(slot: tss_esapi::structures::PcrSlot) -> Option<PcrIndex> {
    PcrIndex::new(u32::from(slot).trailing_zeros() as u8).ok()
}

pub(super) fn bank(algorithm: HashingAlgorithm) -> Option<PcrBank> {
    match algorithm {
        HashingAlgorithm::Sha1 => Some(PcrBank::Sha1),
        HashingAlgorithm::Sha256 => Some(PcrBank::Sha256),
        HashingAlgorithm::Sha384 => Some(PcrBank::Sha384),
        HashingAlgorithm::Sha512 => Some(PcrBank::Sha512),
        _ => None,
    }
}

pub(super) fn algorithm(bank: PcrBank) -> HashingAlgorithm {
    match bank {
        PcrBank::Sha1 => HashingAlgorithm::Sha1,
        PcrBank::Sha256 => HashingAlgorithm::Sha256,
        PcrBank::Sha384 => HashingAlgorithm::Sha384,
        PcrBank::Sha512 => HashingAlgorithm::Sha512,
    }
}
