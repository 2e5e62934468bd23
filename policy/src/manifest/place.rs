//! Where data and tree lie.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Manifest, ManifestError, PartitionLabel, RootPath, ValueError, VolumeName, VolumeUse};

/// Where data or tree is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// A GPT partition by its unique id.
    PartUuid(Uuid),
    /// A GPT partition by its name.
    PartLabel(PartitionLabel),
    /// A whole disk by the kernel's name, such as `vda`.
    Disk(PartitionLabel),
    /// Inside a sealed volume of use "image": the data at its first byte, the hash area at `verity.hash_offset`.
    Volume(VolumeName),
    /// A file on a file system that nobody has verified, such as the one that the boot loader reads.
    File(FilePlace),
    /// A file in the initramfs itself, [`crate::paths::IMAGE`]: data and tree both.
    Memory,
    /// The slot that the boot takes, whichever that is: data and tree both, with this manifest behind them.
    Slot,
}

/// A file, and the file system that it is on. In a manifest it is the text that people write: `TYPE:UUID=…:/PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePlace {
    /// What kind of file system that is.
    pub kind: MediumKind,
    /// Which one.
    pub on: Medium,
    /// The file's path there. No part of it may be a link.
    pub path: RootPath,
}

/// The file systems that an image may be a file of: those that boot loaders read, and erofs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediumKind {
    /// The EFI system partition's.
    Vfat,
    /// Most distributions' `/boot`.
    Ext4,
    /// A read-only one.
    Erofs,
}

impl MediumKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Vfat, Self::Ext4, Self::Erofs];

    /// The kernel's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vfat => "vfat",
            Self::Ext4 => "ext4",
            Self::Erofs => "erofs",
        }
    }
}

/// How a file system is told from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// By what its superblock says. One block of each partition is read to find it.
    Uuid(MediumUuid),
    /// By the unique id of the GPT partition that holds it.
    PartUuid(Uuid),
    /// By the name of the GPT partition that holds it.
    PartLabel(PartitionLabel),
}

/// The id in a file system's superblock, as `blkid` prints it: a UUID, or vfat's eight digits in two halves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediumUuid(String);

impl MediumUuid {
    /// Of a file system with a UUID.
    pub fn of_uuid(uuid: Uuid) -> Self {
        Self(uuid.to_string())
    }

    /// Of a vfat, by its volume id.
    pub fn of_volume_id(id: u32) -> Self {
        Self(format!("{:04X}-{:04X}", id >> 16, id & 0xffff))
    }

    fn of_vfat(text: &str) -> Option<Self> {
        let (high, low) = text.split_once('-').filter(|(high, low)| high.len() == 4 && low.len() == 4)?;
        let half = |digits: &str| {
            let digits = Some(digits).filter(|digits| digits.bytes().all(|one| one.is_ascii_hexdigit()))?;
            u32::from_str_radix(digits, 16).ok()
        };
        Some(Self::of_volume_id(half(high)? << 16 | half(low)?))
    }
}

impl FromStr for MediumUuid {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match Self::of_vfat(text).or_else(|| Uuid::parse_str(text).ok().map(Self::of_uuid)) {
            Some(uuid) => Ok(uuid),
            None => {
                let expected = "a UUID, or eight hexadecimal digits as in 12AB-34CD";
                Err(ValueError { field: "file system UUID", expected, found: text.to_owned() })
            }
        }
    }
}

impl fmt::Display for MediumUuid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Why a text is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// It begins like none.
    #[error(
        "place: expected PARTUUID=…, PARTLABEL=…, /dev/NAME, volume:NAME, memory, slot, or TYPE:UUID=…:/PATH for a file on a \
         vfat, ext4 or erofs, found {0:?}"
    )]
    Unknown(String),
    /// An id is none.
    #[error("place: {text}: {why}")]
    Uuid {
        /// The text.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A name or a path cannot be one.
    #[error(transparent)]
    Value(#[from] ValueError),
}

impl FromStr for Place {
    type Err = PlaceError;

    /// As people write it, and as it is shown.
    fn from_str(text: &str) -> Result<Self, PlaceError> {
        if let Some(uuid) = text.strip_prefix("PARTUUID=") {
            Ok(Self::PartUuid(part_uuid(text, uuid)?))
        } else if let Some(name) = text.strip_prefix("PARTLABEL=") {
            Ok(Self::PartLabel(name.parse()?))
        } else if let Some(name) = text.strip_prefix("/dev/") {
            Ok(Self::Disk(name.parse()?))
        } else if let Some(name) = text.strip_prefix("volume:") {
            Ok(Self::Volume(name.parse()?))
        } else if text == "memory" {
            Ok(Self::Memory)
        } else if text == "slot" {
            Ok(Self::Slot)
        } else {
            Ok(Self::File(text.parse()?))
        }
    }
}

fn part_uuid(text: &str, uuid: &str) -> Result<Uuid, PlaceError> {
    uuid.parse().map_err(|error: uuid::Error| PlaceError::Uuid { text: text.to_owned(), why: error.to_string() })
}

impl FromStr for FilePlace {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let unknown = || PlaceError::Unknown(text.to_owned());
        let (kind, rest) = text.split_once(':').ok_or_else(unknown)?;
        let kind = MediumKind::ALL.into_iter().find(|one| one.name() == kind).ok_or_else(unknown)?;
        let (on, path) = rest.split_once(":/").ok_or_else(unknown)?;
        let on = match on.split_once('=').ok_or_else(unknown)? {
            ("UUID", uuid) => Medium::Uuid(uuid.parse()?),
            ("PARTUUID", uuid) => Medium::PartUuid(part_uuid(text, uuid)?),
            ("PARTLABEL", name) => Medium::PartLabel(name.parse()?),
            _ => return Err(unknown()),
        };
        Ok(Self { kind, on, path: format!("/{path}").parse()? })
    }
}

