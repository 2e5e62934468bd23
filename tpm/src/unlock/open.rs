//! The session that fulfils the policy, and unseals.

use std::collections::BTreeMap;

use iofs_policy::{manifest::RollbackIndex, pcr_signature::policy_ref};
use zeroize::Zeroizing;

use super::{RegisterList, SignedPolicy, UnsealError, UnsealPolicy};
use crate::{
    client::{CommandError, Tpm, malformed},
    command::{Command, CommandCode},
    crypto::sha256,
    ladder::Ladder,
    name::Name,
    pcr,
    policy::{PolicyDigest, Registers},
    protected::sized_secret,
    reader::Reader,
    response::{ResponseCode, ResponseError},
    rollback::{CounterLimit, is_superseded, policy_counter},
    session::{Entity, Protection, Session, SessionKind, ended, flush},
    srk::{self, PinnedSrk, Srk},
    transport::Transport,
};

/// How often a policy is made again where registers change meanwhile: only IMA extends while PID 1 runs.
pub(super) const ATTEMPTS: u32 = 30;

/// `TPM_RH_OWNER` (Part 2, section 7.4): tickets of no hierarchy are not accepted.
const OWNER: u32 = 0x4000_0001;

/// The secret. Where the presumed key is not at its handle, it is looked for, and this is tried once more.
pub(super) fn unseal<T: Transport>(
    tpm: &mut Tpm<T>,
    salt: &mut Srk,
    pin: Option<&PinnedSrk>,
    opening: &Opening<'_>,
) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
    let error = match opening.by_any_name(tpm, salt) {
        Err(UnsealError::Command(error)) if may_be_the_salt(&error) => error,
        other => return other,
    };
    let Some(pin) = pin.filter(|_| !salt.is_transient()) else { return Err(error.into()) };
    let found = srk::pinned_srk_at(tpm, pin, salt.handle())?;
    if found.handle() == salt.handle() {
        return Err(error.into());
    }
    *salt = found;
    opening.by_any_name(tpm, salt)
}

/// A session that is salted to a key which the TPM does not have does not start, or its HMACs are wrong.
fn may_be_the_salt(error: &CommandError) -> bool {
    let CommandError::Refused { command, code } = error else { return false };
    match code {
        ResponseCode::SessionMemory(_) | ResponseCode::Lockout => false,
        ResponseCode::AuthFail(_) | ResponseCode::BadAuth(_) => true,
        _ => *command == CommandCode::StartAuthSession,
    }
}

/// An object in the TPM, and what opens it.
pub(super) struct Opening<'o> {
    pub(super) object: Entity<'o>,
    /// The digest in the object's public area.
    pub(super) digest: &'o [u8],
    pub(super) policy: &'o UnsealPolicy<'o>,
}

