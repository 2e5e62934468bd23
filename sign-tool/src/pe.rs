//! PE images: what a unified kernel image is made of. Reads headers and section table, and appends sections.
//!
//! Microsoft, PE Format, sections "COFF File Header", "Optional Header" and "Section Table". Numbers are little-endian. Only
//! PE32+ is read: no 32-bit firmware boots what this toolkit seals.

use std::ops::Range;

use crate::initramfs::elf::Machine;

mod append;

pub use append::{NewSection, append};

/// Where the PE header's offset stands in the DOS header.
pub(crate) const PE_OFFSET: usize = 0x3c;
/// Bytes of signature and COFF header before the optional header.
pub(crate) const COFF_SIZE: usize = 24;
/// Bytes of an entry of the section table.
const ENTRY_SIZE: usize = 40;
const NAME_SIZE: usize = 8;
const PE32_PLUS: u64 = 0x20b;
/// The least optional header: up to the entry of the certificate table.
const OPTIONAL_MINIMUM: usize = 112 + 8 * 5;
/// The entry of the certificate table in the optional header.
const CERTIFICATES: usize = 112 + 8 * 4;
/// The checksum in the optional header, for PE32 and PE32+ alike.
pub(crate) const CHECKSUM: usize = 64;
/// Windows loads no more; nobody needs more.
const MAX_SECTIONS: usize = 96;

/// Why a file is no PE image that this program can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeError {
    /// It is none.
    #[error("expected a PE image, found another file")]
    NotPe,
    /// It ends before what its headers say.
    #[error("{0}: expected it within the file, found the end")]
    Truncated(String),
    /// A field holds something else.
    #[error("{field}: expected {expected}, found {found}")]
    Field {
        /// The field, as the specification calls it.
        field: &'static str,
        /// What it may hold.
        expected: String,
        /// What it holds.
        found: String,
    },
}

fn field(field: &'static str, expected: impl Into<String>, found: impl Into<String>) -> PeError {
    PeError::Field { field, expected: expected.into(), found: found.into() }
}

/// A section, as the table describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name, up to the first NUL.
    pub name: String,
    /// Where it is loaded, in bytes from the image's start.
    pub address: u32,
    /// Its size in memory, in bytes: of what was appended, that of its contents.
    pub size: u32,
    /// Where its contents lie in the file.
    pub raw: Range<usize>,
}

impl Section {
    /// Its contents: as much of the file's as is loaded.
    pub fn contents<'a>(&self, image: &'a [u8]) -> &'a [u8] {
        let raw = image.get(self.raw.clone()).unwrap_or_default();
        &raw[..raw.len().min(self.size as usize)]
    }
}

/// The headers of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers {
    /// The processor that it is for.
    pub machine: Machine,
    /// The sections, in their order.
    pub sections: Vec<Section>,
    /// The certificate table in the file; empty in an image without signature.
    pub certificates: Range<usize>,
    /// Where the PE header begins.
    pe: usize,
    /// Where the section table begins.
    table: usize,
    section_alignment: u32,
    file_alignment: u32,
    /// How much of the file is headers.
    headers_size: usize,
}

impl Headers {
    /// Reads them. Memory and time are bounded by the file's size and 96 sections.
    ///
    /// # Errors
    /// [`PeError`].
    pub fn parse(image: &[u8]) -> Result<Self, PeError> {
        let pe = number(image, PE_OFFSET, 4).filter(|_| image.starts_with(b"MZ")).ok_or(PeError::NotPe)?;
        let pe = usize::try_from(pe).map_err(|_| PeError::NotPe)?;
        if pe.checked_add(4).and_then(|end| image.get(pe..end)) != Some(b"PE\0\0") {
            return Err(PeError::NotPe);
        }
        let read =
            |at: usize, size, what: &str| number(image, at, size).ok_or_else(|| PeError::Truncated(what.to_owned()));
        let optional = pe + COFF_SIZE;
        let machine = machine(read(pe + 4, 2, "machine")?)?;
        let count = usize::try_from(read(pe + 6, 2, "number of sections")?).unwrap_or(usize::MAX);
        if count > MAX_SECTIONS {
            return Err(field("NumberOfSections", format!("at most {MAX_SECTIONS}"), count.to_string()));
        }
        let optional_size = read(pe + 20, 2, "size of the optional header")? as usize;
        let magic = read(optional, 2, "optional header")?;
        if magic != PE32_PLUS || optional_size < OPTIONAL_MINIMUM {
            let found = format!("0x{magic:x} and {optional_size} bytes");
            return Err(field("Magic", format!("0x20b and at least {OPTIONAL_MINIMUM} bytes"), found));
        }
        let word = |at: usize| read(optional + at, 4, "optional header").map(|value| value as u32);
        let headers_size = word(60)? as usize;
        let table = optional + optional_size;
        let sections = (0..count).map(|index| section(image, table + index * ENTRY_SIZE)).collect::<Result<_, _>>()?;
        let certificates = span(image, word(CERTIFICATES)?, word(CERTIFICATES + 4)?, "certificate table")?;
        let headers = Self {
            machine,
            sections,
            certificates,
            pe,
            table,
            section_alignment: word(32)?,
            file_alignment: word(36)?,
            headers_size,
        };
        headers.check(image)?;
        Ok(headers)
    }

