//! Sessions: authorization, integrity and encryption of commands and responses (Part 1, sections 19.6 and 21).
//!
//! All are by SHA-256 and AES-128 in CFB mode, and salted to a storage root key that a [`Srk`] vouches for: their keys are
//! known to this process and to the TPM that holds the key, and to nobody between them.

use std::{fmt, slice};

use crate::{
    client::{CommandError, Tpm, malformed},
    command::{Command, CommandCode},
    crypto::{self, Key, SIZE},
    name::Name,
    reader::Reader,
    response::{Authorization, ResponseError},
    srk::Srk,
    transport::Transport,
};

/// `TPM_RS_PW`: authorization by a password instead of a session (Part 2, section 7.4).
const PASSWORD: u32 = 0x4000_0009;
/// `TPM_RH_NULL` (Part 2, section 7.4).
const NONE: u32 = 0x4000_0007;

/// `TPMA_SESSION` (Part 2, section 8.4): what a session does for one command.
mod attribute {
    pub(super) const CONTINUE: u8 = 0x01;
    const DECRYPT: u8 = 0x20;
    pub(super) const ENCRYPT: u8 = 0x40;
    pub(super) const AUDIT: u8 = 0x80;
    /// Those that a TPM sends back as they came. The others tell whether an audit is exclusive, which nobody here asks.
    pub(super) const ECHOED: u8 = CONTINUE | DECRYPT | ENCRYPT | AUDIT;
}

/// What a session does for a command besides making each change of it and of its response known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    /// Nothing more: it authorizes.
    Integrity,
    /// The same for a command that needs no authorization and has nothing to encrypt.
    Audit,
    /// The response's first parameter is encrypted.
    HiddenResponse,
}

impl Protection {
    const fn attribute(self) -> u8 {
        match self {
            Self::Integrity => 0,
            Self::Audit => attribute::AUDIT,
            Self::HiddenResponse => attribute::ENCRYPT,
        }
    }
}

/// What a session is for (`TPM_SE`, Part 2, section 6.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SessionKind {
    /// Knowledge of authorization values, protection of commands and responses.
    Hmac,
    /// Policies, and the same protection.
    Policy,
}

impl SessionKind {
    const fn value(self) -> u8 {
        match self {
            Self::Hmac => 0,
            Self::Policy => 1,
        }
    }

    /// The most significant byte of the session's handle (`TPM_HT`, Part 2, section 7.2).
    const fn handle_type(self) -> u8 {
        if matches!(self, Self::Hmac) { 2 } else { 3 }
    }
}

/// Why a session did not vouch for a command or its response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// There are no random numbers. Nothing was sent.
    #[error("no random numbers from the kernel: expected 32 bytes, found none")]
    Random,
    /// An earlier response did not come through or was not the TPM's: its nonce is not known. Nothing was sent.
    #[error("the session is out of step with the TPM since an earlier response was lost or changed: start another one")]
    OutOfStep,
    /// The response has no first parameter that can have been encrypted.
    #[error("first parameter: expected a size and that many bytes, found something else")]
    Unencrypted,
    /// The response's HMAC is wrong: the response, or the command on its way, was changed.
    #[error(
        "response: expected an HMAC by the session's key, found another: it was changed on its way, or the TPM is another one"
    )]
    Hmac,
    /// The session did something else for the response than for the command.
    #[error("sessionAttributes: expected {expected:#04x}, found {found:#04x}")]
    Attributes {
        /// What was sent.
        expected: u8,
        /// What came back.
        found: u8,
    },
}

