//! A header: both copies read, the newer intact one taken, its metadata checked as a whole.

use std::fmt;

use uuid::Uuid;

use crate::{
    binary::{self, CopyError, HeaderCopy, Intact},
    cipher::Hash,
    error::{Fault, FieldError},
    json::{Field, Value, quoted},
    kdf::pbkdf2_of_field,
    keyslot::{Keyslot, SlotId, numbered},
    segment::Segment,
    source::ReadAt,
    token::{Token, TokenId},
};

/// What cryptsetup allows at most.
const MAX_KEYSLOTS_SIZE: u64 = 128 * 1024 * 1024;
const ALIGNMENT: u64 = 4096;

/// Where the segment is, as seen from the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Behind the header, on a device of that many bytes.
    Volume {
        /// The device's size in bytes.
        bytes: u64,
    },
    /// On another device.
    Detached,
}

/// An activation flag that a header keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// Discards pass through, so that the disk shows which sectors are in use.
    AllowDiscards,
    /// Encrypt on the processor that asked.
    SameCpuCrypt,
    /// Write from the thread that encrypted.
    SubmitFromCryptCpus,
    /// Decrypt where the read ends.
    NoReadWorkqueue,
    /// Encrypt where the write begins.
    NoWriteWorkqueue,
    /// dm-integrity without its journal: a power cut leaves sectors that do not verify.
    NoJournal,
}

impl Flag {
    const ALL: [Self; 6] = [
        Self::AllowDiscards,
        Self::SameCpuCrypt,
        Self::SubmitFromCryptCpus,
        Self::NoReadWorkqueue,
        Self::NoWriteWorkqueue,
        Self::NoJournal,
    ];

    /// The name in headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllowDiscards => "allow-discards",
            Self::SameCpuCrypt => "same-cpu-crypt",
            Self::SubmitFromCryptCpus => "submit-from-crypt-cpus",
            Self::NoReadWorkqueue => "no-read-workqueue",
            Self::NoWriteWorkqueue => "no-write-workqueue",
            Self::NoJournal => "no-journal",
        }
    }
}

/// Why a volume's header was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderError {
    /// Neither copy is intact.
    Neither {
        /// What is wrong with the first one.
        primary: CopyError,
        /// What is wrong with the second one.
        secondary: CopyError,
    },
    /// What lies in the JSON area is no JSON text with zeros behind it.
    Json {
        /// The copy that was taken.
        copy: HeaderCopy,
        /// What is wrong.
        why: String,
    },
    /// The header is intact, and asks for what is not allowed.
    Refused {
        /// The copy that was taken.
        copy: HeaderCopy,
        /// The field.
        field: FieldError,
    },
}

impl fmt::Display for HeaderError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Neither { primary: CopyError::Version(1), .. } => formatter
                .write_str("version: expected LUKS version 2, found 1; 'cryptsetup convert' makes one of the other"),
            Self::Neither { primary, secondary } => {
                write!(formatter, "no intact LUKS2 header; primary: {primary}; secondary: {secondary}")
            }
            Self::Json { copy, why } => write!(formatter, "{copy} header: JSON: {why}"),
            Self::Refused { copy, field } => write!(formatter, "{copy} header: {field}"),
        }
    }
}

impl std::error::Error for HeaderError {}

/// What a digest says of the keys bound to it.
#[derive(Debug, Clone)]
pub(crate) struct Digest {
    pub(crate) hash: Hash,
    pub(crate) iterations: u32,
    pub(crate) salt: Vec<u8>,
    pub(crate) digest: Vec<u8>,
}

/// A LUKS2 header, everything in it allowed.
#[derive(Debug, Clone)]
pub struct Header {
    /// The volume's UUID.
    pub uuid: Uuid,
    /// Its label, which may be empty.
    pub label: String,
    /// Its second label, which may be empty.
    pub subsystem: String,
    /// Counts the writes.
    pub sequence_id: u64,
    /// Which of the two it is.
    pub copy: HeaderCopy,
    /// Of one header with its JSON area, in bytes.
    pub header_size: u64,
    /// Of the area of all keyslots, behind both headers, in bytes.
    pub keyslots_size: u64,
    /// Activation flags.
    pub flags: Vec<Flag>,
    /// What is odd, and yet no reason to refuse: for people.
    pub notes: Vec<String>,
    pub(crate) segment: Segment,
    pub(crate) digest: Digest,
    keyslots: Vec<(SlotId, Keyslot)>,
    tokens: Vec<(TokenId, Token)>,
}

