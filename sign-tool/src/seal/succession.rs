//! Releases that follow another one: they carry its key history on, and may move the keys.

use std::path::PathBuf;

use iofs_policy::{
    dsse::Envelope,
    keys::{KeyChange, KeyHistory, KeyRing, KeySequence},
    trust::{KeyId, TrustPolicy, TrustedKey, TrustedKeys},
};

use super::{SealRequest, trusted_keys};
use crate::{
    atomic::AtomicDirectory,
    keys,
    report::{ExitStatus, Failure},
    sealed::{self, SealedDirectory},
};

/// What the release before handed on, and what changes with this one.
#[derive(Debug)]
pub struct Succession {
    /// The sealed directory of the release before.
    pub previous: PathBuf,
    /// Who signs from this release on; nobody named leaves those who did, without the revoked ones.
    pub next_keys: Vec<TrustedKey>,
    /// How many of them must; as before, where it is not said.
    pub next_threshold: Option<u8>,
    /// Whose signatures end.
    pub revoke: Vec<KeyId>,
}

/// Who may sign, and since when.
#[derive(Debug)]
pub(super) struct SealedKeys {
    /// The keys of the trust policy.
    pub(super) trusted: TrustedKeys,
    /// How often they were moved.
    pub(super) sequence: KeySequence,
    /// Whom that revoked.
    pub(super) revoked: Vec<KeyId>,
    /// The move that this release makes.
    pub(super) change: Option<KeyChange>,
    /// The moves before it.
    history: Option<KeyHistory>,
    /// Whose keys sign it as well.
    before: Option<TrustPolicy>,
}

impl SealedKeys {
    /// From what was asked for.
    ///
    /// # Errors
    /// The release before is not complete or contradicts itself, or the keys cannot be moved so.
    pub(super) fn new(request: &SealRequest) -> Result<Self, Failure> {
        let Some(succession) = &request.succession else {
            let (sequence, revoked) = (KeySequence::default(), Vec::new());
            return Ok(Self {
                trusted: trusted_keys(request)?,
                sequence,
                revoked,
                change: None,
                history: None,
                before: None,
            });
        };
        let previous = Previous::read(succession)?;
        let keys = if succession.moves() { previous.moved(succession)? } else { previous.kept() };
        if keys.change.is_some() && request.config.slots.is_none() {
            let fact = "keys: expected none to move, since the release is for no slot, found --next-key or --revoke";
            return Err(Failure::new(ExitStatus::Usage, fact)
                .next("seal with --slots; without slots, who may sign is in each release's own mini-initramfs"));
        }
        keys.check_configured(request)?;
        Ok(keys)
    }

    /// What is configured besides must not be left out silently.
    fn check_configured(&self, request: &SealRequest) -> Result<(), Failure> {
        for path in &request.config.trust.keys {
            let key = keys::read_public(path)?;
            if !self.trusted.keys().contains(&key) {
                let fact = format!(
                    "trust.keys: {}: expected a key that this release trusts, found {}",
                    path.display(),
                    key.id()
                );
                return Err(Failure::new(ExitStatus::Usage, fact).next(
                    "with --previous, the keys are those of the release before, or --next-key: leave it out there",
                ));
            }
        }
        let (expected, found) = (self.trusted.threshold(), request.config.trust.threshold);
        if found > expected {
            let fact =
                format!("trust.threshold: expected at most {expected}, as the release before has it, found {found}");
            return Err(
                Failure::new(ExitStatus::Usage, fact).next("raise it with --next-threshold, which moves the keys")
            );
        }
        Ok(())
    }

    /// Writes what `sign` goes by, and what travels with the release.
    pub(super) fn write(&self, directory: &AtomicDirectory) -> Result<(), Failure> {
        if let Some(history) = &self.history {
            directory.write(sealed::KEY_HISTORY, &history.to_bytes())?;
        }
        match &self.before {
            Some(before) => directory.write(sealed::TRUST_BEFORE, &before.to_json()),
            None => Ok(()),
        }
    }
}

impl Succession {
    /// Whether the keys move.
    fn moves(&self) -> bool {
        !self.next_keys.is_empty() || self.next_threshold.is_some() || !self.revoke.is_empty()
    }
}

/// What the release before handed on.
struct Previous {
    trust: TrustPolicy,
    history: Option<KeyHistory>,
}