/// A salted session. [`flush`] ends it; one that is only dropped stays in the TPM.
pub(crate) struct Session {
    handle: u32,
    kind: SessionKind,
    key: Key,
    nonce_tpm: [u8; SIZE],
    /// Whether the TPM's last nonce is known.
    in_step: bool,
    /// Whether the policy wants the object's authorization value in the HMAC.
    proves_auth_value: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Session")
            .field("handle", &self.handle)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Starts a session (TPM2_StartAuthSession, Part 3, section 11.1) salted to this key, and bound to an entity where
    /// there is one: its authorization value goes into the session's key.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub(crate) fn start<T: Transport>(
        tpm: &mut Tpm<T>,
        kind: SessionKind,
        srk: &Srk,
        bound: Option<Entity<'_>>,
    ) -> Result<Self, CommandError> {
        let (bound, auth_value) = bound.map_or((NONE, &[][..]), |entity| (entity.handle, entity.auth_value));
        let (command, nonce, salt) = start_command(kind, srk, bound)?;
        let answer = tpm.execute(&command, &mut [])?;
        let (handle, nonce_tpm) = started(kind, answer.handle, &answer.parameters)
            .map_err(|source| malformed(CommandCode::StartAuthSession, source))?;
        // Part 1, section 19.6.8: the bound object's authorization value, and the salt behind it.
        let mut secret = secret(trimmed(auth_value));
        secret.extend_from_slice(&salt[..]);
        let key = crypto::kdfa(&secret, b"ATH\0", &nonce_tpm, &nonce[..]);
        Ok(Self { handle, kind, key, nonce_tpm, in_step: true, proves_auth_value: kind == SessionKind::Hmac })
    }

    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }

    /// From now on the policy wants the object's authorization value in the HMAC (TPM2_PolicyAuthValue).
    pub(crate) fn prove_auth_value(&mut self) {
        self.proves_auth_value = true;
    }

    /// The session as the authorization of a command, with the authorization value of the command's handle: empty where
    /// that has none, or where the session only protects the command.
    pub(crate) fn with<'a>(&'a mut self, auth_value: &'a [u8], protection: Protection) -> Auth<'a> {
        self.used(auth_value, attribute::CONTINUE | protection.attribute())
    }

    /// The same for the session's last command: with its success the session is gone from the TPM.
    pub(crate) fn ending_with<'a>(&'a mut self, auth_value: &'a [u8], protection: Protection) -> Auth<'a> {
        self.used(auth_value, protection.attribute())
    }

    fn used<'a>(&'a mut self, auth_value: &'a [u8], attributes: u8) -> Auth<'a> {
        Auth(Some(Use { session: self, auth_value: trimmed(auth_value), attributes, nonce: [0; SIZE] }))
    }
}

/// Part 1, section 19.6.5: zeros at the end of an authorization value are no part of it.
pub(crate) fn trimmed(auth_value: &[u8]) -> &[u8] {
    let end = auth_value.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &auth_value[..end]
}

/// These bytes, with room for a key, so that they are not left behind by a growing vector.
fn secret(bytes: &[u8]) -> zeroize::Zeroizing<Vec<u8>> {
    let mut secret = zeroize::Zeroizing::new(Vec::with_capacity(bytes.len() + SIZE));
    secret.extend_from_slice(bytes);
    secret
}

/// Removes an object or a session from the TPM (TPM2_FlushContext, Part 3, section 28.4).
///
/// # Errors
/// See [`CommandError`].
pub(crate) fn flush<T: Transport>(tpm: &mut Tpm<T>, handle: u32) -> Result<(), CommandError> {
    let command = Command::new(CommandCode::FlushContext).u32(handle);
    ended(command.code(), &tpm.run(&command)?)
}

/// A response without parameters.
pub(crate) fn ended(command: CommandCode, parameters: &[u8]) -> Result<(), CommandError> {
    Reader::new(parameters).end("parameters").map_err(|source| malformed(command, source))
}

/// The command, the nonce in it, and the salt that is encrypted in it.
fn start_command(kind: SessionKind, srk: &Srk, bound: u32) -> Result<(Command, Key, Key), CommandError> {
    const AES: u16 = 0x0006;
    const CFB: u16 = 0x0043;
    const SHA256: u16 = 0x000b;
    let code = CommandCode::StartAuthSession;
    let random = CommandError::Session { command: code, source: SessionError::Random };
    let (Some(nonce), Some((salt, ephemeral))) = (crypto::random(), srk.point().share_secret()) else {
        return Err(random);
    };
    let command = Command::new(code).named(srk.handle(), &srk.name()).handle(bound).sized(&nonce[..]);
    // TPM2B_ENCRYPTED_SECRET with a TPMS_ECC_POINT (Part 2, section 11.4.3).
    let command = command.u16(2 * (2 + SIZE) as u16).sized(&ephemeral.x).sized(&ephemeral.y);
    let command = command.u8(kind.value()).u16(AES).u16(128).u16(CFB).u16(SHA256);
    Ok((command, nonce, salt))
}

