//! The two slots of a device: what lies in each, the record of tries, and how a release gets there.

pub mod confirm;
pub mod layout;
pub mod record;
pub mod survey;
