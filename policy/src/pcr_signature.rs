//! Signed PCR policies: `tpm2-pcr-signature.json`, the section `.pcrsig` of a unified kernel image.
//!
//! Whoever holds the private key says by it which values of registers are good ones, also later and for disks enrolled
//! before: the sealed object's policy names the key. `systemd-measure sign` writes the same file.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::{
    digest::Sha256Digest,
    manifest::RollbackIndex,
    pcr::{PcrBank, PcrIndex},
};

/// Where a unified kernel image's stub puts the file for the initramfs.
pub const STUB_PATH: &str = "/.extra/tpm2-pcr-signature.json";
/// Where this toolkit seals it into an initramfs.
pub const SEALED_PATH: &str = "/etc/iofs/tpm2-pcr-signature.json";

/// The largest file that is read, in bytes: some hundred signatures.
pub const MAX_SIZE: usize = 256 * 1024;
/// The largest signature, in bytes: RSA of 4096 bits.
const MAX_SIGNATURE: usize = 512;

/// One signature: by this key, these registers of its bank may hold what this policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrSignature {
    /// The registers. At least one.
    pub registers: BTreeSet<PcrIndex>,
    /// `pkfp`: the SHA-256 digest of the public key, as PKCS #1 in DER for RSA, as uncompressed point for ECDSA.
    pub key: Sha256Digest,
    /// `pol`: the digest of a policy that is TPM2_PolicyPCR alone. SHA-256 whatever the bank is.
    pub policy: Sha256Digest,
    /// `sig`: over SHA-256 of `policy`. RSASSA-PKCS1-v1_5, or ECDSA as a DER sequence of two numbers.
    pub signature: Vec<u8>,
    /// `iofs-rollback`, which systemd passes over: that the values are those of a release of some rollback index.
    pub rollback: Option<RollbackSignature>,
}

/// What a key says of a policy's release, for objects that end with a TPM's rollback counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollbackSignature {
    /// The release's rollback index.
    pub index: RollbackIndex,
    /// `sig`: of the same form, over SHA-256 of the policy and [`policy_ref`].
    pub signature: Vec<u8>,
}

/// What stands for a rollback index in a signed policy (`policyRef` of TPM2_PolicyAuthorize): 13 letters, and the index in 8
/// bytes, the highest first.
pub fn policy_ref(index: RollbackIndex) -> [u8; 21] {
    let mut bytes = *b"iofs-rollback\0\0\0\0\0\0\0\0";
    bytes[13..].copy_from_slice(&index.0.to_be_bytes());
    bytes
}

/// All signatures of a file, by bank.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PcrSignatures(BTreeMap<PcrBank, Vec<PcrSignature>>);

/// Why a file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PcrSignatureError {
    /// It is larger than any real one.
    #[error("PCR signatures: expected at most {MAX_SIZE} bytes, found {0}")]
    TooLarge(usize),
    /// It is not the JSON of signatures.
    #[error("PCR signatures: {0}")]
    Json(String),
    /// An entry has a field that cannot be.
    #[error("PCR signatures: {bank}, entry {entry}: {field}: expected {expected}, found {found}")]
    Field {
        /// The bank.
        bank: PcrBank,
        /// Which of the bank's entries, from 0 on.
        entry: usize,
        /// The field.
        field: &'static str,
        /// What it can be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

/// Other fields are ignored, as systemd does: each signature stands for itself.
#[derive(Serialize, Deserialize)]
struct Wire {
    pcrs: Vec<u8>,
    pkfp: Sha256Digest,
    pol: Sha256Digest,
    sig: String,
    #[serde(rename = "iofs-rollback", default, skip_serializing_if = "Option::is_none")]
    rollback: Option<WireRollback>,
}

#[derive(Serialize, Deserialize)]
struct WireRollback {
    index: RollbackIndex,
    sig: String,
}

impl PcrSignatures {
    /// Reads the JSON form. Banks that this toolkit does not know are left out.
    ///
    /// # Errors
    /// See [`PcrSignatureError`].
    pub fn parse(json: &[u8]) -> Result<Self, PcrSignatureError> {
        if json.len() > MAX_SIZE {
            return Err(PcrSignatureError::TooLarge(json.len()));
        }
        let wire: BTreeMap<String, serde_json::Value> = from_json(serde_json::from_slice(json))?;
        let mut banks = BTreeMap::new();
        for (name, entries) in wire {
            let Ok(bank) = name.parse::<PcrBank>() else { continue };
            let entries: Vec<Wire> = from_json(serde_json::from_value(entries))?;
            let read = entries.iter().enumerate().map(|(entry, wire)| read(bank, entry, wire));
            banks.insert(bank, read.collect::<Result<_, _>>()?);
        }
        Ok(Self(banks))
    }

    /// The JSON form, on one line as systemd writes it.
    pub fn to_json(&self) -> Vec<u8> {
        let wire: BTreeMap<&str, Vec<Wire>> =
            self.0.iter().map(|(bank, entries)| (bank.name(), entries.iter().map(write).collect())).collect();
        let mut json = serde_json::to_vec(&wire).expect("signatures always serialise");
        json.push(b'\n');
        json
    }

    /// Adds a signature. One of the same key, registers and policy is there once: the last one.
    pub fn insert(&mut self, bank: PcrBank, signature: PcrSignature) {
        let entries = self.0.entry(bank).or_default();
        let same = |other: &PcrSignature| {
            (&other.registers, other.key, other.policy) == (&signature.registers, signature.key, signature.policy)
        };
        entries.retain(|other| !same(other));
        entries.push(signature);
    }

    /// Adds all of another file's.
    pub fn merge(&mut self, other: Self) {
        for (bank, entries) in other.0 {
            entries.into_iter().for_each(|signature| self.insert(bank, signature));
        }
    }

    /// The signatures by this key over exactly these registers.
    pub fn find<'s>(
        &'s self,
        bank: PcrBank,
        registers: &'s BTreeSet<PcrIndex>,
        key: Sha256Digest,
    ) -> impl Iterator<Item = &'s PcrSignature> {
        self.iter_bank(bank).filter(move |entry| entry.key == key && entry.registers == *registers)
    }

    /// All signatures, with their banks.
    pub fn iter(&self) -> impl Iterator<Item = (PcrBank, &PcrSignature)> {
        self.0.iter().flat_map(|(bank, entries)| entries.iter().map(|entry| (*bank, entry)))
    }

    fn iter_bank(&self, bank: PcrBank) -> impl Iterator<Item = &PcrSignature> {
        self.0.get(&bank).into_iter().flatten()
    }
}

