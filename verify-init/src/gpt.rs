//! The GUID partition table, read only for partitions whose unique id the kernel does not tell.
//!
//! Source: UEFI specification 2.10, section 5.3. The kernel has read and checked the same table before it made the
//! partitions; it is checked here again because it may have changed since, and a damaged table must not be guessed at.

use iofs_policy::verity::ParameterError;
use uuid::Uuid;

/// The smallest header.
const HEADER_SIZE: usize = 92;
/// More entries are refused: every tool writes 128.
const MAX_ENTRIES: u32 = 256;
/// Larger entries are refused: every tool writes 128 bytes.
const MAX_ENTRY_SIZE: u32 = 512;
const MIN_ENTRY_SIZE: u32 = 128;
const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const REVISION_AT: usize = 8;
const HEADER_SIZE_AT: usize = 12;
const HEADER_CRC_AT: usize = 16;
const MY_LBA_AT: usize = 24;
const ENTRIES_LBA_AT: usize = 72;
const ENTRY_COUNT_AT: usize = 80;
const ENTRY_SIZE_AT: usize = 84;
const ENTRIES_CRC_AT: usize = 88;
const UNIQUE_GUID_AT: usize = 16;

/// Why a table is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GptError {
    /// A field has a value that no valid table has.
    #[error("partition table: {0} is wrong")]
    Field(&'static str),
}

/// Where the entries lie, from a header that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Position of the entries in bytes.
    pub offset: u64,
    /// Length of all entries in bytes: at most 128 KiB.
    pub length: usize,
    entry_size: usize,
    crc: u32,
}

impl Header {
    /// Reads the primary header: the block at LBA 1.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn parse(block: &[u8]) -> Result<Self, GptError> {
        let wrong = |field| Err(GptError::Field(field));
        if block.len() < HEADER_SIZE || !block.starts_with(SIGNATURE) {
            return wrong("signature");
        }
        if number(block, REVISION_AT) != REVISION {
            return wrong("revision");
        }
        let size = number(block, HEADER_SIZE_AT) as usize;
        if !(HEADER_SIZE..=block.len()).contains(&size) {
            return wrong("header size");
        }
        let mut header = block[..size].to_vec();
        header[HEADER_CRC_AT..HEADER_CRC_AT + 4].fill(0);
        if crc32(&header) != number(block, HEADER_CRC_AT) {
            return wrong("header checksum");
        }
        if long(block, MY_LBA_AT) != 1 {
            return wrong("position");
        }
        Self::entries(block)
    }

    fn entries(block: &[u8]) -> Result<Self, GptError> {
        let (count, size) = (number(block, ENTRY_COUNT_AT), number(block, ENTRY_SIZE_AT));
        if !(1..=MAX_ENTRIES).contains(&count) {
            return Err(GptError::Field("number of entries"));
        }
        if !size.is_power_of_two() || !(MIN_ENTRY_SIZE..=MAX_ENTRY_SIZE).contains(&size) {
            return Err(GptError::Field("size of an entry"));
        }
        let offset = long(block, ENTRIES_LBA_AT).checked_mul(block.len() as u64);
        let offset = offset.filter(|offset| *offset < i64::MAX as u64).ok_or(GptError::Field("position of entries"))?;
        let (length, entry_size) = ((count * size) as usize, size as usize);
        Ok(Self { offset, length, entry_size, crc: number(block, ENTRIES_CRC_AT) })
    }

    /// Reads the entries: the unique id of each partition, the first one being partition 1. Unused ones are nil.
    ///
    /// # Errors
    /// If they are not those that the header was made for.
    pub fn unique_ids(&self, entries: &[u8]) -> Result<Vec<Uuid>, GptError> {
        if entries.len() != self.length || crc32(entries) != self.crc {
            return Err(GptError::Field("checksum of the entries"));
        }
        let unique = |entry: &[u8]| Uuid::from_bytes_le(array(entry, UNIQUE_GUID_AT));
        Ok(entries.chunks_exact(self.entry_size).map(unique).collect())
    }
}

