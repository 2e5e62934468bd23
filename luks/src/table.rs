//! The device-mapper tables of a segment, and what the kernel says of them afterwards.
//!
//! Sources: Linux `Documentation/admin-guide/device-mapper/dm-crypt.rst` and `dm-integrity.rst`, `crypt_status` and
//! `dm_integrity_status` of their drivers; parameters and their order are those that cryptsetup uses.

use std::{collections::BTreeSet, fmt};

use iofs_policy::verity::{DeviceNumber, LoadedTarget, TableError};

use crate::{
    header::{Flag, Header},
    integrity::IntegritySuperblock,
};

const SECTOR: u64 = 512;

/// Where the kernel finds the volume key: a logon key, which no process can read. The key itself is in no table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyReference {
    /// The key's size in bytes.
    pub bytes: usize,
    /// The key's description in the keyring.
    pub description: String,
}

impl fmt::Display for KeyReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, ":{}:logon:{}", self.bytes, self.description)
    }
}

/// A table line of the crypt target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CryptTable {
    cipher: String,
    key: String,
    iv_offset: u64,
    device: String,
    /// On the device, in 512-byte sectors.
    start: u64,
    options: Vec<String>,
    sectors: u64,
}

/// A table line of the integrity target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegrityTable {
    device: String,
    /// On the device, in 512-byte sectors.
    start: u64,
    tag_size: u32,
    mode: char,
    options: Vec<String>,
    sectors: u64,
}

impl Header {
    /// The crypt target over a device of that many bytes, or over the integrity device where the segment is
    /// authenticated: `device` is then that one.
    ///
    /// # Errors
    /// The device has no room for a segment of whole sectors; an integrity device is missing or not asked for; a word would
    /// be read by the kernel as none or several.
    pub fn crypt_table(&self, device: &str, below: Below<'_>, key: &KeyReference) -> Result<CryptTable, TableError> {
        let segment = self.segment();
        let (start, sectors) = match (segment.integrity, below) {
            (None, Below::Device { bytes }) => (segment.offset / SECTOR, self.segment_sectors(bytes)?),
            (Some(_), Below::Integrity(table)) => (0, table.sectors),
            (None, Below::Integrity(_)) => return Err(mismatch("integrity", &"none", &"a table")),
            (Some(integrity), Below::Device { .. }) => return Err(mismatch("integrity", &integrity, &"no table")),
        };
        let table = CryptTable {
            cipher: segment.encryption.kernel_name(segment.integrity),
            key: key.to_string(),
            iv_offset: segment.iv_tweak,
            device: device.to_owned(),
            start,
            options: self.crypt_options(),
            sectors,
        };
        check_word("device", device)?;
        check_word("key description", &key.description)?;
        Ok(table)
    }

    /// In the order in which the kernel reports them.
    fn crypt_options(&self) -> Vec<String> {
        let segment = self.segment();
        let mut options = Vec::new();
        for (flag, option) in [
            (Flag::AllowDiscards, "allow_discards"),
            (Flag::SameCpuCrypt, "same_cpu_crypt"),
            (Flag::SubmitFromCryptCpus, "submit_from_crypt_cpus"),
            (Flag::NoReadWorkqueue, "no_read_workqueue"),
            (Flag::NoWriteWorkqueue, "no_write_workqueue"),
        ] {
            // dm-integrity would have to tag what was discarded.
            let possible = segment.integrity.is_none() || flag != Flag::AllowDiscards;
            if possible && self.flags.contains(&flag) {
                options.push(option.to_owned());
            }
        }
        if let Some(integrity) = segment.integrity {
            options.push(format!("integrity:{}:aead", integrity.tag_size(segment.encryption)));
        }
        if u64::from(segment.sector_size) != SECTOR {
            options.push(format!("sector_size:{}", segment.sector_size));
        }
        options
    }

