//! In place of a session with a pinned TPM, where this program is built without.

use std::collections::BTreeSet;

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::SrkPublic,
    pcr::{PcrBank, PcrDigest, PcrIndex},
};
use iofs_tpm::{
    Tpm,
    pcr::{ActiveBanks, ExtendError, PcrValues, ReadError},
    rollback::CounterError,
    transport::Transport,
};

use crate::{boot::Boot, report::refusal, system::System};

/// There is none.
pub(super) enum Session {}

impl Session {
    /// Refuses. Sealing does so before; this is for an initramfs that was put together by other means.
    pub(super) fn start<S: System>(_boot: &mut Boot<'_, S>, _srk: &SrkPublic) -> Result<Self, FailureReport> {
        let fact = "this verify-init knows no pinned TPM";
        let next = "seal the image with verify-init-full, which iofs-sign picks where a TPM is pinned";
        Err(refusal(Stage::Measured, fact, "a verify-init that is built in full", "one that is built without", next))
    }

    pub(super) fn read<T: Transport>(
        self,
        _tpm: &mut Tpm<T>,
        _wanted: &BTreeSet<(PcrBank, PcrIndex)>,
    ) -> (Option<Self>, Result<PcrValues, ReadError>) {
        match self {}
    }

    pub(super) fn counter<T: Transport>(
        self,
        _tpm: &mut Tpm<T>,
        _index: u32,
    ) -> (Option<Self>, Result<u64, CounterError>) {
        match self {}
    }

    pub(super) fn extend<T: Transport>(
        self,
        _tpm: &mut Tpm<T>,
        _banks: &ActiveBanks,
        _index: PcrIndex,
        _digests: &[PcrDigest],
    ) -> (Option<Self>, Result<(), ExtendError>) {
        match self {}
    }

    pub(super) fn close<T: Transport>(self, _tpm: &mut Tpm<T>) {
        match self {}
    }
}
