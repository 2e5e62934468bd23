//! dm-verity: parameters, hash tree geometry, superblock and device-mapper table.
//!
//! Source: Linux `Documentation/admin-guide/device-mapper/verity.rst` and cryptsetup's on-disk superblock, version 1.

mod parameters;

pub use crate::hex::HexError;
pub use parameters::{
    BlockSize, HashAlgorithm, HashFormat, MAX_SALT_SIZE, ParameterError, RootHash, Salt, VerityParameters,
};
