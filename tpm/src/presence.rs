//! Whether a machine has a TPM, before its driver answers.

use std::path::Path;

/// The kernel's entry of the first TPM, which appears once a driver has taken it.
const CLASS: &str = "/sys/class/tpm/tpm0";
/// Firmware's ACPI table of TPM 2.0 (TCG ACPI Specification, section 8), which is there from the start.
const TABLE: &str = "/sys/firmware/acpi/tables/TPM2";

/// What the system shows of a TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// A driver has taken a TPM: `/sys/class/tpm/tpm0` is there.
    pub driver: bool,
    /// Firmware says that there is one: `/sys/firmware/acpi/tables/TPM2` is there.
    pub firmware: bool,
}

/// Whether there is a TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Presence {
    /// A driver has it. Its device node is there, or will be in a moment.
    Ready,
    /// Firmware says that there is one, and no driver has it yet: load the driver, and wait.
    Late,
    /// Nothing shows one. On machines without ACPI that is known only after the drivers were loaded.
    Absent,
}

impl Facts {
    /// Looks at `/sys`, which is mounted.
    pub fn gather() -> Self {
        Self { driver: Path::new(CLASS).exists(), firmware: Path::new(TABLE).exists() }
    }

    /// What they mean.
    pub const fn presence(self) -> Presence {
        match (self.driver, self.firmware) {
            (true, _) => Presence::Ready,
            (false, true) => Presence::Late,
            (false, false) => Presence::Absent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_tpm_is_told_from_none() {
        let presence = |driver, firmware| Facts { driver, firmware }.presence();
        assert_eq!(presence(true, true), Presence::Ready);
        assert_eq!(presence(true, false), Presence::Ready, "firmware without ACPI");
        assert_eq!(presence(false, true), Presence::Late);
        assert_eq!(presence(false, false), Presence::Absent);
    }
}
