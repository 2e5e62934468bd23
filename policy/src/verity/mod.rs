//! dm-verity: parameters, hash tree geometry, superblock and device-mapper table.
//!
//! Source: Linux `Documentation/admin-guide/device-mapper/verity.rst` and cryptsetup's on-disk superblock, version 1.

mod geometry;
mod parameters;
mod superblock;
mod table;

pub use crate::hex::HexError;
pub use geometry::{Geometry, HashArea, Level};
pub use parameters::{
    BlockSize, HashAlgorithm, HashFormat, MAX_SALT_SIZE, ParameterError, RootHash, Salt, VerityParameters,
};
pub use superblock::{Superblock, SuperblockError};
pub use table::{CorruptionAction, DeviceNumber, LoadedTarget, StatusError, TableError, VerityTable, check_status};
