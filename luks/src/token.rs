//! Tokens: how to come by the passphrase of a keyslot without asking anybody.
//!
//! A broken token says why it is broken, and stops no other.

use std::{collections::BTreeSet, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use iofs_policy::{
    hex,
    manifest::{RollbackIndex, RollbackRule},
    pcr::{PCR_COUNT, PcrBank, PcrIndex},
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{
    error::{Fault, FieldError},
    header::Header,
    json::{Field, Value},
    keyslot::{MAX_OBJECTS, SlotId},
};

/// The type of the tokens that `systemd-cryptenroll --tpm2-device` writes.
const TPM2: &str = "systemd-tpm2";
/// The type of the tokens that mark a recovery key's keyslot.
const RECOVERY: &str = "systemd-recovery";
/// Objects that are kept in a TPM have such handles (TPM 2.0 Library, Part 2, section 7.2).
const PERSISTENT: std::ops::RangeInclusive<u32> = 0x8100_0000..=0x81ff_ffff;
/// NV indices have such handles.
const NV_INDICES: std::ops::RangeInclusive<u32> = 0x0100_0000..=0x01ff_ffff;
const ROLLBACK_COUNTER: &str = "iofs-rollback-counter";
const ROLLBACK_LIMIT: &str = "iofs-rollback-limit";
const ROLLBACK_INDEX: &str = "iofs-rollback-index";
/// A sealed object has some hundred bytes, a PEM key less than a thousand.
const MAX_BYTES: usize = 8192;
/// As many parts as a secret may be in.
const MAX_SHARDS: usize = 8;

/// The number of a token, 0 to 31.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(u8);

impl TokenId {
    /// Takes a number.
    ///
    /// `None` for 32 and above.
    pub const fn new(number: u8) -> Option<Self> {
        if number < MAX_OBJECTS { Some(Self(number)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// A TPM has the passphrase.
    SystemdTpm2(Box<Tpm2Token>),
    /// The keyslots of a recovery key, which people type.
    Recovery {
        /// Its keyslots.
        keyslots: Vec<SlotId>,
    },
    /// A token of another type, which this toolkit has no use for.
    Other {
        /// Its type.
        kind: String,
        /// Its keyslots.
        keyslots: Vec<SlotId>,
    },
    /// It is not as tokens of its type are.
    Broken {
        /// Its type, which is empty where there is none.
        kind: String,
        /// Its keyslots, as far as they could be read.
        keyslots: Vec<SlotId>,
        /// What is wrong.
        why: FieldError,
    },
}

impl Token {
    /// The keyslots whose passphrase it has.
    pub fn keyslots(&self) -> &[SlotId] {
        match self {
            Self::SystemdTpm2(token) => &token.keyslots,
            Self::Recovery { keyslots } | Self::Other { keyslots, .. } | Self::Broken { keyslots, .. } => keyslots,
        }
    }

    /// Its type.
    pub fn kind(&self) -> &str {
        match self {
            Self::SystemdTpm2(_) => TPM2,
            Self::Recovery { .. } => RECOVERY,
            Self::Other { kind, .. } | Self::Broken { kind, .. } => kind,
        }
    }

    /// Reads the text of a token, as `cryptsetup token export` prints it. Whether its keyslots exist is not looked at.
    pub fn parse(text: &str) -> Self {
        match Value::parse(text.as_bytes()) {
            Ok(value) => Self::unchecked(Field::root(&value)),
            Err(why) => {
                Self::Broken { kind: String::new(), keyslots: Vec::new(), why: *FieldError::new("token", "JSON", why) }
            }
        }
    }

    pub(crate) fn of_field(field: Field<'_>, header: &Header) -> Self {
        let token = Self::unchecked(field);
        match token.keyslots().iter().find(|slot| header.keyslot(**slot).is_none()) {
            None => token,
            Some(slot) => Self::Broken {
                kind: token.kind().to_owned(),
                keyslots: token.keyslots().to_vec(),
                why: *FieldError::new(format!("{}.keyslots", field.path()), "keyslots that exist", slot.to_string()),
            },
        }
    }

    fn unchecked(field: Field<'_>) -> Self {
        let kind = field.member("type").and_then(|kind| kind.text().map(str::to_owned));
        let keyslots = field.member("keyslots").and_then(|slots| SlotId::list(slots));
        let (kind, keyslots) = match (kind, keyslots) {
            (Ok(kind), Ok(keyslots)) => (kind, keyslots),
            (kind, keyslots) => {
                let (kind, kind_error) = split(kind);
                let (keyslots, keyslots_error) = split(keyslots);
                let why = kind_error.or(keyslots_error).unwrap_or_else(|| field.error("a token"));
                return Self::Broken { kind, keyslots, why: *why };
            }
        };
        match kind.as_str() {
            TPM2 => match Tpm2Token::of_field(field, keyslots.clone()) {
                Ok(token) => Self::SystemdTpm2(Box::new(token)),
                Err(why) => Self::Broken { kind, keyslots, why: *why },
            },
            RECOVERY => Self::Recovery { keyslots },
            _ => Self::Other { kind, keyslots },
        }
    }
}

fn split<T: Default>(result: Result<T, Fault>) -> (T, Option<Fault>) {
    match result {
        Ok(value) => (value, None),
        Err(error) => (T::default(), Some(error)),
    }
}

/// The key by whose template a TPM makes its storage root key where the token pins none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrimaryAlg {
    /// ECC on P-256.
    Ecc,
    /// RSA with 2048 bits.
    Rsa,
}

impl PrimaryAlg {
    /// The name in tokens.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ecc => "ecc",
            Self::Rsa => "rsa",
        }
    }
}

/// Registers whose values a key signs, so that they can change without enrolling again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedPcrs {
    /// The registers.
    pub pcrs: BTreeSet<PcrIndex>,
    /// The public key, PEM.
    pub public_key_pem: Vec<u8>,
}

/// The storage root key that wrapped the sealed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSrk {
    /// Its persistent handle.
    pub handle: u32,
    /// Its Name: the algorithm's number and the digest of its public area.
    pub name: Vec<u8>,
    /// Its public area, as TPM2B_PUBLIC.
    pub public: Vec<u8>,
}

