//! cpio in the "newc" format (magic 070701) and its variant with checksums (070702), as the kernel unpacks it.
//!
//! Source: Linux `Documentation/driver-api/early-userspace/buffer-format.rst` and `init/initramfs.c`. Each header is
//! 110 ASCII characters: the magic and 13 fields of 8 hexadecimal digits. Header with name, and content, are padded to 4.

use std::io::Read;

use super::{
    entry::{Content, Device, Entry, EntryReader, Kind, LinkIdentity, Metadata, Timestamp, printable},
    error::ArchiveError,
    input::Input,
};

/// Magic and fields.
const HEADER_SIZE: usize = 110;
/// The kernel's `PATH_MAX`, including the NUL: it ignores entries with longer names, and longer symlink targets.
const PATH_LIMIT: u32 = 4096;
/// The name of the entry that ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!";
/// The fields in their order.
const FIELDS: [&str; 13] = [
    "c_ino",
    "c_mode",
    "c_uid",
    "c_gid",
    "c_nlink",
    "c_mtime",
    "c_filesize",
    "c_devmajor",
    "c_devminor",
    "c_rdevmajor",
    "c_rdevminor",
    "c_namesize",
    "c_check",
];

/// Reads one archive up to its trailer and leaves the input just behind it.
pub struct CpioReader<'a, R> {
    input: &'a mut Input<R>,
    /// Bytes of the current content that were not read yet.
    remaining: u64,
    /// Zero to three bytes that follow the content.
    padding: u64,
    name: Option<String>,
    checksum: Option<Checksum>,
    done: bool,
}

struct Checksum {
    offset: u64,
    expected: u32,
    found: u32,
}

struct Header {
    offset: u64,
    with_checksum: bool,
    fields: [u32; FIELDS.len()],
}

impl Header {
    fn get(&self, field: &str) -> u32 {
        self.fields[position(field)]
    }

    fn offset_of(&self, field: &str) -> u64 {
        self.offset + 6 + 8 * position(field) as u64
    }

    fn error<R: Read>(
        &self,
        input: &Input<R>,
        entry: Option<String>,
        field: &'static str,
        expected: &str,
    ) -> ArchiveError {
        ArchiveError::Field {
            place: input.place(self.offset_of(field), entry),
            field,
            expected: expected.to_owned(),
            found: self.get(field).to_string(),
        }
    }
}

fn position(field: &str) -> usize {
    FIELDS.iter().position(|name| *name == field).expect("callers use the names above")
}

impl<'a, R: Read> CpioReader<'a, R> {
    /// Starts at the input's position, where an archive must begin.
    pub fn new(input: &'a mut Input<R>) -> Self {
        Self { input, remaining: 0, padding: 0, name: None, checksum: None, done: false }
    }

    fn finish_content(&mut self) -> Result<(), ArchiveError> {
        let mut discarded = [0; 8192];
        while self.read_content(&mut discarded)? > 0 {}
        self.input.skip(self.padding, "the padding behind a file", self.name.as_deref())?;
        self.padding = 0;
        match self.checksum.take() {
            Some(sum) if sum.expected != sum.found => Err(ArchiveError::Field {
                place: self.input.place(sum.offset, self.name.clone()),
                field: "c_check",
                expected: format!("{:08x}, the sum of the content's bytes", sum.found),
                found: format!("{:08x}", sum.expected),
            }),
            _ => Ok(()),
        }
    }

    fn header(&mut self) -> Result<Header, ArchiveError> {
        let offset = self.input.offset();
        let mut raw = [0; HEADER_SIZE];
        let have = self.input.peek(HEADER_SIZE)?.len();
        if have == 0 {
            return Err(self.input.truncated("an archive without the entry TRAILER!!!", self.name.as_deref()));
        }
        let magic = self.input.peek(6)?.to_vec();
        let with_checksum = match &magic[..] {
            b"070701" => false,
            b"070702" => true,
            other if other.len() == 6 => {
                return Err(ArchiveError::Field {
                    place: self.input.place(offset, None),
                    field: "c_magic",
                    expected: "070701 or 070702".into(),
                    found: printable(other),
                });
            }
            _ => return Err(self.input.truncated("an entry's header", None)),
        };
        self.input.read_whole(&mut raw, "an entry's header", None)?;
        let mut fields = [0; FIELDS.len()];
        for (index, field) in fields.iter_mut().enumerate() {
            let digits = &raw[6 + 8 * index..][..8];
            *field = hexadecimal(digits).ok_or_else(|| ArchiveError::Field {
                place: self.input.place(offset + 6 + 8 * index as u64, None),
                field: FIELDS[index],
                expected: "8 hexadecimal digits".into(),
                found: printable(digits),
            })?;
        }
        Ok(Header { offset, with_checksum, fields })
    }

