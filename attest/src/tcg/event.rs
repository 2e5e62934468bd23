//! One event of firmware's log.

use std::fmt;

use iofs_policy::pcr::{PcrBank, PcrDigest, PcrIndex};

use super::describe;

/// The kind of an event (PFP, section 10.4.1): a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventType(pub u32);

impl EventType {
    /// Extends nothing.
    pub const NO_ACTION: Self = Self(0x03);
    /// Ends what firmware measures before the boot, or reports an error.
    pub const SEPARATOR: Self = Self(0x04);
    /// A text of what happened.
    pub const ACTION: Self = Self(0x05);
    /// What the tag in the data says: Linux' EFI stub measures the initramfs so.
    pub const EVENT_TAG: Self = Self(0x06);
    /// The version of firmware's first code.
    pub const S_CRTM_VERSION: Self = Self(0x08);
    /// What a boot loader measures.
    pub const IPL: Self = Self(0x0d);
    /// Boot devices that are passed over.
    pub const OMIT_BOOT_DEVICE_EVENTS: Self = Self(0x12);
    /// A UEFI variable of the configuration.
    pub const EFI_VARIABLE_DRIVER_CONFIG: Self = Self(0x8000_0001);
    /// A UEFI variable of the boot choices.
    pub const EFI_VARIABLE_BOOT: Self = Self(0x8000_0002);
    /// A program that firmware starts.
    pub const EFI_BOOT_SERVICES_APPLICATION: Self = Self(0x8000_0003);
    /// A driver that firmware starts.
    pub const EFI_BOOT_SERVICES_DRIVER: Self = Self(0x8000_0004);
    /// A driver that stays.
    pub const EFI_RUNTIME_SERVICES_DRIVER: Self = Self(0x8000_0005);
    /// The partition table.
    pub const EFI_GPT_EVENT: Self = Self(0x8000_0006);
    /// A text of what happened.
    pub const EFI_ACTION: Self = Self(0x8000_0007);
    /// A UEFI variable of the boot choices, name and all.
    pub const EFI_VARIABLE_BOOT2: Self = Self(0x8000_000c);
    /// The key by which an image was verified.
    pub const EFI_VARIABLE_AUTHORITY: Self = Self(0x8000_00e0);
}

/// Names of the types (PFP, section 10.4.1).
const NAMES: &[(u32, &str)] = &[
    (0x0000_0000, "EV_PREBOOT_CERT"),
    (0x0000_0001, "EV_POST_CODE"),
    (0x0000_0002, "EV_UNUSED"),
    (0x0000_0003, "EV_NO_ACTION"),
    (0x0000_0004, "EV_SEPARATOR"),
    (0x0000_0005, "EV_ACTION"),
    (0x0000_0006, "EV_EVENT_TAG"),
    (0x0000_0007, "EV_S_CRTM_CONTENTS"),
    (0x0000_0008, "EV_S_CRTM_VERSION"),
    (0x0000_0009, "EV_CPU_MICROCODE"),
    (0x0000_000a, "EV_PLATFORM_CONFIG_FLAGS"),
    (0x0000_000b, "EV_TABLE_OF_DEVICES"),
    (0x0000_000c, "EV_COMPACT_HASH"),
    (0x0000_000d, "EV_IPL"),
    (0x0000_000e, "EV_IPL_PARTITION_DATA"),
    (0x0000_000f, "EV_NONHOST_CODE"),
    (0x0000_0010, "EV_NONHOST_CONFIG"),
    (0x0000_0011, "EV_NONHOST_INFO"),
    (0x0000_0012, "EV_OMIT_BOOT_DEVICE_EVENTS"),
    (0x0000_0013, "EV_POST_CODE2"),
    (0x8000_0001, "EV_EFI_VARIABLE_DRIVER_CONFIG"),
    (0x8000_0002, "EV_EFI_VARIABLE_BOOT"),
    (0x8000_0003, "EV_EFI_BOOT_SERVICES_APPLICATION"),
    (0x8000_0004, "EV_EFI_BOOT_SERVICES_DRIVER"),
    (0x8000_0005, "EV_EFI_RUNTIME_SERVICES_DRIVER"),
    (0x8000_0006, "EV_EFI_GPT_EVENT"),
    (0x8000_0007, "EV_EFI_ACTION"),
    (0x8000_0008, "EV_EFI_PLATFORM_FIRMWARE_BLOB"),
    (0x8000_0009, "EV_EFI_HANDOFF_TABLES"),
    (0x8000_000a, "EV_EFI_PLATFORM_FIRMWARE_BLOB2"),
    (0x8000_000b, "EV_EFI_HANDOFF_TABLES2"),
    (0x8000_000c, "EV_EFI_VARIABLE_BOOT2"),
    (0x8000_000d, "EV_EFI_GPT_EVENT2"),
    (0x8000_0010, "EV_EFI_HCRTM_EVENT"),
    (0x8000_00e0, "EV_EFI_VARIABLE_AUTHORITY"),
    (0x8000_00e1, "EV_EFI_SPDM_FIRMWARE_BLOB"),
    (0x8000_00e2, "EV_EFI_SPDM_FIRMWARE_CONFIG"),
    (0x8000_00e3, "EV_EFI_SPDM_DEVICE_POLICY"),
    (0x8000_00e4, "EV_EFI_SPDM_DEVICE_AUTHORITY"),
];

