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

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: Uuid = Uuid::from_u128(0x11111111_2222_3333_4444_555555555555);

    fn key(size: u8) -> VolumeKey {
        VolumeKey::from_bytes(Zeroizing::new((0..size).collect()))
    }

    fn measured(key: &VolumeKey, name: &str) -> Vec<String> {
        PcrBank::ALL.iter().map(|bank| key.measured(*bank, name, &UUID).to_string()).collect()
    }

    /// Python 3.11: `hmac.new(bytes(range(64)), b"cryptsetup:state:11111111-2222-3333-4444-555555555555", NAME).hexdigest()`
    /// for NAME in sha1, sha256, sha384, sha512.
    #[test]
    fn what_is_measured_is_another_implementations_hmac() {
        assert_eq!(
            measured(&key(64), "state"),
            [
                "sha1:f7091e32e932430cda1a41355ae54289e205237e",
                "sha256:b99908c86f84e558c38b2c320b07005e0545963dedae9e91c2097975d7e83eff",
                "sha384:c730b54f4e06dd3cbbc94e0a53073d22d0514ea5e02551ffd84b46f53e806222369a39d51a9c8f3717040c415ee400d0",
                "sha512:59ef7442d50f3a465594ffd188f36b59f36270a7041a78309db74325828d75ca950cded30378db954be300d23036bb0729687e2858899a0c5094425701aa5bfa",
            ]
        );
        assert_eq!(
            key(64).id("state", &UUID).to_string(),
            "b99908c86f84e558c38b2c320b07005e0545963dedae9e91c2097975d7e83eff"
        );
    }

    /// As above, with `bytes(range(128))` and `cryptsetup:a\x3ab:…`: a key that is longer than the block of some hashes.
    #[test]
    fn long_keys_and_names_with_a_colon_are_measured_as_systemd_does() {
        assert_eq!(
            measured(&key(128), "a:b"),
            [
                "sha1:df686a21821c9a05fbf059a1c79017154753ea5b",
                "sha256:37e080334892d92a43ee5008cd04543c770a286e749cc47b755bdb47e70f207a",
                "sha384:76b1577e70d328a8b34c4a1776c3ee4e30666b9fd9c35ca8588ac49224e533e7dde65df41ce34814655746cbf2efebf9",
                "sha512:a1ade3c67f45f855fc7303129d53cf14c4a76185d937eedf70e37290a4f81de325f910728109393cf33df6a7e9bc48da8db52c49bc115d8b0a2afe0397999828",
            ]
        );
        assert_eq!(
            VolumeKey::measured_text("\\é\n\x7f x", &UUID),
            format!("cryptsetup:\\x5c\\xc3\\xa9\\x0a\\x7f x:{UUID}")
        );
    }

    #[test]
    fn a_key_is_not_shown() {
        assert_eq!(format!("{:?}", key(32)), "VolumeKey(32 bytes)");
    }
}
