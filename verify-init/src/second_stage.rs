//! What a distribution's initramfs expects of the world, when it is started from an overlay instead of from memory.
//!
//! The kernel starts an initramfs with nothing mounted, and such scripts mount `/dev`, `/proc` and `/sys` themselves: some
//! take it for a failure where these are there already. `/run` stays, for what is in it; whoever mounts another over it
//! gets the files of this one in the end (see [`crate::run_init`]).

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::Role,
};
use nix::{errno::Errno, mount::MsFlags};

use crate::{
    boot::Boot,
    mounted::{LOWER, NEW_ROOT, WHOLE, WRITABLE},
    report::{refusal, text},
    system::{Mount, System},
};

const NOT_MOUNTED: [&str; 3] = ["/dev", "/proc", "/sys"];
/// Ourselves, in the mini-initramfs.
const PROGRAM: &str = "/init";
/// Where klibc's program lies that initramfs-tools leaves its initramfs with.
const RUN_INIT: [&str; 4] = ["/usr/bin/run-init", "/bin/run-init", "/usr/sbin/run-init", "/sbin/run-init"];

/// Makes a root in memory of the overlay: each of its folders is a mount there. Programs that leave an initramfs refuse to
/// leave any other root (klibc's and busybox's `run-init`, busybox's `switch_root`), and systemd up to version 253 takes
/// another for no initramfs.
///
/// It is gone once the real root has taken its place, and everything below it with it: each part stays only for as long as
/// this uses it.
pub(crate) fn spread<S: System>(boot: &mut Boot<'_, S>, memory: &str) -> Result<(), FailureReport> {
    let options = format!("mode=0755,size={memory}");
    let root =
        Mount { source: "second-stage", target: NEW_ROOT, kind: "tmpfs", flags: MsFlags::empty(), options: &options };
    let system = &mut *boot.system;
    let made = system.mount(&root).and_then(|()| system.bind_contents(WHOLE, NEW_ROOT));
    made.map_err(|error| {
        let next = "give the machine more memory, or see the kernel's messages above";
        refusal(Stage::Mounted, "the second stage cannot be laid out", "a root in memory", text(&error), next)
    })?;
    let mapping = Role::InitOverlay.mapping();
    let steps = [
        (WHOLE, system.unmount(WHOLE)),
        (LOWER, system.unmount(LOWER)),
        (WRITABLE, system.unmount(WRITABLE)),
        (mapping, system.remove_mapping_later(mapping)),
    ];
    for (what, done) in steps {
        if let Err(error) = done {
            boot.warn(format!("{what} outlives the second stage: {}", text(&error)));
        }
    }
    Ok(())
}

/// Puts things as the kernel would.
pub(crate) fn leave_bare<S: System>(boot: &mut Boot<'_, S>) {
    replace_run_init(boot);
    for place in NOT_MOUNTED {
        if let Err(error) = boot.system.unmount(place) {
            boot.warn(format!("{place} stays mounted: {}", text(&error)));
        }
    }
}

/// klibc's `run-init` would leave all of this mounted below the next root. Ours takes its place where there is one; systemd
/// needs none.
fn replace_run_init<S: System>(boot: &mut Boot<'_, S>) {
    for path in RUN_INIT {
        let ours = Mount { source: PROGRAM, target: path, kind: "", flags: MsFlags::MS_BIND, options: "" };
        match boot.system.mount_in_root(NEW_ROOT, &ours) {
            Ok(()) => boot.debug(&format!("{path} is ours")),
            // Not there, or there by way of a link to another of these.
            Err(error) if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ELOOP)) => {}
            Err(error) => boot.warn(format!("{path} stays as it is: {}", text(&error))),
        }
    }
}
