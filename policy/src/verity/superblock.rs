//! The superblock that tells tools, never the kernel, how a hash tree was made.
//!
//! Source: cryptsetup `lib/verity/verity.c`, version 1; all numbers little endian. It is not signed: whoever trusts it
//! must compare it with signed parameters or a root hash first.

use uuid::Uuid;

use super::{BlockSize, Geometry, HashAlgorithm, MAX_SALT_SIZE, ParameterError, Salt, VerityParameters};

const MAGIC: &[u8; 8] = b"verity\0\0";
const VERSION: u32 = 1;

const VERSION_AT: usize = 8;
const HASH_TYPE_AT: usize = 12;
const UUID_AT: usize = 16;
const ALGORITHM_AT: usize = 32;
const ALGORITHM_SIZE: usize = 32;
const DATA_BLOCK_SIZE_AT: usize = 64;
const HASH_BLOCK_SIZE_AT: usize = 68;
const DATA_BLOCKS_AT: usize = 72;
const SALT_SIZE_AT: usize = 80;
const FIRST_PADDING_AT: usize = 82;
const SALT_AT: usize = 88;
const LAST_PADDING_AT: usize = SALT_AT + MAX_SALT_SIZE;

/// Why a superblock was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// The first bytes are not the magic: there is no superblock here.
    #[error("magic: expected \"verity\\0\\0\", found \"{}\"", .0.escape_ascii())]
    Magic([u8; 8]),
    /// The version is unknown.
    #[error("version: expected {VERSION}, found {0}")]
    Version(u32),
    /// The algorithm's name is not text padded with zeros.
    #[error("hash algorithm: expected a name padded with zeros, found \"{}\"", .0.escape_ascii())]
    AlgorithmName([u8; ALGORITHM_SIZE]),
    /// A value is one that no verity device can have.
    #[error("{field}: {source}")]
    Value {
        /// The field's name.
        field: &'static str,
        /// What was expected and found.
        source: ParameterError,
    },
    /// Bytes that every writer leaves zero are not. The position is in bytes from the superblock's start.
    #[error("padding at byte {position}: expected 0, found {found:#04x}")]
    Padding {
        /// Offset of the first such byte.
        position: usize,
        /// Its value.
        found: u8,
    },
}

/// What a superblock says: how the tree was made, and the device's UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// How the tree was made.
    pub parameters: VerityParameters,
    /// Identifies the hash device; device-mapper UUIDs of other tools derive from it.
    pub uuid: Uuid,
}

impl Superblock {
    /// The size in bytes.
    pub const SIZE: usize = 512;

    /// The bytes on disk.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let VerityParameters { format, algorithm, data_block_size, hash_block_size, data_blocks, salt } =
            &self.parameters;
        let (name, salt) = (algorithm.name().as_bytes(), salt.as_bytes());
        let mut bytes = [0; Self::SIZE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, MAGIC);
        put(VERSION_AT, &VERSION.to_le_bytes());
        put(HASH_TYPE_AT, &u32::from(*format).to_le_bytes());
        put(UUID_AT, self.uuid.as_bytes());
        put(ALGORITHM_AT, name);
        put(DATA_BLOCK_SIZE_AT, &data_block_size.bytes().to_le_bytes());
        put(HASH_BLOCK_SIZE_AT, &hash_block_size.bytes().to_le_bytes());
        put(DATA_BLOCKS_AT, &data_blocks.to_le_bytes());
        // A salt has at most 256 bytes: its size always fits.
        put(SALT_SIZE_AT, &(salt.len() as u16).to_le_bytes());
        put(SALT_AT, salt);
        bytes
    }

    /// Reads a superblock, and refuses whatever [`Superblock::encode`] would not write.
    ///
    /// # Errors
    /// Names the first field that is wrong, with the value found.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, SuperblockError> {
        let magic = array(bytes, 0);
        if magic != *MAGIC {
            return Err(SuperblockError::Magic(magic));
        }
        let version = number(bytes, VERSION_AT);
        if version != VERSION {
            return Err(SuperblockError::Version(version));
        }
        let parameters = VerityParameters {
            format: number(bytes, HASH_TYPE_AT).try_into().map_err(in_field("hash type"))?,
            algorithm: algorithm(&array(bytes, ALGORITHM_AT))?,
            data_block_size: block_size(bytes, DATA_BLOCK_SIZE_AT).map_err(in_field("data block size"))?,
            hash_block_size: block_size(bytes, HASH_BLOCK_SIZE_AT).map_err(in_field("hash block size"))?,
            data_blocks: u64::from_le_bytes(array(bytes, DATA_BLOCKS_AT)),
            salt: salt(bytes)?,
        };
        Geometry::new(&parameters).map_err(in_field("data blocks"))?;
        Ok(Self { parameters, uuid: Uuid::from_bytes(array(bytes, UUID_AT)) })
    }
}

