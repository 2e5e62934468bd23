//! Opening sealed objects by as few commands as can be, which is what takes time on a real chip.
//!
//! One session does it all: it is salted to the pinned storage root key, it fulfils the policy, and it encrypts what
//! TPM2_Unseal (Part 3, section 12.7) answers. Nothing is asked beforehand: whether the key is where it is presumed shows in
//! the first command that uses it, and only then is looked for the reason.
//!
//! The session's key does not depend on the cipher that was asked for (Part 1, section 19.6.8), and nothing known comes
//! through the session before the secret does. Whoever changes the cipher on the bus makes the TPM encrypt by another one
//! with a key that he does not have; what is decrypted here is garbage then, which opens nothing. Asking to encrypt is
//! covered by the HMAC of TPM2_Unseal, so that it cannot be left out.

use std::{collections::BTreeSet, fmt};

use iofs_policy::{
    digest::Sha256Digest,
    manifest::{RollbackIndex, RollbackRule},
    pcr::{PcrBank, PcrIndex},
    pcr_signature::PcrSignatures,
};
use zeroize::Zeroizing;

use crate::{
    client::{CommandError, Tpm},
    ladder::Ladder,
    pcr::{self, PcrValues},
    policy::Registers,
    policy_key::PolicyKey,
    response::ResponseCode,
    rollback::{self, CounterLimit},
    sealed::Sealed,
    session::Entity,
    srk::{self, LegacyParent, PinError, PinnedSrk, SRK_HANDLE, Srk, SrkError},
    transport::Transport,
};

mod load;
mod open;

pub(crate) use open::is_ticket;

/// What a TPM is to unseal.
#[derive(Debug, Clone)]
pub struct UnsealRequest<'a> {
    /// Under which key the object is.
    pub parent: Parent<'a>,
    /// The object.
    pub sealed: &'a Sealed,
    /// The handle under which the TPM keeps the object, where it does. Where something else is found there, or nothing, the
    /// object is loaded like any other.
    pub persistent: Option<u32>,
    /// The policy that opens it.
    pub policy: UnsealPolicy<'a>,
}

/// The key that wraps an object.
#[derive(Debug, Clone, Copy)]
pub enum Parent<'a> {
    /// A storage root key whose public area was kept at enrolment.
    Pinned {
        /// Where it is kept in the TPM. Where it is not there, it is made again.
        handle: u32,
        /// Its public area.
        pin: &'a PinnedSrk,
    },
    /// A key that systemd made anew each time, of which nothing was kept.
    Legacy {
        /// What it is made like.
        kind: LegacyParent,
        /// A storage root key that is known from elsewhere, at [`SRK_HANDLE`]: the session is salted to it. Without it
        /// whoever answers on the bus is believed: say so to the user.
        salt: Option<&'a PinnedSrk>,
    },
}

/// The parts of a policy, in the order in which systemd takes them: signed, then registers, then the authorization value.
/// What systemd does not know, the counter, comes with what is signed, or else before the authorization value.
#[derive(Debug, Clone, Default)]
pub struct UnsealPolicy<'a> {
    /// Registers that hold what a key signed.
    pub signed: Option<SignedPolicy<'a>>,
    /// Registers that hold what they held, or were predicted to hold, at enrolment. Of one bank or several; may be none.
    pub registers: Registers,
    /// The rollback counter, where the policy asks for it: where it is signed, from this index on, else for this one alone.
    pub rollback: Option<RollbackRule>,
    /// The object's authorization value, by [`pin_auth`](crate::pin::pin_auth), where the policy asks for it.
    pub auth_value: Option<&'a [u8]>,
}

/// The part of a policy that a key signs.
#[derive(Debug, Clone)]
pub struct SignedPolicy<'a> {
    /// The bank.
    pub bank: PcrBank,
    /// The registers.
    pub registers: BTreeSet<PcrIndex>,
    /// The key.
    pub key: &'a PolicyKey,
    /// What it signed.
    pub signatures: &'a PcrSignatures,
}

impl SignedPolicy<'_> {
    fn wanted(&self) -> Registers {
        self.registers.iter().map(|index| (self.bank, *index)).collect()
    }
}

impl UnsealPolicy<'_> {
    /// The one limit of a policy that is not signed.
    fn limit(&self) -> Option<CounterLimit> {
        self.rollback.filter(|_| self.signed.is_none()).map(CounterLimit::from)
    }

    /// The limit of a release of this index, where the policy is signed.
    fn ladder(&self) -> Option<Ladder> {
        self.rollback.filter(|_| self.signed.is_some()).map(Ladder::new)
    }
}

