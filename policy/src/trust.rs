//! Who may sign, and for what: the trusted keys and the policy that travels in the mini-initramfs.

use std::{fmt, str::FromStr};

use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Serialize};

use crate::{
    digest::{DigestError, Sha256Digest},
    dsse::{Envelope, PayloadType},
    failure::FailureAction,
    hex,
    keys::{KeyRuleError, KeySequence, MAX_LINKS, MAX_REVOKED, check_revoked},
    manifest::{ImageId, Role, RollbackIndex},
    slots::{SlotRules, SlotRulesError},
};

/// DER of an ed25519 SubjectPublicKeyInfo up to the key itself (RFC 8410, section 4).
pub const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key's identity: the SHA-256 digest of its SubjectPublicKeyInfo in DER.
///
/// `openssl pkey -pubin -in KEY.pub.pem -outform der | sha256sum` prints the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(Sha256Digest);

/// The ids of the keys in `keys-example`, whose private halves are public: whoever trusts them trusts everybody.
const EXAMPLE_KEYS: [&str; 2] = [
    "2f9ecd313da75e134a38089f89e29433da9b9c3f073d8a85d66a35fb08664c8a",
    "5dbea33e05ed176df773891ccc410e761319c967c3baf0b03c6056653cba9da0",
];

impl KeyId {
    /// Whether this is one of the published example keys, which everybody can sign with.
    pub fn is_example(self) -> bool {
        EXAMPLE_KEYS.contains(&self.to_string().as_str())
    }

    /// Takes the raw 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Sha256Digest::from_bytes(bytes))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for KeyId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.parse().map(Self)
    }
}

/// An ed25519 public key that may sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustedKey(VerifyingKey);

impl TrustedKey {
    /// Takes the 32 bytes of a public key (RFC 8032).
    ///
    /// # Errors
    /// Bytes that are no point of the curve, and weak points, for which anything verifies.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let bytes = <&[u8; 32]>::try_from(bytes).map_err(|_| KeyError::Size(bytes.len()))?;
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotAPoint)?;
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        Ok(Self(key))
    }

    /// The key's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The key as SubjectPublicKeyInfo in DER.
    pub fn to_spki(&self) -> Vec<u8> {
        [SPKI_PREFIX.as_slice(), self.0.as_bytes()].concat()
    }

    /// The key's identity.
    pub fn id(&self) -> KeyId {
        KeyId(Sha256Digest::of(&self.to_spki()))
    }
}

impl TryFrom<String> for TrustedKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::from_bytes(&hex::decode(&text)?)
    }
}

impl From<TrustedKey> for String {
    fn from(key: TrustedKey) -> Self {
        hex::encode(key.as_bytes())
    }
}

/// Why a public key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is not hexadecimal.
    #[error("public key: {0}")]
    Hex(#[from] hex::HexError),
    /// It has another length.
    #[error("public key: expected 32 bytes, found {0}")]
    Size(usize),
    /// It is no point of the curve.
    #[error("public key: not a point of ed25519's curve")]
    NotAPoint,
    /// It has a small order: signatures by it prove nothing.
    #[error("public key: a weak point of ed25519's curve, for which any signature verifies")]
    Weak,
}

/// The keys that may sign, and how many of them must.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WireKeys", into = "WireKeys")]
pub struct TrustedKeys {
    keys: Vec<TrustedKey>,
    threshold: u8,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireKeys {
    threshold: u8,
    public_keys: Vec<TrustedKey>,
}

/// Why a set of keys was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustedKeysError {
    /// The threshold asks for no signature, or for more than there are keys.
    #[error("threshold: expected 1 to {keys} (the number of keys), found {found}")]
    Threshold {
        /// The number of keys in the set.
        keys: usize,
        /// The threshold asked for.
        found: u8,
    },
    /// A key is listed twice: it must not count twice.
    #[error("public keys: {0} is listed twice")]
    Duplicate(KeyId),
}

/// A payload whose signatures were verified. Only [`TrustedKeys::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPayload {
    payload_type: PayloadType,
    bytes: Vec<u8>,
    signers: Vec<KeyId>,
}

impl VerifiedPayload {
    /// What the payload is.
    pub fn payload_type(&self) -> PayloadType {
        self.payload_type
    }

    /// The signed payload.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The trusted keys that signed it.
    pub fn signers(&self) -> &[KeyId] {
        &self.signers
    }
}

/// Why an envelope's signatures do not suffice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A signature claims a trusted key and does not verify with it.
    #[error("signature by trusted key {0}: it does not verify: payload or signature was changed")]
    Invalid(KeyId),
    /// Not enough trusted keys signed.
    #[error("signatures: expected {threshold} by trusted keys ({}), found {valid}; the envelope was signed by {}",
        list(.trusted), list(.claimed))]
    NotEnough {
        /// How many signatures are needed.
        threshold: u8,
        /// How many trusted keys signed.
        valid: usize,
        /// The trusted keys.
        trusted: Vec<KeyId>,
        /// The keys that the envelope claims.
        claimed: Vec<KeyId>,
    },
}

fn list(keys: &[KeyId]) -> String {
    keys.iter().map(KeyId::to_string).collect::<Vec<_>>().join(", ")
}

