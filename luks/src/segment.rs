//! The segment: which bytes are encrypted, and how.

use crate::{
    cipher::{Cipher, Integrity},
    error::Fault,
    json::Field,
};

const SECTOR: u64 = 512;
const SECTOR_SIZES: [u32; 4] = [512, 1024, 2048, 4096];

/// The one segment of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its size in bytes; `None` where it ends with the device.
    pub size: Option<u64>,
    /// What is added to a sector's number to make its tweak, in 512-byte sectors.
    pub iv_tweak: u64,
    /// The size of what is encrypted at a time, in bytes.
    pub sector_size: u32,
    /// The cipher.
    pub encryption: Cipher,
    /// What authenticates it, by way of dm-integrity.
    pub integrity: Option<Integrity>,
}

impl Segment {
    pub(crate) fn of_field(field: Field<'_>) -> Result<Self, Fault> {
        let kind = field.member("type")?;
        if kind.text()? != "crypt" {
            return Err(kind.error("crypt"));
        }
        field.only(&["type", "offset", "size", "iv_tweak", "encryption", "sector_size", "integrity"])?;
        let encryption = field.member("encryption")?;
        let segment = Self {
            offset: offset(field.member("offset")?)?,
            iv_tweak: field.member("iv_tweak")?.decimal()?,
            sector_size: sector_size(field.member("sector_size")?)?,
            encryption: Cipher::of_field(encryption)?,
            integrity: field.member("integrity")?.present().map(|field| integrity(field)).transpose()?,
            size: size(field.member("size")?)?,
        };
        if segment.key_sizes().is_empty() {
            return Err(encryption.error(match segment.integrity {
                Some(integrity) => format!("a cipher that goes with {integrity}"),
                None => "a cipher that goes without integrity".to_owned(),
            }));
        }
        match segment.size {
            Some(bytes) if bytes == 0 || !bytes.is_multiple_of(segment.sector_size.into()) => {
                let expected = format!("dynamic, or a multiple of {} above 0", segment.sector_size);
                Err(field.member("size")?.error(expected))
            }
            _ => Ok(segment),
        }
    }

    /// The sizes that its key may have, in bytes.
    pub(crate) fn key_sizes(&self) -> &'static [u32] {
        self.encryption.key_sizes(self.integrity)
    }

    /// How many bytes it has on a device of that size.
    pub(crate) fn bytes_on(&self, device_bytes: u64) -> u64 {
        self.size.unwrap_or_else(|| device_bytes.saturating_sub(self.offset))
    }

    /// Whether it lies within a device of that size.
    pub(crate) fn is_within(&self, device_bytes: u64) -> bool {
        let least = self.size.unwrap_or(self.sector_size.into());
        self.offset.checked_add(least).is_some_and(|end| end <= device_bytes)
    }
}

fn offset(field: Field<'_>) -> Result<u64, Fault> {
    let offset = field.decimal()?;
    if !offset.is_multiple_of(SECTOR) {
        return Err(field.error("a multiple of 512"));
    }
    Ok(offset)
}

fn size(field: Field<'_>) -> Result<Option<u64>, Fault> {
    match field.text()? {
        "dynamic" => Ok(None),
        _ => field.decimal().map(Some),
    }
}

fn sector_size(field: Field<'_>) -> Result<u32, Fault> {
    let size = field.number(0, u32::MAX)?;
    match SECTOR_SIZES.contains(&size) {
        true => Ok(size),
        false => Err(field.error("512, 1024, 2048 or 4096")),
    }
}

/// Journals are protected by nothing but the tags in them, which is what cryptsetup makes of `--integrity`.
fn integrity(field: Field<'_>) -> Result<Integrity, Fault> {
    field.only(&["type", "journal_encryption", "journal_integrity", "key_size"])?;
    for name in ["journal_encryption", "journal_integrity"] {
        let member = field.member(name)?;
        if member.text()? != "none" {
            return Err(member.error("none"));
        }
    }
    let integrity = Integrity::of_field(field.member("type")?)?;
    if let Some(size) = field.member("key_size")?.present() {
        size.number(integrity.key_size(), integrity.key_size())?;
    }
    Ok(integrity)
}