/// Why a TPM did not unseal.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    /// Registers hold something else than at enrolment. It can also be another of the policy's parts, which the TPM does not
    /// tell apart.
    #[error("the TPM does not unseal: expected the values of enrolment in registers {registers}, found others")]
    RegistersChanged {
        /// The registers that the policy names.
        registers: RegisterList,
        /// What they hold now, as whoever is on the bus says: for comparison with what was predicted.
        current: Option<PcrValues>,
    },
    /// No signature by the policy's key is for what the registers hold now.
    #[error(
        "the TPM does not unseal: expected a signature by key {key} for what registers {registers} hold, found {found} for \
         other values: install the image's tpm2-pcr-signature.json"
    )]
    NoSignature {
        /// The key's fingerprint.
        key: Sha256Digest,
        /// The registers that it signs.
        registers: RegisterList,
        /// How many signatures by it there are for them.
        found: usize,
        /// What they hold now, as whoever is on the bus says.
        current: Option<PcrValues>,
    },
    /// The signatures say nothing of a rollback index, which the policy asks for.
    #[error(
        "the TPM does not unseal: expected a signature with a rollback index by key {key}, found none: sign the image with \
         --rollback-index"
    )]
    NoRollbackIndex {
        /// The key's fingerprint.
        key: Sha256Digest,
    },
    /// The object is not for releases of that rollback index.
    #[error(
        "the TPM does not unseal: expected a release of rollback index {first} to {last}, as enrolled, found {found}"
    )]
    OtherRollbackIndex {
        /// The lowest that was enrolled.
        first: RollbackIndex,
        /// The highest.
        last: RollbackIndex,
        /// That of the signature.
        found: RollbackIndex,
    },
    /// A signature is not by the key whose fingerprint it has.
    #[error(
        "the TPM does not unseal: the signature for these registers is not by key {key}: it was changed, or is another's"
    )]
    BadSignature {
        /// The key's fingerprint.
        key: Sha256Digest,
    },
    /// The object's policy is not made of the parts that were named.
    #[error(
        "sealed object: expected a policy of the parts that the token names, found another: the token was changed, or is of another kind"
    )]
    OtherPolicy,
    /// The rollback counter is above what the object was sealed for.
    #[error(
        "the TPM does not unseal: expected {limit}, found {}: a newer release was confirmed on this machine",
        found.map_or("more".to_owned(), |value| value.to_string())
    )]
    Superseded {
        /// What the policy asks for.
        limit: CounterLimit,
        /// What it holds, as whoever is on the bus says.
        found: Option<u64>,
    },
    /// The rollback counter is not there.
    #[error("the TPM does not unseal: expected {limit}, found no counter: it was removed; enrol again")]
    NoCounter {
        /// What the policy asks for.
        limit: CounterLimit,
    },
    /// Registers changed each time between the policy and its use.
    #[error(
        "the TPM does not unseal: expected registers that hold still, found changes in each of {attempts} attempts"
    )]
    Changing {
        /// How many attempts there were.
        attempts: u32,
    },
    /// Too many wrong authorizations were tried, by whomever.
    #[error(
        "the TPM is locked after too many wrong PINs or passwords: wait until it forgets them, or reset the lockout with its \
         password (tpm2_dictionarylockout --clear-lockout); a passphrase or recovery key opens the volume meanwhile"
    )]
    Lockout,
    /// The authorization value is wrong.
    #[error("wrong PIN{}", if *counted { ", which the TPM counts towards its lockout" } else { "" })]
    WrongAuth {
        /// Whether the TPM counts it.
        counted: bool,
    },
    /// The TPM does not take the object: it was changed, or is under another key.
    #[error("sealed object: {source}: it was changed, or another TPM's key wraps it: enrol again")]
    Broken {
        /// What the TPM said.
        source: CommandError,
    },
    /// It is another TPM than the one of the enrolment, or does not say.
    #[error(transparent)]
    Srk(#[from] SrkError),
    /// The TPM made another key than the template says.
    #[error(transparent)]
    Parent(#[from] PinError),
    /// A command failed for another reason.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Registers, shown as `sha256:11+12`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterList(pub Registers);

impl fmt::Display for RegisterList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = None;
        for (bank, index) in &self.0 {
            match last {
                Some(same) if same == bank => write!(formatter, "+{index}")?,
                Some(_) => write!(formatter, ", {bank}:{index}")?,
                None => write!(formatter, "{bank}:{index}")?,
            }
            last = Some(bank);
        }
        Ok(())
    }
}