    /// The integrity target below the crypt target, on a device of that many bytes.
    ///
    /// # Errors
    /// The segment is not authenticated, or the superblock is not one that the header describes.
    pub fn integrity_table(
        &self,
        device: &str,
        device_bytes: u64,
        superblock: &IntegritySuperblock,
    ) -> Result<IntegrityTable, TableError> {
        let segment = self.segment();
        let integrity = segment.integrity.ok_or_else(|| mismatch("integrity", &"one", &"none"))?;
        let tag_size = integrity.tag_size(segment.encryption);
        expect("tag size of the superblock", &tag_size, &u32::from(superblock.tag_size))?;
        expect("block size of the superblock", &segment.sector_size, &superblock.block_size)?;
        check_word("device", device)?;
        let sectors = superblock.data_sectors;
        let most = self.segment_sectors(device_bytes)?;
        if sectors == 0 || sectors >= most || !sectors.is_multiple_of(u64::from(segment.sector_size) / SECTOR) {
            let expected = format!("a multiple of {} sectors, below {most}", u64::from(segment.sector_size) / SECTOR);
            return Err(mismatch("data sectors of the superblock", &expected, &sectors));
        }
        Ok(IntegrityTable {
            device: device.to_owned(),
            start: segment.offset / SECTOR,
            tag_size,
            mode: if self.flags.contains(&Flag::NoJournal) { 'D' } else { 'J' },
            options: integrity_options(segment.sector_size, superblock),
            sectors,
        })
    }

    /// How long the segment is on a device, in sectors.
    fn segment_sectors(&self, device_bytes: u64) -> Result<u64, TableError> {
        let segment = self.segment();
        let bytes = segment.bytes_on(device_bytes);
        if !segment.is_within(device_bytes) || !bytes.is_multiple_of(segment.sector_size.into()) {
            let expected = format!("whole sectors of {} bytes behind byte {}", segment.sector_size, segment.offset);
            return Err(mismatch("device", &expected, &format!("{device_bytes} bytes")));
        }
        Ok(bytes / SECTOR)
    }
}

/// What a crypt target stands on.
#[derive(Debug, Clone, Copy)]
pub enum Below<'a> {
    /// The volume's device.
    Device {
        /// Its size in bytes.
        bytes: u64,
    },
    /// The integrity device over it.
    Integrity(&'a IntegrityTable),
}

fn integrity_options(sector_size: u32, superblock: &IntegritySuperblock) -> Vec<String> {
    let mut options = vec![format!("block_size:{sector_size}")];
    for (flag, option) in [(superblock.fixed_padding, "fix_padding"), (superblock.fixed_hmac, "fix_hmac")] {
        if flag {
            options.push(option.to_owned());
        }
    }
    options
}

impl CryptTable {
    /// The target's name in device-mapper.
    pub const TARGET: &'static str = "crypt";

    /// The device's length in 512-byte sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Checks what the kernel reports of the loaded table, with the number of the device that the path stood for.
    ///
    /// # Errors
    /// [`TableError::Mismatch`] with the first field that differs.
    pub fn check_loaded(&self, loaded: &LoadedTarget<'_>, device: DeviceNumber) -> Result<(), TableError> {
        expect("start", &0, &loaded.start)?;
        expect("sectors", &self.sectors, &loaded.sectors)?;
        expect("target", &Self::TARGET, &loaded.target)?;
        let words: Vec<&str> = loaded.parameters.split_ascii_whitespace().collect();
        let expected = self.fixed(&device.to_string());
        let names = ["cipher", "key", "IV offset", "device", "start on the device"];
        let options = fixed_fields(&names, &expected, &words, loaded.parameters)?;
        let found: BTreeSet<&str> = options.iter().copied().collect();
        let wanted: BTreeSet<&str> = self.options.iter().map(String::as_str).collect();
        match found == wanted && options.len() == self.options.len() {
            true => Ok(()),
            false => Err(mismatch("optional arguments", &listed(&self.options), &listed(options))),
        }
    }

    fn fixed(&self, device: &str) -> [String; 5] {
        let Self { cipher, key, iv_offset, start, .. } = self;
        [cipher.clone(), key.clone(), iv_offset.to_string(), device.to_owned(), start.to_string()]
    }
}

