//! Sections behind those that an image has.

use super::{COFF_SIZE, ENTRY_SIZE, Headers, MAX_SECTIONS, NAME_SIZE, PeError, field};

/// CNT_INITIALIZED_DATA and MEM_READ.
const CHARACTERISTICS: u32 = 0x4000_0040;
/// Firmware sets permissions by pages.
const PAGE: u32 = 4096;

/// A section to append.
#[derive(Debug, Clone, Copy)]
pub struct NewSection<'a> {
    /// Its name, of at most eight bytes.
    pub name: &'a str,
    /// Its contents. In memory it is as large as they are.
    pub contents: &'a [u8],
}

/// Writes the image with these sections behind its own, in this order. The same input gives the same bytes.
///
/// What lies behind the last section (a symbol table, which no firmware reads) is left out.
///
/// # Errors
/// The image is none or is signed, it has a section of such a name, or the result would exceed 4 GiB or 96 sections.
pub fn append(image: &[u8], new: &[NewSection<'_>]) -> Result<Vec<u8>, PeError> {
    let headers = Headers::parse(image)?;
    check(&headers, new)?;
    let mut out = Writer::new(image, &headers, new.len())?;
    new.iter().try_for_each(|section| out.push(section))?;
    out.finish()
}

fn check(headers: &Headers, new: &[NewSection<'_>]) -> Result<(), PeError> {
    if !headers.certificates.is_empty() {
        return Err(field("certificate table", "none: sections are appended before signing", "a signature"));
    }
    let count = headers.sections.len() + new.len();
    if count > MAX_SECTIONS {
        return Err(field("NumberOfSections", format!("at most {MAX_SECTIONS}"), count.to_string()));
    }
    if let Some(long) = headers.sections.iter().find(|section| section.name.starts_with('/')) {
        // Its name is in the symbol table.
        return Err(field("section name", "at most eight bytes", format!("a reference, {}", long.name)));
    }
    for (index, section) in new.iter().enumerate() {
        let twice = new[..index].iter().any(|before| before.name == section.name);
        if twice || headers.find(section.name).is_some() {
            return Err(field("section name", "one that is new", section.name));
        }
        if section.name.len() > NAME_SIZE {
            return Err(field("section name", "at most eight bytes", section.name));
        }
    }
    Ok(())
}

struct Writer<'a> {
    headers: &'a Headers,
    bytes: Vec<u8>,
    /// The next entry of the section table.
    entry: usize,
    /// Where the next section is loaded.
    address: u32,
    added: u32,
}

impl<'a> Writer<'a> {
    /// The image up to the end of its last section, with room in the section table.
    fn new(image: &[u8], headers: &'a Headers, new: usize) -> Result<Self, PeError> {
        let entry = headers.table + headers.sections.len() * ENTRY_SIZE;
        let end = headers.sections.iter().map(|section| section.raw.end).max().unwrap_or(0);
        let mut out = Self {
            headers,
            bytes: image[..end.max(headers.headers_size)].to_vec(),
            entry,
            address: headers.headers_size as u32,
            added: 0,
        };
        for section in &headers.sections {
            out.address = out.address.max(section.address.checked_add(section.size).ok_or_else(too_large)?);
        }
        out.make_room(entry + new * ENTRY_SIZE)?;
        // Symbols have no place any more.
        out.set(headers.pe + 12, 0);
        out.set(headers.pe + 16, 0);
        Ok(out)
    }

    /// Moves the sections' contents where the table would reach into them.
    fn make_room(&mut self, table_end: usize) -> Result<(), PeError> {
        if table_end <= self.headers.headers_size {
            return Ok(());
        }
        let size = table_end.next_multiple_of(self.headers.file_alignment as usize);
        let lowest = self.headers.sections.iter().map(|section| section.address as usize).min();
        if lowest.is_some_and(|lowest| lowest < size) {
            let found = "a section that is loaded there";
            return Err(field("SizeOfHeaders", format!("room for {size} bytes of headers"), found));
        }
        let by = size - self.headers.headers_size;
        self.bytes.splice(self.headers.headers_size..self.headers.headers_size, std::iter::repeat_n(0, by));
        for (index, section) in self.headers.sections.iter().enumerate() {
            if !section.raw.is_empty() {
                let moved = u32::try_from(section.raw.start + by).map_err(|_| too_large())?;
                self.set(self.headers.table + index * ENTRY_SIZE + 20, moved);
            }
        }
        self.set(self.optional() + 60, size as u32);
        Ok(())
    }

    fn push(&mut self, section: &NewSection<'_>) -> Result<(), PeError> {
        let alignment = self.headers.file_alignment as usize;
        let size = u32::try_from(section.contents.len()).map_err(|_| too_large())?;
        let raw_size = size.checked_next_multiple_of(self.headers.file_alignment).ok_or_else(too_large)?;
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
        let start = u32::try_from(self.bytes.len()).map_err(|_| too_large())?;
        self.bytes.extend_from_slice(section.contents);
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
        let address = self.aligned(self.address)?;
        let mut entry = [0; ENTRY_SIZE];
        entry[..section.name.len()].copy_from_slice(section.name.as_bytes());
        for (at, value) in [(8, size), (12, address), (16, raw_size), (20, start), (36, CHARACTERISTICS)] {
            entry[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        self.bytes[self.entry..self.entry + ENTRY_SIZE].copy_from_slice(&entry);
        self.entry += ENTRY_SIZE;
        self.address = address.checked_add(size).ok_or_else(too_large)?;
        self.added = self.added.checked_add(raw_size).ok_or_else(too_large)?;
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>, PeError> {
        let optional = self.optional();
        let count = (self.entry - self.headers.table) / ENTRY_SIZE;
        let at = self.headers.pe + 6;
        // At most 96.
        self.bytes[at..at + 2].copy_from_slice(&(count as u16).to_le_bytes());
        let before = super::number(&self.bytes, optional + 8, 4).unwrap_or_default() as u32;
        self.set(optional + 8, before.checked_add(self.added).ok_or_else(too_large)?);
        let image_size = self.aligned(self.address)?;
        self.set(optional + 56, image_size);
        // The checksum, which firmware ignores and a signature leaves out.
        self.set(optional + 64, 0);
        Ok(self.bytes)
    }

    fn optional(&self) -> usize {
        self.headers.pe + COFF_SIZE
    }

    fn aligned(&self, address: u32) -> Result<u32, PeError> {
        address.checked_next_multiple_of(self.headers.section_alignment.max(PAGE)).ok_or_else(too_large)
    }

    /// All of these lie in the headers, which were checked to be in the file.
    fn set(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

fn too_large() -> PeError {
    field("size of the image", "less than 4 GiB", "more")
}
