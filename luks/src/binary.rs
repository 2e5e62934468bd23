//! The binary header, of which there are two, and the JSON area behind each.
//!
//! LUKS2 On-Disk Format Specification, chapter 2. All numbers are big-endian.

use std::{fmt, ops::Range};

use sha2::{Digest, Sha256, Sha512};
use uuid::Uuid;

use crate::{cipher::Hash, json::quoted, source::ReadAt};

const PRIMARY_MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const SECONDARY_MAGIC: &[u8; 6] = b"SKUL\xba\xbe";
const VERSION: u16 = 2;
/// The size of the binary header; the JSON area follows.
pub(crate) const BINARY_SIZE: usize = 4096;
/// The sizes that a header with its JSON area may have, in bytes. The second header begins at one of them, where the first
/// one ends.
pub const KNOWN_HEADER_SIZES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];

const VERSION_AT: usize = 6;
const SIZE_AT: usize = 8;
const SEQUENCE_ID_AT: usize = 16;
const LABEL_AT: Range<usize> = 24..72;
const CHECKSUM_ALGORITHM_AT: Range<usize> = 72..104;
const UUID_AT: Range<usize> = 168..208;
const SUBSYSTEM_AT: Range<usize> = 208..256;
const OFFSET_AT: usize = 256;
const CHECKSUM_AT: Range<usize> = 448..512;

/// Which of the two headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderCopy {
    /// The one at the volume's beginning.
    Primary,
    /// The one behind it.
    Secondary,
}

impl HeaderCopy {
    /// The word in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }

    const fn magic(self) -> &'static [u8; 6] {
        match self {
            Self::Primary => PRIMARY_MAGIC,
            Self::Secondary => SECONDARY_MAGIC,
        }
    }
}

impl fmt::Display for HeaderCopy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Why one of the two headers is not used: it is damaged, or never was one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// It cannot be read.
    #[error("{length} bytes at byte {offset}: {why}")]
    Read {
        /// Where.
        offset: u64,
        /// How much.
        length: usize,
        /// What the system says.
        why: String,
    },
    /// The first bytes are others: there is no header here.
    #[error("magic: expected \"{}\", found \"{}\"", expected.escape_ascii(), found.escape_ascii())]
    Magic {
        /// Those of this copy.
        expected: &'static [u8; 6],
        /// The bytes found.
        found: [u8; 6],
    },
    /// It is a header of another version.
    #[error("version: expected {VERSION}, found {0}")]
    Version(u16),
    /// The size is none of those that headers have.
    #[error("header size: expected 16 KiB to 4 MiB, a power of two, found {0} bytes")]
    Size(u64),
    /// The header says that it is somewhere else.
    #[error("header offset: expected {expected}, where it is, found {found}")]
    Offset {
        /// Where it is, in bytes.
        expected: u64,
        /// Where it says that it is.
        found: u64,
    },
    /// The second header has another size than its place says.
    #[error("header size: expected {expected} bytes, after which it begins, found {found}")]
    OtherSize {
        /// Its offset.
        expected: u64,
        /// The size in it.
        found: u64,
    },
    /// A text is not UTF-8 with zeros behind it.
    #[error("{0}: expected a text padded with zeros")]
    Text(&'static str),
    /// The checksum's algorithm is unknown.
    #[error("checksum algorithm: expected sha256 or sha512, found {}", quoted(.0))]
    ChecksumAlgorithm(String),
    /// The checksum is another one: the header is damaged, or only half of it was written.
    #[error("checksum: expected {expected}, found {found}")]
    Checksum {
        /// That of the bytes, in hexadecimal.
        expected: String,
        /// The one in the header.
        found: String,
    },
    /// The UUID is none.
    #[error("UUID: expected lower-case digits in groups of 8-4-4-4-12, found {}", quoted(.0))]
    Uuid(String),
    /// There is no header at any of the places where it may be.
    #[error("there is none at any of the places where it can be, 16 KiB to 4 MiB")]
    Nowhere,
}

/// A header whose checksum holds.
#[derive(Debug, Clone)]
pub(crate) struct Intact {
    pub(crate) copy: HeaderCopy,
    /// Of the header with its JSON area, in bytes.
    pub(crate) size: u64,
    pub(crate) sequence_id: u64,
    pub(crate) uuid: Uuid,
    pub(crate) label: String,
    pub(crate) subsystem: String,
    /// The JSON area, with the zeros behind the text.
    pub(crate) json_area: Vec<u8>,
}

/// Reads the first header, and the second one where the first one says it is, or where it can be.
pub(crate) fn read_both(source: &mut dyn ReadAt) -> (Result<Intact, CopyError>, Result<Intact, CopyError>) {
    let primary = read_copy(source, HeaderCopy::Primary, 0);
    let secondary = match &primary {
        Ok(primary) => read_copy(source, HeaderCopy::Secondary, primary.size),
        Err(_) => find_secondary(source),
    };
    (primary, secondary)
}

