//! The pure core of the verified boot chain.
//!
//! Everything here turns bytes into checked values or back. Nothing opens a file, a device or a clock, so that the build
//! side (`iofs-sign`) and the boot side (`verify-init`) share one definition of every format and every rule.
#![forbid(unsafe_code)]

pub mod boot_record;
pub mod cmdline;
pub mod digest;
pub mod dsse;
pub mod failure;
pub mod hex;
pub mod keys;
pub mod manifest;
pub mod measurement;
pub mod measurement_log;
pub mod modules;
pub mod paths;
pub mod pcr;
pub mod pcr_signature;
pub mod release;
pub mod slots;
pub mod trust;
pub mod uki;
pub mod verity;