fn from_json<T>(parsed: serde_json::Result<T>) -> Result<T, PcrSignatureError> {
    parsed.map_err(|error| PcrSignatureError::Json(error.to_string()))
}

fn read(bank: PcrBank, entry: usize, wire: &Wire) -> Result<PcrSignature, PcrSignatureError> {
    let wrong = |field, expected, found| PcrSignatureError::Field { bank, entry, field, expected, found };
    let mut registers = BTreeSet::new();
    for number in &wire.pcrs {
        let index = PcrIndex::new(*number).ok().filter(|index| registers.insert(*index));
        index.ok_or_else(|| wrong("pcrs", "each register from 0 to 23 once", number.to_string()))?;
    }
    if registers.is_empty() {
        return Err(wrong("pcrs", "at least one register", "none".to_owned()));
    }
    let signature = |field, text: &str| {
        let bytes = STANDARD.decode(text).map_err(|error| wrong(field, "base64", error.to_string()))?;
        match (1..=MAX_SIGNATURE).contains(&bytes.len()) {
            true => Ok(bytes),
            false => Err(wrong(field, "1 to 512 bytes", bytes.len().to_string())),
        }
    };
    let rollback = wire.rollback.as_ref().map(|rollback| {
        let signature = signature("iofs-rollback.sig", &rollback.sig)?;
        Ok(RollbackSignature { index: rollback.index, signature })
    });
    Ok(PcrSignature {
        registers,
        key: wire.pkfp,
        policy: wire.pol,
        signature: signature("sig", &wire.sig)?,
        rollback: rollback.transpose()?,
    })
}