impl Header {
    /// Reads both headers of a volume of that many bytes, and takes the newer one of those that are intact. The first one
    /// counts where both are equally new.
    ///
    /// An intact header that is refused is not replaced by an older one: no power cut makes such a header, somebody wrote
    /// it.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn read(source: &mut dyn ReadAt, device_bytes: u64) -> Result<Self, HeaderError> {
        Self::read_with(source, Extent::Volume { bytes: device_bytes })
    }

    /// Reads a header whose segment is on another device, or at another place.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn read_with(source: &mut dyn ReadAt, extent: Extent) -> Result<Self, HeaderError> {
        let (taken, notes) = newer(binary::read_both(source))?;
        let json = json(&taken.json_area).map_err(|why| HeaderError::Json { copy: taken.copy, why })?;
        let copy = taken.copy;
        let checked = Self::checked(taken, Field::root(&json), extent, notes);
        checked.map_err(|field| HeaderError::Refused { copy, field: *field })
    }

    /// The keyslots, by number.
    pub fn keyslots(&self) -> impl Iterator<Item = (SlotId, &Keyslot)> {
        self.keyslots.iter().map(|(slot, keyslot)| (*slot, keyslot))
    }

    /// A keyslot.
    pub fn keyslot(&self, slot: SlotId) -> Option<&Keyslot> {
        self.keyslots.iter().find(|(known, _)| *known == slot).map(|(_, keyslot)| keyslot)
    }

    /// The segment.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// The tokens, by number, broken ones too.
    pub fn tokens(&self) -> impl Iterator<Item = (TokenId, &Token)> {
        self.tokens.iter().map(|(id, token)| (*id, token))
    }

    fn checked(intact: Intact, root: Field<'_>, extent: Extent, notes: Vec<String>) -> Result<Self, Fault> {
        root.only(&["keyslots", "tokens", "segments", "digests", "config"])?;
        let mut header = Self {
            uuid: intact.uuid,
            label: intact.label,
            subsystem: intact.subsystem,
            sequence_id: intact.sequence_id,
            copy: intact.copy,
            header_size: intact.size,
            keyslots_size: 0,
            flags: Vec::new(),
            notes,
            // Before keyslots: what re-encryption leaves in them is told by its name.
            segment: {
                requirements(root.member("config")?)?;
                segment(root.member("segments")?)?
            },
            keyslots: keyslots(root.member("keyslots")?)?,
            digest: Digest { hash: Hash::Sha256, iterations: 0, salt: Vec::new(), digest: Vec::new() },
            tokens: Vec::new(),
        };
        header.config(root.member("config")?)?;
        header.places(root, extent)?;
        header.bind(root.member("digests")?)?;
        header.key_sizes()?;
        header.tokens = tokens(root.member("tokens")?, &header)?;
        Ok(header)
    }

    fn config(&mut self, config: Field<'_>) -> Result<(), Fault> {
        let json_size = config.member("json_size")?;
        let expected = self.header_size - binary::BINARY_SIZE as u64;
        if json_size.decimal()? != expected {
            return Err(json_size.error(format!("\"{expected}\", as the binary header says")));
        }
        let size = config.member("keyslots_size")?;
        self.keyslots_size = size.decimal()?;
        if self.keyslots_size > MAX_KEYSLOTS_SIZE || !self.keyslots_size.is_multiple_of(ALIGNMENT) {
            return Err(size.error(format!("a multiple of {ALIGNMENT}, at most {MAX_KEYSLOTS_SIZE}")));
        }
        let Some(flags) = config.member("flags")?.present() else { return Ok(()) };
        for flag in flags.list()? {
            let name = flag.text()?;
            match Flag::ALL.into_iter().find(|known| known.name() == name) {
                Some(known) => self.flags.push(known),
                None => self.notes.push(format!("the activation flag {} is unknown and has no effect", quoted(name))),
            }
        }
        Ok(())
    }

    /// Nothing lies over anything else, and all of it on the device.
    fn places(&self, root: Field<'_>, extent: Extent) -> Result<(), Fault> {
        let start = 2 * self.header_size;
        let end = start + self.keyslots_size;
        let mut areas: Vec<_> = self.keyslots.iter().map(|(slot, keyslot)| (keyslot.area, *slot)).collect();
        areas.sort_unstable_by_key(|(area, _)| area.offset);
        let mut free = start;
        for (area, slot) in areas {
            if area.offset < free || area.end() > end {
                let expected = format!("a place of its own between {start} and {end}");
                let found = format!("{} to {}", area.offset, area.end());
                return Err(FieldError::new(format!("keyslots.{slot}.area"), expected, found));
            }
            free = area.end();
        }
        let Extent::Volume { bytes } = extent else { return Ok(()) };
        let segments = root.member("segments")?.member("0")?;
        if self.segment.offset < end {
            return Err(segments.member("offset")?.error(format!("{end} or more, behind headers and keyslots")));
        }
        if !self.segment.is_within(bytes) {
            let found = match self.segment.size {
                Some(size) => format!("{size} bytes at {}", self.segment.offset),
                None => format!("what is behind {}", self.segment.offset),
            };
            let expected = format!("a sector or more within the device's {bytes} bytes");
            return Err(FieldError::new(segments.path(), expected, found));
        }
        Ok(())
    }

    /// Finds the digest of the segment, and which keyslots are bound to it.
    fn bind(&mut self, digests: Field<'_>) -> Result<(), Fault> {
        let mut with_digest = Vec::new();
        let mut of_segment = None;
        for (number, field) in numbered(digests)? {
            let (digest, slots) = digest(field)?;
            for slot in &slots {
                if self.keyslot(*slot).is_none() || with_digest.contains(slot) {
                    return Err(field.member("keyslots")?.error(format!("keyslots that exist, each once, not {slot}")));
                }
            }
            with_digest.extend(&slots);
            if !segments_of(field)? {
                continue;
            }
            if of_segment.replace(digest).is_some() {
                return Err(FieldError::new(
                    digests.path(),
                    "one digest for the segment",
                    format!("another, {number}"),
                ));
            }
            let bound = self.keyslots.iter_mut().filter(|(slot, _)| slots.contains(slot));
            bound.for_each(|(_, keyslot)| keyslot.bound = true);
        }
        if let Some((slot, _)) = self.keyslots.iter().find(|(slot, _)| !with_digest.contains(slot)) {
            return Err(FieldError::new(digests.path(), format!("one for keyslot {slot}"), "none"));
        }
        self.digest = of_segment.ok_or_else(|| FieldError::new(digests.path(), "one for segment 0", "none"))?;
        Ok(())
    }

    fn key_sizes(&self) -> Result<(), Fault> {
        let allowed = self.segment.key_sizes();
        let mut first = None;
        for (slot, keyslot) in self.keyslots.iter().filter(|(_, keyslot)| keyslot.bound) {
            let size = keyslot.key_size;
            if !allowed.contains(&size) || *first.get_or_insert(size) != size {
                let expected = match first {
                    Some(first) if first != size => format!("{first}, as in the keyslot before"),
                    _ => format!("one of {allowed:?}, for {}", self.segment.encryption),
                };
                return Err(FieldError::new(format!("keyslots.{slot}.key_size"), expected, size.to_string()));
            }
        }
        Ok(())
    }
}