/// The first of the places that has an intact header; else what is wrong with the one that looks like a header.
fn find_secondary(source: &mut dyn ReadAt) -> Result<Intact, CopyError> {
    let mut damaged = CopyError::Nowhere;
    for offset in KNOWN_HEADER_SIZES {
        match read_copy(source, HeaderCopy::Secondary, offset) {
            Ok(intact) => return Ok(intact),
            Err(CopyError::Magic { .. } | CopyError::Read { .. }) => {}
            Err(error) => damaged = error,
        }
    }
    Err(damaged)
}

fn read_copy(source: &mut dyn ReadAt, copy: HeaderCopy, offset: u64) -> Result<Intact, CopyError> {
    let mut read = |offset, length| {
        source.read_at(offset, length).map_err(|error| CopyError::Read { offset, length, why: error.to_string() })
    };
    let start = read(offset, BINARY_SIZE)?;
    let size = size(copy, &start, offset)?;
    let bytes = read(offset, size as usize)?;
    intact(copy, bytes, offset)
}

/// The size of header and JSON area, once the first bytes are those of a header.
fn size(copy: HeaderCopy, bytes: &[u8], offset: u64) -> Result<u64, CopyError> {
    let found = array(bytes, 0);
    if found != *copy.magic() {
        return Err(CopyError::Magic { expected: copy.magic(), found });
    }
    let version = u16::from_be_bytes(array(bytes, VERSION_AT));
    if version != VERSION {
        return Err(CopyError::Version(version));
    }
    let size = number(bytes, SIZE_AT);
    match copy {
        _ if !KNOWN_HEADER_SIZES.contains(&size) => Err(CopyError::Size(size)),
        HeaderCopy::Secondary if size != offset => Err(CopyError::OtherSize { expected: offset, found: size }),
        _ => Ok(size),
    }
}

fn intact(copy: HeaderCopy, mut bytes: Vec<u8>, offset: u64) -> Result<Intact, CopyError> {
    let size = size(copy, &bytes, offset)?;
    check_checksum(&bytes)?;
    let found = number(&bytes, OFFSET_AT);
    if found != offset {
        return Err(CopyError::Offset { expected: offset, found });
    }
    Ok(Intact {
        copy,
        size,
        sequence_id: number(&bytes, SEQUENCE_ID_AT),
        uuid: uuid(&bytes)?,
        label: text(&bytes, LABEL_AT, "label")?,
        subsystem: text(&bytes, SUBSYSTEM_AT, "subsystem")?,
        json_area: bytes.split_off(BINARY_SIZE),
    })
}

fn check_checksum(bytes: &[u8]) -> Result<(), CopyError> {
    let name = text(bytes, CHECKSUM_ALGORITHM_AT, "checksum algorithm")?;
    let hash = Hash::by_name(&name).ok_or(CopyError::ChecksumAlgorithm(name))?;
    let (expected, found) = (checksum(hash, bytes), &bytes[CHECKSUM_AT]);
    if found == expected {
        return Ok(());
    }
    let hex = |bytes: &[u8]| iofs_policy::hex::encode(&bytes[..hash.size()]);
    Err(CopyError::Checksum { expected: hex(&expected), found: hex(found) })
}

/// Over the whole header, with zeros in the checksum's place.
fn checksum(hash: Hash, bytes: &[u8]) -> [u8; CHECKSUM_AT.end - CHECKSUM_AT.start] {
    let parts = [&bytes[..CHECKSUM_AT.start], &[0; CHECKSUM_AT.end - CHECKSUM_AT.start], &bytes[CHECKSUM_AT.end..]];
    let mut field = [0; CHECKSUM_AT.end - CHECKSUM_AT.start];
    match hash {
        Hash::Sha256 => field[..hash.size()].copy_from_slice(&digest::<Sha256>(&parts)),
        Hash::Sha512 => field[..hash.size()].copy_from_slice(&digest::<Sha512>(&parts)),
    }
    field
}

fn digest<D: Digest>(parts: &[&[u8]]) -> sha2::digest::Output<D> {
    let mut hasher = D::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// Puts the right checksum into a header that was changed, where it names an algorithm for it. For tests.
#[doc(hidden)]
pub fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() >= BINARY_SIZE
        && let Ok(name) = text(&bytes, CHECKSUM_ALGORITHM_AT, "checksum algorithm")
        && let Some(hash) = Hash::by_name(&name)
    {
        let field = checksum(hash, &bytes);
        bytes[CHECKSUM_AT].copy_from_slice(&field);
    }
    bytes
}

fn uuid(bytes: &[u8]) -> Result<Uuid, CopyError> {
    let text = text(bytes, UUID_AT, "UUID")?;
    // Other spellings would be measured as other texts.
    match Uuid::try_parse(&text) {
        Ok(uuid) if uuid.to_string() == text => Ok(uuid),
        _ => Err(CopyError::Uuid(text)),
    }
}

fn text(bytes: &[u8], at: Range<usize>, field: &'static str) -> Result<String, CopyError> {
    let bytes = &bytes[at];
    let length = bytes.iter().position(|byte| *byte == 0).ok_or(CopyError::Text(field))?;
    let (text, padding) = bytes.split_at(length);
    match str::from_utf8(text) {
        Ok(text) if padding.iter().all(|byte| *byte == 0) => Ok(text.to_owned()),
        _ => Err(CopyError::Text(field)),
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}