/// Whether a logical block size is one that a disk can have.
pub fn check_block_size(bytes: u64) -> Result<usize, ParameterError> {
    iofs_policy::verity::BlockSize::try_from(bytes).map(|size| size.bytes() as usize)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// The CRC-32 of Ethernet and zip (UEFI 2.10, section 5.3.1).
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !bytes.iter().fold(!0, |crc, byte| TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8))
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut value = at as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[at] = value;
        at += 1;
    }
    table
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header block and 128 entries with these unique ids.
    pub(crate) fn table_with(ids: &[Uuid]) -> (Vec<u8>, Vec<u8>) {
        let mut entries = vec![0; 128 * 128];
        for (entry, id) in entries.chunks_mut(128).zip(ids) {
            entry[..16].fill(0xaf);
            entry[16..32].copy_from_slice(&id.to_bytes_le());
        }
        let mut block = vec![0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, SIGNATURE);
        put(REVISION_AT, &REVISION.to_le_bytes());
        put(HEADER_SIZE_AT, &92u32.to_le_bytes());
        put(MY_LBA_AT, &1u64.to_le_bytes());
        put(ENTRIES_LBA_AT, &2u64.to_le_bytes());
        put(ENTRY_COUNT_AT, &128u32.to_le_bytes());
        put(ENTRY_SIZE_AT, &128u32.to_le_bytes());
        put(ENTRIES_CRC_AT, &crc32(&entries).to_le_bytes());
        let sum = crc32(&block[..92]);
        block[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&sum.to_le_bytes());
        (block, entries)
    }

    fn sealed(block: &mut [u8]) {
        block[HEADER_CRC_AT..HEADER_CRC_AT + 4].fill(0);
        let sum = crc32(&block[..92]);
        block[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&sum.to_le_bytes());
    }

    /// The check value of the CRC catalogue.
    #[test]
    fn checksum_has_the_published_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn unique_ids_are_read_in_order() {
        let ids = [Uuid::from_u128(0x11223344_5566_7788_99aa_bbccddeeff00), Uuid::from_u128(2)];
        let (block, entries) = table_with(&ids);
        let header = Header::parse(&block).unwrap();
        assert_eq!((header.offset, header.length), (1024, 16384));
        assert_eq!(header.unique_ids(&entries).unwrap()[..3], [ids[0], ids[1], Uuid::nil()]);
    }

    #[test]
    fn each_damaged_field_is_named() {
        let (block, entries) = table_with(&[Uuid::from_u128(1)]);
        let damaged = |at: usize, bytes: &[u8], seal: bool| {
            let mut block = block.clone();
            block[at..at + bytes.len()].copy_from_slice(bytes);
            if seal {
                sealed(&mut block);
            }
            let GptError::Field(field) = Header::parse(&block).unwrap_err();
            field
        };
        assert_eq!(damaged(0, b"X", true), "signature");
        assert_eq!(damaged(REVISION_AT, &[9], true), "revision");
        assert_eq!(damaged(HEADER_SIZE_AT, &[91], false), "header size");
        assert_eq!(damaged(HEADER_SIZE_AT, &[1, 2], false), "header size");
        assert_eq!(damaged(56, &[1], false), "header checksum");
        assert_eq!(damaged(MY_LBA_AT, &[2], true), "position");
        assert_eq!(damaged(ENTRY_COUNT_AT, &[0], true), "number of entries");
        assert_eq!(damaged(ENTRY_COUNT_AT, &[0xff; 4], true), "number of entries");
        assert_eq!(damaged(ENTRY_SIZE_AT, &[0, 4], true), "size of an entry");
        assert_eq!(damaged(ENTRY_SIZE_AT, &[129], true), "size of an entry");
        assert_eq!(damaged(ENTRIES_LBA_AT, &[0xff; 8], true), "position of entries");
        let mut entries = entries;
        entries[16] ^= 1;
        let error = Header::parse(&block).unwrap().unique_ids(&entries).unwrap_err();
        assert_eq!(error, GptError::Field("checksum of the entries"));
    }

    proptest! {
        #[test]
        fn hostile_tables_never_panic(
            block in prop::collection::vec(any::<u8>(), 0..600),
            changes in prop::collection::vec((0..92_usize, any::<u8>()), 0..4),
            entries: Vec<u8>,
        ) {
            let _ = Header::parse(&block);
            let (mut valid, _) = table_with(&[]);
            for (at, value) in changes {
                valid[at] = value;
            }
            sealed(&mut valid);
            if let Ok(header) = Header::parse(&valid) {
                prop_assert!(header.length <= 256 * 512);
                let _ = header.unique_ids(&entries);
                let _ = header.unique_ids(&vec![0; header.length]);
            }
        }
    }
}
