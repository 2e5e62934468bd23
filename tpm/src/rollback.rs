//! The rollback counter: an NV index that only counts up, by which the TPM refuses what is older.
//!
//! The index is of type `TPM_NT_COUNTER` (Part 2, section 13.2). Whoever knows the owner's password, which mostly is empty,
//! can remove it and define it again; but then it starts above every value that any counter of this TPM ever had (Part 3,
//! section 31.8), so that removing it takes nothing back. The value at the start is another one on each TPM: what is enrolled
//! holds the highest value at which it opens, and no rollback index.

use std::fmt;

use iofs_policy::manifest::RollbackRule;

use crate::{
    client::{CommandError, Tpm, malformed},
    command::{Command, CommandCode},
    name::{Name, NvPublic},
    protected::{Protected, sized_secret},
    response::{ResponseCode, ResponseError},
    session::Auth,
    transport::Transport,
};

/// Where the counter is unless somebody says otherwise: it ends in `IO`, and is among those that the TCG's registry of reserved
/// handles gives to the owner (0x01800000 to 0x01bfffff).
pub const DEFAULT_INDEX: u32 = 0x0180_494f;
/// The indices that the owner can define.
pub const OWNER_INDICES: std::ops::RangeInclusive<u32> = 0x0180_0000..=0x01bf_ffff;

/// `TPMA_NV` (Part 2, section 13.4) of a counter that was counted up at least once: `TPM_NT_COUNTER`; counted up by the owner
/// (OWNERWRITE); read by whom it pleases (OWNERREAD, and AUTHREAD with the empty password); noDA, since there is nothing to
/// guess. Not ORDERLY: such a counter jumps after a power cut.
pub const ATTRIBUTES: u32 = WRITTEN | 0x0206_0012;
/// `TPMA_NV_WRITTEN`
pub(crate) const WRITTEN: u32 = 0x2000_0000;
/// A counter has eight bytes.
pub(crate) const SIZE: u16 = 8;
/// `TPM_EO_UNSIGNED_LE` (Part 2, section 6.14): what the index holds is not higher than the operand.
pub(crate) const NOT_HIGHER: u16 = 0x0009;
/// `TPM_RC_POLICY`: the comparison of TPM2_PolicyNV does not hold.
const COMPARISON_FAILED: u32 = 0x126;

/// The highest value of a counter at which something opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CounterLimit {
    /// The NV index.
    pub index: u32,
    /// The value.
    pub value: u64,
}

impl From<RollbackRule> for CounterLimit {
    /// The limit of the rule's own index.
    fn from(rule: RollbackRule) -> Self {
        Self { index: rule.counter, value: rule.value }
    }
}

impl fmt::Display for CounterLimit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "rollback counter {:#010x} at {} or below", self.index, self.value)
    }
}

/// Why the counter was not read.
#[derive(Debug, thiserror::Error)]
pub enum CounterError {
    /// There is no such index, or nobody counted yet.
    #[error("rollback counter {index:#010x}: expected a counter, found nothing: it was removed, or never enrolled")]
    Absent {
        /// The index.
        index: u32,
    },
    /// There is something else.
    #[error(
        "rollback counter {index:#010x}: expected attributes {ATTRIBUTES:#010x} and {SIZE} bytes, found {attributes:#010x} and {size}"
    )]
    Other {
        /// The index.
        index: u32,
        /// What it has instead.
        attributes: u32,
        /// Its size in bytes.
        size: u16,
    },
    /// The TPM does not say, or somebody changed what it says.
    #[error("rollback counter: {0}")]
    Command(#[from] CommandError),
}

/// The public area of a counter at this index: all of it follows from the index, and so does the Name, on every TPM.
pub fn public(index: u32) -> NvPublic {
    let parts = [&index.to_be_bytes()[..], &[0, 0x0b], &ATTRIBUTES.to_be_bytes(), &[0, 0], &SIZE.to_be_bytes()];
    NvPublic::parse(&parts.concat()).expect("all fields are there")
}

/// Whether these are the attributes of a counter before it is counted up for the first time: it has no value until then.
pub(crate) fn is_uncounted(attributes: u32) -> bool {
    attributes == ATTRIBUTES & !WRITTEN
}

/// The Name of a counter at this index.
pub fn name(index: u32) -> Name {
    public(index).name()
}

impl<T: Transport> Protected<'_, T> {
    /// What the counter holds, as this TPM says and nobody on the way to it can.
    ///
    /// # Errors
    /// See [`CounterError`].
    pub fn rollback_counter(&mut self, index: u32) -> Result<u64, CounterError> {
        let found = self.nv_public(index).map_err(|error| absent(index, error))?;
        if found != public(index) {
            let (attributes, size) = (found.attributes(), found.size());
            return Err(match is_uncounted(attributes) {
                true => CounterError::Absent { index },
                false => CounterError::Other { index, attributes, size },
            });
        }
        let bytes = self.nv_read(&found, &[]).map_err(|error| absent(index, error))?;
        Ok(value(&bytes).map_err(|source| malformed(CommandCode::NvRead, source))?)
    }
}

fn absent(index: u32, error: CommandError) -> CounterError {
    match error.code() {
        Some(ResponseCode::Handle(_) | ResponseCode::NvUninitialized) => CounterError::Absent { index },
        _ => CounterError::Command(error),
    }
}

fn value(bytes: &[u8]) -> Result<u64, ResponseError> {
    let found = bytes.len() as u32;
    let number = bytes.try_into().map(u64::from_be_bytes);
    number.map_err(|_| ResponseError::Value { field: "counter", expected: "8 bytes", found })
}

/// What the counter holds, as whoever is on the bus says: for a report.
pub(crate) fn read_unprotected<T: Transport>(tpm: &mut Tpm<T>, index: u32) -> Option<u64> {
    let name = name(index);
    let command = Command::new(CommandCode::NvRead).named(index, &name).named(index, &name).u16(SIZE).u16(0);
    let answer = tpm.execute(&command, &mut [Auth::empty_password()]).ok()?;
    value(&sized_secret(&answer.parameters, "data").ok()?).ok()
}

/// TPM2_PolicyNV (Part 3, section 23.9) in this policy session. The TPM compares, and puts the counter's Name and the limit
/// into the policy's digest: whoever changes this on its way gets another digest.
pub(crate) fn policy_counter<T: Transport>(
    tpm: &mut Tpm<T>,
    session: u32,
    limit: CounterLimit,
) -> Result<(), CommandError> {
    let name = name(limit.index);
    let command = Command::new(CommandCode::PolicyNv).named(limit.index, &name).named(limit.index, &name);
    let command = command.handle(session).sized(&limit.value.to_be_bytes()).u16(0).u16(NOT_HIGHER);
    tpm.execute(&command, &mut [Auth::empty_password()]).map(drop)
}

/// What it means that [`policy_counter`] failed: `Some(true)` where the counter is higher, `Some(false)` where there is none.
pub(crate) fn is_superseded(error: &CommandError) -> Option<bool> {
    let CommandError::Refused { command: CommandCode::PolicyNv, code } = error else { return None };
    match code {
        ResponseCode::Handle(_) | ResponseCode::NvUninitialized => Some(false),
        code if code.value() == COMPARISON_FAILED => Some(true),
        _ => None,
    }
}
