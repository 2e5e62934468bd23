//! In place of what attaches files ([`crate::attached`]) and starts second stages, where this program is built without: most
//! images are partitions that hold the real system's root.
//!
//! It refuses. Sealing does so before; this is for an initramfs that was put together by other means.

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::{Place, Role},
};

use crate::{boot::Boot, devices::BlockDevice, report::refusal, system::System};

/// In place of `attached::attach`.
pub(crate) fn attach<S: System>(
    _boot: &mut Boot<'_, S>,
    _role: Role,
    what: &str,
    place: &Place,
    found: Option<BlockDevice>,
) -> Result<Option<BlockDevice>, FailureReport> {
    match place {
        Place::File(_) | Place::Memory | Place::Slot => {
            Err(refused(Stage::Found, &format!("{what}: this verify-init opens no files")))
        }
        _ => Ok(found),
    }
}

/// In place of `second_stage::spread`.
pub(crate) fn spread<S: System>(_boot: &mut Boot<'_, S>, _memory: &str) -> Result<(), FailureReport> {
    Err(refused(Stage::Mounted, "this verify-init starts no second stages"))
}

/// What it is missing.
pub(crate) fn refused(stage: Stage, fact: &str) -> FailureReport {
    let next = "seal the image with verify-init-full, which iofs-sign picks for files and second stages";
    refusal(stage, fact, "a verify-init that is built in full", "one that is built without", next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn what_it_takes_a_full_one_for_is_refused_and_that_is_said() {
        let mut machine = Fake::empty();
        let boot = &mut Boot::new(&mut machine);
        let attached = |boot: &mut Boot<'_, Fake>, place| attach(boot, Role::Root, "data", &place, None);
        assert!(attached(boot, Place::Disk("vda".parse().unwrap())).is_ok());
        for refused in [attached(boot, Place::Memory).map(drop), spread(boot, "50%")] {
            assert!(refused.unwrap_err().next_step.contains("verify-init-full"));
        }
    }
}
