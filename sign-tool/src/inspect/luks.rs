//! A LUKS2 header: what it says, and what of that is odd.

use std::{
    fs::File,
    io::{Seek, SeekFrom},
    path::Path,
};

use iofs_luks::{
    Extent, Header, HeaderError, KNOWN_HEADER_SIZES, Kdf, Keyslot, Priority, ReadAt, SlotId, Token, TokenId, Tpm2Token,
};
use iofs_policy::{digest::Sha256Digest, hex, manifest::RollbackRule, pcr::PcrIndex};
use serde::Serialize;
use uuid::Uuid;

use crate::report::{ExitStatus, Failure};

/// A LUKS2 header.
#[derive(Debug, Serialize)]
pub struct InspectedLuks {
    /// The volume's UUID.
    pub uuid: Uuid,
    /// Its label.
    pub label: String,
    /// Its second label.
    pub subsystem: String,
    /// Which of the two headers was taken.
    pub copy: &'static str,
    /// Counts the writes.
    pub sequence_id: u64,
    /// Of one header, in bytes.
    pub header_size: u64,
    /// Of the area of all keyslots, in bytes.
    pub keyslots_size: u64,
    /// Activation flags.
    pub flags: Vec<&'static str>,
    /// The encrypted data.
    pub segment: InspectedSegment,
    /// The keyslots.
    pub keyslots: Vec<InspectedKeyslot>,
    /// The tokens.
    pub tokens: Vec<InspectedToken>,
    /// What is odd.
    pub warnings: Vec<String>,
}

/// The encrypted data.
#[derive(Debug, Serialize)]
pub struct InspectedSegment {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its size in bytes; `None` up to the device's end.
    pub size: Option<u64>,
    /// The cipher.
    pub encryption: &'static str,
    /// In bytes.
    pub sector_size: u32,
    /// What authenticates it.
    pub integrity: Option<&'static str>,
}

/// A keyslot.
#[derive(Debug, Serialize)]
pub struct InspectedKeyslot {
    /// Its number.
    pub keyslot: u8,
    /// Of the key in it.
    pub key_bits: u32,
    /// How its key is derived, with the costs.
    pub kdf: InspectedKdf,
    /// `ignore`, `normal` or `prefer`.
    pub priority: &'static str,
    /// Whether its key is the segment's.
    pub bound: bool,
    /// The tokens that have its passphrase.
    pub tokens: Vec<u8>,
}

/// A key derivation.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum InspectedKdf {
    /// PBKDF2.
    Pbkdf2 {
        /// The hash.
        hash: &'static str,
        /// How often.
        iterations: u32,
    },
    /// Argon2.
    Argon2 {
        /// `argon2i` or `argon2id`.
        variant: &'static str,
        /// Passes over the memory.
        time: u32,
        /// In KiB.
        memory_kib: u32,
        /// Lanes.
        lanes: u32,
    },
}

/// A token.
#[derive(Debug, Serialize)]
pub struct InspectedToken {
    /// Its number.
    pub token: u8,
    /// Its type.
    pub r#type: String,
    /// The keyslots that it is for.
    pub keyslots: Vec<u8>,
    /// What is wrong with it.
    pub broken: Option<String>,
    /// What the TPM asks for.
    pub tpm2: Option<InspectedTpm2>,
}

/// What a TPM asks for before it gives a passphrase.
#[derive(Debug, Serialize)]
pub struct InspectedTpm2 {
    /// Registers whose values are in the policy.
    pub pcrs: Vec<u8>,
    /// Their bank.
    pub bank: Option<&'static str>,
    /// The policy's digest, of each part of the secret.
    pub policy_hashes: Vec<String>,
    /// Whether it takes a PIN.
    pub pin: bool,
    /// Whether the PIN is salted.
    pub salted: bool,
    /// Registers whose values are signed.
    pub signed_pcrs: Vec<u8>,
    /// SHA-256 of the signer's public key, as PEM file.
    pub public_key_sha256: Option<Sha256Digest>,
    /// The handle of the storage root key.
    pub srk_handle: Option<u32>,
    /// Its Name.
    pub srk_name: Option<String>,
    /// The kind of storage root key where the token has none.
    pub primary_alg: &'static str,
    /// Whether the policy is that of systemd-pcrlock, which verify-init does not unseal by.
    pub pcrlock: bool,
    /// Where the sealed object is kept in the TPM.
    pub persistent_handle: Option<u32>,
    /// Where the rollback counter ends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackRule>,
    /// Fields that this tool does not know.
    pub unknown_fields: Vec<String>,
}

/// Whether there is a second header: the first one may be damaged.
pub(super) fn has_secondary(file: &mut File) -> bool {
    KNOWN_HEADER_SIZES.iter().any(|offset| file.read_at(*offset, 6).is_ok_and(|magic| magic == b"SKUL\xba\xbe"))
}

