//! `enroll`: lets a TPM, a PIN or a recovery key open a LUKS2 volume.
//!
//! Headers are written by libcryptsetup ([`header`]), the TPM is changed by libtss2 ([`tpm`]), and what was written is read
//! back and proven by the implementations that verify-init has. [`steps`] says in which order, and why.

pub mod header;
pub mod list;
pub mod pending;
pub mod recovery;
pub mod registers;
pub mod rollback;
pub mod steps;
pub mod tpm;
pub mod volume;

use crate::report::{ExitStatus, Failure};

fn fill_random(bytes: &mut [u8]) -> Result<(), Failure> {
    getrandom::fill(bytes).map_err(|error| Failure::new(ExitStatus::System, format!("random numbers: {error}")))
}
