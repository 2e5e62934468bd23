//! In place of what chooses among slots, where this program is built without: most machines have none.

use iofs_policy::{
    boot_record::BootedSlot,
    failure::{FailureAction, FailureReport, Stage},
};

use crate::{boot::Boot, lean::refused, measured::Measured, system::System, verified::Verified};

/// In place of the slots of a machine: there never are any.
pub(crate) enum Trial {}

impl Trial {
    /// In place of its namesake.
    pub(crate) fn record(&self) -> Option<BootedSlot> {
        match *self {}
    }

    /// In place of its namesake.
    pub(crate) fn key_history(&self) -> Option<&[u8]> {
        match *self {}
    }
}

impl Verified {
    /// Measures what was verified.
    pub(crate) fn choose<S: System>(self, boot: &mut Boot<'_, S>) -> Result<Measured, FailureReport> {
        match self.trust.slots {
            Some(_) => Err(refused(Stage::Chosen, "this verify-init knows no slots")),
            None => self.measure(boot),
        }
    }
}

/// The sealed action follows every refusal.
pub(crate) fn action_after<S: System>(_boot: &mut Boot<'_, S>, _stage: Stage, sealed: FailureAction) -> FailureAction {
    sealed
}
