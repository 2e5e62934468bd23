//! The releases that moved the keys up to this one.

use iofs_policy::{
    dsse::{Envelope, PayloadType},
    manifest::Manifest,
    trust::TrustPolicy,
};

use super::Check;
use crate::{
    seal::succession,
    sealed::{self, SealedDirectory},
};

impl Check<'_> {
    /// The history leads to the keys of the trust policy; and a manifest that moves them is its last link.
    pub(super) fn key_history(&mut self, manifest: &Manifest, trust: &TrustPolicy) {
        let history = self.directory.key_history().map_err(|failure| failure.fact);
        let Some(history) = self.note(sealed::KEY_HISTORY, history) else { return };
        let agrees = succession::agrees(history.as_ref(), trust);
        self.note(sealed::KEY_HISTORY, agrees);
        let Some(change) = &manifest.keys else { return };
        if (change.sequence, &change.trusted) != (trust.key_sequence, &trust.keys) {
            let what = format_args!("expected the keys that the manifest moves to ({}), found others", change.sequence);
            self.problem(sealed::TRUST, what);
        }
        let last = history.as_ref().and_then(|history| history.numbered().last());
        if last.map(|(_, link)| link) != own_link(self.directory).as_ref() {
            self.problem(
                sealed::KEY_HISTORY,
                "expected the release's own manifest as its last key move, found another one",
            );
        }
    }
}

fn own_link(directory: &SealedDirectory) -> Option<Envelope> {
    directory.envelope(sealed::MANIFEST, PayloadType::Manifest).ok()
}
