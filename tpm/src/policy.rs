//! What a policy's digest is (Part 1, section 19.7; Part 3, section 23), computed without a TPM: for enrolment, and to tell
//! which part of a policy does not hold.

use std::collections::{BTreeMap, BTreeSet};

use iofs_policy::{
    manifest::RollbackRule,
    pcr::{PcrBank, PcrDigest, PcrIndex},
};

use crate::{
    command::CommandCode,
    crypto::{SIZE, sha256},
    ladder::Ladder,
    name::Name,
    pcr,
    rollback::{self, CounterLimit, NOT_HIGHER},
};

/// Registers of banks.
pub type Registers = BTreeSet<(PcrBank, PcrIndex)>;

/// The digest of a policy by SHA-256. Steps are added in the order in which they are taken when the object is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PolicyDigest([u8; SIZE]);

impl PolicyDigest {
    /// The policy without a step, which authorizes nothing.
    pub const ZERO: Self = Self([0; SIZE]);

    /// Takes a finished digest.
    pub const fn from_bytes(bytes: [u8; SIZE]) -> Self {
        Self(bytes)
    }

    /// The digest's bytes.
    pub const fn as_bytes(&self) -> &[u8; SIZE] {
        &self.0
    }

    /// TPM2_PolicyPCR (Part 3, section 23.7): these registers hold these values.
    #[must_use]
    pub fn registers(self, values: &BTreeMap<(PcrBank, PcrIndex), PcrDigest>) -> Self {
        let wanted: Registers = values.keys().copied().collect();
        // In the order of the selection: bank by bank, then by register.
        let parts: Vec<&[u8]> = values.values().map(PcrDigest::as_bytes).collect();
        self.step(CommandCode::PolicyPcr, &[&pcr::selection(&wanted), &sha256(&parts)])
    }

    /// TPM2_PolicyNV (Part 3, section 23.9): the rollback counter is not above this value.
    #[must_use]
    pub fn counter(self, limit: CounterLimit) -> Self {
        // operandB, offset, operation.
        let compared = sha256(&[&limit.value.to_be_bytes(), &[0, 0], &NOT_HIGHER.to_be_bytes()]);
        self.step(CommandCode::PolicyNv, &[&compared, rollback::name(limit.index).as_bytes()])
    }

    /// TPM2_PolicyAuthValue (Part 3, section 23.17): whoever asks knows the object's authorization value.
    #[must_use]
    pub fn auth_value(self) -> Self {
        self.step(CommandCode::PolicyAuthValue, &[])
    }

    /// TPM2_PolicyAuthorize (Part 3, section 23.16) by the key of that Name, with an empty `policyRef`. Whatever was there
    /// before does not count: it is what the key signs.
    #[must_use]
    pub fn authorized_by(key: &Name) -> Self {
        Self::authorized_for(key, &[])
    }

    /// The same for what the key signs with this `policyRef`.
    #[must_use]
    pub fn authorized_for(key: &Name, policy_ref: &[u8]) -> Self {
        let signed = Self::ZERO.step(CommandCode::PolicyAuthorize, &[key.as_bytes()]);
        Self(sha256(&[&signed.0, policy_ref]))
    }

    /// A whole policy of the parts that [`UnsealPolicy`](crate::unlock::UnsealPolicy) has, with the Name of the key that
    /// signs, where there is one.
    #[must_use]
    pub fn whole(
        key: Option<&Name>,
        values: &BTreeMap<(PcrBank, PcrIndex), PcrDigest>,
        rollback: Option<RollbackRule>,
        auth_value: bool,
    ) -> Self {
        let signed = match (key, rollback) {
            (None, _) => Self::ZERO,
            (Some(key), None) => Self::authorized_by(key),
            (Some(key), Some(rule)) => Ladder::new(rule).policy(key),
        };
        let held = if values.is_empty() { signed } else { signed.registers(values) };
        let counted = match (key, rollback) {
            (None, Some(rule)) => held.counter(rule.into()),
            _ => held,
        };
        if auth_value { counted.auth_value() } else { counted }
    }

    /// TPM2_PolicyOR (Part 3, section 23.6): one of these, which are 2 to 8. Whatever was there before does not count.
    #[must_use]
    pub fn any_of(branches: &[Self]) -> Self {
        let branches: Vec<&[u8]> = branches.iter().map(|branch| &branch.0[..]).collect();
        Self::ZERO.step(CommandCode::PolicyOr, &branches)
    }

    fn step(self, command: CommandCode, parts: &[&[u8]]) -> Self {
        let code = command.value().to_be_bytes();
        let head = [&self.0[..], &code];
        Self(sha256(&[&head[..], parts].concat()))
    }
}
