//! PID 1 of the mini-initramfs: verifies, maps and mounts the sealed root, then becomes its init.
//!
//! [`boot`] is the whole story in one function. Every effect goes through the trait [`System`]; `Linux` is the real one.

mod attached;
pub mod boot;
pub mod devices;
mod found;
pub mod gpt;
pub mod linux;
mod mapped;
mod measured;
pub mod medium;
mod modules;
mod mounted;
mod record;
pub mod report;
pub mod run_init;
mod second_stage;
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
#[cfg(test)]
mod second_stage_tests;
#[cfg(test)]
mod tests;
#[cfg(all(test, feature = "full"))]
mod volume_tests;

pub use boot::boot;
pub use linux::Linux;
pub use system::System;
