//! Boots real kernels and real roots under QEMU, and performs the published attacks on them.
//!
//! A test describes a [`Machine`], starts it, and waits on its serial console with a deadline:
//!
//! ```no_run
//! use std::time::Duration;
//! use swtpm_tests::{Ending, Line, Machine, cache};
//!
//! # fn main() -> anyhow::Result<()> {
//! let kernel = cache::kernel("bookworm")?;
//! let mut vm = Machine::named("an example").kernel(&kernel.vmlinuz).initrd("init.img").start()?;
//! vm.wait_for_line(&Line::containing("Run /init"), Duration::from_secs(30))?;
//! assert_eq!(vm.wait_for_end(Duration::from_secs(30))?, Ending::PoweredOff);
//! # Ok(())
//! # }
//! ```
//!
//! What cannot run fails with the command that provides what it lacks; nothing is ever skipped.

pub mod attester;
pub mod cache;
pub mod chain;
mod console;
pub mod debian;
mod device;
mod disk;
pub mod image;
pub mod installed;
mod machine;
pub mod medium;
mod newc;
mod qmp;
mod secure_boot;
mod shared;
pub mod tools;
mod tpm;
pub mod verifier;
mod vm;
pub mod volume;
pub mod workshop;

pub use console::{Console, ConsoleError, ConsoleLine, Line};
pub use device::{DeviceShell, Ran};
pub use disk::ScratchDisk;
pub use machine::{BASE_COMMAND_LINE, Bus, Disk, Machine, command_line};
pub use newc::Newc;
pub use secure_boot::{FirmwareImage, PcrKey, SecureBoot, Signer};
pub use shared::shared;
pub use tpm::{PoweredTpm, TpmState};
pub use vm::{Ending, Vm};
