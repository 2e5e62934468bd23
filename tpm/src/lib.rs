//! A lean TPM 2.0 client: what PID 1 needs for measured boot, and no more.
//!
//! A [`transport`] carries bytes to a TPM and back. [`Tpm`] runs one [`command`] after the other on it, and tries again
//! where the TPM asks for that. [`pcr`] reads and extends the registers.
//!
//! Sections named here are those of the TPM 2.0 Library specification, revision 1.59: Part 1 (Architecture), Part 2
//! (Structures), Part 3 (Commands). Numbers are big-endian on the wire.
//!
//! Nothing here authenticates the TPM: whoever sits on the bus between processor and chip can answer in its place. What
//! is read is worth as much as that bus.
#![forbid(unsafe_code)]

pub mod client;
pub mod command;
#[cfg(feature = "host")]
pub mod host;
pub mod pcr;
pub mod response;
pub mod transport;

mod reader;

pub use client::{CommandError, Retry, Tpm};
