//! Asking whoever sits at the machine.

use std::{io::ErrorKind, time::Duration};

use iofs_policy::manifest::Volume;
use nix::errno::Errno;
use zeroize::Zeroizing;

use crate::{
    boot::Boot,
    report::text,
    system::{Question, System},
};

/// As long as the longest passphrase of cryptsetup.
const LIMIT: usize = 512;
/// Long enough to fetch a recovery key, and short enough that a machine which nobody attends goes on to its sealed action.
const PATIENCE: Duration = Duration::from_secs(180);

/// Asks once. Says why there is no answer.
pub(super) fn ask<S: System>(
    boot: &mut Boot<'_, S>,
    volume: &Volume,
    what: &str,
    number: u8,
) -> Result<Zeroizing<Vec<u8>>, String> {
    let prompt = format!("{what} for volume {} (try {number} of {}): ", volume.name, volume.unlock.tries);
    let question = Question { prompt: &prompt, limit: LIMIT, patience: PATIENCE };
    boot.system.ask_secret(&question).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => "the console was closed, or gave no answer".to_owned(),
        ErrorKind::TimedOut => format!("no answer within {} s", PATIENCE.as_secs()),
        _ if error.raw_os_error() == Some(Errno::E2BIG as i32) => format!("expected at most {LIMIT} bytes, found more"),
        _ => format!("the console cannot be asked: {}", text(&error)),
    })
}
