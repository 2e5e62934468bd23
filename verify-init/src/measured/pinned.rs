//! A session that only the TPM with the pinned storage root key can answer.

use std::collections::BTreeSet;

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::SrkPublic,
    pcr::{PcrBank, PcrDigest, PcrIndex},
};
use iofs_tpm::{
    PinnedSrk, Protected, Suspended, Tpm,
    name::Public,
    pcr::{ActiveBanks, ExtendError, PcrValues, ReadError},
    rollback::CounterError,
    transport::Transport,
};

use super::Wire;
use crate::{boot::Boot, report::refusal, system::System};

/// The session, between two commands.
pub(super) struct Session(Suspended);

impl Session {
    /// Starts it.
    pub(super) fn start<S: System>(boot: &mut Boot<'_, S>, srk: &SrkPublic) -> Result<Self, FailureReport> {
        let refused = |found: String| {
            let next = "boot the image on the machine that it was sealed for, or seal one for this machine; if it is that \
                        machine, somebody replaced its TPM, cleared it, or sits on the way to it";
            let fact = "this TPM is not the pinned one";
            refusal(Stage::Measured, fact, "the TPM with the sealed storage root key", found, next)
        };
        let public = Public::parse_sized(srk.as_bytes()).map_err(|error| refused(error.to_string()))?;
        let pin = PinnedSrk::new(public).map_err(|error| refused(error.to_string()))?;
        let mut tpm = Tpm::new(Wire(boot.system));
        let protected = Protected::start(&mut tpm, &pin).map_err(|error| refused(error.to_string()))?;
        Ok(Self(protected.suspend()))
    }

    /// Reads registers.
    pub(super) fn read<T: Transport>(
        self,
        tpm: &mut Tpm<T>,
        wanted: &BTreeSet<(PcrBank, PcrIndex)>,
    ) -> (Option<Self>, Result<PcrValues, ReadError>) {
        let mut protected = self.0.resume(tpm);
        let values = protected.read(wanted);
        (Some(Self(protected.suspend())), values)
    }

    /// Reads the rollback counter: what that TPM says, and nobody on the way to it.
    pub(super) fn counter<T: Transport>(
        self,
        tpm: &mut Tpm<T>,
        index: u32,
    ) -> (Option<Self>, Result<u64, CounterError>) {
        let mut protected = self.0.resume(tpm);
        let value = protected.rollback_counter(index);
        (Some(Self(protected.suspend())), value)
    }

    /// Extends a register in every bank.
    pub(super) fn extend<T: Transport>(
        self,
        tpm: &mut Tpm<T>,
        banks: &ActiveBanks,
        index: PcrIndex,
        digests: &[PcrDigest],
    ) -> (Option<Self>, Result<(), ExtendError>) {
        let mut protected = self.0.resume(tpm);
        let extended = protected.extend(banks, index, digests);
        (Some(Self(protected.suspend())), extended)
    }

    /// Ends it. A session that stays open does no harm.
    pub(super) fn close<T: Transport>(self, tpm: &mut Tpm<T>) {
        let _ = self.0.resume(tpm).close();
    }
}
