//! The storage root key, and objects sealed under it, for enrolment.

use std::collections::BTreeSet;

use iofs_policy::hex;
use tss_esapi::{
    Context,
    attributes::SessionAttributesBuilder,
    constants::{CapabilityType, SessionType},
    handles::{KeyHandle, ObjectHandle, SessionHandle, TpmHandle},
    interface_types::{
        algorithm::HashingAlgorithm,
        dynamic_handles::Persistent,
        resource_handles::{Hierarchy, Provision},
        session_handles::AuthSession,
    },
    structures::{Auth, CapabilityData, Private, Public, SensitiveData, SymmetricDefinition},
    traits::UnMarshall,
};

use super::{Host, HostError, keys::persistent, sized, template};
use crate::{
    name,
    policy::PolicyDigest,
    sealed::Sealed,
    srk::{PinnedSrk, SRK_HANDLE},
};

/// The largest secret that a TPM seals, in bytes (`MAX_SYM_DATA`, Part 2, section 11.1.14).
pub const MAX_SECRET: usize = 128;

/// Where this toolkit keeps sealed objects: the last of the handles from here spells `IO`, among those that the TCG's
/// registry of reserved handles gives to the storage hierarchy (0x81000000 to 0x8100ffff).
pub const SEALED_HANDLES: std::ops::RangeInclusive<u32> = 0x8100_4940..=0x8100_494f;

const CREATE: &str = "TPM2_Create";

/// The storage root key, as it is pinned in tokens and manifests.
#[derive(Debug, Clone)]
pub struct StorageRootKey {
    key: KeyHandle,
    /// Its handle.
    pub handle: u32,
    /// TPM2B_PUBLIC.
    pub public: Vec<u8>,
    /// The key's Name.
    pub name: Vec<u8>,
}

/// A persistent sealed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedAt {
    /// Its handle.
    pub handle: u32,
    /// Its Name, by which a token's blob is known to be the same object.
    pub name: Vec<u8>,
}

impl Host {
    /// Finds the storage root key at [`SRK_HANDLE`], or makes it there by the standard template.
    ///
    /// Making it persistent is one command, and the last one. What is at the handle is what whoever is on the bus says: who
    /// has a pin from elsewhere compares.
    ///
    /// # Errors
    /// [`HostError::NoStorageKey`] where there is something else at the handle: it is left alone.
    pub fn provide_srk(&mut self) -> Result<StorageRootKey, HostError> {
        let handle = persistent(SRK_HANDLE)?;
        if !self.exists(handle.into())? {
            self.make_srk()?;
        }
        let (key, described) = self.open_persistent(handle)?;
        let usable = name::Public::parse_sized(&described.public).map_err(|error| error.to_string());
        let usable = usable.and_then(|public| PinnedSrk::new(public).map_err(|error| error.to_string()));
        usable.map_err(|found| HostError::NoStorageKey { handle: SRK_HANDLE, found })?;
        Ok(StorageRootKey { key, handle: SRK_HANDLE, public: described.public, name: described.name })
    }

    fn make_srk(&mut self) -> Result<(), HostError> {
        let command = "TPM2_CreatePrimary";
        let template = Public::unmarshall(&template::storage_root_key());
        let template = template.map_err(|source| HostError::command(command, source))?;
        let made = self
            .password(command, |context| context.create_primary(Hierarchy::Owner, template, None, None, None, None))?;
        self.keep(made.key_handle.into(), SRK_HANDLE)
    }

    /// Makes a loaded object persistent, and flushes it in any case.
    fn keep(&mut self, object: ObjectHandle, handle: u32) -> Result<(), HostError> {
        let place = Persistent::Persistent(persistent(handle)?);
        let kept = self
            .password("TPM2_EvictControl", |context| context.evict_control(Provision::Owner, object, place).map(drop));
        let flushed = self.plain("TPM2_FlushContext", |context| context.flush_context(object));
        kept.and(flushed)
    }