/// A token of type `systemd-tpm2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tpm2Token {
    /// The keyslots that its passphrase opens.
    pub keyslots: Vec<SlotId>,
    /// The sealed objects: TPM2B_PRIVATE and TPM2B_PUBLIC each. One, but for secrets in parts.
    pub blobs: Vec<Vec<u8>>,
    /// The policy's digest of each.
    pub policy_hashes: Vec<Vec<u8>>,
    /// The registers whose values are in the policy, which may be none.
    pub pcrs: BTreeSet<PcrIndex>,
    /// The bank of all registers.
    pub bank: Option<PcrBank>,
    /// Used only where there is no [`Tpm2Token::srk`].
    pub primary_alg: PrimaryAlg,
    /// Whether it takes a PIN.
    pub pin: bool,
    /// What the PIN is salted with.
    pub salt: Option<Vec<u8>>,
    /// Registers whose values are signed.
    pub signed: Option<SignedPcrs>,
    /// The storage root key.
    pub srk: Option<TokenSrk>,
    /// Whether the policy is that of systemd-pcrlock, which this toolkit does not unseal by.
    pub pcrlock: bool,
    /// The persistent handle at which the sealed object is kept in the TPM, so that it need not be loaded: our own key
    /// `iofs-handle`, which systemd passes over.
    pub persistent: Option<u32>,
    /// What the registers of [`Tpm2Token::pcrs`] are to hold, in their order, for people who want to know which of them changed:
    /// our own key `iofs-pcr-values`, which systemd passes over. Empty where it is not there. Nobody vouches for it but the
    /// policy's digest.
    pub pcr_values: Vec<Vec<u8>>,
    /// The rollback counter in the token's policy: our own keys `iofs-rollback-counter`, `iofs-rollback-limit` and
    /// `iofs-rollback-index`, which systemd passes over. It then makes a policy without the counter, which opens nothing.
    ///
    /// The token opens for a release of that rollback index until the counter is above that value. Where the policy is signed
    /// ([`Tpm2Token::signed`]), it also opens for later ones, each with a limit of its own.
    pub rollback: Option<RollbackRule>,
    /// The names of fields that are not known here. A token that has some is not written anew.
    pub unknown: Vec<String>,
}