pub(crate) fn started(kind: SessionKind, handle: u32, parameters: &[u8]) -> Result<(u32, [u8; SIZE]), ResponseError> {
    if handle.to_be_bytes()[0] != kind.handle_type() {
        return Err(ResponseError::Value {
            field: "sessionHandle",
            expected: "one of the kind asked for",
            found: handle,
        });
    }
    let mut reader = Reader::new(parameters);
    let nonce = nonce(reader.sized("nonceTPM")?)?;
    reader.end("TPM2_StartAuthSession's parameters")?;
    Ok((handle, nonce))
}

/// A TPM's nonce is as large as the one that it was sent (Part 1, section 19.6.3).
fn nonce(bytes: &[u8]) -> Result<[u8; SIZE], ResponseError> {
    bytes.try_into().map_err(|_| {
        // A TPM2B has fewer than 65536 bytes.
        ResponseError::Value { field: "nonceTPM", expected: "32 bytes, as in nonceCaller", found: bytes.len() as u32 }
    })
}

/// One authorization of a command: the empty password, or a session.
pub(crate) struct Auth<'a>(Option<Use<'a>>);

impl fmt::Debug for Auth<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Auth").field(&self.0.as_ref().map(|used| &used.session)).finish()
    }
}

struct Use<'a> {
    session: &'a mut Session,
    auth_value: &'a [u8],
    attributes: u8,
    /// `nonceCaller`
    nonce: [u8; SIZE],
}

impl<'a> Auth<'a> {
    /// The empty password (Part 1, section 19.4). It proves nothing and protects nothing: it is what registers ask for
    /// that anybody may extend.
    pub(crate) fn empty_password() -> Self {
        Self(None)
    }
}

impl Use<'_> {
    /// The key of HMACs (Part 1, section 19.6.5).
    fn hmac_key(&self) -> zeroize::Zeroizing<Vec<u8>> {
        let mut key = secret(&self.session.key[..]);
        if self.session.proves_auth_value {
            key.extend_from_slice(self.auth_value);
        }
        key
    }

    /// Key and first feedback of the first parameter's cipher (Part 1, section 21.3).
    fn cipher_key(&self, newer: &[u8], older: &[u8]) -> Key {
        let mut key = secret(&self.session.key[..]);
        key.extend_from_slice(self.auth_value);
        crypto::kdfa(&key, b"CFB\0", newer, older)
    }
}

fn sessions<'s, 'a>(auths: &'s mut [Auth<'a>]) -> impl Iterator<Item = &'s mut Use<'a>> {
    auths.iter_mut().filter_map(|auth| auth.0.as_mut())
}

fn with_attribute<'s, 'a>(auths: &'s [Auth<'a>], attribute: u8) -> Option<&'s Use<'a>> {
    auths.iter().filter_map(|auth| auth.0.as_ref()).find(|used| used.attributes & attribute != 0)
}

