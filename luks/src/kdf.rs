//! How a key is derived from a passphrase, and how much that may cost.

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use hmac::Hmac;
use sha2::{Sha256, Sha512};
use zeroize::Zeroizing;

use crate::{cipher::Hash, error::Fault, json::Field};

/// What cryptsetup allows at most: 4 GiB.
const MAX_MEMORY_KIB: u32 = 4 * 1024 * 1024;
const MIN_MEMORY_KIB: u32 = 32;
const MAX_LANES: u32 = 4;
const MIN_ITERATIONS: u32 = 1000;
/// RFC 9106, section 3.1, and RFC 8018, section 4.1, ask for 8 at least; cryptsetup writes 32.
const MIN_SALT: usize = 8;
const MAX_SALT: usize = 64;

/// A variant of Argon2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argon2Variant {
    /// Argon2i.
    I,
    /// Argon2id.
    Id,
}

impl Argon2Variant {
    /// The name in headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::I => "argon2i",
            Self::Id => "argon2id",
        }
    }
}

/// How a keyslot's key is derived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kdf {
    /// PBKDF2 (RFC 8018) with HMAC.
    Pbkdf2 {
        /// The hash.
        hash: Hash,
        /// How often.
        iterations: u32,
        /// The salt.
        salt: Vec<u8>,
    },
    /// Argon2 (RFC 9106), version 1.3.
    Argon2 {
        /// The variant.
        variant: Argon2Variant,
        /// How many passes over the memory.
        time: u32,
        /// How much memory, in KiB.
        memory_kib: u32,
        /// How many lanes. They are computed one after the other.
        lanes: u32,
        /// The salt.
        salt: Vec<u8>,
    },
}

impl fmt::Display for Kdf {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pbkdf2 { hash, iterations, .. } => write!(formatter, "pbkdf2 ({hash}, {iterations} iterations)"),
            Self::Argon2 { variant, time, memory_kib, lanes, .. } => {
                let name = variant.name();
                write!(formatter, "{name} ({time} passes over {memory_kib} KiB, {lanes} lanes)")
            }
        }
    }
}

/// What a derivation may cost: whoever wrote a header may have wanted the machine to hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The memory of Argon2, in KiB.
    pub max_memory_kib: u32,
    /// The passes of Argon2 times its memory in KiB, which is what its time depends on.
    pub max_argon2_work_kib: u64,
    /// The iterations of PBKDF2.
    pub max_pbkdf2_iterations: u32,
}

/// A GiB of memory, which is what cryptsetup takes at most where nobody asks for more; and a time of about a minute or two.
impl Default for Limits {
    fn default() -> Self {
        Self { max_memory_kib: 1 << 20, max_argon2_work_kib: 1 << 26, max_pbkdf2_iterations: 50_000_000 }
    }
}

impl Kdf {
    pub(crate) fn of_field(field: Field<'_>) -> Result<Self, Fault> {
        let kind = field.member("type")?;
        let variant = match kind.text()? {
            "pbkdf2" => {
                let (hash, iterations, salt) = pbkdf2_of_field(field)?;
                return Ok(Self::Pbkdf2 { hash, iterations, salt });
            }
            "argon2i" => Argon2Variant::I,
            "argon2id" => Argon2Variant::Id,
            _ => return Err(kind.error("pbkdf2, argon2i or argon2id")),
        };
        let memory = field.member("memory")?;
        let lanes = field.member("cpus")?.number(1, MAX_LANES)?;
        Ok(Self::Argon2 {
            variant,
            time: field.member("time")?.number(1, u32::MAX)?,
            memory_kib: memory.number(MIN_MEMORY_KIB, MAX_MEMORY_KIB)?,
            lanes,
            salt: salt(field.member("salt")?)?,
        })
    }

    /// What goes beyond the limits: its name, what is allowed, what the header asks for.
    pub(crate) fn beyond(&self, limits: &Limits) -> Option<(&'static str, u64, u64)> {
        let costs = match self {
            Self::Pbkdf2 { iterations, .. } => {
                [("iterations of pbkdf2", u64::from(limits.max_pbkdf2_iterations), u64::from(*iterations)), ("", 0, 0)]
            }
            Self::Argon2 { time, memory_kib, .. } => [
                ("KiB of memory for argon2", u64::from(limits.max_memory_kib), u64::from(*memory_kib)),
                (
                    "KiB of memory times passes of argon2",
                    limits.max_argon2_work_kib,
                    u64::from(*time) * u64::from(*memory_kib),
                ),
            ],
        };
        costs.into_iter().find(|(_, allowed, found)| found > allowed)
    }

    /// Derives a key of `size` bytes.
    ///
    /// `None` where there is not enough memory.
    pub(crate) fn derive(&self, passphrase: &[u8], size: usize) -> Option<Zeroizing<Vec<u8>>> {
        let mut key = Zeroizing::new(vec![0; size]);
        match self {
            Self::Pbkdf2 { hash, iterations, salt } => pbkdf2(*hash, passphrase, salt, *iterations, &mut key),
            Self::Argon2 { variant, time, memory_kib, lanes, salt } => {
                let algorithm = match variant {
                    Argon2Variant::I => Algorithm::Argon2i,
                    Argon2Variant::Id => Algorithm::Argon2id,
                };
                let parameters = Params::new(*memory_kib, *time, *lanes, Some(size)).ok()?;
                let mut memory = memory(parameters.block_count())?;
                let argon2 = Argon2::new(algorithm, Version::V0x13, parameters);
                argon2.hash_password_into_with_memory(passphrase, salt, &mut key, &mut *memory).ok()?;
            }
        }
        Some(key)
    }
}

fn memory(blocks: usize) -> Option<Zeroizing<Vec<Block>>> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(blocks).ok()?;
    memory.resize(blocks, Block::new());
    Some(Zeroizing::new(memory))
}

/// The fields that keyslots and digests share.
pub(crate) fn pbkdf2_of_field(field: Field<'_>) -> Result<(Hash, u32, Vec<u8>), Fault> {
    let hash = Hash::of_field(field.member("hash")?)?;
    let iterations = field.member("iterations")?.number(MIN_ITERATIONS, u32::MAX)?;
    Ok((hash, iterations, salt(field.member("salt")?)?))
}

fn salt(field: Field<'_>) -> Result<Vec<u8>, Fault> {
    let salt = field.base64()?;
    match (MIN_SALT..=MAX_SALT).contains(&salt.len()) {
        true => Ok(salt),
        false => Err(field.error(format!("base64 of {MIN_SALT} to {MAX_SALT} bytes"))),
    }
}

pub(crate) fn pbkdf2(hash: Hash, passphrase: &[u8], salt: &[u8], iterations: u32, key: &mut [u8]) {
    // HMAC takes keys of any length, so that there is no error to tell.
    let _ = match hash {
        Hash::Sha256 => pbkdf2::pbkdf2::<Hmac<Sha256>>(passphrase, salt, iterations, key),
        Hash::Sha512 => pbkdf2::pbkdf2::<Hmac<Sha512>>(passphrase, salt, iterations, key),
    };
}
