//! The endorsement key, which says which TPM this is, and the attestation key, which signs what the TPM says.

use iofs_policy::{
    hex,
    pcr::{PcrBank, PcrDigest},
};
use tss_esapi::{
    handles::{KeyHandle, NvIndexHandle, NvIndexTpmHandle, PersistentTpmHandle, TpmHandle},
    interface_types::{
        dynamic_handles::Persistent,
        resource_handles::{Hierarchy, NvAuth, Provision},
        session_handles::AuthSession,
    },
    structures::{EncryptedSecret, IdObject, Public},
    traits::{Marshall, UnMarshall},
};
use zeroize::Zeroizing;

use super::{Host, HostError, sized, template};

/// Where the attestation key is persistent: among the handles that the TCG's registry of reserved handles gives to the
/// endorsement hierarchy (0x81010000 to 0x8101ffff), at a place that spells `IO`.
pub const AK_HANDLE: u32 = 0x8101_494f;

/// The handles that the owner may give (Part 2, section 7.5).
const OWNER_HANDLES: std::ops::RangeInclusive<u32> = 0x8100_0000..=0x817f_ffff;
/// Larger than any certificate in an NV index, in bytes.
const MAX_CERTIFICATE: u16 = 4096;
/// What every TPM reads at once from an NV index, in bytes (PC Client Platform TPM Profile: TPM_PT_NV_BUFFER_MAX is 512 at
/// least).
const NV_CHUNK: u16 = 512;

/// A key's algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA of 2048 bits; attestation keys sign by RSASSA with SHA-256.
    Rsa2048,
    /// NIST P-256; attestation keys sign by ECDSA with SHA-256.
    EccP256,
}

impl KeyKind {
    /// The NV index of the certificate of the endorsement key of this kind (TCG EK Credential Profile, section 2.2.1.4).
    pub const fn certificate_index(self) -> u32 {
        match self {
            Self::Rsa2048 => 0x01c0_0002,
            Self::EccP256 => 0x01c0_000a,
        }
    }
}

/// A loaded endorsement key.
#[derive(Debug, Clone)]
pub struct EndorsementKey {
    handle: KeyHandle,
    qualified_name: Vec<u8>,
    /// TPM2B_PUBLIC.
    pub public: Vec<u8>,
    /// The object's Name.
    pub name: Vec<u8>,
}

/// A persistent attestation key.
#[derive(Debug, Clone)]
pub struct AttestationKey {
    pub(super) handle: KeyHandle,
    /// TPM2B_PUBLIC.
    pub public: Vec<u8>,
    /// The object's Name.
    pub name: Vec<u8>,
}

/// What the TPM says of a loaded object.
pub(super) struct Described {
    area: Public,
    pub(super) public: Vec<u8>,
    pub(super) name: Vec<u8>,
    qualified_name: Vec<u8>,
}