fn write(entry: &PcrSignature) -> Wire {
    Wire {
        pcrs: entry.registers.iter().map(|index| index.get()).collect(),
        pkfp: entry.key,
        pol: entry.policy,
        sig: STANDARD.encode(&entry.signature),
        rollback: entry
            .rollback
            .as_ref()
            .map(|rollback| WireRollback { index: rollback.index, sig: STANDARD.encode(&rollback.signature) }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "662463ffb5f145878b6af55a0adfdd051019f5bddaf0f2dbfd0c18b654fcaadd";
    const POLICY: &str = "7c8486f61cc1d88a28d6ab87850bee07c467ce6311340219e43a7a6e6521e543";

    fn entry(pcrs: &str, sig: &str) -> String {
        format!(r#"{{"sha256":[{{"pcrs":{pcrs},"pkfp":"{KEY}","pol":"{POLICY}","sig":"{sig}"}}]}}"#)
    }

    fn refusal(json: &str) -> String {
        PcrSignatures::parse(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn what_systemd_measure_writes_is_read_and_written_the_same() {
        let json = entry("[11]", "AQID") + "\n";
        let signatures = PcrSignatures::parse(json.as_bytes()).unwrap();
        let registers = BTreeSet::from([PcrIndex::PHASES]);
        let key = KEY.parse().unwrap();
        let found: Vec<_> = signatures.find(PcrBank::Sha256, &registers, key).collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].policy.to_string().as_str(), &found[0].signature[..]), (POLICY, &[1, 2, 3][..]));
        assert_eq!(signatures.to_json(), json.as_bytes());
        assert_eq!(signatures.find(PcrBank::Sha1, &registers, key).count(), 0);
        assert_eq!(signatures.find(PcrBank::Sha256, &BTreeSet::new(), key).count(), 0);
        let other = POLICY.parse().unwrap();
        assert_eq!(signatures.find(PcrBank::Sha256, &registers, other).count(), 0);
    }

    #[test]
    fn unknown_banks_and_fields_are_passed_over() {
        let json = entry("[11]", "AQID").replace(r#""pcrs""#, r#""new":{},"pcrs""#);
        let json = json.replacen('{', r#"{"sm3_256":[{}],"#, 1);
        assert_eq!(PcrSignatures::parse(json.as_bytes()).unwrap().iter().count(), 1);
        assert_eq!(PcrSignatures::parse(b"{}").unwrap(), PcrSignatures::default());
    }

    #[test]
    fn a_rollback_index_has_a_signature_of_its_own() {
        let with = |rollback| entry("[11]", "AQID").replace("}]}", &format!(",\"iofs-rollback\":{rollback}}}]}}"));
        let json = with(r#"{"index":20,"sig":"BAUG"}"#) + "\n";
        let signatures = PcrSignatures::parse(json.as_bytes()).unwrap();
        let (_, found) = signatures.iter().next().unwrap();
        assert_eq!(found.rollback, Some(RollbackSignature { index: RollbackIndex(20), signature: vec![4, 5, 6] }));
        assert_eq!(signatures.to_json(), json.as_bytes());
        assert_eq!(&policy_ref(RollbackIndex(0x1_0014)), b"iofs-rollback\0\0\0\0\0\x01\0\x14");
        let refused = refusal(&with(r#"{"index":20,"sig":""}"#));
        assert!(refused.ends_with("iofs-rollback.sig: expected 1 to 512 bytes, found 0"), "{refused}");
        assert!(refusal(&with(r#"{"index":-1,"sig":"BAUG"}"#)).contains("invalid value"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let expected = "PCR signatures: sha256, entry 0: pcrs: expected each register from 0 to 23 once, found 24";
        assert_eq!(refusal(&entry("[24]", "AQID")), expected);
        assert!(refusal(&entry("[11,11]", "AQID")).ends_with("once, found 11"));
        assert!(refusal(&entry("[]", "AQID")).ends_with("pcrs: expected at least one register, found none"));
        assert!(refusal(&entry("[11]", "AQ=D")).contains("sig: expected base64, found"));
        assert!(refusal(&entry("[11]", "")).ends_with("sig: expected 1 to 512 bytes, found 0"));
        assert!(refusal(&entry("[11]", &STANDARD.encode([0; 513]))).ends_with("found 513"));
        assert!(refusal("[]").starts_with("PCR signatures: invalid type"));
        assert!(refusal(r#"{"sha256":{}}"#).starts_with("PCR signatures: invalid type"));
        assert!(refusal(&entry("[256]", "AQID")).contains("invalid value: integer `256`"));
        assert_eq!(refusal(&" ".repeat(MAX_SIZE + 1)), "PCR signatures: expected at most 262144 bytes, found 262145");
    }

    #[test]
    fn a_signature_of_the_same_is_replaced() {
        let mut signatures = PcrSignatures::parse(entry("[11]", "AQID").as_bytes()).unwrap();
        let again = PcrSignatures::parse(entry("[11]", "BAUG").as_bytes()).unwrap();
        signatures.merge(again.clone());
        assert_eq!(signatures, again);
        signatures.merge(PcrSignatures::parse(entry("[11,12]", "BAUG").as_bytes()).unwrap());
        assert_eq!(signatures.iter().count(), 2);
    }

    prop_compose! {
        fn any_signature()(
            registers in prop::collection::btree_set(0_u8..24, 1..6),
            key in any::<[u8; 32]>(),
            policy in any::<[u8; 32]>(),
            signature in prop::collection::vec(any::<u8>(), 1..300),
            rollback in prop::option::of((any::<u64>(), prop::collection::vec(any::<u8>(), 1..300))),
        ) -> PcrSignature {
            let registers = registers.into_iter().map(|number| PcrIndex::new(number).unwrap()).collect();
            let (key, policy) = (Sha256Digest::from_bytes(key), Sha256Digest::from_bytes(policy));
            let rollback =
                rollback.map(|(index, signature)| RollbackSignature { index: RollbackIndex(index), signature });
            PcrSignature { registers, key, policy, signature, rollback }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(entries in prop::collection::vec((0_usize..4, any_signature()), 0..6)) {
            let mut signatures = PcrSignatures::default();
            entries.into_iter().for_each(|(bank, entry)| signatures.insert(PcrBank::ALL[bank], entry));
            prop_assert_eq!(PcrSignatures::parse(&signatures.to_json()), Ok(signatures));
        }
    }
}
