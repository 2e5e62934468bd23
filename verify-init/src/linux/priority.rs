//! Which of all that is ready to run goes first.
//!
//! The kernel tests its ciphers in the background while it boots, for as long as all of our work takes. Nobody waits for that,
//! but everybody for the real root: on one processor it comes a third later where both take turns.
#![allow(unsafe_code)]

use std::io;

use nix::{
    errno::Errno,
    libc::{SCHED_FIFO, SCHED_OTHER, c_int, sched_param, sched_setscheduler},
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

fn set(policy: c_int, sched_priority: c_int) -> io::Result<()> {
    let parameters = sched_param { sched_priority };
    // SAFETY: the call reads one structure, which lives until it returns.
    Ok(Errno::result(unsafe { sched_setscheduler(0, policy, &parameters) }).map(drop)?)
}
