//! The sealed volumes: LUKS2 devices that the boot opens, what each is for, and how it may be opened.
//!
//! Nothing of a volume's own header decides any of this: the header lies on the disk, and anybody can write there.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Manifest, MountOption, Place, RootPath, TpmUse, ValueError};
use crate::{
    digest::Sha256Digest,
    paths::{ROOT_MAPPING, SECOND_STAGE_MAPPING},
    pcr::{PcrBank, PcrDigest},
};

/// The most volumes of one image: each takes its time, and its question.
pub const MAX_VOLUMES: usize = 16;
/// The most wrong answers that a console may give for one volume.
pub const MAX_TRIES: u8 = 10;
/// The most memory, in KiB, that a key derivation may be sealed to take: 4 GiB.
pub const MAX_MEMORY_KIB: u32 = 4 << 20;
/// What cryptsetup takes at most, in KiB: 1 GiB.
const DEFAULT_MEMORY_KIB: u32 = 1 << 20;
const DEFAULT_TRIES: u8 = 3;

/// Folders that a data volume must not cover: the kernel's own, and those whose files are the sealed system.
const RESERVED: [&str; 12] =
    ["/run", "/dev", "/proc", "/sys", "/usr", "/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/boot"];
/// Mount options that name another device, whose contents nobody decrypts or checks, or that undo another option.
const FORBIDDEN: [&str; 10] =
    ["journal_dev=", "journal_path=", "logdev=", "rtdev=", "rescue=", "degraded", "rw", "remount", "bind", "rbind"];
/// What cryptsetup appends to the name of the mapping below an integrity-protected volume.
const INTEGRITY_SUFFIX: &str = "_dif";

/// A volume's name: `/dev/mapper/NAME`, and part of what is measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the mapping below, where the volume is integrity-protected: cryptsetup's.
    pub fn integrity_mapping(&self) -> String {
        format!("{}{INTEGRITY_SUFFIX}", self.0)
    }
}

impl TryFrom<String> for VolumeName {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let letters = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        let taken = matches!(text.as_str(), ROOT_MAPPING | SECOND_STAGE_MAPPING | "control")
            || text.ends_with(INTEGRITY_SUFFIX);
        if (1..=64).contains(&text.len()) && letters && !taken && !text.starts_with('.') {
            return Ok(Self(text));
        }
        let expected = "1 to 64 of letters, digits, '_', '-' and '.', without '.' at the start, '_dif' at the end, and not 'root' or 'control'";
        Err(ValueError { field: "volume name", expected, found: text })
    }
}

impl std::str::FromStr for VolumeName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.to_owned().try_into()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A file system that a volume may hold. It is mounted as this and nothing else: nothing is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    /// ext4
    Ext4,
    /// XFS
    Xfs,
    /// Btrfs, on this one device
    Btrfs,
}

impl FileSystem {
    /// The kernel's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A file system that is mounted at a path of the real root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataUse {
    /// Where.
    pub path: RootPath,
    /// What it is.
    pub file_system: FileSystem,
    /// How it is mounted.
    #[serde(default)]
    pub options: Vec<MountOption>,
}

/// A file system that keeps what is written to the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpperUse {
    /// What it is.
    pub file_system: FileSystem,
    /// How it is mounted.
    #[serde(default)]
    pub options: Vec<MountOption>,
}

/// What a volume is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeUse {
    /// State of the system: a file system that is mounted at a path of the real root.
    Data(DataUse),
    /// The sealed image and its tree: dm-verity inside the volume.
    Image,
    /// The upper layer of the root's overlay. The volume must be integrity-protected: without that, whoever has the disk
    /// could change what shadows the sealed files.
    Upper(UpperUse),
}

impl VolumeUse {
    /// The word in configuration and record.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Data(_) => "data",
            Self::Image => "image",
            Self::Upper(_) => "upper",
        }
    }

    /// The file system in it, if there is one: an image is always erofs.
    pub fn file_system(&self) -> Option<FileSystem> {
        match self {
            Self::Data(data) => Some(data.file_system),
            Self::Upper(upper) => Some(upper.file_system),
            Self::Image => None,
        }
    }

    fn options(&self) -> &[MountOption] {
        match self {
            Self::Data(data) => &data.options,
            Self::Upper(upper) => &upper.options,
            Self::Image => &[],
        }
    }
}

/// How a volume may be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnlockRules {
    /// By what the TPM holds, without anybody present.
    pub tpm: bool,
    /// By what the TPM gives for a PIN that is typed on the console.
    pub pin: bool,
    /// By a passphrase or a recovery key that is typed on the console.
    pub passphrase: bool,
    /// How many wrong answers a console may give.
    pub tries: u8,
    /// The most memory that a key derivation may take, in KiB. A header that asks for more is refused.
    pub max_memory_kib: u32,
}

