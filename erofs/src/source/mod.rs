//! Where trees come from.

pub mod archive;
pub mod directory;
pub mod oci;
mod unpack;
