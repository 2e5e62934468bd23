//! The two slots of a device: what lies in each, the record of tries, and how a release gets there.

pub mod blocks;
pub mod bundle;
pub mod confirm;
pub mod held;
pub mod incoming;
pub mod keys;
pub mod layout;
pub mod loader;
pub mod record;
pub mod rules;
pub mod source;
pub mod storage;
pub mod survey;
pub mod target;
pub mod update;