impl TryFrom<String> for FilePlace {
    type Error = PlaceError;

    fn try_from(text: String) -> Result<Self, PlaceError> {
        text.parse()
    }
}

impl From<FilePlace> for String {
    fn from(place: FilePlace) -> Self {
        place.to_string()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PartUuid(uuid) => write!(formatter, "PARTUUID={uuid}"),
            Self::PartLabel(label) => write!(formatter, "PARTLABEL={label}"),
            Self::Disk(name) => write!(formatter, "/dev/{name}"),
            Self::Volume(name) => write!(formatter, "volume:{name}"),
            Self::File(file) => file.fmt(formatter),
            Self::Memory => formatter.write_str("memory"),
            Self::Slot => formatter.write_str("slot"),
        }
    }
}

impl fmt::Display for FilePlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}", self.kind.name(), self.on, self.path)
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => write!(formatter, "UUID={uuid}"),
            Self::PartUuid(uuid) => write!(formatter, "PARTUUID={uuid}"),
            Self::PartLabel(label) => write!(formatter, "PARTLABEL={label}"),
        }
    }
}

impl Manifest {
    /// Whether data and tree lie behind each other at one place, the hash area at `verity.hash_offset`.
    pub fn is_one_piece(&self) -> bool {
        self.data == self.tree
    }

    /// Data and tree lie in the one volume that is for them, or both outside; both in memory or in a slot, or neither; at one place, behind each
    /// other.
    ///
    /// `data_bytes` is the size of the image.
    pub(super) fn check_places(&self, data_bytes: u64) -> Result<(), ManifestError> {
        let refuse = |field, expected, found: &dyn fmt::Display| {
            Err(ManifestError::Place { field, expected, found: found.to_string() })
        };
        let image = self.volumes.iter().find(|volume| volume.usage == VolumeUse::Image);
        for (field, place) in [("data", &self.data), ("tree", &self.tree)] {
            let fits = match (place, image) {
                (Place::Volume(name), Some(volume)) => volume.name == *name,
                (Place::Volume(_), None) | (_, Some(_)) => false,
                (_, None) => true,
            };
            if !fits {
                let expected = image.map_or("a place outside, or a volume of use \"image\"".to_owned(), |volume| {
                    format!("the volume {}, whose use is \"image\"", volume.name)
                });
                return refuse(field, expected, place);
            }
        }
        for (place, what) in [(Place::Memory, "memory"), (Place::Slot, "a slot")] {
            if (self.data == place) != (self.tree == place) {
                let expected = format!("{}, where the data is: both are in {what}, or neither", self.data);
                return refuse("tree", expected, &self.tree);
            }
        }
        if self.is_one_piece() && self.verity.hash_offset < data_bytes {
            let expected = format!("at least {data_bytes}, behind the data at one place");
            return refuse("verity.hash_offset", expected, &self.verity.hash_offset);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_shown_as_it_is_written() {
        for text in [
            "PARTUUID=01010101-0101-0101-0101-010101010101",
            "PARTLABEL=system_a",
            "/dev/vda",
            "volume:image",
            "memory",
            "slot",
            "vfat:UUID=12AB-34CD:/iofs/6.12/image",
            "ext4:UUID=01010101-0101-0101-0101-010101010101:/image",
            "erofs:PARTLABEL=boot:/a b:c",
            "ext4:PARTUUID=01010101-0101-0101-0101-010101010101:/image",
        ] {
            let place: Place = text.parse().unwrap();
            assert_eq!(place.to_string(), text);
            let json = serde_json::to_string(&place).unwrap();
            assert_eq!(serde_json::from_str::<Place>(&json).unwrap(), place, "{json}");
        }
        assert_eq!("vfat:UUID=12ab-34cd:/x".parse::<Place>().unwrap().to_string(), "vfat:UUID=12AB-34CD:/x");
    }

    #[test]
    fn what_is_no_place_is_refused_with_what_would_be() {
        let refused = |text: &str| text.parse::<Place>().unwrap_err().to_string();
        for text in ["", "vda1", "ext4", "btrfs:UUID=12AB-34CD:/x", "ext4:LABEL=x:/x", "ext4:UUID=1234", "Memory"] {
            assert!(refused(text).contains("expected PARTUUID="), "{}", refused(text));
        }
        for uuid in ["1", "12AB-34C", "+2AB-34CD", "12AB-34CDE"] {
            assert!(refused(&format!("vfat:UUID={uuid}:/x")).contains("file system UUID: expected a UUID"), "{uuid}");
        }
        assert!(refused("PARTUUID=1").contains("place: PARTUUID=1: "));
        assert!(refused("ext4:UUID=12AB-34CD:/a/../b").contains("path: expected an absolute path"));
    }
}