/// The whole command with its authorizations. From here on the sessions are out of step, until [`accept`] or [`keep`].
pub(crate) fn authorize(command: &Command, auths: &mut [Auth<'_>]) -> Result<Vec<u8>, SessionError> {
    if auths.is_empty() {
        return Ok(command.encode(&[], command.parameters()));
    }
    for used in sessions(auths) {
        if !used.session.in_step {
            return Err(SessionError::OutOfStep);
        }
        used.nonce = *crypto::random().ok_or(SessionError::Random)?;
    }
    let hash = crypto::sha256(&[&command.code().value().to_be_bytes(), command.names(), command.parameters()]);
    let authorizations = authorizations(auths, &hash);
    sessions(auths).for_each(|used| used.session.in_step = false);
    Ok(command.encode(&authorizations, command.parameters()))
}

/// The bytes of a `TPM2B_*` in front.
fn first_parameter(parameters: &mut [u8]) -> Option<&mut [u8]> {
    let (size, rest) = parameters.split_first_chunk_mut()?;
    rest.get_mut(..u16::from_be_bytes(*size).into())
}

/// TPMS_AUTH_COMMAND (Part 2, section 10.13.2), one after the other: handle, nonce, attributes, HMAC.
fn authorizations(auths: &[Auth<'_>], hash: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(auths.len() * 80);
    for auth in auths {
        let Some(used) = &auth.0 else {
            bytes.extend_from_slice(&PASSWORD.to_be_bytes());
            bytes.extend_from_slice(&[0; 2 + 1 + 2]);
            continue;
        };
        let (nonce_tpm, attributes) = (&used.session.nonce_tpm, slice::from_ref(&used.attributes));
        let hmac = crypto::hmac(&used.hmac_key(), &[hash, &used.nonce, nonce_tpm, attributes]);
        bytes.extend_from_slice(&used.session.handle.to_be_bytes());
        sized(&mut bytes, &used.nonce);
        bytes.push(used.attributes);
        sized(&mut bytes, &hmac);
    }
    bytes
}

fn sized(bytes: &mut Vec<u8>, part: &[u8; SIZE]) {
    bytes.extend_from_slice(&(SIZE as u16).to_be_bytes());
    bytes.extend_from_slice(part);
}

/// The TPM did not execute the command: its nonces are as before.
pub(crate) fn keep(auths: &mut [Auth<'_>]) {
    sessions(auths).for_each(|used| used.session.in_step = true);
}

/// Why a response was not accepted.
pub(crate) enum Unaccepted {
    Response(ResponseError),
    Session(SessionError),
}

/// Checks the authorizations of a response, takes over the TPM's nonces, and decrypts the first parameter.
pub(crate) fn accept(
    command: CommandCode,
    auths: &mut [Auth<'_>],
    authorizations: Reader<'_>,
    parameters: &mut [u8],
) -> Result<(), Unaccepted> {
    // TPM_RC_SUCCESS comes first (Part 1, section 18.8).
    let hash = crypto::sha256(&[&[0; 4], &command.value().to_be_bytes(), parameters]);
    let mut reader = authorizations;
    for auth in &mut *auths {
        let found = Authorization::read(&mut reader).map_err(Unaccepted::Response)?;
        match &mut auth.0 {
            None => found.of_password().map_err(Unaccepted::Response)?,
            Some(used) => accept_one(used, &hash, &found)?,
        }
    }
    reader.end("authorization area").map_err(Unaccepted::Response)?;
    if let Some(used) = with_attribute(auths, attribute::ENCRYPT) {
        let key = used.cipher_key(&used.session.nonce_tpm, &used.nonce);
        let first = first_parameter(parameters).ok_or(Unaccepted::Session(SessionError::Unencrypted))?;
        crypto::cfb_decrypt(&key, first);
    }
    keep(auths);
    Ok(())
}

fn accept_one(used: &mut Use<'_>, hash: &[u8], found: &Authorization<'_>) -> Result<(), Unaccepted> {
    let nonce_tpm = nonce(found.nonce).map_err(Unaccepted::Response)?;
    let parts = [hash, &nonce_tpm, &used.nonce, slice::from_ref(&found.attributes)];
    if !crypto::hmac_is(&used.hmac_key(), &parts, found.hmac) {
        return Err(Unaccepted::Session(SessionError::Hmac));
    }
    let expected = used.attributes;
    if found.attributes & attribute::ECHOED != expected {
        return Err(Unaccepted::Session(SessionError::Attributes { expected, found: found.attributes }));
    }
    used.session.nonce_tpm = nonce_tpm;
    Ok(())
}

/// An entity of the TPM: its handle, its Name, and the value that authorizes its use.
#[derive(Clone, Copy)]
pub(crate) struct Entity<'a> {
    pub(crate) handle: u32,
    pub(crate) name: Name,
    pub(crate) auth_value: &'a [u8],
}

/// For fuzzing: a response to a command under a session of its own, or under the empty password.
pub(crate) fn read_as_response(bytes: &[u8], session: bool) -> bool {
    let mut own = Session {
        handle: 0x0200_0000,
        kind: SessionKind::Hmac,
        key: Key::default(),
        nonce_tpm: [0; SIZE],
        in_step: false,
        proves_auth_value: true,
    };
    let auth = if session { own.with(b"value", Protection::HiddenResponse) } else { Auth::empty_password() };
    let mut reader = Reader::new(bytes);
    let Ok(parameters) = reader.parameters() else { return false };
    accept(CommandCode::Unseal, &mut [auth], reader, &mut parameters.to_vec()).is_ok()
}

#[cfg(test)]
mod tests;
