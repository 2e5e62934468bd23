//! TPM quotes: what was signed, by which key, and whether the signature holds.
//!
//! Section numbers are those of the TPM 2.0 Library specification, Part 2 (Structures), revision 1.59.

mod attest;
mod signature;

pub use attest::{BankSelection, ClockInfo, Quote, QuoteError};
pub use signature::{Signature, SignatureError};

pub use crate::{
    key::{AttestationKey, KeyError},
    public::Name,
};
