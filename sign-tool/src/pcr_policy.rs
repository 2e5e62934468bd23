//! Signed PCR policies: a key says which values of registers are good ones, and what a TPM sealed under that key opens where
//! they are found.
//!
//! A signature is over what TPM2_PolicyPCR makes of the values (TPM 2.0 Library, Part 3, section 23.7). It goes into
//! `tpm2-pcr-signature.json`, as `systemd-measure sign` writes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use iofs_policy::{
    digest::Sha256Digest,
    manifest::RollbackIndex,
    pcr::{PcrBank, PcrDigest, PcrError, PcrIndex},
    pcr_signature::{PcrSignature, PcrSignatures, RollbackSignature, policy_ref},
};
use iofs_tpm::{
    policy::PolicyDigest,
    policy_key::{PolicyKey, PolicyKeyError},
};

use crate::{
    pe::{Headers, PeError},
    report::{ExitStatus, Failure},
    uki::{self, Part},
};

mod key;

pub use key::{PolicySigner, SignError};

/// A moment of the boot: the words that are measured into register 11 until then, in their order (systemd-measure(1),
/// `--phase`). No word is the moment when the stub starts the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Phase(String);

impl Phase {
    /// The initramfs runs: the only moment in which a system that is up cannot unseal again.
    pub fn initramfs() -> Self {
        Self("enter-initrd".to_owned())
    }

    /// Its words.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.0.split(':').filter(|word| !word.is_empty())
    }

    /// Whether the initramfs is over then, or not yet begun: what is sealed could be opened by others than PID 1.
    pub fn is_exposed(&self) -> bool {
        *self != Self::initramfs()
    }
}

