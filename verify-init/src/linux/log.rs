//! The measurement log: the protocol that systemd follows too, so that both can append.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use iofs_policy::measurement_log::{MODE, STICKY};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag},
};

/// A record that was begun: the log is locked, and marked as torn until the record stands. Dropped, it stays marked.
#[derive(Debug)]
pub(super) struct Begun(Flock<File>);

/// Locks and marks the log at `path`.
pub(super) fn begin(path: &Path) -> io::Result<Begun> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(flags).open(path)?;
    let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    if file.metadata()?.permissions().mode() & STICKY != 0 {
        // As systemd has it: somebody was stopped between register and record.
        return Err(Errno::ESTALE.into());
    }
    file.set_permissions(Permissions::from_mode(MODE | STICKY))?;
    Ok(Begun(file))
}

impl Begun {
    /// Appends the record, clears the mark and unlocks.
    pub(super) fn finish(mut self, record: &[u8]) -> io::Result<()> {
        self.0.write_all(record)?;
        self.0.set_permissions(Permissions::from_mode(MODE))
    }
}

#[cfg(test)]
mod tests {
    use iofs_policy::{
        measurement::Measurement,
        measurement_log::{Record, parse},
    };

    use super::*;

    fn record() -> Vec<u8> {
        Record::new(&Measurement::EnterInitrd, &[], None, 1).to_bytes()
    }

    #[test]
    fn power_cut_between_register_and_record_leaves_a_torn_log() {
        let path = std::env::temp_dir().join(format!("iofs-log-{}", std::process::id()));
        let mode = || path.metadata().unwrap().permissions().mode() & 0o7777;
        begin(&path).unwrap().finish(&record()).unwrap();
        assert_eq!(mode(), MODE);
        drop(begin(&path).unwrap());
        assert_eq!(mode(), MODE | STICKY);
        let refused = begin(&path).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::ESTALE as i32));
        assert_eq!(parse(&std::fs::read(&path).unwrap()).unwrap().len(), 1);
        std::fs::remove_file(&path).unwrap();
    }
}
