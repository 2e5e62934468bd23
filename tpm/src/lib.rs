//! A lean TPM 2.0 client: what PID 1 needs for measured boot, and no more.
//!
//! A [`transport`] carries bytes to a TPM and back. [`Tpm`] runs one [`command`] after the other on it, and tries again
//! where the TPM asks for that. [`pcr`] reads and extends the registers. [`presence`] tells a machine without a TPM from one
//! whose TPM is late.
//!
//! Sections named here are those of the TPM 2.0 Library specification, revision 1.59: Part 1 (Architecture), Part 2
//! (Structures), Part 3 (Commands). Numbers are big-endian on the wire.
//!
//! Whoever sits on the bus between processor and chip can answer in the TPM's place, and read what passes. [`Protected`] is
//! a session that only the TPM with the storage root key pinned at enrolment can take part in; [`nv`] indices are read
//! through it, and registers can be. What is read without it is worth as much as the bus. [`unlock`] opens [`sealed`]
//! objects in a session of the same kind, by as few commands as can be.
#![forbid(unsafe_code)]

pub mod client;
pub mod command;
#[cfg(feature = "host")]
pub mod host;
pub mod ladder;
pub mod name;
pub mod nv;
pub mod pcr;
pub mod pin;
pub mod policy;
pub mod policy_key;
pub mod presence;
pub mod protected;
pub mod response;
pub mod rollback;
pub mod sealed;
pub mod session;
pub mod srk;
pub mod transport;
pub mod unlock;

mod anything;
mod crypto;
mod der;
mod reader;

#[doc(hidden)]
pub use anything::read_as_anything;
pub use client::{CommandError, Retry, Tpm};
pub use protected::{ProtectError, Protected, Suspended};
pub use srk::{PinnedSrk, Srk, pinned_srk};
