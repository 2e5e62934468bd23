//! What can go wrong with the TPM of a running system.

use tss_esapi::{Error, constants::response_code::Tss2ResponseCodeKind};

use super::Lockout;

/// Why the TPM did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The TPM's place is not one that is understood.
    #[error(
        "TCTI {tcti:?}: expected device:PATH, swtpm:host=ADDRESS,port=NUMBER, mssim:host=ADDRESS,port=NUMBER or tabrmd"
    )]
    Tcti {
        /// What was given.
        tcti: String,
        /// What libtss2's binding said.
        source: Error,
    },
    /// Nobody answers there.
    #[error("open the TPM at {tcti}: {source}")]
    Open {
        /// The TPM's place.
        tcti: String,
        /// What libtss2 said.
        source: Error,
    },
    /// A password is longer than any TPM takes.
    #[error("password of a hierarchy: expected at most 64 bytes, found {0}")]
    AuthSize(usize),
    /// A command failed.
    #[error("{command}: {source}")]
    Command {
        /// The command.
        command: &'static str,
        /// What libtss2 said.
        source: Error,
    },
    /// A hierarchy has another password.
    #[error("{command}: the TPM refuses the password of the hierarchy or key")]
    Password {
        /// The command.
        command: &'static str,
    },
    /// Too many wrong passwords were tried: the TPM refuses right ones, too.
    #[error("{command}: the TPM is locked{}", state.map(|state| format!(": {state}")).unwrap_or_default())]
    Locked {
        /// The command.
        command: &'static str,
        /// What the TPM says of it, where it says anything.
        state: Option<Lockout>,
    },
    /// There is no room for another object or session.
    #[error("{command}: the TPM has no room left for objects or sessions that others have loaded")]
    Full {
        /// The command.
        command: &'static str,
    },
    /// The TPM answered something else than the specification says.
    #[error("{command}: expected {expected} from the TPM")]
    Answer {
        /// The command.
        command: &'static str,
        /// What should have come.
        expected: &'static str,
    },
    /// There is something else where the attestation key belongs.
    #[error(
        "persistent handle {handle:#010x}: expected an attestation key under this TPM's endorsement key, found {found}"
    )]
    Foreign {
        /// The handle.
        handle: u32,
        /// What is there.
        found: String,
    },
    /// There is something else where the storage root key belongs.
    #[error("persistent handle {handle:#010x}: expected a storage root key on P-256: {found}")]
    NoStorageKey {
        /// The handle.
        handle: u32,
        /// What is there.
        found: String,
    },
    /// There is something where an object was to be kept.
    #[error("persistent handle {handle:#010x}: expected it to be free, found an object: choose another one")]
    Occupied {
        /// The handle.
        handle: u32,
    },
    /// There is another object than the one that was to be removed.
    #[error("persistent handle {handle:#010x}: expected the object that was named, found {found}: it was left alone")]
    OtherObject {
        /// The handle.
        handle: u32,
        /// What is there.
        found: String,
    },
    /// All handles for sealed objects are taken.
    #[error(
        "persistent handles 0x81004940 to 0x8100494f: expected a free one, found none: remove objects of old enrolments"
    )]
    NoHandle,
    /// A secret is larger than what a TPM seals.
    #[error("secret: expected at most 128 bytes, found {0}")]
    SecretSize(usize),
    /// There is no attestation key.
    #[error("persistent handle {handle:#010x}: expected an attestation key, found nothing")]
    NoAttestationKey {
        /// The handle.
        handle: u32,
    },
    /// The handle is not one for persistent objects of the owner.
    #[error("handle {0:#010x}: expected one from 0x81000000 to 0x817fffff")]
    Handle(u32),
    /// There is no active bank that this toolkit knows.
    #[error("the TPM's banks: expected an active one of sha1, sha256, sha384 or sha512, found none of them")]
    NoBank,
    /// A bank lacks a register that was to be quoted.
    #[error(
        "TPM2_Quote: expected exactly the registers that were asked for, found others: is each in every active bank?"
    )]
    Selection,
    /// Registers changed each time that they were quoted.
    #[error("TPM2_Quote: expected registers that hold still, found changes in each of {0} attempts")]
    Changing(u32),
}

impl HostError {
    pub(super) fn command(command: &'static str, source: Error) -> Self {
        let kind = match source {
            Error::Tss2Error(code) => code.kind(),
            Error::WrapperError(_) => None,
        };
        match kind {
            Some(Tss2ResponseCodeKind::Lockout) => Self::Locked { command, state: None },
            Some(Tss2ResponseCodeKind::AuthFail | Tss2ResponseCodeKind::BadAuth) => Self::Password { command },
            Some(
                Tss2ResponseCodeKind::ObjectMemory
                | Tss2ResponseCodeKind::SessionMemory
                | Tss2ResponseCodeKind::SessionHandles
                | Tss2ResponseCodeKind::ObjectHandles,
            ) => Self::Full { command },
            _ => Self::Command { command, source },
        }
    }

    /// Whether the TPM said that a credential is not for it: its integrity does not fit, or it does not decrypt.
    pub fn is_credential_of_another(&self) -> bool {
        use Tss2ResponseCodeKind::{EccPoint, Failure, Integrity, Size, Value};
        let Self::Command { command: "TPM2_ActivateCredential", source: Error::Tss2Error(code) } = self else {
            return false;
        };
        // Failure is what libtpms on OpenSSL says where a seed does not decrypt by RSA; it works on afterwards.
        matches!(code.kind(), Some(Integrity | Value | Size | EccPoint | Failure))
    }
}
