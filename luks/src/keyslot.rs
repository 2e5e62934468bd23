//! Keyslots: where the volume key lies encrypted, and what it takes to decrypt it.

use std::fmt;

use crate::{
    cipher::Hash,
    error::{Fault, FieldError},
    json::{Field, decimal},
    kdf::Kdf,
};

/// How many keyslots, tokens, digests and segments there may be of each (cryptsetup's limit).
pub(crate) const MAX_OBJECTS: u8 = 32;
/// How often a key is blown up by splitting it, so that it can be erased: every LUKS2 header has this.
pub(crate) const STRIPES: u32 = 4000;
/// The largest volume key: AES-256 in XTS mode with HMAC-SHA-512.
const MAX_KEY_SIZE: u32 = 128;
const ALIGNMENT: u64 = 4096;

/// The number of a keyslot, 0 to 31.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(u8);

impl SlotId {
    /// Takes a number.
    ///
    /// `None` for 32 and above.
    pub const fn new(number: u8) -> Option<Self> {
        if number < MAX_OBJECTS { Some(Self(number)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// A slot's number as a list of JSON has it.
    pub(crate) fn of_field(field: Field<'_>) -> Result<Self, Fault> {
        object_number(field.text()?).map(Self).ok_or_else(|| field.error("a slot's number, \"0\" to \"31\""))
    }

    pub(crate) fn list(field: Field<'_>) -> Result<Vec<Self>, Fault> {
        let fields = field.list()?;
        let mut slots = Vec::new();
        for one in fields {
            let slot = Self::of_field(one)?;
            if slots.contains(&slot) {
                return Err(one.error("each slot once"));
            }
            slots.push(slot);
        }
        Ok(slots)
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The number that is the name of a keyslot, token, segment or digest.
pub(crate) fn object_number(name: &str) -> Option<u8> {
    decimal(name).and_then(|number| u8::try_from(number).ok()).filter(|number| *number < MAX_OBJECTS)
}

/// The members of an object whose names are numbers, in their order.
pub(crate) fn numbered<'a>(field: Field<'a>) -> Result<Vec<(u8, Field<'a>)>, Fault> {
    let mut members = Vec::new();
    for (name, member) in field.members()? {
        let number = object_number(name)
            .ok_or_else(|| FieldError::new(field.path(), "names from \"0\" to \"31\"", crate::json::quoted(name)))?;
        members.push((number, member));
    }
    members.sort_unstable_by_key(|(number, _)| *number);
    Ok(members)
}

/// How a keyslot ranks where several could be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// It is tried where it is named only.
    Ignore,
    /// As the others.
    Normal,
    /// Before the others.
    Prefer,
}

/// Where a keyslot's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// From the volume's beginning, in bytes.
    pub offset: u64,
    /// In bytes.
    pub size: u64,
    /// The size of the key by which the area is encrypted, as `aes-xts-plain64`, in bytes.
    pub key_size: u32,
}

impl Area {
    /// The byte behind the last one. It was checked not to overflow.
    pub(crate) const fn end(&self) -> u64 {
        self.offset + self.size
    }
}

/// A keyslot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyslot {
    /// The size of the key in it, in bytes.
    pub key_size: u32,
    /// Whether it is tried first, or not at all.
    pub priority: Priority,
    /// The hash by which the key was split.
    pub split_hash: Hash,
    /// Where it lies.
    pub area: Area,
    /// How the area's key is derived.
    pub kdf: Kdf,
    /// Whether its key is that of the segment. Keys that are bound to nothing open nothing.
    pub bound: bool,
}

impl Keyslot {
    /// How many bytes of the area hold the split key.
    pub(crate) const fn split_size(&self) -> u64 {
        self.key_size as u64 * STRIPES as u64
    }

    pub(crate) fn of_field(field: Field<'_>) -> Result<Self, Fault> {
        let kind = field.member("type")?;
        if kind.text()? != "luks2" {
            return Err(kind.error("luks2: a volume in re-encryption is not opened"));
        }
        let slot = Self {
            key_size: field.member("key_size")?.number(1, MAX_KEY_SIZE)?,
            priority: priority(field.member("priority")?)?,
            split_hash: split_hash(field.member("af")?)?,
            area: area(field.member("area")?)?,
            kdf: Kdf::of_field(field.member("kdf")?)?,
            bound: false,
        };
        if slot.area.size < slot.split_size() {
            let expected = format!("at least {} bytes, for {STRIPES} stripes of the key", slot.split_size());
            return Err(field.member("area")?.member("size")?.error(expected));
        }
        Ok(slot)
    }
}

fn priority(field: Field<'_>) -> Result<Priority, Fault> {
    if field.is_absent() {
        return Ok(Priority::Normal);
    }
    Ok(match field.number(0, 2)? {
        0 => Priority::Ignore,
        1 => Priority::Normal,
        _ => Priority::Prefer,
    })
}

fn split_hash(field: Field<'_>) -> Result<Hash, Fault> {
    let kind = field.member("type")?;
    if kind.text()? != "luks1" {
        return Err(kind.error("luks1"));
    }
    field.member("stripes")?.number(STRIPES, STRIPES)?;
    Hash::of_field(field.member("hash")?)
}

fn area(field: Field<'_>) -> Result<Area, Fault> {
    let kind = field.member("type")?;
    if kind.text()? != "raw" {
        return Err(kind.error("raw: a volume in re-encryption is not opened"));
    }
    let encryption = field.member("encryption")?;
    if encryption.text()? != "aes-xts-plain64" {
        return Err(encryption.error("aes-xts-plain64"));
    }
    let key_size = field.member("key_size")?;
    let (offset, size) = (field.member("offset")?, field.member("size")?);
    let area = Area { offset: offset.decimal()?, size: size.decimal()?, key_size: key_size.number(32, 64)? };
    if ![32, 64].contains(&area.key_size) {
        return Err(key_size.error("32 or 64"));
    }
    if area.offset.checked_add(area.size).is_none() {
        return Err(size.error("a size that fits a volume"));
    }
    if !area.offset.is_multiple_of(ALIGNMENT) {
        return Err(offset.error("a multiple of 4096"));
    }
    if area.size == 0 || !area.size.is_multiple_of(ALIGNMENT) {
        return Err(size.error("a multiple of 4096, above 0"));
    }
    Ok(area)
}