const KNOWN: [&str; 19] = [
    "type",
    "keyslots",
    "tpm2-blob",
    "tpm2-policy-hash",
    "tpm2-pcrs",
    "tpm2-pcr-bank",
    "tpm2-primary-alg",
    "tpm2-pin",
    "tpm2_salt",
    "tpm2_pubkey_pcrs",
    "tpm2_pubkey",
    "tpm2_srk",
    "tpm2_pcrlock",
    "tpm2_pcrlock_nv",
    "iofs-handle",
    "iofs-pcr-values",
    ROLLBACK_COUNTER,
    ROLLBACK_LIMIT,
    ROLLBACK_INDEX,
];

impl Tpm2Token {
    fn of_field(field: Field<'_>, keyslots: Vec<SlotId>) -> Result<Self, Fault> {
        let optional = |name| field.member(name).map(Field::present);
        let salt = optional("tpm2_salt")?.map(|salt| bytes(salt)).transpose()?;
        let token = Self {
            blobs: parts(field.member("tpm2-blob")?, bytes)?,
            policy_hashes: parts(field.member("tpm2-policy-hash")?, policy_hash)?,
            pcrs: registers(field.member("tpm2-pcrs")?)?,
            bank: optional("tpm2-pcr-bank")?.map(|bank| self::bank(bank)).transpose()?,
            primary_alg: optional("tpm2-primary-alg")?.map_or(Ok(PrimaryAlg::Ecc), |alg| primary_alg(alg))?,
            pin: boolean(optional("tpm2-pin")?)?,
            salt,
            signed: signed(field.member("tpm2_pubkey_pcrs")?, field.member("tpm2_pubkey")?)?,
            srk: optional("tpm2_srk")?.map(|srk| self::srk(srk)).transpose()?,
            pcrlock: boolean(optional("tpm2_pcrlock")?)? || optional("tpm2_pcrlock_nv")?.is_some(),
            persistent: optional("iofs-handle")?
                .map(|handle| handle.number(*PERSISTENT.start(), *PERSISTENT.end()))
                .transpose()?,
            pcr_values: optional("iofs-pcr-values")?.map_or(Ok(Vec::new()), pcr_values)?,
            rollback: rollback(field)?,
            unknown: field
                .members()?
                .into_iter()
                .filter(|(name, _)| !KNOWN.contains(name))
                .map(|(name, _)| name.to_owned())
                .collect(),
            keyslots,
        };
        if token.keyslots.is_empty() {
            return Err(field.member("keyslots")?.error("one or more"));
        }
        if token.blobs.len() != token.policy_hashes.len() {
            let expected = format!("as many as blobs, {}", token.blobs.len());
            return Err(field.member("tpm2-policy-hash")?.error(expected));
        }
        Ok(token)
    }

    /// The passphrase that an unsealed secret stands for: its base64 text.
    pub fn passphrase(secret: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut text = Zeroizing::new(vec![0; secret.len().div_ceil(3) * 4]);
        // The buffer has the text's size, so that it always fits.
        let length = STANDARD.encode_slice(secret, &mut text).unwrap_or(0);
        text.truncate(length);
        text
    }

