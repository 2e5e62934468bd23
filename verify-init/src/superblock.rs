//! Comparing the verity superblock on disk with the sealed one. It is never parsed and never believed.

use iofs_policy::{hex, verity::Superblock};
use uuid::Uuid;

/// How a field is shown.
#[derive(Debug, Clone, Copy)]
enum Show {
    Number,
    Text,
    Uuid,
    Hex,
}

/// The fields in their order: name, first byte, end, how to show it. Source: cryptsetup `lib/verity/verity.c`.
const FIELDS: [(&str, usize, usize, Show); 13] = [
    ("magic", 0, 8, Show::Text),
    ("version", 8, 12, Show::Number),
    ("hash type", 12, 16, Show::Number),
    ("uuid", 16, 32, Show::Uuid),
    ("hash algorithm", 32, 64, Show::Text),
    ("data block size", 64, 68, Show::Number),
    ("hash block size", 68, 72, Show::Number),
    ("data blocks", 72, 80, Show::Number),
    ("salt size", 80, 82, Show::Number),
    ("padding", 82, 88, Show::Hex),
    ("salt", 88, 344, Show::Hex),
    ("padding", 344, 512, Show::Hex),
    // Reached only if the ranges above left a gap.
    ("superblock", 0, 512, Show::Hex),
];

/// The first field that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The field's name.
    pub field: &'static str,
    /// What is sealed.
    pub expected: String,
    /// What is on the disk.
    pub found: String,
}

/// Compares 512 bytes of a hash device with the sealed superblock.
pub fn difference(sealed: &Superblock, found: &[u8]) -> Option<Difference> {
    let sealed = sealed.encode();
    let Some(found) = found.first_chunk::<{ Superblock::SIZE }>() else {
        let (expected, found) = ("512 bytes".to_owned(), format!("{} bytes", found.len()));
        return Some(Difference { field: "superblock", expected, found });
    };
    let (field, start, end, show) =
        FIELDS.into_iter().find(|(_, start, end, _)| sealed[*start..*end] != found[*start..*end])?;
    Some(Difference { field, expected: shown(show, &sealed[start..end]), found: shown(show, &found[start..end]) })
}

fn shown(show: Show, bytes: &[u8]) -> String {
    match show {
        Show::Number => bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte)).to_string(),
        Show::Text => trimmed(bytes).escape_ascii().to_string(),
        Show::Uuid => Uuid::from_slice(bytes).unwrap_or_default().to_string(),
        Show::Hex => format!("\"{}\"", hex::encode(trimmed(bytes))),
    }
}

/// Without the zeros that pad a field.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

#[cfg(test)]
mod tests {
    use iofs_policy::verity::{BlockSize, HashAlgorithm, HashFormat, VerityParameters};

    use super::*;

    fn sealed() -> Superblock {
        Superblock {
            parameters: VerityParameters {
                format: HashFormat::Normal,
                algorithm: HashAlgorithm::Sha256,
                data_block_size: BlockSize::DEFAULT,
                hash_block_size: BlockSize::DEFAULT,
                data_blocks: 300,
                salt: "abcd".parse().unwrap(),
            },
            uuid: Uuid::from_u128(0x11111111_2222_3333_4444_555555555555),
        }
    }

    #[test]
    fn the_sealed_superblock_passes_whatever_follows_it() {
        let block = [sealed().encode().as_slice(), &[0xff; 3584]].concat();
        assert_eq!(difference(&sealed(), &block), None);
    }

    #[test]
    fn superblock_swap_every_changed_byte_is_seen() {
        for at in 0..Superblock::SIZE {
            let mut bytes = sealed().encode();
            bytes[at] ^= 0x40;
            let difference = difference(&sealed(), &bytes).unwrap_or_else(|| panic!("byte {at} was not compared"));
            assert_ne!(difference.field, "superblock", "byte {at} has no field");
        }
    }

    #[test]
    fn superblock_swap_names_the_field_with_both_values() {
        let text = |at: usize, bytes: &[u8]| {
            let mut found = sealed().encode();
            found[at..at + bytes.len()].copy_from_slice(bytes);
            let Difference { field, expected, found } = difference(&sealed(), &found).unwrap();
            format!("{field}: {expected} / {found}")
        };
        assert_eq!(text(64, &[0, 2]), "data block size: 4096 / 512");
        assert_eq!(text(72, &[0, 0]), "data blocks: 300 / 0");
        assert_eq!(text(32, b"sha512"), "hash algorithm: sha256 / sha512");
        assert_eq!(text(88, b"\x12"), "salt: \"abcd\" / \"12cd\"");
        assert!(text(0, b"LUKS\xba\xbe").ends_with(r"LUKS\xba\xbe"));
        assert!(text(16, &[9]).ends_with("09111111-2222-3333-4444-555555555555"));
        assert_eq!(difference(&sealed(), b"short").unwrap().found, "5 bytes");
    }
}
