//! Platform configuration registers: which there are, in which banks, and what an extend makes of their values.
//!
//! The names and numbers are those of the TPM 2.0 Library specification, Part 1, section 17 (PCR operations), and Part 2,
//! section 6.3 (`TPM_ALG_ID`).

use std::{fmt, str::FromStr};

use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};

use crate::hex;

/// How many registers a PC's TPM has (PC Client Platform TPM Profile, section 4.6).
pub const PCR_COUNT: u8 = 24;

/// The number of a platform configuration register, 0 to 23.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PcrIndex(u8);

impl PcrIndex {
    /// The kernel image and the phases of the boot (UAPI Group, Linux TPM PCR Registry).
    pub const PHASES: Self = Self(11);
    /// The kernel command line and other configuration (UAPI Group, Linux TPM PCR Registry).
    pub const COMMAND_LINE: Self = Self(12);
    /// System extensions (UAPI Group, Linux TPM PCR Registry), and the manifest.
    pub const MANIFEST: Self = Self(13);
    /// The machine's identity and its volume keys (UAPI Group, Linux TPM PCR Registry).
    pub const SYSTEM_IDENTITY: Self = Self(15);

    /// Takes a register's number.
    ///
    /// # Errors
    /// [`PcrError::Index`] for 24 and above.
    pub const fn new(index: u8) -> Result<Self, PcrError> {
        if index < PCR_COUNT { Ok(Self(index)) } else { Err(PcrError::Index(index)) }
    }

    /// The register's number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// All registers, in order.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..PCR_COUNT).map(Self)
    }
}

impl fmt::Display for PcrIndex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl TryFrom<u8> for PcrIndex {
    type Error = PcrError;

    fn try_from(index: u8) -> Result<Self, PcrError> {
        Self::new(index)
    }
}

/// A bank: all registers under one digest algorithm.
///
/// SHA-1 is broken as a hash; it is here so that firmware's bank of it can be capped and compared like the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PcrBank {
    /// `TPM_ALG_SHA1`
    Sha1,
    /// `TPM_ALG_SHA256`
    Sha256,
    /// `TPM_ALG_SHA384`
    Sha384,
    /// `TPM_ALG_SHA512`
    Sha512,
}

impl PcrBank {
    /// The banks that this toolkit knows, in the order of their size.
    pub const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The algorithm's number (Part 2, section 6.3).
    pub const fn algorithm_id(self) -> u16 {
        match self {
            Self::Sha1 => 0x0004,
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
            Self::Sha512 => 0x000d,
        }
    }

    /// The bank of an algorithm's number (Part 2, section 6.3), where this toolkit knows it.
    pub fn from_algorithm_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|bank| bank.algorithm_id() == id)
    }

    /// The size of a digest, and so of each register, in bytes.
    pub const fn digest_size(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The name that `tpm2-tools` and systemd use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }
}

impl fmt::Display for PcrBank {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for PcrBank {
    type Err = PcrError;

    fn from_str(name: &str) -> Result<Self, PcrError> {
        let known = Self::ALL.into_iter().find(|bank| bank.name() == name);
        known.ok_or_else(|| PcrError::Bank(name.to_owned()))
    }
}

/// The largest digest of all banks, in bytes.
const LARGEST_DIGEST: usize = PcrBank::Sha512.digest_size();

/// A digest of one bank: what a register holds, or what it is extended by. It has its bank's size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PcrDigest {
    bank: PcrBank,
    /// Zero behind the bank's size.
    bytes: [u8; LARGEST_DIGEST],
}

impl PcrDigest {
    /// Takes a finished digest.
    ///
    /// # Errors
    /// [`PcrError::Size`] where it has not its bank's size.
    pub fn new(bank: PcrBank, digest: &[u8]) -> Result<Self, PcrError> {
        if digest.len() != bank.digest_size() {
            return Err(PcrError::Size { bank, found: digest.len() });
        }
        let mut bytes = [0; LARGEST_DIGEST];
        bytes[..digest.len()].copy_from_slice(digest);
        Ok(Self { bank, bytes })
    }

    /// All bytes zero: what the registers 1 to 16 and 23 hold after the TPM started. Register 0 does too, unless firmware
    /// started the TPM from another locality than 0.
    pub const fn zero(bank: PcrBank) -> Self {
        Self { bank, bytes: [0; LARGEST_DIGEST] }
    }

    /// Hashes the concatenation of `parts`.
    pub fn of(bank: PcrBank, parts: &[&[u8]]) -> Self {
        let mut bytes = [0; LARGEST_DIGEST];
        let digest = &mut bytes[..bank.digest_size()];
        match bank {
            PcrBank::Sha1 => hash::<Sha1>(parts, digest),
            PcrBank::Sha256 => hash::<Sha256>(parts, digest),
            PcrBank::Sha384 => hash::<Sha384>(parts, digest),
            PcrBank::Sha512 => hash::<Sha512>(parts, digest),
        }
        Self { bank, bytes }
    }

    /// The bank.
    pub const fn bank(&self) -> PcrBank {
        self.bank
    }

    /// The digest, as many bytes as its bank says.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.bank.digest_size()]
    }
}

