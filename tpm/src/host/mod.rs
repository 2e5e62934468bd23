//! The TPM of a running system, by way of libtss2 (tss-esapi): keys that prove who this machine is, quotes by them, and
//! secrets sealed for its boot.
//!
//! PID 1 has nothing of this. What libtss2 does here the lean client of this crate does in another way, so that each is a
//! test of the other.
//!
//! Whatever is loaded into the TPM is flushed on every way out: sessions by the function that starts them, objects at the
//! latest when [`Host`] goes. A process that is killed leaves them to the kernel's resource manager.

use tss_esapi::{
    Context,
    constants::SessionType,
    handles::{AuthHandle, ObjectHandle, SessionHandle},
    interface_types::{
        algorithm::HashingAlgorithm,
        session_handles::{AuthSession, PolicySession},
    },
    structures::{Auth, Digest, Nonce, SymmetricDefinition},
    tcti_ldr::TctiNameConf,
    traits::Marshall,
};
use zeroize::Zeroizing;

pub mod capability;
mod counter;
pub mod error;
pub mod keys;
pub mod quote;
pub mod seal;

mod template;

pub use capability::Lockout;
pub use error::HostError;
pub use keys::{AK_HANDLE, AttestationKey, EndorsementKey, KeyKind};
pub use quote::{Quote, Selection};
pub use seal::{SEALED_HANDLES, SealedAt, StorageRootKey};

/// Where the TPM is unless somebody says otherwise: the kernel's resource manager, which keeps programs apart and flushes
/// what a killed one leaves.
pub const DEFAULT_TCTI: &str = "device:/dev/tpmrm0";

/// What authorizes the use of the TPM's hierarchies, where that is not the empty password.
#[derive(Default)]
pub struct Authorizations {
    /// Of the owner: it makes keys persistent.
    pub owner: Zeroizing<Vec<u8>>,
    /// Of the endorsement hierarchy: it makes and uses endorsement keys.
    pub endorsement: Zeroizing<Vec<u8>>,
}

/// A connection to a TPM.
pub struct Host {
    context: Context,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Host")
    }
}

impl Host {
    /// Connects to the TPM that `tcti` names, as `tpm2-tools` take it: `device:PATH`, `swtpm:host=ADDRESS,port=NUMBER`,
    /// `mssim:host=ADDRESS,port=NUMBER`, or `tabrmd`.
    ///
    /// # Errors
    /// [`HostError::Tcti`] for other names, [`HostError::Open`] where nobody answers there.
    pub fn open(tcti: &str, authorizations: &Authorizations) -> Result<Self, HostError> {
        let name = tcti.parse::<TctiNameConf>().map_err(|source| HostError::Tcti { tcti: tcti.to_owned(), source })?;
        let context = Context::new(name).map_err(|source| HostError::Open { tcti: tcti.to_owned(), source })?;
        let mut host = Self { context };
        for (handle, password) in
            [(ObjectHandle::Owner, &authorizations.owner), (ObjectHandle::Endorsement, &authorizations.endorsement)]
        {
            let auth = Auth::try_from(password.as_slice()).map_err(|_| HostError::AuthSize(password.len()))?;
            host.context.tr_set_auth(handle, auth).map_err(|source| HostError::command("Esys_TR_SetAuth", source))?;
        }
        Ok(host)
    }

    /// Runs a command that needs no authorization.
    fn plain<T>(
        &mut self,
        command: &'static str,
        run: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, HostError> {
        let result = self.context.execute_without_session(run);
        result.map_err(|source| self.explain(command, source))
    }

    /// Runs a command that a password authorizes: that of the hierarchy, or the empty one of a key.
    fn password<T>(
        &mut self,
        command: &'static str,
        run: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, HostError> {
        let result = self.context.execute_with_session(Some(AuthSession::Password), run);
        result.map_err(|source| self.explain(command, source))
    }

    /// Runs a command that the policy of endorsement keys authorizes: whoever may use the hierarchy may use them
    /// (PolicySecret, TCG EK Credential Profile, section 4.6.1). The session ends with it.
    fn endorsement_policy<T>(
        &mut self,
        command: &'static str,
        run: impl FnOnce(&mut Context, AuthSession) -> tss_esapi::Result<T>,
    ) -> Result<T, HostError> {
        let session = self.plain("TPM2_StartAuthSession", |context| {
            let symmetric = SymmetricDefinition::AES_128_CFB;
            let hash = HashingAlgorithm::Sha256;
            context.start_auth_session(None, None, None, SessionType::Policy, symmetric, hash)
        })?;
        let session = session.ok_or(HostError::Answer { command: "TPM2_StartAuthSession", expected: "a session" })?;
        let result = self.authorize(session).and_then(|()| {
            let result = run(&mut self.context, session);
            self.context.clear_sessions();
            result.map_err(|source| self.explain(command, source))
        });
        let handle = ObjectHandle::from(SessionHandle::from(session));
        let flushed = self.plain("TPM2_FlushContext", |context| context.flush_context(handle));
        let value = result?;
        flushed.map(|()| value)
    }

    fn authorize(&mut self, session: AuthSession) -> Result<(), HostError> {
        self.password("TPM2_PolicySecret", |context| {
            let policy = PolicySession::try_from(session)?;
            let (nonce, digest) = (Nonce::default(), Digest::default());
            context.policy_secret(policy, AuthHandle::Endorsement, nonce, digest, Nonce::default(), None).map(drop)
        })
    }

    /// The error of a command, with what the TPM says of its lockout where that is the reason.
    fn explain(&mut self, command: &'static str, source: tss_esapi::Error) -> HostError {
        match HostError::command(command, source) {
            HostError::Locked { command, .. } => HostError::Locked { command, state: self.lockout().ok() },
            other => other,
        }
    }
}

/// A `TPM2B_*` around a structure.
fn sized(command: &'static str, structure: &impl Marshall) -> Result<Vec<u8>, HostError> {
    let bytes = structure.marshall().map_err(|source| HostError::command(command, source))?;
    let size = u16::try_from(bytes.len());
    let size = size.map_err(|_| HostError::Answer { command, expected: "a structure of less than 64 KiB" })?;
    Ok([&size.to_be_bytes(), &bytes[..]].concat())
}
