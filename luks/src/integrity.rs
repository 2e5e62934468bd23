//! The superblock of dm-integrity, which lies at the beginning of an authenticated segment.
//!
//! Source: `struct superblock` in Linux `drivers/md/dm-integrity.c`; all numbers little-endian. Nothing authenticates it:
//! what it says of the table's parameters is held against the header, and the rest is the kernel's to check.

use crate::{segment::Segment, source::ReadAt};

const MAGIC: &[u8; 8] = b"integrt\0";
/// From 6 on, tags lie in the disk's own metadata, and there is no journal.
const VERSIONS: std::ops::RangeInclusive<u8> = 1..=5;
/// The kernel's limits for tags that are interleaved with data.
const INTERLEAVE: std::ops::RangeInclusive<u8> = 3..=31;
/// 8 sectors are 4096 bytes.
const MAX_LOG2_SECTORS_PER_BLOCK: u8 = 3;

const FIXED_PADDING: u32 = 0x8;
const FIXED_HMAC: u32 = 0x10;

/// Why a superblock was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dm-integrity superblock: {field}: expected {expected}, found {found}")]
pub struct IntegritySuperblockError {
    /// The field.
    pub field: &'static str,
    /// What it may be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

/// What a superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntegritySuperblock {
    /// The format's version, 1 to 5.
    pub version: u8,
    /// The size of a tag in bytes.
    pub tag_size: u16,
    /// How many 512-byte sectors remain for data.
    pub data_sectors: u64,
    /// The size of what a tag protects, in bytes.
    pub block_size: u32,
    /// Whether tags are padded as kernels since 5.4 do it.
    pub fixed_padding: bool,
    /// Whether the journal's codes are made as kernels since 5.11 do it.
    pub fixed_hmac: bool,
}

impl IntegritySuperblock {
    /// How many bytes are looked at.
    pub const SIZE: usize = 64;

    /// Reads the superblock of a segment.
    ///
    /// # Errors
    /// It cannot be read, or it is refused.
    pub fn read(source: &mut dyn ReadAt, segment: &Segment) -> Result<Self, IntegritySuperblockError> {
        let bytes = source.read_at(segment.offset, Self::SIZE).map_err(|error| {
            let expected = format!("{} bytes at byte {}", Self::SIZE, segment.offset);
            IntegritySuperblockError { field: "superblock", expected, found: error.to_string() }
        })?;
        Self::decode(&bytes)
    }

    /// Reads a superblock from its bytes.
    ///
    /// # Errors
    /// Names the first field that is wrong, with the value found.
    pub fn decode(bytes: &[u8]) -> Result<Self, IntegritySuperblockError> {
        let Some(bytes) = bytes.first_chunk::<{ Self::SIZE }>() else {
            return Err(error("superblock", format!("{} bytes", Self::SIZE), bytes.len().to_string()));
        };
        let (version, interleave, log2_block) = (bytes[8], bytes[9], bytes[28]);
        let flags = u32::from_le_bytes(array(bytes, 24));
        if bytes[..8] != *MAGIC {
            let found = format!("\"{}\"", bytes[..8].escape_ascii());
            return Err(error("magic", format!("\"{}\"", MAGIC.escape_ascii()), found));
        }
        if !VERSIONS.contains(&version) {
            return Err(error("version", "1 to 5".to_owned(), version.to_string()));
        }
        if !INTERLEAVE.contains(&interleave) {
            return Err(error("interleaved sectors", "2^3 to 2^31".to_owned(), format!("2^{interleave}")));
        }
        if flags & !(FIXED_PADDING | FIXED_HMAC) != 0 {
            let expected = "none but fixed padding (0x8) and fixed HMAC (0x10)".to_owned();
            return Err(error("flags", expected, format!("{flags:#x}")));
        }
        if log2_block > MAX_LOG2_SECTORS_PER_BLOCK {
            return Err(error("sectors per block", "2^0 to 2^3".to_owned(), format!("2^{log2_block}")));
        }
        Ok(Self {
            version,
            tag_size: u16::from_le_bytes(array(bytes, 10)),
            data_sectors: u64::from_le_bytes(array(bytes, 16)),
            block_size: 512 << log2_block,
            fixed_padding: flags & FIXED_PADDING != 0,
            fixed_hmac: flags & FIXED_HMAC != 0,
        })
    }
}

fn array<const N: usize>(bytes: &[u8; IntegritySuperblock::SIZE], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn error(field: &'static str, expected: String, found: String) -> IntegritySuperblockError {
    IntegritySuperblockError { field, expected, found }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the kernel writes it for 4096-byte sectors with tags of 32 bytes.
    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 512];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&[4, 15]);
        bytes[10..12].copy_from_slice(&32_u16.to_le_bytes());
        bytes[16..24].copy_from_slice(&24_000_u64.to_le_bytes());
        bytes[24..28].copy_from_slice(&FIXED_PADDING.to_le_bytes());
        bytes[28] = 3;
        bytes
    }

    fn damaged(at: usize, field: &[u8]) -> String {
        let mut bytes = sample();
        bytes[at..at + field.len()].copy_from_slice(field);
        IntegritySuperblock::decode(&bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_superblock_is_read() {
        let expected = IntegritySuperblock {
            version: 4,
            tag_size: 32,
            data_sectors: 24_000,
            block_size: 4096,
            fixed_padding: true,
            fixed_hmac: false,
        };
        assert_eq!(IntegritySuperblock::decode(&sample()), Ok(expected));
        assert_eq!(IntegritySuperblock::decode(&sample()[..64]), Ok(expected));
    }

    #[test]
    fn each_field_that_is_wrong_is_named() {
        let text = |at, field: &[u8]| damaged(at, field).replace("dm-integrity superblock: ", "");
        assert_eq!(text(0, b"INT"), r#"magic: expected "integrt\x00", found "INTegrt\x00""#);
        assert_eq!(text(8, &[0]), "version: expected 1 to 5, found 0");
        assert_eq!(text(8, &[6]), "version: expected 1 to 5, found 6");
        assert_eq!(text(9, &[0]), "interleaved sectors: expected 2^3 to 2^31, found 2^0");
        assert_eq!(text(9, &[32]), "interleaved sectors: expected 2^3 to 2^31, found 2^32");
        let flags = "flags: expected none but fixed padding (0x8) and fixed HMAC (0x10), found";
        assert_eq!(text(24, &[1]), format!("{flags} 0x1"));
        assert_eq!(text(24, &[2]), format!("{flags} 0x2"));
        assert_eq!(text(24, &[4]), format!("{flags} 0x4"));
        assert_eq!(text(27, &[0x80]), format!("{flags} 0x80000008"));
        assert_eq!(text(28, &[4]), "sectors per block: expected 2^0 to 2^3, found 2^4");
        let error = IntegritySuperblock::decode(&sample()[..63]).unwrap_err().to_string();
        assert_eq!(error, "dm-integrity superblock: superblock: expected 64 bytes, found 63");
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_within_the_kernels_limits(at in 8..64_usize, value in any::<u64>()) {
            let mut bytes = sample();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            if let Ok(superblock) = IntegritySuperblock::decode(&bytes) {
                prop_assert!((1..=5).contains(&superblock.version));
                prop_assert!([512, 1024, 2048, 4096].contains(&superblock.block_size));
            }
        }
    }
}