impl Opening<'_> {
    /// The object's policy has one of the Names of the key that signs, where there is one.
    fn by_any_name<T: Transport>(&self, tpm: &mut Tpm<T>, salt: &Srk) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let Some(signed) = &self.policy.signed else { return self.until_unchanged(tpm, salt, None) };
        let mut last = None;
        for public in signed.key.publics().into_iter().filter(|public| self.may_be_by(public)) {
            let authority = Authority { signed, public: &public };
            match self.until_unchanged(tpm, salt, Some(authority)) {
                Err(error) if is_policy_fail(&error) => last = Some(error),
                // Nothing was sealed on this TPM by a form that it does not take: what another form found says more.
                Err(error) if is_refused_key(&error) => last = last.or(Some(error)),
                other => return other,
            }
        }
        Err(last.unwrap_or(UnsealError::OtherPolicy))
    }

    /// Without registers beside the signed ones the policy's digest is known.
    fn may_be_by(&self, public: &[u8]) -> bool {
        let UnsealPolicy { registers, rollback, auth_value, .. } = self.policy;
        let whole = || PolicyDigest::whole(Some(&Name::of(public)), &BTreeMap::new(), *rollback, auth_value.is_some());
        !registers.is_empty() || self.digest == whole().as_bytes()
    }

    /// Starts over where registers changed between TPM2_PolicyPCR and TPM2_Unseal.
    fn until_unchanged<T: Transport>(
        &self,
        tpm: &mut Tpm<T>,
        salt: &Srk,
        authority: Option<Authority<'_>>,
    ) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let mut attempt = 1;
        loop {
            match self.once(tpm, salt, authority) {
                Err(UnsealError::Command(error))
                    if error.code() == Some(ResponseCode::PcrChanged) && attempt < ATTEMPTS =>
                {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// The session is bound to the object only where that has an authorization value. Binding to one without would bring
    /// nothing, but it would make the TPM refuse while it is locked, and count an interrupted boot as a failed attempt, where
    /// the object was made without noDA (Part 1, section 19.8).
    fn once<T: Transport>(
        &self,
        tpm: &mut Tpm<T>,
        salt: &Srk,
        authority: Option<Authority<'_>>,
    ) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let bound = self.policy.auth_value.map(|_| self.object);
        let mut session = Session::start(tpm, SessionKind::Policy, salt, bound)?;
        let secret = self.within(tpm, &mut session, authority);
        if secret.is_err() {
            // Success ends it.
            let _ = flush(tpm, session.handle());
        }
        secret
    }

    fn within<T: Transport>(
        &self,
        tpm: &mut Tpm<T>,
        session: &mut Session,
        authority: Option<Authority<'_>>,
    ) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        if let Some(authority) = authority {
            authority.apply(tpm, session, self.policy.ladder())?;
        }
        if !self.policy.registers.is_empty() {
            policy_pcr(tpm, session, &self.policy.registers)?;
        }
        if let Some(limit) = self.policy.limit() {
            policy_counter(tpm, session.handle(), limit).map_err(|error| superseded(error, limit))?;
        }
        if self.policy.auth_value.is_some() {
            run_ended(tpm, &Command::new(CommandCode::PolicyAuthValue).handle(session.handle()))?;
            session.prove_auth_value();
        }
        let command = Command::new(CommandCode::Unseal).named(self.object.handle, &self.object.name);
        let auth = session.ending_with(self.object.auth_value, Protection::HiddenResponse);
        let answer = tpm.execute(&command, &mut [auth])?;
        sized_secret(&answer.parameters, "outData").map_err(|source| malformed(command.code(), source).into())
    }
}

/// What it means that the TPM did not accept what the counter holds.
fn superseded(error: CommandError, limit: CounterLimit) -> UnsealError {
    match is_superseded(&error) {
        Some(true) => UnsealError::Superseded { limit, found: None },
        Some(false) => UnsealError::NoCounter { limit },
        None => error.into(),
    }
}

fn is_policy_fail(error: &UnsealError) -> bool {
    matches!(error, UnsealError::Command(error) if matches!(error.code(), Some(ResponseCode::PolicyFail(_))))
}

/// Some TPMs want the coordinates of a point with their zeros in front, others without.
fn is_refused_key(error: &UnsealError) -> bool {
    matches!(error, UnsealError::Command(CommandError::Refused { command: CommandCode::LoadExternal, .. }))
}

/// Nothing protects the steps of a policy on their way: where one was changed, the digest is another one in the end, and the
/// TPM does not unseal. Without a digest of values those of now are taken (Part 3, section 23.7).
fn policy_pcr<T: Transport>(tpm: &mut Tpm<T>, session: &Session, wanted: &Registers) -> Result<(), CommandError> {
    run_ended(tpm, &Command::new(CommandCode::PolicyPcr).handle(session.handle()).u16(0).bytes(&pcr::selection(wanted)))
}

fn run_ended<T: Transport>(tpm: &mut Tpm<T>, command: &Command) -> Result<(), CommandError> {
    ended(command.code(), &tpm.run(command)?)
}

/// A key that signs policies, in one of the forms that it can have.
#[derive(Clone, Copy)]
struct Authority<'a> {
    signed: &'a SignedPolicy<'a>,
    public: &'a [u8],
}

