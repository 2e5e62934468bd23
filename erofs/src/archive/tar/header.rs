//! One 512-byte header block.

use std::ops::Range;

use crate::archive::{
    entry::{Device, Kind, excerpt, printable},
    error::{ArchiveError, Place},
};

/// The unit of the format: headers are this long, contents are padded to it.
pub(super) const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPEFLAG: usize = 156;
const LINK_NAME: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;

/// A header whose checksum holds.
pub(super) struct Header {
    block: [u8; BLOCK],
    place: Box<Place>,
}

impl Header {
    pub(super) fn new(block: [u8; BLOCK], place: Box<Place>) -> Result<Self, ArchiveError> {
        let header = Self { block, place };
        if checksum_holds(&header.block) {
            return Ok(header);
        }
        let expected = format!("{:o}, the sum of the header's bytes", checksum(&header.block));
        Err(header.error("chksum", expected, printable(&header.block[CHECKSUM])))
    }

    pub(super) fn bytes(&self) -> &[u8; BLOCK] {
        &self.block
    }

    pub(super) fn offset(&self) -> u64 {
        self.place.offset
    }

    /// Names the entry in errors from here on.
    pub(super) fn set_entry(&mut self, name: String) {
        self.place.entry = Some(name);
    }

    pub(super) fn error(&self, field: &'static str, expected: String, found: String) -> ArchiveError {
        ArchiveError::Field { place: self.place.clone(), field, expected, found }
    }

    pub(super) fn unsupported(&self, what: impl Into<String>) -> ArchiveError {
        ArchiveError::Unsupported { place: self.place.clone(), what: what.into() }
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.block[TYPEFLAG]
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.block[NAME]);
        // GNU's magic is "ustar  \0", and it has other fields where ustar has the prefix.
        let prefix = if self.block[MAGIC] == *b"ustar\x0000" { text(&self.block[PREFIX]) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link_name(&self) -> Vec<u8> {
        text(&self.block[LINK_NAME]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32, ArchiveError> {
        // Some writers include the file type's bits.
        Ok(self.number("mode", MODE, 0, i128::from(u32::MAX))? as u32 & 0o7777)
    }

    pub(super) fn uid(&self) -> Result<u32, ArchiveError> {
        self.number("uid", UID, 0, i128::from(u32::MAX - 1)).map(|uid| uid as u32)
    }

    pub(super) fn gid(&self) -> Result<u32, ArchiveError> {
        self.number("gid", GID, 0, i128::from(u32::MAX - 1)).map(|gid| gid as u32)
    }

    pub(super) fn size(&self) -> Result<u64, ArchiveError> {
        self.number("size", SIZE, 0, i128::from(i64::MAX)).map(|size| size as u64)
    }

    pub(super) fn mtime(&self) -> Result<i64, ArchiveError> {
        self.number("mtime", MTIME, i128::from(i64::MIN), i128::from(i64::MAX)).map(|mtime| mtime as i64)
    }

    fn device(&self) -> Result<Device, ArchiveError> {
        let limit = i128::from(u32::MAX);
        Ok(Device {
            major: self.number("devmajor", MAJOR, 0, limit)? as u32,
            minor: self.number("devminor", MINOR, 0, limit)? as u32,
        })
    }

    /// What the entry is, given its full name and link target.
    pub(super) fn kind(&self, name: &[u8], link: Vec<u8>) -> Result<Kind, ArchiveError> {
        Ok(match self.typeflag() {
            // Before POSIX, a directory was a file whose name ends in a slash.
            0 if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' | b'2' if link.is_empty() || link.contains(&0) || link.len() >= 4096 => {
                return Err(self.error("linkname", "1 to 4095 bytes without NUL".into(), excerpt(&link)));
            }
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::CharDevice(self.device()?),
            b'4' => Kind::BlockDevice(self.device()?),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'D' | b'M' | b'N' => {
                return Err(self.unsupported(format!(
                    "an entry of GNU's multi-volume or incremental archives (type {})",
                    self.typeflag() as char
                )));
            }
            other => return Err(self.unsupported(format!("an entry of type {}", printable(&[other])))),
        })
    }

    /// A numeric field: octal digits, or two's complement with the first bit set (GNU's base 256).
    pub(super) fn number(
        &self,
        field: &'static str,
        range: Range<usize>,
        least: i128,
        most: i128,
    ) -> Result<i128, ArchiveError> {
        let raw = &self.block[range];
        let value = number(raw);
        match value {
            Some(value) if (least..=most).contains(&value) => Ok(value),
            _ => {
                let found = value.map_or_else(|| printable(raw), |value| value.to_string());
                Err(self.error(field, format!("a number from {least} to {most}"), found))
            }
        }
    }
}

/// Decodes a numeric field; an empty one is 0, as all readers take it.
pub(super) fn number(raw: &[u8]) -> Option<i128> {
    if raw[0] & 0x80 != 0 {
        let start = if raw[0] & 0x40 != 0 { -1 } else { 0 };
        let first = i128::from(raw[0] & 0x7f) | (start << 7);
        return Some(raw[1..].iter().fold(first, |value, byte| (value << 8) | i128::from(*byte)));
    }
    let digits = text(raw).trim_ascii();
    digits.iter().try_fold(0, |value, digit| match digit {
        b'0'..=b'7' => Some((value << 3) | i128::from(digit - b'0')),
        _ => None,
    })
}

pub(super) fn checksum_holds(block: &[u8; BLOCK]) -> bool {
    let found = number(&block[CHECKSUM]);
    // Historic writers summed signed characters.
    let signed: i128 = block.iter().map(|byte| i128::from(*byte as i8)).sum::<i128>()
        - block[CHECKSUM].iter().map(|byte| i128::from(*byte as i8)).sum::<i128>()
        + 8 * 32;
    found == Some(i128::from(checksum(block))) || found == Some(signed)
}

fn checksum(block: &[u8; BLOCK]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    sum(block) - sum(&block[CHECKSUM]) + 8 * u32::from(b' ')
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}
