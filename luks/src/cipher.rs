//! The ciphers and hashes that are opened, and no others.

use std::fmt;

use crate::{error::Fault, json::Field};

/// A hash, of key derivation, splitting and digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Hash {
    /// The name in headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The size of its digests in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    pub(crate) fn by_name(name: &str) -> Option<Self> {
        [Self::Sha256, Self::Sha512].into_iter().find(|hash| hash.name() == name)
    }

    pub(crate) fn of_field(field: Field<'_>) -> Result<Self, Fault> {
        Self::by_name(field.text()?).ok_or_else(|| field.error("sha256 or sha512"))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How a segment's sectors are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES in XTS mode, the sector's number as its tweak.
    AesXtsPlain64,
    /// AES in XTS mode with random tweaks, kept in dm-integrity's tags.
    AesXtsRandom,
    /// AES in GCM mode with random nonces, kept in dm-integrity's tags.
    AesGcmRandom,
    /// AEGIS-128 with random nonces, kept in dm-integrity's tags.
    Aegis128Random,
}

impl Cipher {
    const ALL: [Self; 4] = [Self::AesXtsPlain64, Self::AesXtsRandom, Self::AesGcmRandom, Self::Aegis128Random];

    /// The name in headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AesXtsPlain64 => "aes-xts-plain64",
            Self::AesXtsRandom => "aes-xts-random",
            Self::AesGcmRandom => "aes-gcm-random",
            Self::Aegis128Random => "aegis128-random",
        }
    }

    /// The cipher by the name in a header: whatever is not on this list is refused, `cipher_null` first of all.
    pub(crate) fn of_field(field: Field<'_>) -> Result<Self, Fault> {
        let name = field.text()?;
        let known = Self::ALL.into_iter().find(|cipher| cipher.name() == name);
        known.ok_or_else(|| {
            field.error("aes-xts-plain64, or with integrity aes-xts-random, aes-gcm-random or aegis128-random")
        })
    }

    /// The kernel's name of the algorithm, and of the generator of tweaks or nonces.
    const fn kernel_names(self) -> (&'static str, &'static str) {
        match self {
            Self::AesXtsPlain64 => ("xts(aes)", "plain64"),
            Self::AesXtsRandom => ("xts(aes)", "random"),
            Self::AesGcmRandom => ("gcm(aes)", "random"),
            Self::Aegis128Random => ("aegis128", "random"),
        }
    }

    /// As dm-crypt takes it.
    pub(crate) fn kernel_name(self, integrity: Option<Integrity>) -> String {
        let (algorithm, iv) = self.kernel_names();
        match integrity {
            None => self.name().to_owned(),
            Some(Integrity::Aead) => format!("capi:{algorithm}-{iv}"),
            Some(hmac) => format!("capi:authenc({hmac},{algorithm})-{iv}"),
        }
    }

    /// How many bytes of a tag hold the tweak or nonce.
    const fn nonce_size(self) -> u32 {
        match self {
            Self::AesXtsPlain64 => 0,
            Self::AesGcmRandom => 12,
            Self::AesXtsRandom | Self::Aegis128Random => 16,
        }
    }

    /// The sizes that a volume key may have, in bytes; empty where the two do not go together.
    pub(crate) const fn key_sizes(self, integrity: Option<Integrity>) -> &'static [u32] {
        match (self, integrity) {
            (Self::AesXtsPlain64, None) => &[32, 64],
            (Self::AesXtsPlain64 | Self::AesXtsRandom, Some(Integrity::HmacSha256)) => &[64, 96],
            (Self::AesXtsPlain64 | Self::AesXtsRandom, Some(Integrity::HmacSha512)) => &[96, 128],
            (Self::AesGcmRandom, Some(Integrity::Aead)) => &[16, 32],
            (Self::Aegis128Random, Some(Integrity::Aead)) => &[16],
            _ => &[],
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How a segment's sectors are authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Integrity {
    /// HMAC-SHA-256 over the ciphertext, with a key of its own at the end of the volume key.
    HmacSha256,
    /// HMAC-SHA-512 over the ciphertext, with a key of its own at the end of the volume key.
    HmacSha512,
    /// The cipher authenticates by itself.
    Aead,
}

impl Integrity {
    const ALL: [Self; 3] = [Self::HmacSha256, Self::HmacSha512, Self::Aead];

    /// The name in headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac(sha256)",
            Self::HmacSha512 => "hmac(sha512)",
            Self::Aead => "aead",
        }
    }

    pub(crate) fn of_field(field: Field<'_>) -> Result<Self, Fault> {
        let name = field.text()?;
        let known = Self::ALL.into_iter().find(|integrity| integrity.name() == name);
        known.ok_or_else(|| field.error("hmac(sha256), hmac(sha512) or aead"))
    }

    /// The size of a sector's tag in bytes, as cryptsetup computes it.
    pub(crate) const fn tag_size(self, cipher: Cipher) -> u32 {
        let tag = match self {
            Self::HmacSha256 => 32,
            Self::HmacSha512 => 64,
            Self::Aead => 16,
        };
        tag + cipher.nonce_size()
    }

    /// How much of the volume key is not the cipher's, in bytes.
    pub const fn key_size(self) -> u32 {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha512 => 64,
            Self::Aead => 0,
        }
    }
}

impl fmt::Display for Integrity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
