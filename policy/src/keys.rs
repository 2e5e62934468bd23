//! Keys that move with releases: who may sign is sealed in the trust policy, and a release that the old and the new keys
//! signed moves it forward.
//!
//! A manifest that moves keys is a link. Links are numbered: each raises the sequence by one, and is verified by the keys
//! before it and by those that it names. So a set of keys can only be reached along one chain, whoever hands it over; and once
//! a machine has confirmed a link, no other one of that number counts, although keys that are trusted no more may sign it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    dsse::Envelope,
    manifest::{ImageId, Manifest, ManifestError, Role},
    trust::{KeyId, SignatureError, TrustPolicy, TrustedKeys, VerifiedPayload},
};

mod history;

pub use history::{HistoryError, KeyHistory, MAX_HISTORY_SIZE, MAX_LINKS};

/// The most keys that one release may revoke.
pub const MAX_REVOKED: usize = 16;

/// Counts how often the trusted keys were moved: 0 are those that nobody moved yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeySequence(pub u64);

impl KeySequence {
    /// Whether nobody moved the keys yet. Documents do not mention it then.
    pub fn is_first(&self) -> bool {
        self.0 == 0
    }

    /// That of the next move.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for KeySequence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// From this release on, other keys sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyChange {
    /// Which move this is, from 1.
    pub sequence: KeySequence,
    /// Who signs from now on. They sign this release, too: so they are known to be at hand.
    pub trusted: TrustedKeys,
    /// Whose signatures count no more, and who can never be trusted again.
    #[serde(default)]
    pub revoked: Vec<KeyId>,
}

/// Why a manifest's or a trust policy's word on keys was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRuleError {
    /// The number is that of the keys that nobody moved.
    #[error("keys.sequence: expected at least 1, found 0")]
    Sequence,
    /// More than anybody has to revoke at once.
    #[error("revoked: expected at most {most} keys, found {found}")]
    TooMany {
        /// The limit.
        most: usize,
        /// The length of the list.
        found: usize,
    },
    /// A key is revoked twice.
    #[error("revoked: {0} is listed twice")]
    Duplicate(KeyId),
    /// A key is trusted and revoked.
    #[error("keys: expected no revoked key among the trusted ones, found {0}")]
    Revoked(KeyId),
    /// The release is for no slot: its keys are those in its own initramfs.
    #[error("keys: expected none, since the release is for no slot: its mini-initramfs says who may sign")]
    NoSlot,
}

/// The list has at most so many keys, each once, and none of them is trusted.
pub(crate) fn check_revoked(trusted: &TrustedKeys, revoked: &[KeyId], most: usize) -> Result<(), KeyRuleError> {
    if revoked.len() > most {
        return Err(KeyRuleError::TooMany { most, found: revoked.len() });
    }
    for (index, id) in revoked.iter().enumerate() {
        if revoked[..index].contains(id) {
            return Err(KeyRuleError::Duplicate(*id));
        }
    }
    check_none_revoked(trusted, revoked).map_err(KeyRuleError::Revoked)
}

/// None of the keys is among the revoked ones; else the first that is.
fn check_none_revoked(trusted: &TrustedKeys, revoked: &[KeyId]) -> Result<(), KeyId> {
    trusted.ids().find(|id| revoked.contains(id)).map_or(Ok(()), Err)
}

impl KeyChange {
    /// Refuses what no field's own type can refuse.
    ///
    /// # Errors
    /// [`KeyRuleError`].
    pub fn check(&self) -> Result<(), KeyRuleError> {
        if self.sequence.is_first() {
            return Err(KeyRuleError::Sequence);
        }
        check_revoked(&self.trusted, &self.revoked, MAX_REVOKED)
    }
}

/// Why a link does not move the keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyMoveError {
    /// Those who may sign before it did not sign it.
    #[error("key move {sequence}: by the keys before it: {why}")]
    Before {
        /// The link.
        sequence: KeySequence,
        /// What is wrong with the signatures.
        why: SignatureError,
    },
    /// Those who may sign behind it did not sign it.
    #[error("key move {sequence}: by the keys that it names: {why}")]
    Behind {
        /// The link.
        sequence: KeySequence,
        /// What is wrong with the signatures.
        why: SignatureError,
    },
    /// The signed manifest is malformed.
    #[error("key move {sequence}: {why}")]
    Manifest {
        /// The link.
        sequence: KeySequence,
        /// What is wrong with it.
        why: ManifestError,
    },
    /// The link is something else than what it is taken for.
    #[error("key move {sequence}: {field}: expected {expected}, found {found}")]
    Other {
        /// The link.
        sequence: KeySequence,
        /// The field.
        field: &'static str,
        /// What would do.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A key that was revoked is trusted again.
    #[error("key move {sequence}: expected no revoked key among the trusted ones, found {key}")]
    Returns {
        /// The link.
        sequence: KeySequence,
        /// The key.
        key: KeyId,
    },
    /// Links before it are missing.
    #[error("key history: expected key move {expected} next, found {found}")]
    Gap {
        /// The one that would go on.
        expected: KeySequence,
        /// The one that is there.
        found: KeySequence,
    },
}