/// The header that counts, and what to say about the other one.
fn newer(
    (primary, secondary): (Result<Intact, CopyError>, Result<Intact, CopyError>),
) -> Result<(Intact, Vec<String>), HeaderError> {
    match (primary, secondary) {
        (Ok(primary), Ok(secondary)) => {
            let (one, other) = match secondary.sequence_id > primary.sequence_id {
                true => (secondary, primary),
                false => (primary, secondary),
            };
            let note = differing(&one, &other);
            Ok((one, note.into_iter().collect()))
        }
        (Ok(one), Err(error)) => Ok((one, vec![format!("the secondary header is damaged: {error}")])),
        (Err(error), Ok(one)) => Ok((one, vec![format!("the primary header is damaged: {error}")])),
        (Err(primary), Err(secondary)) => Err(HeaderError::Neither { primary, secondary }),
    }
}

fn differing(one: &Intact, other: &Intact) -> Option<String> {
    if one.sequence_id != other.sequence_id {
        return Some(format!(
            "the {} header is older (sequence id {}, not {}): a write was interrupted",
            other.copy, other.sequence_id, one.sequence_id
        ));
    }
    let differs = one.uuid != other.uuid || one.json_area != other.json_area;
    differs.then(|| format!("the {} header says something else, and is as new", other.copy))
}