    /// Seals a secret of at most [`MAX_SECRET`] bytes under the storage root key: opened by this policy alone, which asks for
    /// the authorization value where there is one.
    ///
    /// Without an authorization value there is nothing to guess, so that the object neither counts towards the lockout nor
    /// suffers from it (noDA). Secret and authorization value pass encrypted, in a session salted to the key.
    ///
    /// Returns TPM2B_PRIVATE and TPM2B_PUBLIC, as [`Sealed::parse`] takes them. Nothing is left in the TPM.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn seal(
        &mut self,
        srk: &StorageRootKey,
        secret: &[u8],
        policy: &PolicyDigest,
        auth_value: Option<&[u8]>,
    ) -> Result<Vec<u8>, HostError> {
        self.seal_under(srk.key, secret, policy, auth_value)
    }

    /// The same under [`LegacyParent::Ecc`](crate::srk::LegacyParent), which is made for it and goes again: for systemd before
    /// 253, which knows no storage root key. Nothing tells afterwards whose TPM it was.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn seal_legacy(
        &mut self,
        secret: &[u8],
        policy: &PolicyDigest,
        auth_value: Option<&[u8]>,
    ) -> Result<Vec<u8>, HostError> {
        let command = "TPM2_CreatePrimary";
        let template = Public::unmarshall(&template::legacy_parent());
        let template = template.map_err(|source| HostError::command(command, source))?;
        let parent = self
            .password(command, |context| context.create_primary(Hierarchy::Owner, template, None, None, None, None))?;
        let sealed = self.seal_under(parent.key_handle, secret, policy, auth_value);
        let flushed = self.plain("TPM2_FlushContext", |context| context.flush_context(parent.key_handle.into()));
        sealed.and_then(|blob| flushed.map(|()| blob))
    }

    fn seal_under(
        &mut self,
        parent: KeyHandle,
        secret: &[u8],
        policy: &PolicyDigest,
        auth_value: Option<&[u8]>,
    ) -> Result<Vec<u8>, HostError> {
        let failed = |source| HostError::command(CREATE, source);
        let public = Public::unmarshall(&template::sealed(policy.as_bytes(), auth_value.is_some())).map_err(failed)?;
        let data = SensitiveData::try_from(secret).map_err(|_| HostError::SecretSize(secret.len()))?;
        let auth = auth_value.map(|value| Auth::try_from(value).map_err(|_| HostError::AuthSize(value.len())));
        let auth = auth.transpose()?;
        let made =
            self.hidden(parent, CREATE, |context| context.create(parent, public, auth, Some(data), None, None))?;
        let blob = [sized_bytes(made.out_private.value())?, sized(CREATE, &made.out_public)?].concat();
        match Sealed::parse(&blob) {
            Ok(sealed) if sealed.public().policy() == policy.as_bytes() => Ok(blob),
            _ => Err(HostError::Answer { command: CREATE, expected: "a sealed object with the policy asked for" }),
        }
    }

    /// Runs a command in a session that encrypts its first parameters both ways, and ends with it.
    fn hidden<T>(
        &mut self,
        salt: KeyHandle,
        command: &'static str,
        run: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, HostError> {
        let start = "TPM2_StartAuthSession";
        let session = self.plain(start, |context| {
            let symmetric = SymmetricDefinition::AES_128_CFB;
            context.start_auth_session(Some(salt), None, None, SessionType::Hmac, symmetric, HashingAlgorithm::Sha256)
        })?;
        let session = session.ok_or(HostError::Answer { command: start, expected: "a session" })?;
        let result = self.run_hidden(session, command, run);
        let handle = ObjectHandle::from(SessionHandle::from(session));
        let flushed = self.plain("TPM2_FlushContext", |context| context.flush_context(handle));
        let value = result?;
        flushed.map(|()| value)
    }

    fn run_hidden<T>(
        &mut self,
        session: AuthSession,
        command: &'static str,
        run: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, HostError> {
        let attributes = SessionAttributesBuilder::new().with_continue_session(true);
        let (attributes, mask) = attributes.with_decrypt(true).with_encrypt(true).build();
        self.context
            .tr_sess_set_attributes(session, attributes, mask)
            .map_err(|source| HostError::command("Esys_TRSess_SetAttributes", source))?;
        let result = self.context.execute_with_session(Some(session), run);
        result.map_err(|source| self.explain(command, source))
    }

    /// Keeps a sealed object in the TPM. That is one command: before it the handle is free, after it the object is whole.
    ///
    /// # Errors
    /// [`HostError::Occupied`] where there is something at the handle already, the same object as well.
    pub fn persist(&mut self, srk: &StorageRootKey, blob: &[u8], handle: u32) -> Result<(), HostError> {
        let command = "TPM2_Load";
        if self.exists(persistent(handle)?.into())? {
            return Err(HostError::Occupied { handle });
        }
        let (private, public) =
            parts(blob).ok_or(HostError::Answer { command, expected: "a sealed object for it, not" })?;
        let private = Private::try_from(private).map_err(|source| HostError::command(command, source))?;
        let public = Public::unmarshall(public).map_err(|source| HostError::command(command, source))?;
        let loaded = self.password(command, |context| context.load(srk.key, private, public))?;
        self.keep(loaded.into(), handle)
    }

    /// Removes this object from its handle: one command. Nothing happens where the handle is free.
    ///
    /// # Errors
    /// [`HostError::OtherObject`] where there is something else: it is left alone.
    pub fn evict(&mut self, object: &SealedAt) -> Result<(), HostError> {
        let handle = persistent(object.handle)?;
        if !self.exists(handle.into())? {
            return Ok(());
        }
        let (key, described) = self.open_persistent(handle)?;
        if described.name != object.name {
            let found = format!("one with the name {}", hex::encode(&described.name));
            return Err(HostError::OtherObject { handle: object.handle, found });
        }
        let place = Persistent::Persistent(handle);
        self.password("TPM2_EvictControl", |context| {
            context.evict_control(Provision::Owner, key.into(), place).map(drop)
        })
    }

    /// The sealed objects among [`SEALED_HANDLES`].
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn sealed_objects(&mut self) -> Result<Vec<SealedAt>, HostError> {
        let mut found = Vec::new();
        for handle in self.occupied()? {
            let (_, described) = self.open_persistent(persistent(handle)?)?;
            let public = name::Public::parse_sized(&described.public);
            if public.is_ok_and(|public| public.kind() == name::Kind::KeyedHash) {
                found.push(SealedAt { handle, name: described.name });
            }
        }
        Ok(found)
    }

    /// The first of [`SEALED_HANDLES`] that nothing has.
    ///
    /// # Errors
    /// [`HostError::NoHandle`] where all are taken.
    pub fn free_handle(&mut self) -> Result<u32, HostError> {
        let occupied = self.occupied()?;
        SEALED_HANDLES.into_iter().find(|handle| !occupied.contains(handle)).ok_or(HostError::NoHandle)
    }

    /// Those of [`SEALED_HANDLES`] that something has.
    fn occupied(&mut self) -> Result<BTreeSet<u32>, HostError> {
        let command = "TPM2_GetCapability";
        let first = *SEALED_HANDLES.start();
        let count = SEALED_HANDLES.count() as u32;
        // Handles from the first on, in order: as many as there are of ours cover them all.
        let (data, _) = self.plain(command, |context| context.get_capability(CapabilityType::Handles, first, count))?;
        let CapabilityData::Handles(handles) = data else {
            return Err(HostError::Answer { command, expected: "handles" });
        };
        let numbers = handles.into_inner().into_iter().map(|handle: TpmHandle| u32::from(handle));
        Ok(numbers.filter(|handle| SEALED_HANDLES.contains(handle)).collect())
    }
}

impl SealedAt {
    /// A token's object at a handle.
    pub fn of(sealed: &Sealed, handle: u32) -> Self {
        Self { handle, name: sealed.public().name().as_bytes().to_vec() }
    }
}

/// What TPM2B_PRIVATE and TPM2B_PUBLIC hold.
fn parts(blob: &[u8]) -> Option<(&[u8], &[u8])> {
    let (private, rest) = split(blob)?;
    let (public, rest) = split(rest)?;
    rest.is_empty().then_some((private, public))
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u16::from_be_bytes(*size).into())
}

fn sized_bytes(bytes: &[u8]) -> Result<Vec<u8>, HostError> {
    let size = u16::try_from(bytes.len());
    let size = size.map_err(|_| HostError::Answer { command: CREATE, expected: "less than 64 KiB" })?;
    Ok([&size.to_be_bytes(), bytes].concat())
}