impl Host {
    /// Makes the endorsement key anew: it is the same each time, and nothing is left in the TPM.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn endorsement_key(&mut self, kind: KeyKind) -> Result<EndorsementKey, HostError> {
        let command = "TPM2_CreatePrimary";
        let template = Public::unmarshall(&template::endorsement_key(kind));
        let template = template.map_err(|source| HostError::command(command, source))?;
        let made = self.password(command, |context| {
            context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
        })?;
        let Described { public, name, qualified_name, .. } = self.describe(made.key_handle)?;
        Ok(EndorsementKey { handle: made.key_handle, qualified_name, public, name })
    }

    /// Reads the certificate that the TPM's maker left for an endorsement key, in DER. Most TPMs have one, emulated ones
    /// often none.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn endorsement_certificate(&mut self, kind: KeyKind) -> Result<Option<Vec<u8>>, HostError> {
        let handle = NvIndexTpmHandle::new(kind.certificate_index());
        let handle = TpmHandle::from(handle.map_err(|source| HostError::command("TPM2_NV_ReadPublic", source))?);
        if !self.exists(handle)? {
            return Ok(None);
        }
        let opened = self.plain("TPM2_NV_ReadPublic", |context| context.tr_from_tpm_public(handle))?;
        let index = NvIndexHandle::from(opened);
        let (public, _) = self.plain("TPM2_NV_ReadPublic", |context| context.nv_read_public(index))?;
        let size = u16::try_from(public.data_size()).ok().filter(|size| *size <= MAX_CERTIFICATE);
        let size = size.ok_or(HostError::Answer { command: "TPM2_NV_ReadPublic", expected: "at most 4096 bytes" })?;
        let mut bytes = Vec::new();
        for offset in (0..size).step_by(NV_CHUNK.into()) {
            let count = NV_CHUNK.min(size - offset);
            // The index' own password is empty; the owner's is not needed.
            let chunk =
                self.password("TPM2_NV_Read", |context| context.nv_read(NvAuth::NvIndex(index), index, count, offset))?;
            bytes.extend_from_slice(chunk.value());
        }
        Ok(Some(trim(bytes)))
    }

    /// Finds the attestation key at its handle, or makes one under the endorsement key and keeps it there.
    ///
    /// Making it persistent is one command, and the last one: before it the handle is free, after it the key is whole, and a
    /// second run finds it.
    ///
    /// # Errors
    /// [`HostError::Foreign`] where there is something else at the handle: it is left alone.
    pub fn provide_attestation_key(
        &mut self,
        ek: &EndorsementKey,
        kind: KeyKind,
        handle: u32,
    ) -> Result<AttestationKey, HostError> {
        let persistent = persistent(handle)?;
        if self.exists(persistent.into())? {
            return self.existing_attestation_key(ek, kind, handle);
        }
        let transient = self.create_attestation_key(ek, kind)?;
        self.password("TPM2_EvictControl", |context| {
            context.evict_control(Provision::Owner, transient.into(), Persistent::Persistent(persistent))
        })?;
        self.plain("TPM2_FlushContext", |context| context.flush_context(transient.into()))?;
        self.existing_attestation_key(ek, kind, handle)
    }

    /// Opens the attestation key at its handle, whatever endorsement key it is under.
    ///
    /// # Errors
    /// [`HostError::NoAttestationKey`] where there is none, [`HostError::Foreign`] where it is none.
    pub fn attestation_key(&mut self, handle: u32) -> Result<AttestationKey, HostError> {
        let persistent = persistent(handle)?;
        if !self.exists(persistent.into())? {
            return Err(HostError::NoAttestationKey { handle });
        }
        let (key, described) = self.open_persistent(persistent)?;
        if ![KeyKind::Rsa2048, KeyKind::EccP256].into_iter().any(|kind| is_like(&described.area, kind)) {
            return Err(foreign(handle, &described, "a key that is none"));
        }
        Ok(AttestationKey { handle: key, public: described.public, name: described.name })
    }

    fn existing_attestation_key(
        &mut self,
        ek: &EndorsementKey,
        kind: KeyKind,
        handle: u32,
    ) -> Result<AttestationKey, HostError> {
        let (key, described) = self.open_persistent(persistent(handle)?)?;
        if !is_like(&described.area, kind) {
            return Err(foreign(handle, &described, "an object of another kind"));
        }
        // The qualified name says below which keys an object is (Part 1, section 16.4).
        let digest = PcrDigest::of(PcrBank::Sha256, &[&ek.qualified_name, &described.name]);
        if described.qualified_name.get(2..) != Some(digest.as_bytes()) {
            return Err(foreign(handle, &described, "one under another key"));
        }
        Ok(AttestationKey { handle: key, public: described.public, name: described.name })
    }

    pub(super) fn open_persistent(&mut self, handle: PersistentTpmHandle) -> Result<(KeyHandle, Described), HostError> {
        let opened = self.plain("TPM2_ReadPublic", |context| context.tr_from_tpm_public(handle.into()))?;
        let key = KeyHandle::from(opened);
        Ok((key, self.describe(key)?))
    }

    fn create_attestation_key(&mut self, ek: &EndorsementKey, kind: KeyKind) -> Result<KeyHandle, HostError> {
        let template = Public::unmarshall(&template::attestation_key(kind));
        let template = template.map_err(|source| HostError::command("TPM2_Create", source))?;
        let made = self.endorsement_policy("TPM2_Create", |context, session| {
            context.execute_with_session(Some(session), |context| {
                context.create(ek.handle, template, None, None, None, None)
            })
        })?;
        self.endorsement_policy("TPM2_Load", |context, session| {
            context.execute_with_session(Some(session), |context| {
                context.load(ek.handle, made.out_private, made.out_public)
            })
        })
    }

    /// Reads the secret of a credential (TPM2_ActivateCredential, Part 3, section 12.5): the TPM gives it out only if it was
    /// made for this endorsement key and for the Name of this attestation key.
    ///
    /// `id_object` is a TPM2B_ID_OBJECT, `secret` a TPM2B_ENCRYPTED_SECRET.
    ///
    /// # Errors
    /// See [`HostError`]; [`HostError::is_credential_of_another`] tells what is not for this TPM.
    pub fn activate_credential(
        &mut self,
        ek: &EndorsementKey,
        ak: &AttestationKey,
        id_object: &[u8],
        secret: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, HostError> {
        let command = "TPM2_ActivateCredential";
        let content = |bytes, expected| content(bytes).ok_or(HostError::Answer { command, expected });
        let id_object = IdObject::try_from(content(id_object, "a TPM2B_ID_OBJECT for it, not")?);
        let id_object = id_object.map_err(|source| HostError::command(command, source))?;
        let secret = EncryptedSecret::try_from(content(secret, "a TPM2B_ENCRYPTED_SECRET for it, not")?);
        let secret = secret.map_err(|source| HostError::command(command, source))?;
        let activated = self.endorsement_policy(command, |context, session| {
            context.execute_with_sessions((Some(AuthSession::Password), Some(session), None), |context| {
                context.activate_credential(ak.handle, ek.handle, id_object, secret)
            })
        })?;
        Ok(Zeroizing::new(activated.value().to_vec()))
    }

    fn describe(&mut self, handle: KeyHandle) -> Result<Described, HostError> {
        let command = "TPM2_ReadPublic";
        let (area, name, qualified_name) = self.plain(command, |context| context.read_public(handle))?;
        let public = sized(command, &area)?;
        Ok(Described { area, public, name: name.value().to_vec(), qualified_name: qualified_name.value().to_vec() })
    }
}