/// Opens a sealed object. Nothing of it stays in the TPM.
///
/// Commands for a policy of registers: 3 for a persistent object; 5 where it is loaded; 7 where the key above it has to be
/// made first and nothing is looked for in its place. One more with an authorization value; 4 more where the registers are
/// signed, 5 where there are several signatures to choose from; one more for literal registers beside signed ones; one for
/// a rollback counter, three where the policy is signed.
///
/// # Errors
/// See [`UnsealError`].
pub fn unseal<T: Transport>(tpm: &mut Tpm<T>, request: &UnsealRequest<'_>) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
    let secret = match persistent(tpm, request) {
        Ok(None) => loaded(tpm, request),
        Ok(Some(secret)) => Ok(secret),
        Err(error) => Err(error),
    };
    secret.map_err(|error| explain(tpm, request, error))
}

/// `None` where the object is not at its handle.
fn persistent<T: Transport>(
    tpm: &mut Tpm<T>,
    request: &UnsealRequest<'_>,
) -> Result<Option<Zeroizing<Vec<u8>>>, UnsealError> {
    let (Some(handle), Some((pin, at))) = (request.persistent, request.parent.pin()) else { return Ok(None) };
    let mut salt = Srk::presumed(pin, at);
    let secret = open::unseal(tpm, &mut salt, Some(pin), &request.opening(handle));
    // Like all that is flushed here: what remains is good for nothing without policy and salt, and the secret is not kept
    // from its owner for it.
    let _ = salt.release_once(tpm);
    match secret {
        Err(UnsealError::Command(CommandError::Refused { .. }) | UnsealError::Srk(_))
            if !is_at(tpm, request, handle)? =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Whether the object is at that handle, as whoever is on the bus says.
fn is_at<T: Transport>(tpm: &mut Tpm<T>, request: &UnsealRequest<'_>, handle: u32) -> Result<bool, UnsealError> {
    Ok(srk::offered(tpm, handle)?.is_some_and(|public| public == request.sealed.public().as_bytes()))
}

fn loaded<T: Transport>(tpm: &mut Tpm<T>, request: &UnsealRequest<'_>) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
    let mut loaded = load::load(tpm, request)?;
    let pin = request.parent.pin().map(|(pin, _)| pin);
    let secret = open::unseal(tpm, &mut loaded.salt, pin, &request.opening(loaded.handle));
    let _ = crate::session::flush(tpm, loaded.handle);
    let _ = loaded.salt.release_once(tpm);
    secret
}

impl<'a> Parent<'a> {
    /// What sessions are salted to, and where it is presumed.
    fn pin(self) -> Option<(&'a PinnedSrk, u32)> {
        match self {
            Self::Pinned { handle, pin } => Some((pin, handle)),
            Self::Legacy { salt, .. } => salt.map(|pin| (pin, SRK_HANDLE)),
        }
    }
}

impl UnsealRequest<'_> {
    fn opening(&self, handle: u32) -> open::Opening<'_> {
        let (public, auth_value) = (self.sealed.public(), self.policy.auth_value.unwrap_or_default());
        let object = Entity { handle, name: public.name(), auth_value };
        open::Opening { object, digest: public.policy(), policy: &self.policy }
    }
}

/// What a TPM's answer means here.
fn explain<T: Transport>(tpm: &mut Tpm<T>, request: &UnsealRequest<'_>, error: UnsealError) -> UnsealError {
    let policy = &request.policy;
    match error {
        UnsealError::Superseded { limit, .. } => {
            UnsealError::Superseded { limit, found: rollback::read_unprotected(tpm, limit.index) }
        }
        UnsealError::NoSignature { key, registers, found, current: None } => {
            let current = pcr::read(tpm, &registers.0).ok();
            UnsealError::NoSignature { key, registers, found, current }
        }
        UnsealError::Command(error) => match error.code() {
            Some(ResponseCode::Lockout) => UnsealError::Lockout,
            Some(ResponseCode::AuthFail(_)) if policy.auth_value.is_some() => UnsealError::WrongAuth { counted: true },
            Some(ResponseCode::BadAuth(_)) if policy.auth_value.is_some() => UnsealError::WrongAuth { counted: false },
            Some(ResponseCode::PcrChanged) => UnsealError::Changing { attempts: open::ATTEMPTS },
            Some(ResponseCode::PolicyFail(_)) => {
                // What is signed was accepted before, or the TPM had said so.
                let registers = policy.registers.clone();
                if registers.is_empty() {
                    return UnsealError::OtherPolicy;
                }
                let current = pcr::read(tpm, &registers).ok();
                UnsealError::RegistersChanged { registers: RegisterList(registers), current }
            }
            _ => UnsealError::Command(error),
        },
        other => other,
    }
}