impl Default for UnlockRules {
    fn default() -> Self {
        let (tries, max_memory_kib) = (DEFAULT_TRIES, DEFAULT_MEMORY_KIB);
        Self { tpm: true, pin: false, passphrase: false, tries, max_memory_kib }
    }
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name, which becomes the mapping's.
    pub name: VolumeName,
    /// The device that holds it.
    pub place: Place,
    /// The UUID in its header, if only that one is to be taken.
    #[serde(default)]
    pub luks_uuid: Option<Uuid>,
    /// The identity of its volume key, if only that one is to be taken: HMAC-SHA256 by the volume key over
    /// `cryptsetup:NAME:UUID`, which is what register 15 of the SHA-256 bank is extended by.
    #[serde(default)]
    pub volume_key: Option<Sha256Digest>,
    /// What it is for.
    #[serde(rename = "use")]
    pub usage: VolumeUse,
    /// How it may be opened.
    #[serde(default)]
    pub unlock: UnlockRules,
    /// Whether the boot goes on without it.
    #[serde(default)]
    pub optional: bool,
}

/// Why nobody knows beforehand what the volumes make of register 15.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownIdentity {
    /// Any volume of that name is taken.
    #[error("volume {0}: no volume_key is pinned, so that any volume of its place may be opened")]
    Unpinned(VolumeName),
    /// It may stay shut.
    #[error("volume {0} is optional: the boot goes on without it")]
    Optional(VolumeName),
    /// What is pinned is of another bank.
    #[error("a pinned volume_key is the event of the sha256 bank: those of the {0} bank take the volume key itself")]
    Bank(PcrBank),
}

impl Manifest {
    /// What register 15 is extended by until `leave-initrd`, in its order, each with its volume's name: the pinned keys' ids, which
    /// are the digests of the SHA-256 bank. Nothing where there are no volumes, in any bank.
    ///
    /// # Errors
    /// [`UnknownIdentity`]: the manifest does not decide it.
    pub fn measured_volumes(&self, bank: PcrBank) -> Result<Vec<(VolumeName, PcrDigest)>, UnknownIdentity> {
        let pinned = self.volumes.iter().map(|volume| Ok((&volume.name, volume.decided_key()?)));
        let pinned = pinned.collect::<Result<Vec<_>, UnknownIdentity>>()?;
        let measured = |(name, key): (&VolumeName, Sha256Digest)| match bank {
            PcrBank::Sha256 => {
                let digest = PcrDigest::new(bank, key.as_bytes()).map_err(|_| UnknownIdentity::Bank(bank))?;
                Ok((name.clone(), digest))
            }
            other => Err(UnknownIdentity::Bank(other)),
        };
        pinned.into_iter().map(measured).collect()
    }
}

impl Volume {
    /// The id of the key that opens it, where the manifest decides that it is opened and by none but this key.
    fn decided_key(&self) -> Result<Sha256Digest, UnknownIdentity> {
        let key = self.volume_key.ok_or_else(|| UnknownIdentity::Unpinned(self.name.clone()))?;
        if self.optional { Err(UnknownIdentity::Optional(self.name.clone())) } else { Ok(key) }
    }
}

/// Why a manifest's volumes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// There are too many.
    #[error("manifest: volumes: expected at most {MAX_VOLUMES}, found {0}")]
    TooMany(usize),
    /// Something must be there once.
    #[error("manifest: volumes: expected each {what} once, found {value} again")]
    Twice {
        /// What.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// A field's value does not do.
    #[error("manifest: volume {volume}: {field}: expected {expected}, found {found}")]
    Field {
        /// The volume.
        volume: VolumeName,
        /// The field.
        field: &'static str,
        /// What would do.
        expected: String,
        /// What is there.
        found: String,
    },
}

impl Volume {
    fn refuse(&self, field: &'static str, expected: impl Into<String>, found: impl fmt::Display) -> VolumeError {
        VolumeError::Field { volume: self.name.clone(), field, expected: expected.into(), found: found.to_string() }
    }

