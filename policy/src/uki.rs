//! What firmware and systemd's stub measure of a unified kernel image (UAPI.5), as a release states it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    hex,
    pcr::{PcrBank, PcrDigest, PcrError, PcrIndex},
};

/// A digest of the same bytes in each bank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct BankDigests(BTreeMap<PcrBank, PcrDigest>);

impl BankDigests {
    /// Hashes the concatenation of `parts`.
    pub fn of(parts: &[&[u8]]) -> Self {
        Self(PcrBank::ALL.map(|bank| (bank, PcrDigest::of(bank, parts))).into())
    }

    /// The digest of a bank, where it is told.
    pub fn get(&self, bank: PcrBank) -> Option<PcrDigest> {
        self.0.get(&bank).copied()
    }
}

impl TryFrom<BTreeMap<String, String>> for BankDigests {
    type Error = String;

    fn try_from(wire: BTreeMap<String, String>) -> Result<Self, String> {
        let read = |(bank, digest): (String, String)| {
            let bank: PcrBank = bank.parse().map_err(|error: PcrError| error.to_string())?;
            let digest = hex::decode(&digest).map_err(|error| error.to_string())?;
            Ok((bank, PcrDigest::new(bank, &digest).map_err(|error| error.to_string())?))
        };
        wire.into_iter().map(read).collect::<Result<_, String>>().map(Self)
    }
}

impl From<BankDigests> for BTreeMap<String, String> {
    fn from(BankDigests(digests): BankDigests) -> Self {
        digests.into_iter().map(|(bank, digest)| (bank.name().to_owned(), hex::encode(digest.as_bytes()))).collect()
    }
}

/// A unified kernel image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UkiMeasurements {
    /// The version of its stub.
    pub stub: String,
    /// Its Authenticode digest: what firmware measures into register 4, whoever signed it.
    pub authenticode: BankDigests,
    /// What the stub hands to the kernel as its initramfs, which the kernel's EFI stub measures into register 9: the image's own,
    /// and archives with signatures, their key and, of some releases, the os-release.
    pub initrd: BankDigests,
    /// The sections that the stub measures into register 11, in its order.
    pub sections: Vec<UkiSection>,
}

/// A section of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UkiSection {
    /// Its name, which is measured first, with a NUL at its end.
    pub name: String,
    /// Its contents.
    pub digests: BankDigests,
}

impl UkiMeasurements {
    /// The register that the stub measures into.
    pub const PCR: PcrIndex = PcrIndex::PHASES;

    /// What the stub extends the register by in a bank, in its order, each with what it is of. Nothing where a digest of the
    /// bank is not told.
    pub fn measured(&self, bank: PcrBank) -> Option<Vec<(String, PcrDigest)>> {
        let of = |section: &UkiSection| {
            let name = PcrDigest::of(bank, &[section.name.as_bytes(), &[0]]);
            Some([(section.name.clone(), name), (format!("{} contents", section.name), section.digests.get(bank)?)])
        };
        let sections: Option<Vec<_>> = self.sections.iter().map(of).collect();
        Some(sections?.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_written_by_bank_and_read_back() {
        let digests = BankDigests::of(&[b"a", b"bc"]);
        let json = serde_json::to_string(&digests).unwrap();
        assert!(
            json.contains(r#""sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad""#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<BankDigests>(&json).unwrap(), digests);
        assert!(serde_json::from_str::<BankDigests>(r#"{"sha256":"00"}"#).is_err());
        assert!(serde_json::from_str::<BankDigests>(r#"{"md5":""}"#).is_err());
    }

    #[test]
    fn each_section_is_measured_as_name_and_contents() {
        let section = UkiSection { name: ".linux".to_owned(), digests: BankDigests::of(&[b"kernel"]) };
        let (authenticode, initrd) = (BankDigests::of(&[b""]), BankDigests::of(&[b""]));
        let uki = UkiMeasurements { stub: "257".to_owned(), authenticode, initrd, sections: vec![section] };
        let measured = uki.measured(PcrBank::Sha256).unwrap();
        assert_eq!(measured[0].1, PcrDigest::of(PcrBank::Sha256, &[b".linux\0"]));
        assert_eq!(measured[1].1, PcrDigest::of(PcrBank::Sha256, &[b"kernel"]));
    }
}
