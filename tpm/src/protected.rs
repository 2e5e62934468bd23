//! Commands that nobody on the bus can read or change unnoticed.

use std::collections::BTreeSet;

use iofs_policy::pcr::{PcrBank, PcrDigest, PcrIndex};
use zeroize::Zeroizing;

use crate::{
    client::{Answer, CommandError, Tpm, malformed},
    command::{Command, CommandCode},
    pcr::{self, ActiveBanks, BanksError, ExtendError, PcrValues, ReadError},
    reader::Reader,
    response::ResponseError,
    session::{Protection, Session, SessionError, SessionKind, flush},
    srk::{PinnedSrk, Srk, SrkError, pinned_srk, public_area},
    transport::Transport,
};

/// Why there is no protected channel.
#[derive(Debug, thiserror::Error)]
pub enum ProtectError {
    /// The pinned key is not there.
    #[error(transparent)]
    Srk(#[from] SrkError),
    /// The session did not come up.
    #[error("protected session: {0}")]
    Command(#[from] CommandError),
    /// What came through the session was not the pinned key's public area: somebody changed the session's cipher.
    #[error(
        "protected session: expected the pinned key's public area, found another: the session was changed on its way"
    )]
    Unconfirmed,
}

/// A TPM that has shown that it holds the pinned storage root key, and a session that only it and this process know.
///
/// Whatever comes back by it was answered by that TPM, to exactly what was asked. What can still be done on the bus:
/// refusing, losing, and removing objects and sessions, all of which end in an error. A refusal
/// ([`CommandError::Refused`]) is not authenticated, and may hide that the command was executed.
///
/// [`Protected::close`] removes the session from the TPM, and says whether that was done; so does dropping it, which does
/// not say.
#[derive(Debug)]
pub struct Protected<'t, T: Transport> {
    tpm: &'t mut Tpm<T>,
    srk: Srk,
    /// `None` once it was flushed.
    session: Option<Session>,
}

impl<'t, T: Transport> Protected<'t, T> {
    /// Finds the pinned key, starts a session salted to it, and has the TPM show that it can use it.
    ///
    /// # Errors
    /// See [`ProtectError`].
    pub fn start(tpm: &'t mut Tpm<T>, pin: &PinnedSrk) -> Result<Self, ProtectError> {
        let srk = pinned_srk(tpm, pin)?;
        let mut protected = Self { tpm, srk, session: None };
        protected.session = Some(Session::start(protected.tpm, SessionKind::Hmac, &protected.srk, None)?);
        protected.confirm(pin)?;
        Ok(protected)
    }

    /// The session's key depends on nonces and salt, and not on the cipher that was asked for (Part 1, section 19.6.8).
    /// Something known that comes through encrypted shows that both sides have the same.
    fn confirm(&mut self, pin: &PinnedSrk) -> Result<(), ProtectError> {
        let command = Command::new(CommandCode::ReadPublic).named(self.srk.handle(), &self.srk.name());
        let answer = self.execute(&command, &[], Protection::HiddenResponse)?;
        match public_area(&answer.parameters) {
            Ok(public) if public == pin.public().as_bytes() => Ok(()),
            _ => Err(ProtectError::Unconfirmed),
        }
    }

    /// Runs a command under the session, which authorizes the first handle by this value.
    pub(crate) fn execute(
        &mut self,
        command: &Command,
        auth_value: &[u8],
        protection: Protection,
    ) -> Result<Answer, CommandError> {
        let session = open(&mut self.session, command.code())?;
        self.tpm.execute(command, &mut [session.with(auth_value, protection)])
    }

