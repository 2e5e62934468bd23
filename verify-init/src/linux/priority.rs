//! Which of all that is ready to run goes first.
//!
//! The kernel tests its ciphers in the background while it boots, for as long as all of our work takes. Nobody waits for that,
//! but everybody for the real root: on one processor it comes a third later where both take turns.
#![allow(unsafe_code)]

use std::io;

use nix::{
    errno::Errno,
    libc::{SCHED_FIFO, SCHED_OTHER, SYS_sched_setscheduler, c_int, syscall},
};

/// Puts this process before all that take turns, also right after it waited for a disk (`man 7 sched`; the kernel leaves them
/// a twentieth of the time in any case). It boots as well without.
pub fn raise() {
    let _ = set(SCHED_FIFO, 1);
}

/// Back among the others, for the real init keeps what it gets.
pub(super) fn restore() -> io::Result<()> {
    set(SCHED_OTHER, 0)
}

/// The kernel's own call: musl's function of that name always fails.
fn set(policy: c_int, priority: c_int) -> io::Result<()> {
    // SAFETY: the call reads the one number that the kernel's `struct sched_param` consists of; it lives until the call returns.
    Ok(Errno::result(unsafe { syscall(SYS_sched_setscheduler, 0, policy, &raw const priority) }).map(drop)?)
}
