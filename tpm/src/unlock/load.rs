//! Loading a sealed object under its parent.

use super::{Parent, UnsealError, UnsealRequest};
use crate::{
    client::{CommandError, Tpm, malformed},
    command::{Command, CommandCode},
    name::Name,
    protected::sized_secret,
    response::{ResponseCode, ResponseError},
    sealed::Sealed,
    session::{Auth, flush},
    srk::{self, LegacyParent, Made, PinnedSrk, SRK_HANDLE, Srk},
    transport::Transport,
};

/// An object in the TPM's memory, and the key that sessions on it are salted to.
pub(super) struct Loaded {
    pub(super) handle: u32,
    pub(super) salt: Srk,
}

pub(super) fn load<T: Transport>(tpm: &mut Tpm<T>, request: &UnsealRequest<'_>) -> Result<Loaded, UnsealError> {
    match request.parent {
        Parent::Pinned { handle, pin } => under_pinned(tpm, handle, pin, request.sealed),
        Parent::Legacy { kind, salt } => under_legacy(tpm, kind, salt, request.sealed),
    }
}

fn under_pinned<T: Transport>(
    tpm: &mut Tpm<T>,
    handle: u32,
    pin: &PinnedSrk,
    sealed: &Sealed,
) -> Result<Loaded, UnsealError> {
    let name = pin.public().name();
    let error = match load_under(tpm, handle, &name, sealed) {
        Ok(loaded) => return Ok(Loaded { handle: loaded, salt: Srk::presumed(pin, handle) }),
        Err(error) if is_about_key_or_object(&error) => error,
        Err(error) => return Err(error.into()),
    };
    // There is another key at the handle, or none; or the object is the reason.
    let mut salt = srk::pinned_srk_at(tpm, pin, handle)?;
    if salt.handle() == handle {
        return Err(broken(error));
    }
    match load_under(tpm, salt.handle(), &name, sealed) {
        Ok(handle) => Ok(Loaded { handle, salt }),
        Err(error) => {
            let _ = salt.release_once(tpm);
            Err(broken(error))
        }
    }
}

/// The key is made again by the template. It is not pinned; that it is the right one shows in that it unwraps the object.
/// Sessions need not be salted to the parent: any key of the TPM will do.
fn under_legacy<T: Transport>(
    tpm: &mut Tpm<T>,
    kind: LegacyParent,
    salt: Option<&PinnedSrk>,
    sealed: &Sealed,
) -> Result<Loaded, UnsealError> {
    let parent = srk::make_legacy(tpm, kind)?;
    let handle = match load_under(tpm, parent.handle, &parent.public.name(), sealed) {
        Ok(handle) => handle,
        Err(error) => {
            flush(tpm, parent.handle)?;
            return Err(broken(error));
        }
    };
    match legacy_salt(tpm, kind, salt, parent) {
        Ok(salt) => Ok(Loaded { handle, salt }),
        Err(error) => {
            let _ = flush(tpm, handle);
            Err(error)
        }
    }
}

/// Salting to an RSA key would take RSA. Where the parent is one, and no key is pinned, a key on P-256 is made beside it.
fn legacy_salt<T: Transport>(
    tpm: &mut Tpm<T>,
    kind: LegacyParent,
    salt: Option<&PinnedSrk>,
    parent: Made,
) -> Result<Srk, UnsealError> {
    if let (None, LegacyParent::Ecc) = (salt, kind) {
        return unpinned(tpm, parent);
    }
    flush(tpm, parent.handle)?;
    match salt {
        Some(pin) => Ok(Srk::presumed(pin, SRK_HANDLE)),
        None => {
            let made = srk::make_standard(tpm)?;
            unpinned(tpm, made)
        }
    }
}

fn unpinned<T: Transport>(tpm: &mut Tpm<T>, made: Made) -> Result<Srk, UnsealError> {
    let handle = made.handle;
    made.unpinned().map_err(|error| {
        let _ = flush(tpm, handle);
        error.into()
    })
}

/// Loads the object (TPM2_Load, Part 3, section 12.2), after TPM2_Import (section 13.3) where it was made outside of the
/// TPM.
///
/// Neither is protected: the object is wrapped, and that it is this one shows when the session uses it by its Name.
fn load_under<T: Transport>(
    tpm: &mut Tpm<T>,
    parent: u32,
    parent_name: &Name,
    sealed: &Sealed,
) -> Result<u32, CommandError> {
    let imported;
    let private = match sealed.seed() {
        Some(seed) => {
            imported = import(tpm, parent, parent_name, sealed, seed)?;
            &imported[..]
        }
        None => sealed.private(),
    };
    let command = Command::new(CommandCode::Load).named(parent, parent_name);
    let command = command.sized(private).sized(sealed.public().as_bytes());
    let answer = tpm.execute(&command, &mut [Auth::empty_password()])?;
    let expected = sealed.public().name();
    let error = match sized_secret(&answer.parameters, "name") {
        Ok(name) if name.as_slice() == expected.as_bytes() => return Ok(answer.handle),
        Ok(name) => {
            let (field, found) = ("name", name.len() as u32);
            ResponseError::Value { field, expected: "SHA-256 of the object's public area", found }
        }
        Err(source) => source,
    };
    flush(tpm, answer.handle)?;
    Err(malformed(command.code(), error))
}

fn import<T: Transport>(
    tpm: &mut Tpm<T>,
    parent: u32,
    parent_name: &Name,
    sealed: &Sealed,
    seed: &[u8],
) -> Result<Vec<u8>, CommandError> {
    const NULL: u16 = 0x0010;
    let command = Command::new(CommandCode::Import).named(parent, parent_name);
    // No second key around it: encryptionKey is empty, and symmetricAlg is none.
    let command = command.sized(&[]).sized(sealed.public().as_bytes()).sized(sealed.private()).sized(seed).u16(NULL);
    let answer = tpm.execute(&command, &mut [Auth::empty_password()])?;
    let private = sized_secret(&answer.parameters, "outPrivate");
    private.map(|private| private.to_vec()).map_err(|source| malformed(command.code(), source))
}

/// Whether the TPM said that a handle, or what is loaded, is wrong: not that it had no room or no time.
fn is_about_key_or_object(error: &CommandError) -> bool {
    use ResponseCode::{AuthFail, AuthUnavailable, BadAuth, Handle, Integrity, Other, PolicyFail, Signature};
    let code = if let CommandError::Refused { code, .. } = error { Some(*code) } else { None };
    matches!(
        code,
        Some(
            Handle(_)
                | Integrity(_)
                | Other(_)
                | AuthUnavailable(_)
                | AuthFail(_)
                | BadAuth(_)
                | PolicyFail(_)
                | Signature(_)
        )
    )
}

fn broken(source: CommandError) -> UnsealError {
    if is_about_key_or_object(&source) { UnsealError::Broken { source } } else { source.into() }
}