pub(super) fn persistent(handle: u32) -> Result<PersistentTpmHandle, HostError> {
    let valid = PersistentTpmHandle::new(handle).ok().filter(|_| OWNER_HANDLES.contains(&handle));
    valid.ok_or(HostError::Handle(handle))
}

fn foreign(handle: u32, described: &Described, what: &str) -> HostError {
    HostError::Foreign { handle, found: format!("{what}, with the name {}", hex::encode(&described.name)) }
}

/// Whether a public area is what the template makes, apart from the key itself.
fn is_like(area: &Public, kind: KeyKind) -> bool {
    let template = template::attestation_key(kind);
    // The unique part is at the end: one empty buffer for RSA, two for a point.
    let fixed = template.len() - if kind == KeyKind::Rsa2048 { 2 } else { 4 };
    area.marshall().is_ok_and(|bytes| bytes.starts_with(&template[..fixed]))
}

/// What a `TPM2B_*` holds, if it is one.
fn content(bytes: &[u8]) -> Option<Vec<u8>> {
    let (size, content) = bytes.split_first_chunk()?;
    (usize::from(u16::from_be_bytes(*size)) == content.len()).then(|| content.to_vec())
}

/// Cuts what follows a DER value: an NV index can be larger than its certificate.
fn trim(mut bytes: Vec<u8>) -> Vec<u8> {
    // A sequence whose length takes two bytes, as that of every certificate does.
    if let [0x30, 0x82, high, low, ..] = bytes[..] {
        bytes.truncate(4 + usize::from(u16::from_be_bytes([high, low])));
    }
    bytes
}