impl TrustedKeys {
    /// A set of which `threshold` must sign.
    pub fn new(keys: Vec<TrustedKey>, threshold: u8) -> Result<Self, TrustedKeysError> {
        if threshold == 0 || usize::from(threshold) > keys.len() {
            return Err(TrustedKeysError::Threshold { keys: keys.len(), found: threshold });
        }
        for (index, key) in keys.iter().enumerate() {
            if keys[..index].contains(key) {
                return Err(TrustedKeysError::Duplicate(key.id()));
            }
        }
        Ok(Self { keys, threshold })
    }

    /// The keys.
    pub fn keys(&self) -> &[TrustedKey] {
        &self.keys
    }

    /// Their ids.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(TrustedKey::id)
    }

    /// How many of the keys must sign.
    pub fn threshold(&self) -> u8 {
        self.threshold
    }

    /// Verifies an envelope: every signature that claims a trusted key must verify, and enough of them must be there.
    ///
    /// Signatures by other keys are passed over, so that a release can be signed for the next set of keys too. A
    /// signature is checked strictly (RFC 8032 with canonical encodings and no small-order points).
    ///
    /// # Errors
    /// [`SignatureError`], which names the keys.
    pub fn verify(&self, envelope: &Envelope) -> Result<VerifiedPayload, SignatureError> {
        let signed_bytes = envelope.signed_bytes();
        let mut signers = Vec::new();
        for candidate in envelope.signatures() {
            let Some(key) = self.keys.iter().find(|key| key.id() == candidate.keyid) else { continue };
            key.0
                .verify_strict(&signed_bytes, &candidate.signature)
                .map_err(|_| SignatureError::Invalid(candidate.keyid))?;
            signers.push(candidate.keyid);
        }
        // An envelope lists a key at most once, so that the signers are distinct.
        if signers.len() < usize::from(self.threshold) {
            return Err(SignatureError::NotEnough {
                threshold: self.threshold,
                valid: signers.len(),
                trusted: self.ids().collect(),
                claimed: envelope.signatures().iter().map(|one| one.keyid).collect(),
            });
        }
        let payload_type = envelope.payload_type();
        Ok(VerifiedPayload { payload_type, bytes: envelope.unverified_payload().to_vec(), signers })
    }
}

impl TryFrom<WireKeys> for TrustedKeys {
    type Error = TrustedKeysError;

    fn try_from(wire: WireKeys) -> Result<Self, TrustedKeysError> {
        Self::new(wire.public_keys, wire.threshold)
    }
}

impl From<TrustedKeys> for WireKeys {
    fn from(keys: TrustedKeys) -> Self {
        Self { threshold: keys.threshold, public_keys: keys.keys }
    }
}

/// What the boot side accepts. It travels in the mini-initramfs, authenticated by whatever authenticates that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustPolicy {
    /// Who may sign.
    pub keys: TrustedKeys,
    /// The only image that may boot here.
    pub image_id: ImageId,
    /// The only role that it may have.
    pub role: Role,
    /// The oldest rollback index that may boot.
    pub minimum_rollback_index: RollbackIndex,
    /// What happens when nothing verifies, so that no sealed action can be believed.
    pub on_failure: FailureAction,
    /// The slots that hold what may boot, where there are two of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<SlotRules>,
    /// How often releases had moved the keys when this was sealed.
    #[serde(default, skip_serializing_if = "KeySequence::is_first")]
    pub key_sequence: KeySequence,
    /// The keys that releases had revoked by then: no later one can bring them back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<KeyId>,
}

/// The largest trust policy that is parsed, in bytes.
pub const MAX_TRUST_SIZE: usize = 64 * 1024;

/// Why a trust policy was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustPolicyError {
    /// It is larger than any real one.
    #[error("trust policy: expected at most {MAX_TRUST_SIZE} bytes, found {0}")]
    TooLarge(usize),
    /// It is not the JSON of a trust policy.
    #[error("trust policy: {0}")]
    Json(String),
    /// The slots cannot be what it says.
    #[error("trust policy: {0}")]
    Slots(#[from] SlotRulesError),
    /// What it says of revoked keys contradicts something.
    #[error("trust policy: {0}")]
    Keys(#[from] KeyRuleError),
}

/// The most revoked keys that a trust policy lists: as many as a whole history can revoke.
pub const MAX_REVOKED_IN_TRUST: usize = MAX_LINKS * MAX_REVOKED;

impl TrustPolicy {
    /// Parses the JSON form. Unknown fields are errors.
    ///
    /// # Errors
    /// [`TrustPolicyError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TrustPolicyError> {
        if bytes.len() > MAX_TRUST_SIZE {
            return Err(TrustPolicyError::TooLarge(bytes.len()));
        }
        let policy: Self = serde_json::from_slice(bytes).map_err(|error| TrustPolicyError::Json(error.to_string()))?;
        policy.slots.as_ref().map_or(Ok(()), SlotRules::check)?;
        check_revoked(&policy.keys, &policy.revoked, MAX_REVOKED_IN_TRUST)?;
        Ok(policy)
    }

    /// The JSON form.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("a trust policy always serialises");
        json.push(b'\n');
        json
    }
}