fn array<const N: usize>(bytes: &[u8; Superblock::SIZE], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn number(bytes: &[u8; Superblock::SIZE], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn block_size(bytes: &[u8; Superblock::SIZE], at: usize) -> Result<BlockSize, ParameterError> {
    u64::from(number(bytes, at)).try_into()
}

fn in_field(field: &'static str) -> impl Fn(ParameterError) -> SuperblockError {
    move |source| SuperblockError::Value { field, source }
}

fn algorithm(field: &[u8; ALGORITHM_SIZE]) -> Result<HashAlgorithm, SuperblockError> {
    let malformed = || SuperblockError::AlgorithmName(*field);
    let length = field.iter().position(|byte| *byte == 0).ok_or_else(malformed)?;
    let (name, padding) = field.split_at(length);
    if padding.iter().any(|byte| *byte != 0) {
        return Err(malformed());
    }
    let name = std::str::from_utf8(name).map_err(|_| malformed())?;
    name.parse().map_err(in_field("hash algorithm"))
}

fn salt(bytes: &[u8; Superblock::SIZE]) -> Result<Salt, SuperblockError> {
    let size = usize::from(u16::from_le_bytes(array(bytes, SALT_SIZE_AT)));
    if size > MAX_SALT_SIZE {
        return Err(in_field("salt size")(ParameterError::SaltSize(size)));
    }
    let end = SALT_AT + size;
    zero(bytes, FIRST_PADDING_AT..SALT_AT)?;
    zero(bytes, end..LAST_PADDING_AT)?;
    zero(bytes, LAST_PADDING_AT..Superblock::SIZE)?;
    Salt::new(bytes[SALT_AT..end].to_vec()).map_err(in_field("salt"))
}

fn zero(bytes: &[u8; Superblock::SIZE], range: std::ops::Range<usize>) -> Result<(), SuperblockError> {
    match range.into_iter().find(|position| bytes[*position] != 0) {
        Some(position) => Err(SuperblockError::Padding { position, found: bytes[position] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::verity::HashFormat;

    fn sample() -> Superblock {
        Superblock {
            parameters: VerityParameters {
                format: HashFormat::Normal,
                algorithm: HashAlgorithm::Sha256,
                data_block_size: BlockSize::DEFAULT,
                hash_block_size: BlockSize::DEFAULT,
                data_blocks: 1,
                salt: "abcd".parse().unwrap(),
            },
            uuid: Uuid::from_u128(0x11111111_2222_3333_4444_555555555555),
        }
    }

    fn damaged(at: usize, field: &[u8]) -> Result<Superblock, SuperblockError> {
        let mut bytes = sample().encode();
        bytes[at..at + field.len()].copy_from_slice(field);
        Superblock::decode(&bytes)
    }

    /// veritysetup 2.6.1: `veritysetup format data hash --data-blocks 1 --salt abcd
    /// --uuid 11111111-2222-3333-4444-555555555555`, its first 90 bytes; all others are zero.
    #[test]
    fn encoding_matches_veritysetup() {
        let golden = concat!(
            "7665726974790000",
            "01000000",
            "01000000",
            "11111111222233334444555555555555",
            "7368613235360000000000000000000000000000000000000000000000000000",
            "00100000",
            "00100000",
            "0100000000000000",
            "0200",
            "000000000000",
            "abcd",
        );
        let mut expected = crate::hex::decode(golden).unwrap();
        expected.resize(Superblock::SIZE, 0);
        assert_eq!(sample().encode().as_slice(), expected);
    }

    #[test]
    fn each_damaged_field_is_named() {
        let text = |at, field: &[u8]| damaged(at, field).unwrap_err().to_string();
        assert_eq!(text(0, b"VERITY"), r#"magic: expected "verity\0\0", found "VERITY\x00\x00""#);
        assert_eq!(text(8, &[2]), "version: expected 1, found 2");
        assert!(text(12, &[9]).starts_with("hash type: hash format: expected 0"));
        assert!(text(32, b"md5\0\0\0").contains("found \"md5\""));
        assert!(text(40, b"junk").starts_with("hash algorithm: expected a name padded with zeros"));
        assert!(text(32, &[b'a'; 32]).starts_with("hash algorithm: expected a name padded with zeros"));
        assert!(text(64, &[1]).starts_with("data block size: "));
        assert!(text(68, &[0, 0, 2]).starts_with("hash block size: "));
        assert_eq!(text(72, &[0]), "data blocks: data blocks: expected at least 1, found 0");
        assert!(text(72, &[0xff; 8]).starts_with("data blocks: "));
        assert_eq!(text(80, &[1, 1]), "salt size: salt: expected at most 256 bytes, found 257");
        assert_eq!(text(83, &[1]), "padding at byte 83: expected 0, found 0x01");
        assert_eq!(text(90, &[7]), "padding at byte 90: expected 0, found 0x07");
        assert_eq!(text(511, &[9]), "padding at byte 511: expected 0, found 0x09");
    }

    prop_compose! {
        fn superblocks()(
            normal in any::<bool>(),
            long in any::<bool>(),
            data_bits in 9u32..=16,
            hash_bits in 9u32..=16,
            data_blocks in 1u64..1 << 47,
            salt in prop::collection::vec(any::<u8>(), 0..=MAX_SALT_SIZE),
            uuid in any::<u128>(),
        ) -> Superblock {
            Superblock {
                parameters: VerityParameters {
                    format: if normal { HashFormat::Normal } else { HashFormat::ChromeOs },
                    algorithm: if long { HashAlgorithm::Sha512 } else { HashAlgorithm::Sha256 },
                    data_block_size: (1u64 << data_bits).try_into().unwrap(),
                    hash_block_size: (1u64 << hash_bits).try_into().unwrap(),
                    data_blocks,
                    salt: Salt::new(salt).unwrap(),
                },
                uuid: Uuid::from_u128(uuid),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(superblock in superblocks()) {
            prop_assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(
            superblock in superblocks(), at in 0..Superblock::SIZE, value in any::<u8>(),
        ) {
            let mut bytes = superblock.encode();
            bytes[at] = value;
            if let Ok(decoded) = Superblock::decode(&bytes) {
                prop_assert_eq!(decoded.encode(), bytes);
            }
        }
    }
}