    /// Runs a command that needs no authorization and has nothing to encrypt.
    pub(crate) fn audited(&mut self, command: &Command) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        self.execute(command, &[], Protection::Audit).map(|answer| answer.parameters)
    }

    /// The TPM without the session.
    pub(crate) fn unprotected(&mut self) -> &mut Tpm<T> {
        self.tpm
    }

    /// The same as [`pcr::active_banks`].
    ///
    /// # Errors
    /// See [`BanksError`].
    pub fn active_banks(&mut self) -> Result<ActiveBanks, BanksError> {
        pcr::banks_by(&mut |command| self.audited(command))
    }

    /// The same as [`pcr::read`].
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&mut self, wanted: &BTreeSet<(PcrBank, PcrIndex)>) -> Result<PcrValues, ReadError> {
        pcr::read_by(&mut |command| self.audited(command), wanted)
    }

    /// The same as [`pcr::extend`].
    ///
    /// # Errors
    /// See [`ExtendError`]. After anything but success the register may or may not have been extended: read it through a
    /// session that still works, and ask [`pcr::judge`].
    pub fn extend(&mut self, active: &ActiveBanks, index: PcrIndex, digests: &[PcrDigest]) -> Result<(), ExtendError> {
        let mut run =
            |command: &Command| self.execute(command, &[], Protection::Integrity).map(|answer| answer.parameters);
        pcr::extend_by(&mut run, active, index, digests)
    }

    /// The same as [`pcr::event`].
    ///
    /// # Errors
    /// See [`ExtendError`], and [`Protected::extend`].
    pub fn event(
        &mut self,
        active: &ActiveBanks,
        index: PcrIndex,
        data: &[u8],
        digests: &[PcrDigest],
    ) -> Result<(), ExtendError> {
        let mut run =
            |command: &Command| self.execute(command, &[], Protection::Integrity).map(|answer| answer.parameters);
        pcr::event_by(&mut run, active, index, data, digests)
    }

    /// 32 random bytes of the TPM, which nobody on the bus saw (TPM2_GetRandom, Part 3, section 16.1). A TPM may give
    /// fewer.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn random(&mut self) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        let command = Command::new(CommandCode::GetRandom).u16(32);
        let answer = self.execute(&command, &[], Protection::HiddenResponse)?;
        sized_secret(&answer.parameters, "randomBytes").map_err(|source| malformed(command.code(), source))
    }

    /// Lets go of the TPM and keeps the session in it, for [`Suspended::resume`].
    pub fn suspend(mut self) -> Suspended {
        // What is dropped here has nothing left to clean.
        Suspended { srk: self.srk.take(), session: self.session.take() }
    }

    /// Removes the session, and the key where it was made for it, from the TPM.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn close(mut self) -> Result<(), CommandError> {
        self.clean()
    }

    /// Both are tried, whatever becomes of the first.
    fn clean(&mut self) -> Result<(), CommandError> {
        let session = self.session.take().map_or(Ok(()), |session| flush(self.tpm, session.handle()));
        session.and(self.srk.release_once(self.tpm))
    }
}

/// A protected session while nobody uses it. Dropped, it stays in the TPM until that is reset or the process ends that
/// opened the kernel's resource manager.
#[derive(Debug)]
pub struct Suspended {
    srk: Srk,
    session: Option<Session>,
}

impl Suspended {
    /// Goes on with the session, on the TPM that it was started on: any other refuses it.
    pub fn resume<T: Transport>(self, tpm: &mut Tpm<T>) -> Protected<'_, T> {
        Protected { tpm, srk: self.srk, session: self.session }
    }
}

fn open(session: &mut Option<Session>, command: CommandCode) -> Result<&mut Session, CommandError> {
    session.as_mut().ok_or(CommandError::Session { command, source: SessionError::OutOfStep })
}

/// Parameters that are one `TPM2B_*` with a secret in it.
pub(crate) fn sized_secret(parameters: &[u8], field: &'static str) -> Result<Zeroizing<Vec<u8>>, ResponseError> {
    let mut reader = Reader::new(parameters);
    let secret = Zeroizing::new(reader.sized(field)?.to_vec());
    reader.end("parameters")?;
    Ok(secret)
}

impl<T: Transport> Drop for Protected<'_, T> {
    fn drop(&mut self) {
        // There is nobody to tell: whoever wants to know calls `close`.
        let _ = self.clean();
    }
}