    fn entry_name(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let size = header.get("c_namesize");
        if !(2..=PATH_LIMIT).contains(&size) {
            return Err(header.error(self.input, None, "c_namesize", "2 to 4096, the ending NUL included"));
        }
        let mut name = vec![0; size as usize];
        self.input.read_whole(&mut name, "an entry's name", None)?;
        let nul = name.iter().position(|byte| *byte == 0);
        if nul != Some(name.len() - 1) {
            return Err(ArchiveError::Field {
                place: self.input.place(header.offset + HEADER_SIZE as u64, Some(printable(&name))),
                field: "name",
                expected: format!("one NUL, at byte {}", size - 1),
                found: nul.map_or_else(|| "none".into(), |at| format!("one at byte {at}")),
            });
        }
        name.pop();
        let shown = printable(&name);
        self.input.skip(padding(HEADER_SIZE as u64 + u64::from(size)), "the padding behind a name", Some(&shown))?;
        self.name = Some(shown);
        Ok(name)
    }

    fn kind(&mut self, header: &Header) -> Result<Kind, ArchiveError> {
        let device = Device { major: header.get("c_rdevmajor"), minor: header.get("c_rdevminor") };
        let kind = match header.get("c_mode") & 0o170_000 {
            0o100_000 => return Ok(Kind::File),
            0o120_000 => return self.symlink(header),
            0o040_000 => Kind::Directory,
            0o020_000 => Kind::CharDevice(device),
            0o060_000 => Kind::BlockDevice(device),
            0o010_000 => Kind::Fifo,
            0o140_000 => Kind::Socket,
            _ => return Err(header.error(self.input, self.name.clone(), "c_mode", "a mode with a known file type")),
        };
        if header.get("c_filesize") != 0 {
            return Err(header.error(self.input, self.name.clone(), "c_filesize", "0, since it is not a regular file"));
        }
        Ok(kind)
    }

    fn symlink(&mut self, header: &Header) -> Result<Kind, ArchiveError> {
        let size = header.get("c_filesize");
        if !(1..PATH_LIMIT).contains(&size) {
            return Err(header.error(self.input, self.name.clone(), "c_filesize", "1 to 4095, a symlink's target"));
        }
        let mut target = vec![0; size as usize];
        self.input.read_whole(&mut target, "a symlink's target", self.name.as_deref())?;
        self.padding = padding(u64::from(size));
        // Some writers include the NUL; the kernel stops there.
        if target.last() == Some(&0) {
            target.pop();
        }
        if target.is_empty() || target.contains(&0) {
            let message = "a symlink's target without NUL";
            return Err(header.error(self.input, self.name.clone(), "c_filesize", message));
        }
        Ok(Kind::Symlink(target))
    }
}

impl<R: Read> Content for CpioReader<'_, R> {
    fn content_offset(&self) -> u64 {
        self.input.offset()
    }

    fn read_content(&mut self, target: &mut [u8]) -> Result<usize, ArchiveError> {
        let wanted = target.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        self.input.read_whole(&mut target[..wanted], "a file's content", self.name.as_deref())?;
        self.remaining -= wanted as u64;
        if let Some(sum) = &mut self.checksum {
            sum.found = target[..wanted].iter().fold(sum.found, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        }
        Ok(wanted)
    }
}

impl<R: Read> EntryReader for CpioReader<'_, R> {
    fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if self.done {
            return Ok(None);
        }
        self.finish_content()?;
        let header = self.header()?;
        let name = self.entry_name(&header)?;
        if name == TRAILER {
            self.done = true;
            return Ok(None);
        }
        let kind = self.kind(&header)?;
        let size = u64::from(header.get("c_filesize"));
        if kind == Kind::File {
            self.remaining = size;
            self.padding = padding(size);
            if header.with_checksum {
                let (offset, expected) = (header.offset_of("c_check"), header.get("c_check"));
                self.checksum = Some(Checksum { offset, expected, found: 0 });
            }
        }
        Ok(Some(entry(&header, name, kind, size)))
    }
}

fn entry(header: &Header, name: Vec<u8>, kind: Kind, size: u64) -> Entry {
    Entry {
        name,
        metadata: Metadata {
            mode: header.get("c_mode") & 0o7777,
            uid: header.get("c_uid"),
            gid: header.get("c_gid"),
            mtime: Timestamp { seconds: i64::from(header.get("c_mtime")), nanoseconds: 0 },
            ..Metadata::default()
        },
        size: if kind == Kind::File { size } else { 0 },
        kind,
        extents: None,
        link: Some(LinkIdentity {
            nlink: header.get("c_nlink"),
            ino: header.get("c_ino"),
            device: Device { major: header.get("c_devmajor"), minor: header.get("c_devminor") },
        }),
        offset: header.offset,
    }
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(4) - size
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    // from_str_radix alone would allow a sign.
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