    fn check(&self, image: &[u8]) -> Result<(), PeError> {
        for (name, alignment) in [("SectionAlignment", self.section_alignment), ("FileAlignment", self.file_alignment)]
        {
            if !alignment.is_power_of_two() || !(16..=65536).contains(&alignment) {
                return Err(field(name, "a power of two from 16 to 65536", alignment.to_string()));
            }
        }
        let table_end = self.table + self.sections.len() * ENTRY_SIZE;
        if self.headers_size < table_end || self.headers_size > image.len() {
            let expected = format!("{table_end} to {}", image.len());
            return Err(field("SizeOfHeaders", expected, self.headers_size.to_string()));
        }
        Ok(())
    }

    /// Says in the headers that what follows the byte `start` is the certificate table, and sets the checksum, which nobody
    /// but some signing tools looks at.
    pub(crate) fn set_certificates(&self, image: &mut [u8], start: u32) {
        let size = (image.len() as u64).saturating_sub(start.into()) as u32;
        let optional = self.pe + COFF_SIZE;
        let mut set = |at: usize, value: u32| image[at..at + 4].copy_from_slice(&value.to_le_bytes());
        set(optional + CERTIFICATES, start);
        set(optional + CERTIFICATES + 4, size);
        set(optional + CHECKSUM, 0);
        let checksum = checksum(image);
        image[optional + CHECKSUM..optional + CHECKSUM + 4].copy_from_slice(&checksum.to_le_bytes());
    }

    /// The section of that name.
    pub fn find(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }
}

fn machine(number: u64) -> Result<Machine, PeError> {
    match number {
        0x8664 => Ok(Machine::X86_64),
        0xaa64 => Ok(Machine::Arm64),
        other => Err(field("Machine", "0x8664 (x86-64) or 0xaa64 (arm64)", format!("0x{other:x}"))),
    }
}

fn section(image: &[u8], at: usize) -> Result<Section, PeError> {
    let entry = at.checked_add(ENTRY_SIZE).and_then(|end| image.get(at..end));
    let entry = entry.ok_or_else(|| PeError::Truncated("section table".to_owned()))?;
    let name = entry[..NAME_SIZE].split(|byte| *byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    let word = |at: usize| number(entry, at, 4).unwrap_or_default() as u32;
    let raw = span(image, word(20), word(16), &name)?;
    Ok(Section { address: word(12), size: word(8), raw, name })
}

fn span(image: &[u8], start: u32, size: u32, what: &str) -> Result<Range<usize>, PeError> {
    if size == 0 {
        return Ok(0..0);
    }
    let end = (start as usize).checked_add(size as usize).filter(|end| *end <= image.len());
    end.map(|end| start as usize..end).ok_or_else(|| PeError::Truncated(what.to_owned()))
}

/// The sum of all 16-bit words with the carries added back, plus the length. Its own field counts as zero.
fn checksum(image: &[u8]) -> u32 {
    let sum = image.chunks(2).fold(0u32, |sum, pair| {
        let sum = sum + u32::from(pair[0]) + (u32::from(*pair.get(1).unwrap_or(&0)) << 8);
        (sum & 0xffff) + (sum >> 16)
    });
    sum.wrapping_add(image.len() as u32)
}

/// A little-endian number.
pub(crate) fn number(image: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = image.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests;
