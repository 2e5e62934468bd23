//! The verifier's side of measured boot.
//!
//! Everything here works on bytes that somebody sent: no TPM, no files, no network. A verdict of *attested* is a value
//! ([`verify::Attested`]) that only a verification which went through to its end constructs; every other way out is a refusal.
#![forbid(unsafe_code)]

pub mod base;
pub mod base64_bytes;
pub mod batch;
pub mod certificate;
pub mod credential;
pub mod enrolment;
pub mod evidence;
pub mod explain;
pub mod key;
pub mod learn;
pub mod policy_file;
pub mod public;
pub mod quote;
pub mod rsa;
pub mod tcg;
pub mod verify;

mod bytes;
mod verifying;

pub use bytes::FieldError;
