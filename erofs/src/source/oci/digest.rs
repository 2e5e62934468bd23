//! Digests: names of blobs that follow from their content.

use std::fmt;

use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha512};

/// A digest by one of the two registered algorithms (`descriptor.md`, "Registered algorithms").
///
/// It holds nothing but an algorithm's name and the right number of hexadecimal digits, so that it names a file below
/// `blobs/` and no other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest {
    algorithm: Algorithm,
    digits: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl Digest {
    /// Where the blob lies, from the layout's root.
    pub fn path(&self) -> String {
        format!("blobs/{}/{}", self.algorithm.name(), self.digits)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("digest: expected sha256 or sha512 with its digits a-f and 0-9, found {text:?}");
        let (name, digits) = text.split_once(':').ok_or_else(wrong)?;
        let algorithm = [Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|known| known.name() == name);
        let algorithm = algorithm.filter(|known| digits.len() == known.digits()).ok_or_else(wrong)?;
        if !digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        Ok(Self { algorithm, digits: digits.to_owned() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.algorithm.name(), self.digits)
    }
}

/// Computes what a digest claims.
pub(super) enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// By the digest's algorithm.
    pub(super) fn of(digest: &Digest) -> Self {
        match digest.algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Box::new(Sha512::new())),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Digest {
        let (algorithm, hash) = match self {
            Self::Sha256(hasher) => (Algorithm::Sha256, hasher.finalize().to_vec()),
            Self::Sha512(hasher) => (Algorithm::Sha512, hasher.finalize().to_vec()),
        };
        Digest { algorithm, digits: hash.iter().map(|byte| format!("{byte:02x}")).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_names_a_file_below_blobs_and_no_other() {
        let digits = "0123456789abcdef".repeat(4);
        let digest = Digest::try_from(format!("sha256:{digits}")).unwrap();
        assert_eq!(digest.path(), format!("blobs/sha256/{digits}"));
        assert_eq!(digest.to_string(), format!("sha256:{digits}"));
        for bad in [
            String::new(),
            digits.clone(),
            "sha256:../../../../etc/passwd".into(),
            format!("sha256:{}", digits.to_uppercase()),
            format!("sha256:{}", &digits[1..]),
            format!("sha256:../{}", &digits[3..]),
            format!("sha512:{digits}"),
            format!("../sha256:{digits}"),
            format!("md5:{}", &digits[32..]),
            format!("sha256:{}/", &digits[1..]),
            format!("sha256:{}\u{e9}", &digits[2..]),
        ] {
            let error = Digest::try_from(bad.clone()).unwrap_err();
            assert!(error.contains("expected sha256 or sha512"), "{bad}: {error}");
        }
    }

    /// FIPS 180-4's example "abc".
    #[test]
    fn hashers_compute_what_digests_claim() {
        for digest in [
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ] {
            let digest = Digest::try_from(digest.to_owned()).unwrap();
            let mut hasher = Hasher::of(&digest);
            hasher.update(b"a");
            hasher.update(b"bc");
            assert_eq!(hasher.finish(), digest);
        }
    }
}