fn hash<D: Digest>(parts: &[&[u8]], digest: &mut [u8]) {
    let mut hasher = D::new();
    parts.iter().for_each(|part| hasher.update(part));
    digest.copy_from_slice(&hasher.finalize());
}

/// `BANK:HEX`
impl fmt::Display for PcrDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.bank, hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for PcrDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PcrDigest({self})")
    }
}

/// The value that a register has after it held `value` and was extended by `digest`: the hash of both in a row (Part 1,
/// section 17.2).
///
/// # Errors
/// [`PcrError::Banks`] where the two are of different banks.
pub fn extend(value: &PcrDigest, digest: &PcrDigest) -> Result<PcrDigest, PcrError> {
    if value.bank != digest.bank {
        return Err(PcrError::Banks { value: value.bank, digest: digest.bank });
    }
    Ok(PcrDigest::of(value.bank, &[value.as_bytes(), digest.as_bytes()]))
}

/// Why a register, a bank or a digest was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PcrError {
    /// There is no such register.
    #[error("PCR index: expected 0 to 23, found {0}")]
    Index(u8),
    /// There is no such bank, or this toolkit does not know it.
    #[error("PCR bank: expected sha1, sha256, sha384 or sha512, found {0:?}")]
    Bank(String),
    /// A digest has another size than those of its bank.
    #[error("{bank} digest: expected {} bytes, found {found}", bank.digest_size())]
    Size {
        /// The digest's bank.
        bank: PcrBank,
        /// Its size in bytes.
        found: usize,
    },
    /// A register of one bank cannot be extended by a digest of another.
    #[error("a register of the {value} bank cannot be extended by a {digest} digest")]
    Banks {
        /// The register's bank.
        value: PcrBank,
        /// The digest's bank.
        digest: PcrBank,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Register 11 after a TPM's start, extended by the digests of `abc` and then of the empty text.
    ///
    /// Made with Python 3.11, for NAME in sha1, sha256, sha384, sha512:
    /// `python3 -c 'import hashlib, sys; h = lambda b: hashlib.new(sys.argv[1], b).digest(); v = bytes(len(h(b"")));
    /// print(h(h(v + h(b"abc")) + h(b"")).hex())' NAME`
    const GOLDEN: [(PcrBank, &str); 4] = [
        (PcrBank::Sha1, "e341c8bf722eea72feda9cdd3acc6ebf852d52fb"),
        (PcrBank::Sha256, "ef6a5fdbba9e14e07fa74d23b7ae639d146ce41635cf3fe44315988c4cbd0caf"),
        (
            PcrBank::Sha384,
            "a4d392030aec0188324dac645cac0391f996c9a913563092cd9d7c55c3d86c0f109053c37d2974da85660814bf359bed",
        ),
        (
            PcrBank::Sha512,
            "70532b8f57b0d70200956d122a702a1dacf1852b324488ed82b7957b6b551ed083368c0615b455c45ab48f8003a7a9a08b16409f40d293666644bf30786d8c85",
        ),
    ];

    #[test]
    fn a_prediction_equals_another_implementations() {
        for (bank, expected) in GOLDEN {
            let first = extend(&PcrDigest::zero(bank), &PcrDigest::of(bank, &[b"a", b"bc"])).unwrap();
            let second = extend(&first, &PcrDigest::of(bank, &[])).unwrap();
            assert_eq!(second.to_string(), format!("{bank}:{expected}"));
        }
    }

    #[test]
    fn indices_end_at_23() {
        assert_eq!(PcrIndex::all().map(PcrIndex::get).collect::<Vec<_>>(), (0..24).collect::<Vec<_>>());
        assert_eq!(PcrIndex::new(23).unwrap().get(), 23);
        assert_eq!(PcrIndex::new(24), Err(PcrError::Index(24)));
        assert_eq!(PcrIndex::try_from(255), Err(PcrError::Index(255)));
    }

    #[test]
    fn names_and_numbers_of_banks_lead_back_to_them() {
        for bank in PcrBank::ALL {
            assert_eq!(bank.name().parse(), Ok(bank));
            assert_eq!(PcrBank::from_algorithm_id(bank.algorithm_id()), Some(bank));
        }
        assert_eq!("SHA256".parse::<PcrBank>(), Err(PcrError::Bank("SHA256".to_owned())));
        assert_eq!(PcrBank::from_algorithm_id(0x0012), None, "SM3-256");
    }

    #[test]
    fn digests_of_another_size_or_bank_are_refused() {
        for bank in PcrBank::ALL {
            for size in [0, bank.digest_size() - 1, bank.digest_size() + 1, 65] {
                assert_eq!(PcrDigest::new(bank, &vec![1; size]), Err(PcrError::Size { bank, found: size }));
            }
            assert_eq!(
                PcrDigest::new(bank, &vec![1; bank.digest_size()]).unwrap().as_bytes().len(),
                bank.digest_size()
            );
        }
        let error = extend(&PcrDigest::zero(PcrBank::Sha256), &PcrDigest::zero(PcrBank::Sha384)).unwrap_err();
        assert_eq!(error, PcrError::Banks { value: PcrBank::Sha256, digest: PcrBank::Sha384 });
    }
}
