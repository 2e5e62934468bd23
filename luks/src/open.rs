//! From a passphrase to the volume key.

use zeroize::Zeroizing;

use crate::{
    area,
    header::Header,
    kdf::{Limits, pbkdf2},
    key::VolumeKey,
    keyslot::{Keyslot, Priority, SlotId},
    source::ReadAt,
    token::Token,
};

/// Why a keyslot was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no such keyslot.
    #[error("keyslot {0}: there is none")]
    NoSuchSlot(SlotId),
    /// The key in it is not the segment's.
    #[error("keyslot {0}: its key belongs to no segment")]
    Unbound(SlotId),
    /// It costs more than allowed. Nothing was derived.
    #[error("keyslot {slot}: expected at most {allowed} {what}, found {found}")]
    TooCostly {
        /// The keyslot.
        slot: SlotId,
        /// What costs.
        what: &'static str,
        /// How much is allowed.
        allowed: u64,
        /// How much it takes.
        found: u64,
    },
    /// The machine has not enough memory.
    #[error("keyslot {0}: there is not enough memory to derive its key")]
    Memory(SlotId),
    /// The area cannot be read.
    #[error("keyslot {slot}: {length} bytes at byte {offset}: {why}")]
    Read {
        /// The keyslot.
        slot: SlotId,
        /// Where.
        offset: u64,
        /// How much.
        length: usize,
        /// What the system says.
        why: String,
    },
    /// The passphrase is another one.
    #[error("keyslot {0}: the passphrase does not open it")]
    WrongPassphrase(SlotId),
    /// No keyslot is for people to open.
    #[error("keyslots: expected one that a passphrase opens, found none")]
    NoPassphraseSlot,
    /// The passphrase opens none of several.
    #[error("the passphrase opens no keyslot; {}", list(.0))]
    NoneOpened(Vec<OpenError>),
}

fn list(errors: &[OpenError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Header {
    /// Opens a keyslot: derives its key, decrypts and merges its area, and holds the result against the digest.
    ///
    /// # Errors
    /// See [`OpenError`]. Costs beyond the limits are refused before anything is derived.
    pub fn open(
        &self,
        source: &mut dyn ReadAt,
        slot: SlotId,
        passphrase: &[u8],
        limits: &Limits,
    ) -> Result<VolumeKey, OpenError> {
        let keyslot = self.keyslot(slot).ok_or(OpenError::NoSuchSlot(slot))?;
        if !keyslot.bound {
            return Err(OpenError::Unbound(slot));
        }
        self.affordable(slot, keyslot, limits)?;
        let size = keyslot.area.key_size as usize;
        let area_key = keyslot.kdf.derive(passphrase, size).ok_or(OpenError::Memory(slot))?;
        let (offset, length) = (keyslot.area.offset, keyslot.split_size() as usize);
        let split = source.read_at(offset, length);
        let split = split.map_err(|error| OpenError::Read { slot, offset, length, why: error.to_string() })?;
        let mut split = Zeroizing::new(split);
        area::decrypt(&area_key, &mut split);
        let key = area::merge(keyslot.split_hash, &split, keyslot.key_size as usize);
        match self.is_volume_key(&key) {
            true => Ok(VolumeKey::from_bytes(key)),
            false => Err(OpenError::WrongPassphrase(slot)),
        }
    }

    /// Tries a passphrase on [`Header::passphrase_slots`].
    ///
    /// # Errors
    /// See [`OpenError`]: what became of each slot, where there are several.
    pub fn try_passphrase(
        &self,
        source: &mut dyn ReadAt,
        passphrase: &[u8],
        limits: &Limits,
    ) -> Result<(SlotId, VolumeKey), OpenError> {
        let mut errors = Vec::new();
        for slot in self.passphrase_slots() {
            match self.open(source, slot, passphrase, limits) {
                Ok(key) => return Ok((slot, key)),
                Err(error) => errors.push(error),
            }
        }
        match errors.pop() {
            None => Err(OpenError::NoPassphraseSlot),
            Some(only) if errors.is_empty() => Err(only),
            Some(last) => {
                errors.push(last);
                Err(OpenError::NoneOpened(errors))
            }
        }
    }

    /// The keyslots that people open by typing, in the order in which they are tried: bound to the segment, not set aside
    /// by their priority, and in no token's hands but a recovery key's.
    pub fn passphrase_slots(&self) -> Vec<SlotId> {
        let typed = |slot: &SlotId| {
            self.tokens().all(|(_, token)| matches!(token, Token::Recovery { .. }) || !token.keyslots().contains(slot))
        };
        let of = |priority| {
            let slots = self.keyslots().filter(move |(_, one)| one.bound && one.priority == priority);
            slots.map(|(slot, _)| slot).filter(typed)
        };
        of(Priority::Prefer).chain(of(Priority::Normal)).collect()
    }

    fn affordable(&self, slot: SlotId, keyslot: &Keyslot, limits: &Limits) -> Result<(), OpenError> {
        let digest = (
            "iterations of pbkdf2 for the digest",
            u64::from(limits.max_pbkdf2_iterations),
            u64::from(self.digest.iterations),
        );
        let beyond = keyslot.kdf.beyond(limits).or_else(|| (digest.2 > digest.1).then_some(digest));
        match beyond {
            None => Ok(()),
            Some((what, allowed, found)) => Err(OpenError::TooCostly { slot, what, allowed, found }),
        }
    }

    /// Whether this is the segment's key, in a time that does not depend on how much of its digest is right.
    pub(crate) fn is_volume_key(&self, key: &[u8]) -> bool {
        let digest = &self.digest;
        let mut found = Zeroizing::new(vec![0; digest.digest.len()]);
        pbkdf2(digest.hash, key, &digest.salt, digest.iterations, &mut found);
        let difference = found.iter().zip(&digest.digest).fold(0, |bits, (one, other)| bits | (one ^ other));
        std::hint::black_box(difference) == 0
    }
}