/// The keys that may sign at one point of the chain, and those that may never again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRing {
    keys: TrustedKeys,
    revoked: Vec<KeyId>,
    sequence: KeySequence,
    image_id: ImageId,
    role: Role,
}

impl KeyRing {
    /// Those that a trust policy names.
    pub fn of(policy: &TrustPolicy) -> Self {
        Self {
            keys: policy.keys.clone(),
            revoked: policy.revoked.clone(),
            sequence: policy.key_sequence,
            image_id: policy.image_id.clone(),
            role: policy.role,
        }
    }

    /// Who may sign.
    pub fn keys(&self) -> &TrustedKeys {
        &self.keys
    }

    /// Who may never sign again.
    pub fn revoked(&self) -> &[KeyId] {
        &self.revoked
    }

    /// How often the keys were moved.
    pub fn sequence(&self) -> KeySequence {
        self.sequence
    }

    /// Verifies an envelope by the keys of this point.
    ///
    /// # Errors
    /// [`SignatureError`], which names the keys.
    pub fn verify(&self, envelope: &Envelope) -> Result<VerifiedPayload, SignatureError> {
        self.keys.verify(envelope)
    }

    /// Goes along a history. Links up to this point were decided before: they are passed over, whoever signed them.
    ///
    /// # Errors
    /// [`KeyMoveError`]: a link is missing, or is not signed by the keys before and behind it.
    pub fn follow(self, history: &KeyHistory) -> Result<Self, KeyMoveError> {
        let decided = self.sequence;
        history.numbered().filter(|(sequence, _)| *sequence > decided).try_fold(self, |ring, (found, link)| {
            let expected = ring.sequence.next();
            if found != expected {
                return Err(KeyMoveError::Gap { expected, found });
            }
            ring.advance(link)
        })
    }

    /// Goes one link further.
    ///
    /// # Errors
    /// [`KeyMoveError`].
    pub fn advance(&self, link: &Envelope) -> Result<Self, KeyMoveError> {
        let sequence = self.sequence.next();
        let payload = self.keys.verify(link).map_err(|why| KeyMoveError::Before { sequence, why })?;
        let manifest = Manifest::from_payload(&payload).map_err(|why| KeyMoveError::Manifest { sequence, why })?;
        let other = |field, expected: &dyn fmt::Display, found: &dyn fmt::Display| {
            let (expected, found) = (expected.to_string(), found.to_string());
            Err(KeyMoveError::Other { sequence, field, expected, found })
        };
        if manifest.image.id != self.image_id {
            return other("image id", &self.image_id, &manifest.image.id);
        }
        if manifest.image.role != self.role {
            return other("role", &self.role, &manifest.image.role);
        }
        let Some(change) = manifest.keys else { return other("keys", &"other keys", &"none") };
        if change.sequence != sequence {
            return other("keys.sequence", &sequence, &change.sequence);
        }
        change.trusted.verify(link).map_err(|why| KeyMoveError::Behind { sequence, why })?;
        self.moved(&change).map_err(|key| KeyMoveError::Returns { sequence, key })
    }

    /// The keys behind a change, whoever signed it: whom it revokes stays revoked, as those before do.
    ///
    /// # Errors
    /// The change trusts this key, which was revoked.
    pub fn moved(&self, change: &KeyChange) -> Result<Self, KeyId> {
        let mut revoked = self.revoked.clone();
        revoked.extend(change.revoked.iter().filter(|id| !self.revoked.contains(id)));
        check_none_revoked(&change.trusted, &revoked)?;
        Ok(Self { keys: change.trusted.clone(), revoked, sequence: change.sequence, ..self.clone() })
    }

    /// Refuses a manifest that would move the keys by its own word, without the chain that leads there; and one that says
    /// something else of the keys in use than the chain did.
    pub(crate) fn accepts(&self, change: &KeyChange) -> bool {
        change.sequence < self.sequence || (change.sequence == self.sequence && change.trusted == self.keys)
    }
}

#[cfg(test)]
mod tests;