    /// The token's JSON text, for libcryptsetup to write. Fields of [`Tpm2Token::unknown`] are not in it.
    pub fn to_json(&self) -> String {
        let slots: Vec<String> = self.keyslots.iter().map(|slot| format!("\"{slot}\"")).collect();
        let mut text = format!("{{\"type\":\"{TPM2}\",\"keyslots\":[{}]", slots.join(","));
        let base64 = |bytes: &Vec<u8>| format!("\"{}\"", STANDARD.encode(bytes));
        let mut put = |name: &str, value: &str| text.push_str(&format!(",\"{name}\":{value}"));
        put("tpm2-blob", &one_or_list(self.blobs.iter().map(base64).collect()));
        put("tpm2-pcrs", &numbers(&self.pcrs));
        if let Some(bank) = self.bank {
            put("tpm2-pcr-bank", &format!("\"{bank}\""));
        }
        put("tpm2-primary-alg", &format!("\"{}\"", self.primary_alg.name()));
        let hashes = self.policy_hashes.iter().map(|hash| format!("\"{}\"", hex::encode(hash)));
        put("tpm2-policy-hash", &one_or_list(hashes.collect()));
        put("tpm2-pin", &self.pin.to_string());
        if self.pcrlock {
            put("tpm2_pcrlock", "true");
        }
        if let Some(signed) = &self.signed {
            put("tpm2_pubkey_pcrs", &numbers(&signed.pcrs));
            put("tpm2_pubkey", &base64(&signed.public_key_pem));
        }
        if let Some(salt) = &self.salt {
            put("tpm2_salt", &base64(salt));
        }
        if let Some(srk) = &self.srk {
            put("tpm2_srk", &base64(&srk.encode()));
        }
        if let Some(handle) = self.persistent {
            put("iofs-handle", &handle.to_string());
        }
        if !self.pcr_values.is_empty() {
            let values = self.pcr_values.iter().map(|value| format!("\"{}\"", hex::encode(value)));
            put("iofs-pcr-values", &format!("[{}]", values.collect::<Vec<_>>().join(",")));
        }
        if let Some(rule) = &self.rollback {
            put(ROLLBACK_COUNTER, &rule.counter.to_string());
            // Numbers of 64 bits are text in LUKS2's JSON.
            put(ROLLBACK_LIMIT, &format!("\"{}\"", rule.value));
            put(ROLLBACK_INDEX, &format!("\"{}\"", rule.index));
        }
        text.push('}');
        text
    }
}

fn one_or_list(mut values: Vec<String>) -> String {
    match values.len() {
        1 => values.remove(0),
        _ => format!("[{}]", values.join(",")),
    }
}

fn numbers(registers: &BTreeSet<PcrIndex>) -> String {
    format!("[{}]", registers.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
}

fn parts(field: Field<'_>, read: fn(Field<'_>) -> Result<Vec<u8>, Fault>) -> Result<Vec<Vec<u8>>, Fault> {
    let parts = field.one_or_more()?;
    if parts.len() > MAX_SHARDS {
        return Err(field.error(format!("at most {MAX_SHARDS}")));
    }
    parts.into_iter().map(read).collect()
}

fn bytes(field: Field<'_>) -> Result<Vec<u8>, Fault> {
    let bytes = field.base64()?;
    match (1..=MAX_BYTES).contains(&bytes.len()) {
        true => Ok(bytes),
        false => Err(field.error(format!("base64 of 1 to {MAX_BYTES} bytes"))),
    }
}

/// Digests of any bank; what does not fit the registers is no use, and no harm.
fn pcr_values(field: Field<'_>) -> Result<Vec<Vec<u8>>, Fault> {
    let value = |field: Field<'_>| {
        let value = hex::decode(field.text()?).ok().filter(|value| (1..=64).contains(&value.len()));
        value.ok_or_else(|| field.error("up to 128 lower-case hexadecimal digits"))
    };
    field.list()?.into_iter().map(value).collect()
}

/// All three fields, or none.
fn rollback(field: Field<'_>) -> Result<Option<RollbackRule>, Fault> {
    let [counter, limit, index] =
        [field.member(ROLLBACK_COUNTER)?, field.member(ROLLBACK_LIMIT)?, field.member(ROLLBACK_INDEX)?];
    if counter.is_absent() && limit.is_absent() && index.is_absent() {
        return Ok(None);
    }
    let counter = counter.number(*NV_INDICES.start(), *NV_INDICES.end())?;
    Ok(Some(RollbackRule { counter, value: limit.decimal()?, index: RollbackIndex(index.decimal()?) }))
}

