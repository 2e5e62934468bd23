//! The volume key, and what is known about it in public.

use std::fmt;

use iofs_policy::{
    digest::Sha256Digest,
    pcr::{PcrBank, PcrDigest},
};
use uuid::Uuid;
use zeroize::Zeroizing;

/// The key by which a volume is encrypted. It was checked against the header's digest.
pub struct VolumeKey(Zeroizing<Vec<u8>>);

impl VolumeKey {
    /// Takes a key from elsewhere, such as a test or another program's output.
    pub fn from_bytes(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// The bytes, for the kernel's keyring.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What register 15 is extended by when a volume is opened as `name`: HMAC by the volume key over
    /// `cryptsetup:NAME:UUID`, in the form of systemd's `tpm2-measure-pcr=`. It tells volumes apart, and nothing of the
    /// key.
    pub fn measured(&self, bank: PcrBank, name: &str, uuid: &Uuid) -> PcrDigest {
        hmac(bank, &self.0, Self::measured_text(name, uuid).as_bytes())
    }

    /// The text that is measured, which the log shows.
    pub fn measured_text(name: &str, uuid: &Uuid) -> String {
        format!("cryptsetup:{}:{uuid}", escaped(name))
    }

    /// What an image pins to know its volume again: [`VolumeKey::measured`] in the SHA-256 bank.
    pub fn id(&self, name: &str, uuid: &Uuid) -> Sha256Digest {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.measured(PcrBank::Sha256, name, uuid).as_bytes());
        Sha256Digest::from_bytes(digest)
    }
}

/// Without the key.
impl fmt::Debug for VolumeKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VolumeKey({} bytes)", self.0.len())
    }
}

/// systemd's `xescape` with `:`: a name cannot pass for another name and a UUID.
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b':' | b'\\' | 0..=0x1f | 0x7f.. => text.push_str(&format!("\\x{byte:02x}")),
            _ => text.push(char::from(byte)),
        }
    }
    text
}

/// RFC 2104, with the bank's hash.
fn hmac(bank: PcrBank, key: &[u8], text: &[u8]) -> PcrDigest {
    let block_size = match bank {
        PcrBank::Sha1 | PcrBank::Sha256 => 64,
        PcrBank::Sha384 | PcrBank::Sha512 => 128,
    };
    let digest;
    let key = if key.len() > block_size {
        digest = PcrDigest::of(bank, &[key]);
        digest.as_bytes()
    } else {
        key
    };
    let mut block = Zeroizing::new([0; 128]);
    block[..key.len()].copy_from_slice(key);
    let mut padded = |mask: u8, rest: &[u8]| {
        block.iter_mut().for_each(|byte| *byte ^= mask);
        let hash = PcrDigest::of(bank, &[&block[..block_size], rest]);
        block.iter_mut().for_each(|byte| *byte ^= mask);
        hash
    };
    let inner = padded(0x36, text);
    padded(0x5c, inner.as_bytes())
}
