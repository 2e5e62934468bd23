//! Every write to a LUKS2 header: libcryptsetup does it, which locks the device, keeps both copies and their checksums, and
//! writes one after the other, so that one of them is whole at any time.
//!
//! Nothing else of this program knows libcryptsetup. What it wrote is read back by another implementation, `iofs-luks`.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
};

use iofs_luks::{SlotId, TokenId};
use libcryptsetup_rs::{
    CryptDevice, CryptInit, CryptPbkdfType, Either, LibcryptErr, TokenInput, c_logging_callback,
    consts::{
        flags::{CryptPbkdf, CryptVolumeKey},
        vals::{CryptKdf, CryptLogLevel, EncryptionFormat},
    },
    set_log_callback,
};
use serde_json::Value;
use zeroize::Zeroizing;

/// What guards a secret of 256 random bits needs no stretching: cryptsetup's least, as systemd-cryptenroll has it.
pub(super) const LEAST_ITERATIONS: u32 = 1000;
/// The hash of such keyslots.
const HASH: &str = "sha512";

thread_local! {
    /// The last error line of libcryptsetup, which its codes say less than.
    static TOLD: RefCell<Option<String>> = const { RefCell::new(None) };
}

#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
fn remember(level: CryptLogLevel, line: &str, _: Option<&mut ()>) {
    if matches!(level, CryptLogLevel::Error) {
        TOLD.with_borrow_mut(|told| *told = Some(line.trim_end_matches('.').to_owned()));
    }
}

c_logging_callback!(log, (), remember);

/// Why a header was not written.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {why}")]
pub struct WriteError {
    /// The step, with what it was on.
    pub doing: String,
    /// What libcryptsetup says.
    pub why: String,
    /// Whether there is no room for another keyslot or token.
    pub full: bool,
}

/// A volume whose header can be written.
pub struct Writer {
    device: CryptDevice,
    path: PathBuf,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Writer({})", self.path.display())
    }
}

impl Writer {
    /// Loads the header of a LUKS2 volume: a device or a file.
    ///
    /// # Errors
    /// It cannot be opened, or is no LUKS2 volume.
    pub fn open(path: &Path) -> Result<Self, WriteError> {
        set_log_callback::<()>(Some(log), None);
        let doing = || format!("open {}", path.display());
        let mut device = call(doing, || CryptInit::init(path))?;
        call(doing, || device.context_handle().load::<()>(Some(EncryptionFormat::Luks2), None))?;
        Ok(Self { device, path: path.to_owned() })
    }

    /// Adds a keyslot for the volume key, for a passphrase of 256 random bits.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn add_keyslot(&mut self, slot: SlotId, volume_key: &[u8], passphrase: &[u8]) -> Result<(), WriteError> {
        let doing = || format!("add keyslot {slot}");
        let derivation = CryptPbkdfType {
            type_: CryptKdf::Pbkdf2,
            hash: Some(HASH.to_owned()),
            time_ms: 0,
            iterations: LEAST_ITERATIONS,
            max_memory_kb: 0,
            parallel_threads: 0,
            flags: CryptPbkdf::NO_BENCHMARK,
        };
        call(doing, || self.device.settings_handle().set_pbkdf_type(&derivation))?;
        let number = Some(u32::from(slot.get()));
        let mut keyslots = self.device.keyslot_handle();
        call(doing, || keyslots.add_by_key(number, Some(Either::Left(volume_key)), passphrase, CryptVolumeKey::empty()))
            .map(drop)
    }

    /// Erases a keyslot, its area first.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn destroy_keyslot(&mut self, slot: SlotId) -> Result<(), WriteError> {
        call(|| format!("erase keyslot {slot}"), || self.device.keyslot_handle().destroy(slot.get().into()))
    }

    /// Adds a token.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn add_token(&mut self, token: &Value) -> Result<TokenId, WriteError> {
        let doing = || "add a token".to_owned();
        let number = call(doing, || self.device.token_handle().json_set(TokenInput::AddToken(token)))?;
        let id = u8::try_from(number).ok().and_then(TokenId::new);
        id.ok_or_else(|| WriteError { doing: doing(), why: format!("its number is {number}"), full: false })
    }

    /// Writes a token in the place of another.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn replace_token(&mut self, id: TokenId, token: &Value) -> Result<(), WriteError> {
        let input = TokenInput::ReplaceToken(id.get().into(), token);
        call(|| format!("write token {id}"), || self.device.token_handle().json_set(input)).map(drop)
    }

    /// Removes a token; its keyslots stay.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn remove_token(&mut self, id: TokenId) -> Result<(), WriteError> {
        let input = TokenInput::RemoveToken(id.get().into());
        call(|| format!("remove token {id}"), || self.device.token_handle().json_set(input)).map(drop)
    }

    /// The JSON of a token.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn token(&mut self, id: TokenId) -> Result<Value, WriteError> {
        call(|| format!("read token {id}"), || self.device.token_handle().json_get(id.get().into()))
    }

    /// The volume key, from a keyslot and its passphrase: for adding another keyslot.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn volume_key(&mut self, slot: SlotId, passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>, WriteError> {
        let doing = || format!("open keyslot {slot}");
        let size = self.device.status_handle().get_volume_key_size();
        let mut key = Zeroizing::new(vec![0; usize::try_from(size).unwrap_or_default()]);
        let number = Some(u32::from(slot.get()));
        let mut keys = self.device.volume_key_handle();
        let (_, size) = call(doing, || keys.get(number, &mut key, Some(passphrase)))?;
        key.truncate(size);
        Ok(key)
    }
}

fn call<T>(doing: impl Fn() -> String, run: impl FnOnce() -> Result<T, LibcryptErr>) -> Result<T, WriteError> {
    TOLD.set(None);
    run().map_err(|error| {
        let no_space = matches!(&error, LibcryptErr::IOError(error) if error.kind() == std::io::ErrorKind::StorageFull);
        let code = match error {
            LibcryptErr::IOError(error) => error.to_string(),
            other => other.to_string(),
        };
        let why = TOLD.take().map_or(code.clone(), |told| format!("{told} ({code})"));
        let full = no_space || why.contains("No space for new keyslot") || why.contains("keyslots are full");
        WriteError { doing: doing(), why, full }
    })
}