/// Policies are made by sessions of SHA-256.
fn policy_hash(field: Field<'_>) -> Result<Vec<u8>, Fault> {
    let hash = hex::decode(field.text()?).ok().filter(|hash| hash.len() == 32);
    hash.ok_or_else(|| field.error("64 lower-case hexadecimal digits"))
}

fn boolean(field: Option<Field<'_>>) -> Result<bool, Fault> {
    field.map_or(Ok(false), Field::boolean)
}

fn registers(field: Field<'_>) -> Result<BTreeSet<PcrIndex>, Fault> {
    let mut registers = BTreeSet::new();
    for one in field.list()? {
        let number = one.number(0, u32::from(PCR_COUNT) - 1)?;
        registers.extend(PcrIndex::new(number as u8));
    }
    Ok(registers)
}

fn bank(field: Field<'_>) -> Result<PcrBank, Fault> {
    field.text()?.parse().map_err(|_| field.error("sha1, sha256, sha384 or sha512"))
}

fn primary_alg(field: Field<'_>) -> Result<PrimaryAlg, Fault> {
    match field.text()? {
        "ecc" => Ok(PrimaryAlg::Ecc),
        "rsa" => Ok(PrimaryAlg::Rsa),
        _ => Err(field.error("ecc or rsa")),
    }
}

/// A key without registers and registers without a key say nothing.
fn signed(pcrs: Field<'_>, key: Field<'_>) -> Result<Option<SignedPcrs>, Fault> {
    let registers = if pcrs.is_absent() { BTreeSet::new() } else { registers(pcrs)? };
    match (registers.is_empty(), key.is_absent()) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(SignedPcrs { pcrs: registers, public_key_pem: bytes(key)? })),
        (true, false) => Err(pcrs.error("registers, which the key signs")),
        (false, true) => Err(key.error("the key that signs registers")),
    }
}

/// As ESYS_TR_Serialize writes it: handle, TPM2B_NAME, the resource's kind (1, a key), TPM2B_PUBLIC; numbers are big-endian.
fn srk(field: Field<'_>) -> Result<TokenSrk, Fault> {
    const FORM: &str = "base64 of a handle, TPM2B_NAME, 1 and TPM2B_PUBLIC";
    let bytes = bytes(field)?;
    let srk = TokenSrk::decode(&bytes).ok_or_else(|| field.error(FORM))?;
    if !PERSISTENT.contains(&srk.handle) {
        let found = format!("{:#010x}", srk.handle);
        return Err(FieldError::new(field.path(), "a persistent handle, 0x81000000 to 0x81ffffff", found));
    }
    // The SHA-256 Name of what follows: else one of the two was changed.
    let digest = Sha256::digest(&srk.public[2..]);
    if srk.name.get(..2) != Some(&[0x00, 0x0b]) || srk.name.get(2..) != Some(digest.as_slice()) {
        let expected = format!("the Name of the public key in it, 000b{}", hex::encode(&digest));
        return Err(FieldError::new(field.path(), expected, hex::encode(&srk.name)));
    }
    Ok(srk)
}

impl TokenSrk {
    const KEY_RESOURCE: u32 = 1;

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (handle, rest) = bytes.split_first_chunk::<4>()?;
        let (size, rest) = rest.split_first_chunk::<2>()?;
        let (name, rest) = rest.split_at_checked(u16::from_be_bytes(*size).into())?;
        let (kind, public) = rest.split_first_chunk::<4>()?;
        let size = public.first_chunk::<2>()?;
        let whole = public.len() == 2 + usize::from(u16::from_be_bytes(*size));
        (whole && u32::from_be_bytes(*kind) == Self::KEY_RESOURCE).then(|| Self {
            handle: u32::from_be_bytes(*handle),
            name: name.to_vec(),
            public: public.to_vec(),
        })
    }

    /// The bytes in a token.
    pub fn encode(&self) -> Vec<u8> {
        let size = (self.name.len() as u16).to_be_bytes();
        let kind = Self::KEY_RESOURCE.to_be_bytes();
        [&self.handle.to_be_bytes()[..], &size, &self.name, &kind, &self.public].concat()
    }
}