/// The profile's name, or the number.
impl fmt::Display for EventType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => formatter.write_str(name),
            None => write!(formatter, "event type {:#010x}", self.0),
        }
    }
}

/// What an event's data says about its digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataCheck {
    /// The profile does not say that digests of this type cover the data.
    Undefined,
    /// The data hashes to the digests.
    Matches,
    /// It should, and does not: what the data says was not measured.
    Contradicts,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the log, where the header is 0.
    pub number: usize,
    /// What it says of itself.
    pub kind: EventType,
    /// What the register was extended by, in the banks that this toolkit knows.
    pub digests: Vec<PcrDigest>,
    /// What it says that it measured.
    pub data: Vec<u8>,
    pcr: u32,
}

impl Event {
    pub(super) fn new(number: usize, pcr: u32, kind: EventType, digests: Vec<PcrDigest>, data: Vec<u8>) -> Self {
        Self { number, kind, digests, data, pcr }
    }

    /// The register that it extends, if it extends one.
    pub fn extends(&self) -> Option<PcrIndex> {
        let index = u8::try_from(self.pcr).ok().and_then(|index| PcrIndex::new(index).ok());
        index.filter(|_| self.kind != EventType::NO_ACTION)
    }

    /// The register's number as the log has it. Events that extend nothing may have any.
    pub fn raw_pcr(&self) -> u32 {
        self.pcr
    }

    /// What the register was extended by in a bank.
    pub fn digest(&self, bank: PcrBank) -> Option<PcrDigest> {
        self.digests.iter().find(|digest| digest.bank() == bank).copied()
    }

    /// Holds the data against the digests, where the profile defines that they cover it (PFP, sections 3.3.4 and 10.4.1).
    pub fn data_check(&self) -> DataCheck {
        let covered: &[&[u8]] = match self.kind {
            EventType::SEPARATOR
            | EventType::ACTION
            | EventType::S_CRTM_VERSION
            | EventType::OMIT_BOOT_DEVICE_EVENTS
            | EventType::EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EFI_GPT_EVENT
            | EventType::EFI_ACTION
            | EventType::EFI_VARIABLE_BOOT2
            | EventType::EFI_VARIABLE_AUTHORITY => &[&self.data],
            // The variable's value, and in earlier revisions its name too.
            EventType::EFI_VARIABLE_BOOT => &[&self.data, describe::variable_value(&self.data).unwrap_or(&self.data)],
            _ => return DataCheck::Undefined,
        };
        let hashes = |data: &&[u8]| self.digests.iter().all(|digest| PcrDigest::of(digest.bank(), &[data]) == *digest);
        if covered.iter().any(hashes) { DataCheck::Matches } else { DataCheck::Contradicts }
    }

    /// What the data says, in a line for people. It may lie.
    pub fn description(&self) -> String {
        describe::describe(self)
    }
}
