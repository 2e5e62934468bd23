//! PID 1 of the mini-initramfs: verifies, maps and mounts the sealed root, then becomes its init.
//!
//! [`boot`] is the whole story in one function. Every effect goes through the trait [`System`]; `Linux` is the real one.

#[cfg(feature = "full")]
mod attached;
pub mod boot;
pub mod devices;
#[cfg(feature = "full")]
pub mod find;
mod found;
pub mod gpt;
#[cfg(any(test, not(feature = "full")))]
mod lean;
pub mod linux;
mod mapped;
mod measured;
pub mod medium;
mod modules;
mod mounted;
mod record;
pub mod report;
#[cfg(feature = "full")]
pub mod run_init;
#[cfg(feature = "full")]
mod second_stage;
#[cfg(feature = "full")]
mod slot_keys;
#[cfg_attr(not(feature = "full"), path = "no_slots.rs")]
mod slots;
mod started;
mod stub;
pub mod superblock;
mod switched;
pub mod system;
pub mod uevent;
mod unlocked;
mod verified;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod fake_tpm;
#[cfg(all(test, feature = "full"))]
mod second_stage_tests;
#[cfg(all(test, feature = "full"))]
mod slot_keys_tests;
#[cfg(all(test, feature = "full"))]
mod slots_tests;
#[cfg(test)]
mod tests;
#[cfg(all(test, feature = "full"))]
mod volume_tests;

pub use boot::boot;
pub use linux::Linux;
pub use system::System;
