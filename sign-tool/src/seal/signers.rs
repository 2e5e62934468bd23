//! Whose signatures a sealed directory waits for.

use iofs_policy::{
    digest::Sha256Digest,
    dsse::Envelope,
    keys::KeyRing,
    trust::{KeyId, TrustPolicy, TrustedKey, TrustedKeys},
};

use super::{
    finish::{KeysBefore, Pending},
    firmware::Wanted,
};
use crate::{
    report::{ExitStatus, Failure},
    sealed::{self, SealedDirectory},
};

/// Those who sign a release: the keys that the device trusts, and for a manifest that moves the keys, those before them.
pub(super) struct Signers {
    pub(super) trust: TrustPolicy,
    before: Option<TrustPolicy>,
}

impl Signers {
    /// As the directory says.
    pub(super) fn of(directory: &SealedDirectory) -> Result<Self, Failure> {
        Ok(Self { trust: directory.trust()?, before: directory.trust_before()? })
    }

    fn all(&self) -> impl Iterator<Item = &TrustedKey> {
        let before = self.before.iter().flat_map(|before| before.keys.keys());
        self.trust.keys.keys().iter().chain(before)
    }

    /// Refuses a key that has nothing to sign here.
    pub(super) fn check(&self, key: &TrustedKey) -> Result<(), Failure> {
        if self.all().any(|known| known == key) {
            return Ok(());
        }
        let trusted: Vec<String> = self.all().map(|key| key.id().to_string()).collect();
        let fact = format!("key {} is not among those that this image trusts: {}", key.id(), trusted.join(", "));
        Err(Failure::new(ExitStatus::Usage, fact).next("seal again with this key's public half, or sign with another"))
    }

    /// Whether that key's signature is asked for on a document. The keys before sign the manifest, and nothing else.
    pub(super) fn sign(&self, document: &str, key: &TrustedKey) -> bool {
        self.trust.keys.keys().contains(key) || (document == sealed::MANIFEST && self.all().any(|known| known == key))
    }

    /// Refuses a signature that nobody asks for.
    pub(super) fn check_for(&self, document: &str, key: &TrustedKey) -> Result<(), Failure> {
        if self.sign(document, key) {
            return Ok(());
        }
        let fact =
            format!("{document} waits for a signature by the next keys, and key {} is one of those before", key.id());
        Err(Failure::new(ExitStatus::Usage, fact).next("sign it with a key that the release moves to"))
    }

    /// Whether a document is signed by all who must: of a manifest that moves the keys, as devices will look at it.
    pub(super) fn enough(&self, document: &str, envelope: &Envelope) -> bool {
        match self.before.as_ref().filter(|_| document == sealed::MANIFEST) {
            Some(before) => KeyRing::of(before).advance(envelope).is_ok(),
            None => self.trust.keys.verify(envelope).is_ok(),
        }
    }

    /// What the document waits for.
    pub(super) fn wanted(&self, document: &'static str, envelope: &Envelope) -> Wanted {
        let to_sign = envelope.signed_bytes();
        let before = self.before.as_ref().filter(|_| document == sealed::MANIFEST);
        let keys_before = before.map(|before| KeysBefore {
            signed_by: signed_by(&before.keys, envelope),
            threshold: before.keys.threshold(),
        });
        let pending = Pending::Signature {
            document,
            signed_by: signed_by(&self.trust.keys, envelope),
            threshold: self.trust.keys.threshold(),
            keys_before,
            to_sign_sha256: Sha256Digest::of(&to_sign),
        };
        (Some(to_sign), pending)
    }
}

/// Those of the keys that have signed.
fn signed_by(keys: &TrustedKeys, envelope: &Envelope) -> Vec<KeyId> {
    let known = |id: &KeyId| keys.keys().iter().any(|key| key.id() == *id);
    envelope.signatures().iter().map(|one| one.keyid).filter(known).collect()
}