/// The JSON text is all that is in its area but zeros, and one of them at least.
fn json(area: &[u8]) -> Result<Value, String> {
    if area.first() != Some(&b'{') {
        return Err("expected it to begin with {".to_owned());
    }
    let length = area.iter().position(|byte| *byte == 0).ok_or("expected a zero behind the text, found none")?;
    let (text, padding) = area.split_at(length);
    if let Some(at) = padding.iter().position(|byte| *byte != 0) {
        return Err(format!("expected zeros behind the text, found {:#04x} at byte {}", padding[at], length + at));
    }
    Value::parse(text)
}

/// A header that requires anything is in re-encryption, or newer than this.
fn requirements(config: Field<'_>) -> Result<(), Fault> {
    let Some(requirements) = config.member("requirements")?.present() else { return Ok(()) };
    requirements.only(&["mandatory"])?;
    let Some(mandatory) = requirements.member("mandatory")?.present() else { return Ok(()) };
    match mandatory.list()?.first() {
        None => Ok(()),
        Some(requirement) => Err(requirement.error("no requirements: re-encryption must have ended")),
    }
}

fn segment(segments: Field<'_>) -> Result<Segment, Fault> {
    let members = segments.members()?;
    match members.as_slice() {
        [("0", field)] => Segment::of_field(*field),
        _ => {
            let names: Vec<_> = members.iter().map(|(name, _)| quoted(name)).collect();
            let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Err(FieldError::new(segments.path(), "one segment, \"0\"", found))
        }
    }
}

fn keyslots(field: Field<'_>) -> Result<Vec<(SlotId, Keyslot)>, Fault> {
    let mut keyslots = Vec::new();
    for (number, field) in numbered(field)? {
        keyslots.extend(
            SlotId::new(number).map(|slot| Keyslot::of_field(field).map(|keyslot| (slot, keyslot))).transpose()?,
        );
    }
    Ok(keyslots)
}

fn digest(field: Field<'_>) -> Result<(Digest, Vec<SlotId>), Fault> {
    let kind = field.member("type")?;
    if kind.text()? != "pbkdf2" {
        return Err(kind.error("pbkdf2"));
    }
    let (hash, iterations, salt) = pbkdf2_of_field(field)?;
    let member = field.member("digest")?;
    let digest = member.base64()?;
    // A shorter one would be met by many keys.
    if digest.len() != hash.size() {
        return Err(member.error(format!("base64 of {} bytes", hash.size())));
    }
    Ok((Digest { hash, iterations, salt, digest }, SlotId::list(field.member("keyslots")?)?))
}

/// Whether a digest is that of the segment.
fn segments_of(field: Field<'_>) -> Result<bool, Fault> {
    let segments = field.member("segments")?;
    let list = segments.list()?;
    match list.as_slice() {
        [] => Ok(false),
        [one] if one.text()? == "0" => Ok(true),
        _ => Err(segments.error("\"0\" alone, or nothing")),
    }
}

fn tokens(field: Field<'_>, header: &Header) -> Result<Vec<(TokenId, Token)>, Fault> {
    let members = numbered(field)?.into_iter();
    Ok(members.filter_map(|(number, field)| Some((TokenId::new(number)?, Token::of_field(field, header)))).collect())
}