impl Previous {
    fn read(succession: &Succession) -> Result<Self, Failure> {
        let directory = SealedDirectory::new(&succession.previous);
        let (trust, history) = (directory.trust()?, directory.key_history()?);
        if directory.has(sealed::TRUST_BEFORE) || directory.has(sealed::TO_SIGN) {
            let fact = format!(
                "{}: expected a signed release, found one that waits for signatures",
                succession.previous.display()
            );
            return Err(
                Failure::new(ExitStatus::Usage, fact).next("complete it with 'iofs-sign sign' or 'attach' first")
            );
        }
        agrees(history.as_ref(), &trust).map_err(|why| {
            let fact = format!("{}: {why}", directory.file(sealed::KEY_HISTORY).display());
            Failure::new(ExitStatus::NotVerified, fact)
                .next("give the directory of the release before, as 'iofs-sign verify' accepts it")
        })?;
        Ok(Self { trust, history })
    }

    fn kept(self) -> SealedKeys {
        let TrustPolicy { keys: trusted, key_sequence: sequence, revoked, .. } = self.trust;
        SealedKeys { trusted, sequence, revoked, change: None, history: self.history, before: None }
    }

    fn moved(self, succession: &Succession) -> Result<SealedKeys, Failure> {
        let usage = |error: &dyn std::fmt::Display, next: &str| {
            Err(Failure::new(ExitStatus::Usage, format!("keys from this release on: {error}")).next(next))
        };
        let before = &self.trust;
        let left = |key: &&TrustedKey| !succession.revoke.contains(&key.id());
        let next = match &succession.next_keys[..] {
            [] => before.keys.keys().iter().filter(left).cloned().collect(),
            named => named.to_vec(),
        };
        let threshold = succession.next_threshold.unwrap_or(before.keys.threshold());
        let trusted = match TrustedKeys::new(next, threshold) {
            Ok(trusted) => trusted,
            Err(error) => {
                return usage(&error, "name all who sign with --next-key, and how many must with --next-threshold");
            }
        };
        let (sequence, revoked) = (before.key_sequence.next(), succession.revoke.clone());
        let change = KeyChange { sequence, trusted, revoked };
        if let Err(error) = change.check() {
            return usage(&error, "leave a key out of --next-key that --revoke names; name each once");
        }
        let ring = match KeyRing::of(before).moved(&change) {
            Ok(ring) => ring,
            Err(key) => {
                let fact = format!("expected no revoked key among the trusted ones, found {key}");
                return usage(
                    &fact,
                    "an earlier release revoked it for good: make another one with 'iofs-sign keygen'",
                );
            }
        };
        Ok(SealedKeys {
            trusted: ring.keys().clone(),
            sequence,
            revoked: ring.revoked().to_vec(),
            change: Some(change),
            history: self.history,
            before: Some(self.trust),
        })
    }
}

/// Whether a history leads to the keys of a trust policy, as far as that can be told without the keys before it.
///
/// # Errors
/// What is wrong with it.
pub fn agrees(history: Option<&KeyHistory>, trust: &TrustPolicy) -> Result<(), String> {
    let expected = trust.key_sequence;
    let Some(history) = history else {
        let what = || format!("key history: expected one that ends with key move {expected}, found none");
        return if expected.is_first() { Ok(()) } else { Err(what()) };
    };
    if history.last() != expected {
        return Err(format!("key history: expected key move {expected} as its last, found {}", history.last()));
    }
    let ring = history.unanchored(trust).map_err(|error| error.to_string())?;
    let of_trust = KeyRing::of(trust);
    if ring.keys() != of_trust.keys() || !ring.revoked().iter().all(|key| trust.revoked.contains(key)) {
        return Err(format!(
            "key history: expected key move {expected} to name the keys of the trust policy, found others"
        ));
    }
    Ok(())
}

/// The history of a release whose manifest is signed: with that, where it moves the keys.
pub(super) fn completed(
    history: Option<KeyHistory>,
    sequence: KeySequence,
    manifest: Envelope,
) -> Result<KeyHistory, Failure> {
    match history {
        Some(history) => history.with(sequence, manifest).map_err(|error| {
            Failure::new(ExitStatus::BadInput, error.to_string())
                .next("begin anew: seal without --previous, and give all devices the new mini-initramfs")
        }),
        None => Ok(KeyHistory::beginning(sequence, manifest)),
    }
}
