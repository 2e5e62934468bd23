//! How a boot fails: the report that people read, and the sealed action that follows.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What PID 1 does after it reported a failure. There is no shell among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureAction {
    /// Turn the machine off: nothing repeats, and nobody finds it half-booted.
    PowerOff,
    /// Start again: for machines that nobody attends, with a boot loader that counts.
    Reboot,
    /// Stop, with the report on the screen.
    Halt,
}

impl FailureAction {
    /// The word in manifests, configuration and `rd.emergency=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PowerOff => "poweroff",
            Self::Reboot => "reboot",
            Self::Halt => "halt",
        }
    }
}

impl fmt::Display for FailureAction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The stages of a boot, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The kernel's file systems are mounted and the sealed files read.
    Started,
    /// The manifest's signature, identity and rollback index hold, and the kernel command line asks for nothing else.
    Verified,
    /// One of two slots is chosen, and that it is tried is on record. Without slots there is no such stage.
    Chosen,
    /// The command line and the manifest are measured into the TPM, where it is used.
    Measured,
    /// Kernel modules are loaded and the sealed devices found.
    Found,
    /// The sealed volumes are open, and what opened them is out of reach. Without volumes there is no such stage.
    Unlocked,
    /// dm-verity stands over the data.
    Mapped,
    /// The image is mounted, and the overlay over it.
    Mounted,
    /// The initramfs phase is closed in the TPM, where it is used.
    Capped,
    /// The real root is in place.
    Switched,
}

impl Stage {
    /// The word in reports and in the boot record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Verified => "verified",
            Self::Chosen => "chosen",
            Self::Measured => "measured",
            Self::Found => "found",
            Self::Unlocked => "unlocked",
            Self::Mapped => "mapped",
            Self::Mounted => "mounted",
            Self::Capped => "capped",
            Self::Switched => "switched",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Why a boot stopped: one block of text on the console and in the kernel log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureReport {
    /// The stage that was not reached.
    pub stage: Stage,
    /// What is wrong, in one line.
    pub fact: String,
    /// What should have been there.
    pub expected: String,
    /// What was there.
    pub found: String,
    /// What the person in front of the machine can do.
    pub next_step: String,
}

impl fmt::Display for FailureReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "BOOT REFUSED before stage {:?}: {}", self.stage.name(), self.fact)?;
        writeln!(formatter, "  expected: {}", self.expected)?;
        writeln!(formatter, "  found:    {}", self.found)?;
        write!(formatter, "  next:     {}", self.next_step)
    }
}
