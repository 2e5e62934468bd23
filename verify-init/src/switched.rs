//! The last stage: the real root, and its init in our place.

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::Role,
};

use crate::{
    boot::Boot,
    measured::Capped,
    mounted::NEW_ROOT,
    record,
    report::{refusal, text},
    stub,
    system::System,
};

const STAGE: Stage = Stage::Switched;
/// They go along. `/run` holds the record of this boot.
const MOVED: [&str; 4] = ["/dev", "/proc", "/sys", "/run"];

impl Capped {
    /// Leaves the initramfs for good.
    pub(crate) fn switch<S: System>(self, boot: &mut Boot<'_, S>) -> Result<S::Gone, FailureReport> {
        let mounted = self.mounted;
        stub::hand_on(boot);
        let role = mounted.mapped.verified.manifest.manifest().image.role;
        let along: &[&str] = if role == Role::InitOverlay { &["/run"] } else { &MOVED };
        for place in along {
            move_along(boot, place, mounted.writable)?;
        }
        // Without it no second stage gets this far.
        #[cfg(feature = "full")]
        if role == Role::InitOverlay {
            crate::second_stage::leave_bare(boot);
        }
        if let Err(error) = boot.system.delete_initramfs() {
            boot.warn(format!("the initramfs stays in memory: {}", text(&error)));
        }
        boot.system.enter(NEW_ROOT).map_err(|error| {
            let next = "see the kernel's messages above";
            refusal(STAGE, "the new root cannot be entered", format!("{NEW_ROOT} as /"), text(&error), next)
        })?;
        let total = crate::report::milliseconds(boot.system.now());
        boot.reached(STAGE, &format!("switching to {} at {total} ms of uptime, after", mounted.init));
        // Last of all, so that it tells the whole boot; `/run` has moved and kept its name.
        record::write(boot, &mounted.mapped);
        let arguments = &mounted.mapped.verified.command_line.init_arguments;
        boot.system.exec(&mounted.init, arguments).map_err(|error| {
            let next = "seal an image whose init runs on this machine: its format, interpreter and libraries";
            refusal(
                STAGE,
                format!("init {} cannot be run", mounted.init),
                "a program that takes over",
                text(&error),
                next,
            )
        })
    }
}

fn move_along<S: System>(boot: &mut Boot<'_, S>, place: &str, writable: bool) -> Result<(), FailureReport> {
    let target = format!("{NEW_ROOT}{place}");
    if writable {
        // If that fails, so does the move, which then says why.
        let _ = boot.system.create_folder(&target, 0o755);
    }
    boot.system.move_mount(place, &target).map_err(|error| {
        let expected = format!("a folder {place} in the image");
        let next = "seal an image that has it, or seal the image with an overlay";
        refusal(STAGE, format!("{place} cannot be moved into the new root"), expected, text(&error), next)
    })
}
