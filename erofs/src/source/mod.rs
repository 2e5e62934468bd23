//! Where trees come from.

pub mod directory;