impl<'a> Authority<'a> {
    /// TPM2_PolicyPCR, and TPM2_PolicyAuthorize (Part 3, section 23.16) by a signature of the digest that it makes.
    ///
    /// With a ladder, the key has signed a rollback index with it, whose rung the counter must allow.
    fn apply<T: Transport>(
        &self,
        tpm: &mut Tpm<T>,
        session: &Session,
        ladder: Option<Ladder>,
    ) -> Result<(), UnsealError> {
        let signed = self.signed;
        policy_pcr(tpm, session, &signed.wanted())?;
        let key = signed.key.fingerprint();
        let mut found: Vec<_> = signed.signatures.find(signed.bank, &signed.registers, key).collect();
        if ladder.is_some() && !found.is_empty() {
            found.retain(|signature| signature.rollback.is_some());
            if found.is_empty() {
                return Err(UnsealError::NoRollbackIndex { key });
            }
        }
        let chosen = match found[..] {
            // Whether it is for these values shows below.
            [only] => Some(only),
            [] => None,
            _ => {
                let now = session_digest(tpm, session)?;
                found.iter().find(|signature| signature.policy.as_bytes() == now.as_bytes()).copied()
            }
        };
        let none = || UnsealError::NoSignature {
            key,
            registers: RegisterList(signed.wanted()),
            found: found.len(),
            current: None,
        };
        let chosen = chosen.ok_or_else(none)?;
        let rung = ladder.zip(chosen.rollback.as_ref());
        let (signature, policy_ref) = match rung {
            Some((_, rollback)) => (&rollback.signature, policy_ref(rollback.index).to_vec()),
            None => (&chosen.signature, Vec::new()),
        };
        let ticket = self.verify(tpm, &[chosen.policy.as_bytes(), &policy_ref], signature)?;
        let name = Name::of(self.public);
        let command = Command::new(CommandCode::PolicyAuthorize).handle(session.handle());
        let command = command.sized(chosen.policy.as_bytes()).sized(&policy_ref).sized(name.as_bytes()).bytes(&ticket);
        match run_ended(tpm, &command) {
            Err(CommandError::Refused { code: ResponseCode::Other(_), .. }) => return Err(none()),
            other => other?,
        }
        match rung {
            Some((ladder, rollback)) => climb(tpm, session, &ladder, &name, rollback.index),
            None => Ok(()),
        }
    }

    /// The TPM's word that the key signed this (TPMT_TK_VERIFIED, Part 2, section 10.7.4), which only the TPM can make.
    fn verify<T: Transport>(
        &self,
        tpm: &mut Tpm<T>,
        signed: &[&[u8]],
        signature: &[u8],
    ) -> Result<Vec<u8>, UnsealError> {
        let bad = || UnsealError::BadSignature { key: self.signed.key.fingerprint() };
        let wire = self.signed.key.signature(signature).ok_or_else(bad)?;
        // TPM2_LoadExternal (Part 3, section 12.3) without a private part.
        let command = Command::new(CommandCode::LoadExternal).sized(&[]).sized(self.public).u32(OWNER);
        let handle = tpm.execute(&command, &mut [])?.handle;
        // TPM2_VerifySignature (Part 3, section 20.1).
        let command = Command::new(CommandCode::VerifySignature).handle(handle);
        let command = command.sized(&sha256(signed)).bytes(&wire);
        let answer = tpm.run(&command);
        let flushed = flush(tpm, handle);
        match answer {
            Err(CommandError::Refused { code: ResponseCode::Signature(_), .. }) => Err(bad()),
            Err(error) => Err(error.into()),
            Ok(answer) => {
                flushed?;
                is_ticket(&answer).map_err(|source| malformed(command.code(), source))?;
                Ok(answer.to_vec())
            }
        }
    }
}

/// The counter's part, in words of its own where it does not hold.
fn climb<T: Transport>(
    tpm: &mut Tpm<T>,
    session: &Session,
    ladder: &Ladder,
    key: &Name,
    index: RollbackIndex,
) -> Result<(), UnsealError> {
    let Some(limit) = ladder.limit(index) else {
        let (first, last) = ladder.indexes();
        return Err(UnsealError::OtherRollbackIndex { first, last, found: index });
    };
    ladder.climb(tpm, session.handle(), key, index).map_err(|error| superseded(error, limit))
}

pub(crate) fn is_ticket(parameters: &[u8]) -> Result<(), ResponseError> {
    let mut reader = Reader::new(parameters);
    reader.bytes("validation", 2 + 4)?;
    reader.sized("validation.digest")?;
    reader.end("TPM2_VerifySignature's parameters")
}

/// TPM2_PolicyGetDigest (Part 3, section 23.19).
fn session_digest<T: Transport>(tpm: &mut Tpm<T>, session: &Session) -> Result<PolicyDigest, CommandError> {
    let command = Command::new(CommandCode::PolicyGetDigest).handle(session.handle());
    let answer = tpm.run(&command)?;
    let digest = sized_secret(&answer, "policyDigest").map_err(|source| malformed(command.code(), source))?;
    let bytes = digest.as_slice().try_into().map_err(|_| {
        let found = digest.len() as u32;
        malformed(command.code(), ResponseError::Value { field: "policyDigest", expected: "32 bytes", found })
    });
    bytes.map(PolicyDigest::from_bytes)
}
