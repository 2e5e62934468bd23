//! How PID 1 ends without exiting, which would make the kernel panic.

use std::{
    panic::{self, PanicHookInfo},
    sync::atomic::{AtomicU8, Ordering},
    thread,
    time::Duration,
};

use iofs_policy::failure::FailureAction;
use nix::sys::reboot::{RebootMode, reboot};

use super::Console;
use crate::report;

const POWER_OFF: u8 = 0;
const REBOOT: u8 = 1;
const HALT: u8 = 2;

/// What a panic does. A panic cannot ask the boot that it interrupted.
static ARMED: AtomicU8 = AtomicU8::new(POWER_OFF);

pub(super) fn arm(action: FailureAction) {
    let number = match action {
        FailureAction::PowerOff => POWER_OFF,
        FailureAction::Reboot => REBOOT,
        FailureAction::Halt => HALT,
    };
    ARMED.store(number, Ordering::SeqCst);
}

fn armed() -> FailureAction {
    match ARMED.load(Ordering::SeqCst) {
        REBOOT => FailureAction::Reboot,
        HALT => FailureAction::Halt,
        _ => FailureAction::PowerOff,
    }
}

/// Lets a panic report itself and take the sealed action.
pub fn report_panics() {
    panic::set_hook(Box::new(|panicked| stop_after(panicked)));
}

fn stop_after(panicked: &PanicHookInfo<'_>) -> ! {
    let place = panicked.location().map(|place| format!("{}:{}", place.file(), place.line())).unwrap_or_default();
    let what = panicked.payload_as_str().unwrap_or("no message");
    let action = armed();
    let text = format!(
        "BOOT REFUSED: verify-init has an error\n  expected: no panic\n  found:    {what} ({place})\n  \
         next:     report this as an error of verify-init {}\n  action:   {action}",
        env!("CARGO_PKG_VERSION")
    );
    let mut console = Console::default();
    for record in report::records(report::ERROR, &text) {
        let _ = console.log(&record);
    }
    let _ = console.print(&format!("\n{text}\n"));
    stop(&console, action)
}

/// Takes the action. If the machine does not obey, PID 1 waits for good.
pub(super) fn stop(console: &Console, action: FailureAction) -> ! {
    console.drain();
    match action {
        FailureAction::PowerOff => drop(reboot(RebootMode::RB_POWER_OFF)),
        FailureAction::Reboot => drop(reboot(RebootMode::RB_AUTOBOOT)),
        // The report stays on the screen.
        FailureAction::Halt => {}
    }
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
