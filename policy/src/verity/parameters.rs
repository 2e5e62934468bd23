//! The values that define a verity device, each checked when it is made.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::hex;

/// The longest salt in bytes: the superblock has no room for more, and the kernel refuses it.
pub const MAX_SALT_SIZE: usize = 256;

/// Why a verity parameter was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// The block size is not one that the kernel and the tools take.
    #[error("block size: expected a power of two from 512 to 65536, found {0}")]
    BlockSize(u64),
    /// The hash algorithm is unknown.
    #[error("hash algorithm: expected sha256 or sha512, found {0:?}")]
    Algorithm(String),
    /// The hash format is unknown.
    #[error("hash format: expected 0 (Chrome OS) or 1 (normal), found {0}")]
    Format(u32),
    /// The salt is too long.
    #[error("salt: expected at most {MAX_SALT_SIZE} bytes, found {0}")]
    SaltSize(usize),
    /// The root hash does not have its algorithm's length.
    #[error("root hash: expected {expected} bytes for {algorithm}, found {found}")]
    RootHashSize {
        /// The algorithm that the root hash was meant for.
        algorithm: HashAlgorithm,
        /// That algorithm's digest size in bytes.
        expected: usize,
        /// The size found, in bytes.
        found: usize,
    },
    /// A salt or root hash is not hexadecimal.
    #[error("{field}: {source}")]
    Hex {
        /// The field's name.
        field: &'static str,
        /// What was wrong with the text.
        source: hex::HexError,
    },
    /// There is no data to protect.
    #[error("data blocks: expected at least 1, found 0")]
    NoData,
    /// The data or hash area does not fit into 64 bits of bytes.
    #[error("{0} data blocks: the device would be larger than 2^63 bytes")]
    TooLarge(u64),
    /// The hash area does not start on a hash block.
    #[error("hash offset: expected a multiple of the hash block size {hash_block_size}, found {found}")]
    HashOffset {
        /// The hash block size in bytes.
        hash_block_size: u32,
        /// The offset found, in bytes.
        found: u64,
    },
    /// The superblock does not start on a sector.
    #[error("hash offset: expected a multiple of 512 for a superblock, found {0}")]
    SuperblockOffset(u64),
    /// The hash area would end beyond the last position in a file.
    #[error("hash offset {offset}: the hash area would end beyond 2^63 bytes")]
    AreaTooLarge {
        /// Start of the hash area in bytes.
        offset: u64,
    },
}

/// A data or hash block's size in bytes: a power of two from 512 to 65536.
///
/// The kernel's upper bound is its page size; 65536 is the largest page of any supported architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct BlockSize(u32);

impl BlockSize {
    /// 4096 bytes, the default of every tool.
    pub const DEFAULT: Self = Self(4096);

    /// The size in bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for BlockSize {
    type Error = ParameterError;

    fn try_from(bytes: u64) -> Result<Self, ParameterError> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (512..=65536).contains(&size) => Ok(Self(size)),
            _ => Err(ParameterError::BlockSize(bytes)),
        }
    }
}

impl From<BlockSize> for u64 {
    fn from(size: BlockSize) -> Self {
        size.0.into()
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The hash function of a tree, by its name in the kernel's crypto API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HashAlgorithm {
    /// SHA-256, the default of every tool.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl HashAlgorithm {
    /// The digest's size in bytes.
    pub fn digest_size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The name that the kernel and the superblock use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl FromStr for HashAlgorithm {
    type Err = ParameterError;

    fn from_str(name: &str) -> Result<Self, ParameterError> {
        [Self::Sha256, Self::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| ParameterError::Algorithm(name.to_owned()))
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The hash type: where the salt goes and how digests are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum HashFormat {
    /// Type 0: block ‖ salt, digests packed without padding.
    ChromeOs,
    /// Type 1: salt ‖ block, each digest in a slot padded to a power of two.
    Normal,
}

impl TryFrom<u32> for HashFormat {
    type Error = ParameterError;

    fn try_from(number: u32) -> Result<Self, ParameterError> {
        match number {
            0 => Ok(Self::ChromeOs),
            1 => Ok(Self::Normal),
            other => Err(ParameterError::Format(other)),
        }
    }
}

impl From<HashFormat> for u32 {
    fn from(format: HashFormat) -> Self {
        match format {
            HashFormat::ChromeOs => 0,
            HashFormat::Normal => 1,
        }
    }
}

/// Hashed with every block, so that a tree cannot be computed before the salt is known. 0 to 256 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Salt(Vec<u8>);

impl Salt {
    /// Checks the length.
    pub fn new(bytes: Vec<u8>) -> Result<Self, ParameterError> {
        if bytes.len() > MAX_SALT_SIZE {
            return Err(ParameterError::SaltSize(bytes.len()));
        }
        Ok(Self(bytes))
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Salt {
    type Err = ParameterError;

    /// Lower-case hexadecimal; the empty string and `-` (the kernel's spelling) are the empty salt.
    fn from_str(text: &str) -> Result<Self, ParameterError> {
        if text == "-" {
            return Ok(Self::default());
        }
        Self::new(hex::decode(text).map_err(|source| ParameterError::Hex { field: "salt", source })?)
    }
}

impl fmt::Display for Salt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(&self.0))
    }
}

impl TryFrom<String> for Salt {
    type Error = ParameterError;

    fn try_from(text: String) -> Result<Self, ParameterError> {
        text.parse()
    }
}

impl From<Salt> for String {
    fn from(salt: Salt) -> Self {
        salt.to_string()
    }
}

/// The digest of the tree's root block: it stands for every byte of the data. 32 or 64 bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootHash(Vec<u8>);

impl RootHash {
    /// Takes a digest of the given algorithm's size.
    pub fn new(algorithm: HashAlgorithm, bytes: Vec<u8>) -> Result<Self, ParameterError> {
        let hash = Self(bytes);
        hash.check_size(algorithm)?;
        Ok(hash)
    }

    /// Refuses a root hash that is not of the algorithm's size.
    pub fn check_size(&self, algorithm: HashAlgorithm) -> Result<(), ParameterError> {
        let (expected, found) = (algorithm.digest_size(), self.0.len());
        if expected != found {
            return Err(ParameterError::RootHashSize { algorithm, expected, found });
        }
        Ok(())
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for RootHash {
    type Err = ParameterError;

    fn from_str(text: &str) -> Result<Self, ParameterError> {
        let bytes = hex::decode(text).map_err(|source| ParameterError::Hex { field: "root hash", source })?;
        let found = bytes.len();
        if found != 32 && found != 64 {
            let algorithm = HashAlgorithm::Sha256;
            return Err(ParameterError::RootHashSize { algorithm, expected: algorithm.digest_size(), found });
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for RootHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RootHash({self})")
    }
}

impl TryFrom<String> for RootHash {
    type Error = ParameterError;

    fn try_from(text: String) -> Result<Self, ParameterError> {
        text.parse()
    }
}

impl From<RootHash> for String {
    fn from(hash: RootHash) -> Self {
        hash.to_string()
    }
}

/// All that defines a hash tree but its root hash, as signed in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerityParameters {
    /// The hash type.
    pub format: HashFormat,
    /// The hash function.
    pub algorithm: HashAlgorithm,
    /// Size of a data block.
    pub data_block_size: BlockSize,
    /// Size of a hash block.
    pub hash_block_size: BlockSize,
    /// Number of data blocks that are protected.
    pub data_blocks: u64,
    /// The salt.
    pub salt: Salt,
}
