//! `install` and `uninstall`: seal what a distribution boots, beside what it boots.
//!
//! [`survey`] looks and changes nothing, [`plan`] says what would be done, step by step, and [`apply`] does it: everything is
//! sealed and weighed before the boot file system is touched, and what fails in the middle is undone.

pub mod apply;
pub mod boot;
mod folders;
mod grub;
pub mod kernels;
mod loader_entries;
pub mod mounts;
pub mod plan;
mod sealing;
pub mod settings;
pub mod state;
pub mod survey;
pub mod sysroot;
pub mod uninstall;