/// The target's parameters, without start, length and the target's name.
impl fmt::Display for CryptTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.fixed(&self.device).join(" "))?;
        if !self.options.is_empty() {
            write!(formatter, " {} {}", self.options.len(), self.options.join(" "))?;
        }
        Ok(())
    }
}

impl IntegrityTable {
    /// The target's name in device-mapper.
    pub const TARGET: &'static str = "integrity";
    /// Options that the kernel reports without being told: they follow from the superblock and from its defaults.
    const OF_KERNEL: [&'static str; 6] =
        ["journal_sectors", "interleave_sectors", "buffer_sectors", "journal_watermark", "commit_time", "fix_padding"];

    /// The device's length in 512-byte sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Checks what the kernel reports of the loaded table, with the number of the device that the path stood for. It
    /// reports options that it was not given, and a block size of 512 not at all.
    ///
    /// # Errors
    /// [`TableError::Mismatch`] with the first field that differs.
    pub fn check_loaded(&self, loaded: &LoadedTarget<'_>, device: DeviceNumber) -> Result<(), TableError> {
        expect("start", &0, &loaded.start)?;
        expect("sectors", &self.sectors, &loaded.sectors)?;
        expect("target", &Self::TARGET, &loaded.target)?;
        let words: Vec<&str> = loaded.parameters.split_ascii_whitespace().collect();
        let names = ["device", "start on the device", "tag size", "mode"];
        let options = fixed_fields(&names, &self.fixed(&device.to_string()), &words, loaded.parameters)?;
        let wanted = self.options.iter().map(String::as_str).filter(|option| *option != "block_size:512");
        let missing = wanted.clone().find(|option| !options.contains(option));
        let surplus = options.iter().find(|option| {
            let name = option.split(':').next().unwrap_or_default();
            !wanted.clone().any(|wanted| wanted == **option) && !Self::OF_KERNEL.contains(&name)
        });
        match missing.is_none() && surplus.is_none() {
            true => Ok(()),
            false => Err(mismatch("optional arguments", &listed(&self.options), &listed(options))),
        }
    }

    fn fixed(&self, device: &str) -> [String; 4] {
        [device.to_owned(), self.start.to_string(), self.tag_size.to_string(), self.mode.to_string()]
    }
}

/// The target's parameters, without start, length and the target's name.
impl fmt::Display for IntegrityTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.fixed(&self.device).join(" "))?;
        write!(formatter, " {} {}", self.options.len(), self.options.join(" "))
    }
}

/// Compares the words that are always there; returns the optional arguments, counted.
fn fixed_fields<'a, 'w>(
    names: &[&'static str],
    expected: &[String],
    words: &'a [&'w str],
    line: &str,
) -> Result<&'a [&'w str], TableError> {
    let malformed = |expected| TableError::Malformed { expected, found: line.to_owned() };
    let Some((fixed, rest)) = words.split_at_checked(names.len()) else {
        return Err(malformed("as many fields as the target has"));
    };
    for ((name, expected), found) in names.iter().zip(expected).zip(fixed) {
        expect(name, &expected.as_str(), found)?;
    }
    match rest.split_first() {
        None => Ok(&[]),
        Some((count, options)) if *count == options.len().to_string() => Ok(options),
        Some(_) => Err(malformed("the number of optional arguments before them")),
    }
}

fn listed(words: &[impl AsRef<str>]) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(" ") }
}

/// Device-mapper splits at white space and takes a backslash as an escape.
fn check_word(field: &'static str, word: &str) -> Result<(), TableError> {
    let splits = |character: char| character.is_whitespace() || character.is_control() || character == '\\';
    match word.is_empty() || word.contains(splits) {
        true => Err(TableError::Word { field, found: word.to_owned() }),
        false => Ok(()),
    }
}

fn expect<T: PartialEq + fmt::Display>(field: &'static str, expected: &T, found: &T) -> Result<(), TableError> {
    if expected == found { Ok(()) } else { Err(mismatch(field, expected, found)) }
}

fn mismatch(field: &'static str, expected: &dyn fmt::Display, found: &dyn fmt::Display) -> TableError {
    TableError::Mismatch { field, expected: expected.to_string(), found: found.to_string() }
}