impl FromStr for Phase {
    type Err = std::convert::Infallible;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        // Empty words do not count, as systemd-measure has it.
        let words: Vec<&str> = path.split(':').filter(|word| !word.is_empty()).collect();
        Ok(Self(words.join(":")))
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_empty() { "(none)" } else { &self.0 })
    }
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum PcrPolicyError {
    /// The image is none.
    #[error("unified kernel image: {0}")]
    Image(#[from] PeError),
    /// The image measures nothing that could be predicted.
    #[error(
        "unified kernel image: expected systemd's stub, with a section .sdmagic that names its version, found none"
    )]
    ForeignStub,
    /// The image's key is none.
    #[error("section .pcrpkey: {0}")]
    PublicKey(PolicyKeyError),
    /// What the image measures is not decided by the image alone.
    #[error(
        "unified kernel image: expected sections that are measured whatever the machine is, found {0}, of which its stub chooses"
    )]
    Unpredicted(&'static str),
    /// The image tells the system another key than the one that signs.
    #[error("section .pcrpkey: expected the public half of the key that signs, {expected}, found {found}")]
    OtherKey {
        /// The fingerprint of the key that signs.
        expected: Sha256Digest,
        /// What the section holds.
        found: String,
    },
    /// A signature is for another value than the image leads to.
    #[error("{bank}: expected a signature for policy {expected}, found one for {found}")]
    OtherValue {
        /// The bank.
        bank: PcrBank,
        /// The policy that the image leads to.
        expected: Sha256Digest,
        /// The signed one.
        found: Sha256Digest,
    },
    /// A signature speaks of another release.
    #[error("{bank}: expected a signature for rollback index {expected}, found one for {found}")]
    OtherRollbackIndex {
        /// The bank.
        bank: PcrBank,
        /// That of the image.
        expected: RollbackIndex,
        /// The signed one.
        found: RollbackIndex,
    },
    /// The key whose public half the image holds has not signed.
    #[error("expected a signature by the key in .pcrpkey, {0}, found none")]
    NoSignature(Sha256Digest),
    /// A signature does not verify.
    #[error("{0}: the signature does not verify with the key in .pcrpkey")]
    NotVerified(PcrBank),
    /// A register's value cannot be.
    #[error(transparent)]
    Register(#[from] PcrError),
    /// The key did not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
}

impl From<PcrPolicyError> for Failure {
    fn from(error: PcrPolicyError) -> Self {
        let fact = error.to_string();
        match error {
            PcrPolicyError::Image(_) | PcrPolicyError::ForeignStub => Self::new(ExitStatus::BadInput, fact)
                .next("give an image that 'iofs-sign uki' or ukify wrote; for registers of another kind, --pcr"),
            PcrPolicyError::Unpredicted(_) => {
                Self::new(ExitStatus::BadInput, fact).next("give what register 11 holds on such a machine, with --pcr")
            }
            PcrPolicyError::OtherKey { .. } => Self::new(ExitStatus::BadInput, fact)
                .next("assemble the image with --pcr-public-key, or sign with the key whose public half is in it"),
            PcrPolicyError::OtherValue { .. }
            | PcrPolicyError::OtherRollbackIndex { .. }
            | PcrPolicyError::NoSignature(_)
            | PcrPolicyError::NotVerified(_) => Self::new(ExitStatus::NotVerified, fact),
            PcrPolicyError::PublicKey(_) | PcrPolicyError::Register(_) => Self::new(ExitStatus::BadInput, fact),
            PcrPolicyError::Sign(_) => Self::new(ExitStatus::System, fact),
        }
    }
}

/// What is known of the values of registers, one bank after the other.
pub type Values = BTreeMap<(PcrBank, PcrIndex), PcrDigest>;

/// Signs values: in each bank, its registers hold them together. With a rollback index it also signs that they are those of such
/// a release.
///
/// # Errors
/// [`PcrPolicyError::Sign`].
pub fn sign_values(
    key: &PolicySigner,
    values: &Values,
    rollback: Option<RollbackIndex>,
) -> Result<PcrSignatures, PcrPolicyError> {
    let mut signatures = PcrSignatures::default();
    for bank in values.keys().map(|(bank, _)| *bank).collect::<BTreeSet<_>>() {
        let of_bank: Values = values.iter().filter(|(at, _)| at.0 == bank).map(|(at, value)| (*at, *value)).collect();
        let policy = PolicyDigest::ZERO.registers(&of_bank);
        let with_index = |index| {
            let signature = key.sign(&policy, &policy_ref(index))?;
            Ok::<_, SignError>(RollbackSignature { index, signature })
        };
        let signature = PcrSignature {
            registers: of_bank.keys().map(|(_, index)| *index).collect(),
            key: key.public().fingerprint(),
            policy: Sha256Digest::from_bytes(*policy.as_bytes()),
            signature: key.sign(&policy, &[])?,
            rollback: rollback.map(with_index).transpose()?,
        };
        signatures.insert(bank, signature);
    }
    Ok(signatures)
}

/// Predicts register 11 of a unified kernel image in some phases of its boot, and signs it.
///
/// `.pcrsig` is not measured, so that the image may hold signatures already, or get these ones later.
///
/// # Errors
/// See [`PcrPolicyError`].
pub fn sign_image(
    image: &[u8],
    key: &PolicySigner,
    banks: &BTreeSet<PcrBank>,
    phases: &BTreeSet<Phase>,
    rollback: Option<RollbackIndex>,
) -> Result<PcrSignatures, PcrPolicyError> {
    let headers = headers(image)?;
    let mut signatures = PcrSignatures::default();
    for bank in banks {
        let stub = uki::after_stub(&headers, image, *bank)?;
        for phase in phases {
            let value = phase.words().try_fold(stub, |value, word| uki::after_word(&value, word))?;
            signatures.merge(sign_values(key, &BTreeMap::from([((*bank, PcrIndex::PHASES), value)]), rollback)?);
        }
    }
    Ok(signatures)
}

/// Signs for an image's own section `.pcrsig`: register 11 in the initramfs, in the bank of SHA-256.
///
/// `image` is assembled as a whole but for that section, with the public key in `.pcrpkey`, which is measured. Put the JSON
/// of the result into [`Part::PcrSignature`] and assemble again: what was predicted stays true.
///
/// # Errors
/// See [`PcrPolicyError`].
pub fn sign_for_stub(
    image: &[u8],
    key: &PolicySigner,
    rollback: RollbackIndex,
) -> Result<PcrSignatures, PcrPolicyError> {
    let (banks, phases) = (BTreeSet::from([PcrBank::Sha256]), BTreeSet::from([Phase::initramfs()]));
    sign_image(image, key, &banks, &phases, Some(rollback))
}

/// Whether the image's `.pcrpkey` is this key.
///
/// # Errors
/// [`PcrPolicyError::OtherKey`], or the image is none.
pub fn check_public_key(image: &[u8], key: &PolicyKey) -> Result<(), PcrPolicyError> {
    let headers = headers(image)?;
    let section = headers.find(Part::PcrPublicKey.section()).map(|section| section.contents(image));
    let found = match section.map(PolicyKey::from_pem) {
        // Not the PEM text, which each program may write in its own way.
        Some(Ok(found)) if found.fingerprint() == key.fingerprint() => return Ok(()),
        Some(found) => {
            found.map_or_else(|error: PolicyKeyError| error.to_string(), |key| key.fingerprint().to_string())
        }
        None => "no such section".to_owned(),
    };
    Err(PcrPolicyError::OtherKey { expected: key.fingerprint(), found })
}

/// Checks an image's own signatures: for what register 11 holds in the initramfs, and this rollback index; those by the key in
/// `.pcrpkey` verify, and there are some. Others are by earlier keys, which are not known here.
///
/// # Errors
/// See [`PcrPolicyError`].
pub fn verify_image(image: &[u8], signatures: &PcrSignatures, rollback: RollbackIndex) -> Result<(), PcrPolicyError> {
    let headers = headers(image)?;
    let pem = headers.find(Part::PcrPublicKey.section()).map(|section| section.contents(image)).unwrap_or_default();
    let key = PolicyKey::from_pem(pem).map_err(PcrPolicyError::PublicKey)?.fingerprint();
    if !signatures.iter().any(|(_, signature)| signature.key == key) {
        return Err(PcrPolicyError::NoSignature(key));
    }
    for (bank, signature) in signatures.iter() {
        let value = uki::after_word(&uki::after_stub(&headers, image, bank)?, "enter-initrd")?;
        let expected = PolicyDigest::ZERO.registers(&Values::from([((bank, PcrIndex::PHASES), value)]));
        let expected = Sha256Digest::from_bytes(*expected.as_bytes());
        if signature.policy != expected {
            return Err(PcrPolicyError::OtherValue { bank, expected, found: signature.policy });
        }
        let verifies = |policy_ref: &[u8], bytes| key::verifies(pem, &signature.policy, policy_ref, bytes);
        let is_ours = signature.key == key;
        if is_ours && !verifies(&[], &signature.signature) {
            return Err(PcrPolicyError::NotVerified(bank));
        }
        let Some(RollbackSignature { index, signature }) = &signature.rollback else { continue };
        if *index != rollback {
            return Err(PcrPolicyError::OtherRollbackIndex { bank, expected: rollback, found: *index });
        }
        if is_ours && !verifies(&policy_ref(*index), signature) {
            return Err(PcrPolicyError::NotVerified(bank));
        }
    }
    Ok(())
}

fn headers(image: &[u8]) -> Result<Headers, PcrPolicyError> {
    let headers = Headers::parse(image)?;
    uki::stub_version(&headers, image).ok_or(PcrPolicyError::ForeignStub)?;
    uki::unpredicted(&headers, image).map_or(Ok(headers), |section| Err(PcrPolicyError::Unpredicted(section)))
}
