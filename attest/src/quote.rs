//! TPM quotes: what was signed, by which key, and whether the signature holds.
//!
//! Section numbers are those of the TPM 2.0 Library specification, Part 2 (Structures), revision 1.59.

mod attest;
mod public;
mod signature;

pub use attest::{BankSelection, ClockInfo, Quote, QuoteError};
pub use public::{AttestationKey, KeyError, Name, Scheme, SchemeAlgorithm};
pub use signature::{Signature, SignatureError};

use iofs_policy::pcr::PcrBank;

/// The digest algorithm of a number in a signature scheme or a name. SHA-1 is no answer: it has collisions.
fn strong_digest(id: u16) -> Option<PcrBank> {
    PcrBank::from_algorithm_id(id).filter(|digest| *digest != PcrBank::Sha1)
}
