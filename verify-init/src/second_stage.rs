//! What a distribution's initramfs expects of the world, when it is started from an overlay instead of from memory.
//!
//! The kernel starts an initramfs with nothing mounted, and such scripts mount `/dev`, `/proc` and `/sys` themselves: some
//! take it for a failure where these are there already. `/run` stays, for what is in it; whoever mounts another over it
//! gets the files of this one in the end (see [`crate::run_init`]).

use std::ffi::CStr;

use nix::{errno::Errno, mount::MsFlags};

use crate::{
    boot::Boot,
    mounted::NEW_ROOT,
    report::text,
    system::{Mount, System},
};

/// Up to version 253 systemd takes a root that is not in memory for no initramfs, whatever `/etc/initrd-release` says, unless
/// it is told to be lenient; the root that comes after has no such file.
pub(crate) const VARIABLES: [&CStr; 1] = [c"SYSTEMD_IN_INITRD=lenient"];
const NOT_MOUNTED: [&str; 3] = ["/dev", "/proc", "/sys"];
/// Ourselves, in the mini-initramfs.
const PROGRAM: &str = "/init";
/// Where klibc's program lies that initramfs-tools leaves its initramfs with.
const RUN_INIT: [&str; 4] = ["/usr/bin/run-init", "/bin/run-init", "/usr/sbin/run-init", "/sbin/run-init"];

/// Puts things as the kernel would.
pub(crate) fn leave_bare<S: System>(boot: &mut Boot<'_, S>) {
    replace_run_init(boot);
    for place in NOT_MOUNTED {
        if let Err(error) = boot.system.unmount(place) {
            boot.warn(format!("{place} stays mounted: {}", text(&error)));
        }
    }
}

/// klibc's `run-init` refuses to leave a root that is not in memory, and would leave it mounted below the next one. Ours
/// takes its place where there is one; systemd needs none.
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
