//! What the boot of a machine with slots goes by, as verify-init left it.

use std::path::Path;

use iofs_policy::{
    slots::SlotRules,
    trust::{MAX_TRUST_SIZE, TrustPolicy},
};

use crate::{
    attest,
    report::{ExitStatus, Failure},
    sealed::bad_input,
};

/// Reads the trust policy of a boot.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read_trust(path: &Path) -> Result<TrustPolicy, Failure> {
    let bytes = attest::read(path, MAX_TRUST_SIZE)
        .map_err(|failure| failure.next("run this on a system that verify-init booted from a slot, or give --trust"))?;
    TrustPolicy::parse(&bytes)
        .map_err(|error| bad_input(path, &error).next("give the trust.json of the system to update"))
}

/// The slots' rules in it.
///
/// # Errors
/// The trust policy has none.
pub fn of(trust: &TrustPolicy) -> Result<&SlotRules, Failure> {
    trust.slots.as_ref().ok_or_else(|| {
        Failure::new(ExitStatus::BadInput, "trust policy: slots: expected the rules of two slots, found none")
            .next("only a system that was sealed with [slots] is updated in this way: seal it so, and install it anew")
    })
}