pub(super) fn inspect(path: &Path, file: &mut File) -> Result<InspectedLuks, Failure> {
    // Of a block device the metadata tell no size.
    let bytes = file
        .seek(SeekFrom::End(0))
        .map_err(|error| Failure::io(format_args!("find the end of {}", path.display()), &error))?;
    let header = Header::read(file, bytes).or_else(|error| detached(file, error));
    let header = header.map_err(|error| {
        Failure::new(ExitStatus::BadInput, format!("{}: LUKS2: {error}", path.display())).next(
            "'cryptsetup luksDump' shows headers that this toolkit refuses; 'cryptsetup repair' mends damaged ones",
        )
    })?;
    Ok(InspectedLuks::of(&header))
}

/// A header whose segment is not behind it can be one that was put elsewhere on purpose.
fn detached(file: &mut File, error: HeaderError) -> Result<Header, HeaderError> {
    let HeaderError::Refused { field, .. } = &error else { return Err(error) };
    if !field.field.starts_with("segments") {
        return Err(error);
    }
    let Ok(mut header) = Header::read_with(file, Extent::Detached) else { return Err(error) };
    header.notes.push(format!("a detached header, or a volume that was cut off: {field}"));
    Ok(header)
}

impl InspectedLuks {
    fn of(header: &Header) -> Self {
        let segment = header.segment();
        Self {
            uuid: header.uuid,
            label: header.label.clone(),
            subsystem: header.subsystem.clone(),
            copy: header.copy.name(),
            sequence_id: header.sequence_id,
            header_size: header.header_size,
            keyslots_size: header.keyslots_size,
            flags: header.flags.iter().map(|flag| flag.name()).collect(),
            segment: InspectedSegment {
                offset: segment.offset,
                size: segment.size,
                encryption: segment.encryption.name(),
                sector_size: segment.sector_size,
                integrity: segment.integrity.map(iofs_luks::Integrity::name),
            },
            keyslots: header.keyslots().map(|(slot, keyslot)| InspectedKeyslot::of(header, slot, keyslot)).collect(),
            tokens: header.tokens().map(|(id, token)| InspectedToken::of(id, token)).collect(),
            warnings: header.notes.clone(),
        }
    }
}

impl InspectedKeyslot {
    fn of(header: &Header, slot: SlotId, keyslot: &Keyslot) -> Self {
        let owners = header.tokens().filter(|(_, token)| token.keyslots().contains(&slot));
        Self {
            keyslot: slot.get(),
            key_bits: keyslot.key_size * 8,
            kdf: match &keyslot.kdf {
                Kdf::Pbkdf2 { hash, iterations, .. } => {
                    InspectedKdf::Pbkdf2 { hash: hash.name(), iterations: *iterations }
                }
                Kdf::Argon2 { variant, time, memory_kib, lanes, .. } => InspectedKdf::Argon2 {
                    variant: variant.name(),
                    time: *time,
                    memory_kib: *memory_kib,
                    lanes: *lanes,
                },
            },
            priority: match keyslot.priority {
                Priority::Ignore => "ignore",
                Priority::Normal => "normal",
                Priority::Prefer => "prefer",
            },
            bound: keyslot.bound,
            tokens: owners.map(|(id, _)| id.get()).collect(),
        }
    }
}

impl InspectedToken {
    fn of(id: TokenId, token: &Token) -> Self {
        Self {
            token: id.get(),
            r#type: token.kind().to_owned(),
            keyslots: token.keyslots().iter().map(|slot| slot.get()).collect(),
            broken: match token {
                Token::Broken { why, .. } => Some(why.to_string()),
                _ => None,
            },
            tpm2: match token {
                Token::SystemdTpm2(token) => Some(InspectedTpm2::of(token)),
                _ => None,
            },
        }
    }
}

impl InspectedTpm2 {
    fn of(token: &Tpm2Token) -> Self {
        let numbers = |pcrs: &std::collections::BTreeSet<PcrIndex>| pcrs.iter().map(|pcr| pcr.get()).collect();
        let (signed, srk) = (token.signed.as_ref(), token.srk.as_ref());
        Self {
            pcrs: numbers(&token.pcrs),
            bank: token.bank.map(iofs_policy::pcr::PcrBank::name),
            policy_hashes: token.policy_hashes.iter().map(|hash| hex::encode(hash)).collect(),
            pin: token.pin,
            salted: token.salt.is_some(),
            signed_pcrs: signed.map(|signed| numbers(&signed.pcrs)).unwrap_or_default(),
            public_key_sha256: signed.map(|signed| Sha256Digest::of(&signed.public_key_pem)),
            srk_handle: srk.map(|srk| srk.handle),
            srk_name: srk.map(|srk| hex::encode(&srk.name)),
            primary_alg: token.primary_alg.name(),
            pcrlock: token.pcrlock,
            persistent_handle: token.persistent,
            rollback: token.rollback,
            unknown_fields: token.unknown.clone(),
        }
    }
}
