//! A LUKS2 volume as it is on the disk now, read by `iofs-luks`: what it can be opened by.

use std::{
    fs::File,
    io::{Seek, SeekFrom},
    path::{Path, PathBuf},
};

use iofs_luks::{Header, HeaderError, Limits, OpenError, SlotId, Token, TokenId, VolumeKey};
use serde::Serialize;

use crate::report::{ExitStatus, Failure};

/// A volume: a device or a file.
#[derive(Debug)]
pub struct Volume {
    /// Its path.
    pub path: PathBuf,
    /// Its header.
    pub header: Header,
    source: File,
}

/// What opens a keyslot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A passphrase that somebody chose, or a key file.
    Passphrase,
    /// A recovery key.
    RecoveryKey,
    /// A TPM.
    Tpm2,
    /// Something that this program knows nothing of.
    Other,
}

impl Kind {
    /// The word in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passphrase => "passphrase",
            Self::RecoveryKey => "recovery key",
            Self::Tpm2 => "TPM",
            Self::Other => "another kind of token",
        }
    }

    fn of(token: &Token) -> Self {
        match token {
            Token::SystemdTpm2(_) => Self::Tpm2,
            Token::Recovery { .. } => Self::RecoveryKey,
            Token::Broken { kind, .. } if kind == "systemd-tpm2" => Self::Tpm2,
            Token::Other { .. } | Token::Broken { .. } => Self::Other,
        }
    }
}

/// A keyslot that holds the volume key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The keyslot.
    pub slot: SlotId,
    /// What opens it.
    pub kind: Kind,
    /// The token that says so.
    pub token: Option<TokenId>,
}

impl Volume {
    /// Opens a volume for reading.
    ///
    /// # Errors
    /// It cannot be read, or is no LUKS2 volume that verify-init would open.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let io = |error: std::io::Error| {
            Failure::io(format_args!("open {}", path.display()), &error)
                .next("name the LUKS2 volume, a device or a file; devices want root")
        };
        let mut source = File::open(path).map_err(io)?;
        let size = source.seek(SeekFrom::End(0)).map_err(io)?;
        let header = Header::read(&mut source, size).map_err(|error| refused(path, &error))?;
        Ok(Self { path: path.to_owned(), header, source })
    }

    /// Reads the header again, as it is on the disk now.
    ///
    /// # Errors
    /// As [`Volume::read`].
    pub fn again(&self) -> Result<Self, Failure> {
        Self::read(&self.path)
    }

    /// Opens a keyslot by `iofs-luks`, which is what opens it at boot.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_keyslot(&mut self, slot: SlotId, passphrase: &[u8]) -> Result<VolumeKey, OpenError> {
        self.header.open(&mut self.source, slot, passphrase, &Limits::default())
    }

    /// The keyslots that hold the volume key, by number.
    pub fn ways(&self) -> Vec<Way> {
        let bound = self.header.keyslots().filter(|(_, keyslot)| keyslot.bound);
        bound
            .map(|(slot, _)| {
                let token = self.header.tokens().find(|(_, token)| token.keyslots().contains(&slot));
                let (token, kind) = token.map_or((None, Kind::Passphrase), |(id, token)| (Some(id), Kind::of(token)));
                Way { slot, kind, token }
            })
            .collect()
    }

    /// The first number that no keyslot has.
    pub fn free_slot(&self) -> Option<SlotId> {
        (0..=u8::MAX).map_while(SlotId::new).find(|slot| self.header.keyslot(*slot).is_none())
    }
}

fn refused(path: &Path, error: &HeaderError) -> Failure {
    let next = match error {
        HeaderError::Neither { .. } => {
            "name a volume that 'cryptsetup luksFormat --type luks2' made; \
             a damaged header comes back with 'cryptsetup luksHeaderRestore'"
        }
        _ => "see 'cryptsetup luksDump'; verify-init opens no such volume",
    };
    Failure::new(ExitStatus::BadInput, format!("{}: {error}", path.display())).next(next)
}