    fn check(&self, manifest: &Manifest) -> Result<(), VolumeError> {
        if matches!(self.place, Place::Volume(_) | Place::File(_) | Place::Memory | Place::Slot) {
            return Err(self.refuse("place", "a partition or a disk", &self.place));
        }
        self.check_unlock(manifest.tpm.usage)?;
        match &self.usage {
            VolumeUse::Data(data) => self.check_path(data.path.as_str())?,
            VolumeUse::Upper(_) if manifest.overlay.is_some() => {
                return Err(self.refuse("use", "no upper beside an overlay in memory", "both"));
            }
            VolumeUse::Upper(_) | VolumeUse::Image if self.optional => {
                return Err(self.refuse("optional", "false for what the root stands on", "true"));
            }
            VolumeUse::Upper(_) | VolumeUse::Image => {}
        }
        for option in self.usage.options() {
            let bad = FORBIDDEN.iter().any(|one| match one.strip_suffix('=') {
                Some(_) => option.as_str().starts_with(one),
                None => option.as_str() == *one,
            });
            if bad || (matches!(self.usage, VolumeUse::Upper(_)) && option.as_str() == "ro") {
                return Err(self.refuse("options", "none that names another device or contradicts the use", option));
            }
        }
        Ok(())
    }

    fn check_unlock(&self, tpm: TpmUse) -> Result<(), VolumeError> {
        let UnlockRules { tpm: by_tpm, pin, passphrase, tries, max_memory_kib } = self.unlock;
        if !(by_tpm || pin || passphrase) {
            return Err(self.refuse("unlock", "one of tpm, pin and passphrase", "none"));
        }
        if (by_tpm || pin) && tpm == TpmUse::Off {
            return Err(self.refuse("unlock", "passphrase alone beside tpm.use \"off\"", "tpm or pin"));
        }
        if !(1..=MAX_TRIES).contains(&tries) {
            return Err(self.refuse("unlock.tries", format!("1 to {MAX_TRIES}"), tries));
        }
        if !(1024..=MAX_MEMORY_KIB).contains(&max_memory_kib) {
            return Err(self.refuse("unlock.max_memory_kib", format!("1024 to {MAX_MEMORY_KIB}"), max_memory_kib));
        }
        Ok(())
    }

    fn check_path(&self, path: &str) -> Result<(), VolumeError> {
        let parts = path.strip_prefix('/').unwrap_or_default().split('/');
        if parts.clone().any(|part| part.is_empty() || part == ".") {
            return Err(self.refuse("use.data.path", "a path below / without empty parts and '.'", path));
        }
        match RESERVED.iter().find(|reserved| is_below(path, reserved)) {
            None => Ok(()),
            Some(reserved) => Err(self.refuse("use.data.path", format!("a path outside {reserved}"), path)),
        }
    }
}

/// Whether a path is a folder or something in it.
fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Manifest {
    /// The volume of that name.
    pub fn volume(&self, name: &VolumeName) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == *name)
    }

    /// The volume that keeps what is written to the root, if there is one.
    pub fn upper(&self) -> Option<(&Volume, &UpperUse)> {
        self.volumes.iter().find_map(|volume| match &volume.usage {
            VolumeUse::Upper(upper) => Some((volume, upper)),
            VolumeUse::Data(_) | VolumeUse::Image => None,
        })
    }

    /// Whether the root can be written to: in memory, or on a volume.
    pub fn is_writable(&self) -> bool {
        self.overlay.is_some() || self.upper().is_some()
    }

    pub(super) fn check_volumes(&self) -> Result<(), VolumeError> {
        if self.volumes.len() > MAX_VOLUMES {
            return Err(VolumeError::TooMany(self.volumes.len()));
        }
        self.volumes.iter().try_for_each(|volume| volume.check(self))?;
        once("name", self.volumes.iter().map(|volume| volume.name.to_string()))?;
        once("place", self.volumes.iter().map(|volume| volume.place.to_string()))?;
        once("LUKS UUID", self.volumes.iter().filter_map(|volume| volume.luks_uuid).map(|uuid| uuid.to_string()))?;
        let uses = self.volumes.iter().map(|volume| match &volume.usage {
            VolumeUse::Data(data) => format!("path {}", data.path),
            other => other.name().to_owned(),
        });
        once("use", uses)?;
        self.check_order()
    }

    /// What is mounted later must not cover what was mounted before.
    fn check_order(&self) -> Result<(), VolumeError> {
        let mut mounted: Vec<&str> = Vec::new();
        for volume in &self.volumes {
            let VolumeUse::Data(data) = &volume.usage else { continue };
            if let Some(covered) = mounted.iter().find(|earlier| is_below(earlier, data.path.as_str())) {
                let expected = format!("a place in the list before the volume of {covered}");
                return Err(volume.refuse("use.data.path", expected, &data.path));
            }
            mounted.push(data.path.as_str());
        }
        Ok(())
    }
}

fn once(what: &'static str, values: impl Iterator<Item = String>) -> Result<(), VolumeError> {
    let mut seen = BTreeSet::new();
    for value in values {
        if !seen.insert(value.clone()) {
            return Err(VolumeError::Twice { what, value });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
