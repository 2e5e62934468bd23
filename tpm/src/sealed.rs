//! Sealed objects and the policies that open them (Part 1, sections 19.7 and 23).

use std::collections::BTreeSet;

use iofs_policy::pcr::{PcrBank, PcrIndex};
use zeroize::Zeroizing;

use crate::{
    client::{CommandError, malformed},
    command::{Command, CommandCode},
    name::{Kind, Public},
    pcr,
    protected::{Protected, sized_secret},
    reader::Reader,
    response::{ResponseCode, ResponseError},
    session::{Binding, Entity, Protection, Session, SessionKind, ended, flush},
    transport::Transport,
};

/// How often a policy is made again where registers change meanwhile: only IMA extends while PID 1 runs.
const ATTEMPTS: u32 = 30;

/// A sealed object as it is kept outside of the TPM: wrapped by the storage root key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    private: Vec<u8>,
    public: Public,
}

impl Sealed {
    /// Reads a TPM2B_PRIVATE and the TPM2B_PUBLIC behind it.
    ///
    /// # Errors
    /// Whatever is not as Part 2 says, and objects of another kind.
    pub fn parse(blob: &[u8]) -> Result<Self, ResponseError> {
        let mut reader = Reader::new(blob);
        let private = reader.sized("TPM2B_PRIVATE")?.to_vec();
        let public = Public::parse_sized(reader.rest())?;
        if public.kind() != Kind::KeyedHash {
            let field = "type";
            return Err(ResponseError::Value { field, expected: "KEYEDHASH (8): sealed data", found: 0 });
        }
        Ok(Self { private, public })
    }

    /// The public area.
    pub fn public(&self) -> &Public {
        &self.public
    }
}

/// A step of a policy, in the order in which the object's digest was computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyStep {
    /// TPM2_PolicyPCR: these registers hold what they held when the policy was made.
    Pcr(BTreeSet<(PcrBank, PcrIndex)>),
    /// TPM2_PolicyAuthValue: whoever asks knows the object's authorization value.
    AuthValue,
}

impl<T: Transport> Protected<'_, T> {
    /// The digest that this policy has now (TPM2_PolicyGetDigest, Part 3, section 23.19), by a trial session. For
    /// enrolment.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn policy_digest(&mut self, steps: &[PolicyStep]) -> Result<[u8; 32], CommandError> {
        let (tpm, srk) = self.parts();
        let mut session = Session::start(tpm, SessionKind::Trial, srk)?;
        let digest = self.apply(&mut session, steps).and_then(|()| self.session_digest(&session));
        let flushed = flush(self.parts().0, session.handle());
        digest.and_then(|digest| flushed.map(|()| digest))
    }

    fn session_digest(&mut self, session: &Session) -> Result<[u8; 32], CommandError> {
        let command = Command::new(CommandCode::PolicyGetDigest).handle(session.handle());
        let answer = self.audited(&command)?;
        let digest = sized_secret(&answer, "policyDigest").map_err(|source| malformed(command.code(), source))?;
        digest.as_slice().try_into().map_err(|_| {
            let found = digest.len() as u32;
            malformed(command.code(), ResponseError::Value { field: "policyDigest", expected: "32 bytes", found })
        })
    }

    fn apply(&mut self, session: &mut Session, steps: &[PolicyStep]) -> Result<(), CommandError> {
        steps.iter().try_for_each(|step| self.apply_one(session, step))
    }

    /// The session beside it makes sure that nobody changed the step on its way: the error comes here then, and not when
    /// the object is used.
    fn apply_one(&mut self, session: &mut Session, step: &PolicyStep) -> Result<(), CommandError> {
        let command = match step {
            // Without a digest of values: those of now are taken (Part 3, section 23.7).
            PolicyStep::Pcr(wanted) => {
                Command::new(CommandCode::PolicyPcr).handle(session.handle()).u16(0).bytes(&pcr::selection(wanted))
            }
            PolicyStep::AuthValue => Command::new(CommandCode::PolicyAuthValue).handle(session.handle()),
        };
        let answer = self.audited(&command)?;
        ended(command.code(), &answer)?;
        if *step == PolicyStep::AuthValue {
            session.prove_auth_value();
        }
        Ok(())
    }

    /// Loads a sealed object, makes the policy that opens it, and unseals it (Part 3, sections 12.2 and 12.7). The secret
    /// passes encrypted; nothing stays in the TPM.
    ///
    /// `auth_value` is empty for objects that have none.
    ///
    /// # Errors
    /// See [`CommandError`]. [`ResponseCode::Integrity`] where another key wrapped the object,
    /// [`ResponseCode::PolicyFail`] where the policy does not hold.
    pub fn unseal(
        &mut self,
        sealed: &Sealed,
        steps: &[PolicyStep],
        auth_value: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        let handle = self.load(sealed)?;
        let object = Entity { handle, name: sealed.public.name(), auth_value };
        let secret = self.unseal_unless_changed(object, steps);
        let flushed = flush(self.parts().0, handle);
        secret.and_then(|secret| flushed.map(|()| secret))
    }

    fn load(&mut self, sealed: &Sealed) -> Result<u32, CommandError> {
        let (_, srk) = self.parts();
        let command = Command::new(CommandCode::Load).named(srk.handle(), &srk.name());
        let command = command.sized(&sealed.private).sized(sealed.public.as_bytes());
        let answer = self.execute(&command, &[], Protection::HiddenCommand)?;
        // The handle is not covered by any HMAC (Part 1, section 18.8); what is done with it is, by the object's Name.
        match sized_secret(&answer.parameters, "name") {
            Ok(name) if name.as_slice() == sealed.public.name().as_bytes() => Ok(answer.handle),
            Ok(name) => {
                flush(self.parts().0, answer.handle)?;
                let (field, found) = ("name", name.len() as u32);
                let expected = "SHA-256 of the object's public area";
                Err(malformed(command.code(), ResponseError::Value { field, expected, found }))
            }
            Err(source) => Err(malformed(command.code(), source)),
        }
    }

    /// Starts over where registers changed between TPM2_PolicyPCR and TPM2_Unseal.
    fn unseal_unless_changed(
        &mut self,
        object: Entity<'_>,
        steps: &[PolicyStep],
    ) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        let mut attempt = 1;
        loop {
            match self.unseal_once(object, steps) {
                Err(error) if error.code() == Some(ResponseCode::PcrChanged) && attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    fn unseal_once(&mut self, object: Entity<'_>, steps: &[PolicyStep]) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        let binding = Binding { handle: object.handle, auth_value: object.auth_value };
        let (tpm, srk) = self.parts();
        let mut session = Session::start_bound(tpm, SessionKind::Policy, srk, binding)?;
        let secret = self.apply(&mut session, steps).and_then(|()| self.unseal_with(object, &mut session));
        let flushed = flush(self.parts().0, session.handle());
        secret.and_then(|secret| flushed.map(|()| secret))
    }

    /// The policy session authorizes, the other one encrypts: that one's cipher was shown to be the right one.
    fn unseal_with(&mut self, object: Entity<'_>, policy: &mut Session) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        let command = Command::new(CommandCode::Unseal).named(object.handle, &object.name);
        let answer = self.execute_beside(
            &command,
            policy.with(object.auth_value, Protection::Integrity),
            Protection::HiddenResponse,
        )?;
        sized_secret(&answer.parameters, "outData").map_err(|source| malformed(command.code(), source))
    }
}
