//! Where trees come from.

pub mod archive;
pub mod directory;
mod unpack;
