//! The two logs of a boot, as the running system has them.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use iofs_attest::tcg;
use iofs_policy::measurement_log;
use rustix::fs::{FlockOperation, flock};

use crate::{
    report::{ExitStatus, Failure},
    sealed::bad_input,
};

/// Firmware's log, as the kernel hands it on.
pub const FIRMWARE_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
/// The log of user space.
pub const MEASUREMENT_LOG: &str = "/run/log/systemd/tpm2-measure.log";

/// How long a writer may hold the log's lock. A measurement takes a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Where a log is looked for.
#[derive(Debug, Clone)]
pub enum Place {
    /// Somebody named it: it must be there.
    Named(PathBuf),
    /// It is there or not.
    Usual(&'static str),
}

impl Place {
    /// The named place, or else the usual one.
    pub fn of(named: Option<&Path>, usual: &'static str) -> Self {
        named.map_or(Self::Usual(usual), |path| Self::Named(path.to_owned()))
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        match self {
            Self::Named(path) => path,
            Self::Usual(path) => Path::new(path),
        }
    }

    /// The open file: `None` where a usual one is not there.
    fn open(&self) -> Result<Option<File>, Failure> {
        match (File::open(self.path()), self) {
            (Ok(file), _) => Ok(Some(file)),
            (Err(error), Self::Usual(_)) if error.kind() == ErrorKind::NotFound => Ok(None),
            (Err(error), _) => {
                let failure = Failure::io(format_args!("open {}", self.path().display()), &error);
                Err(if error.kind() == ErrorKind::PermissionDenied {
                    failure.next("run this as root")
                } else {
                    failure
                })
            }
        }
    }
}

fn read(file: &mut File, path: &Path, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = file.take(limit as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
    if bytes.len() > limit {
        return Err(bad_input(path, &format_args!("expected at most {limit} bytes, found more")));
    }
    Ok(bytes)
}

/// Reads firmware's log. It does not grow once the kernel runs.
///
/// # Errors
/// It cannot be read, or is larger than any real one.
pub fn firmware(place: &Place) -> Result<Option<Vec<u8>>, Failure> {
    let Some(mut file) = place.open()? else { return Ok(None) };
    read(&mut file, place.path(), tcg::MAX_SIZE).map(Some)
}

/// User space's log with its lock: as long as this lives, nobody extends a register and notes it there.
#[derive(Debug)]
pub struct MeasurementLog {
    /// The log.
    pub bytes: Vec<u8>,
    /// Whether somebody was stopped between extending a register and noting it.
    pub torn: bool,
    _lock: File,
}

/// Reads user space's log once, and keeps others from writing until the result is dropped: a quote that is made meanwhile
/// fits to it.
///
/// # Errors
/// It cannot be read, is larger than any real one, or somebody holds it for long.
pub fn measurement(place: &Place) -> Result<Option<MeasurementLog>, Failure> {
    let Some(mut file) = place.open()? else { return Ok(None) };
    let path = place.path();
    lock(&file, path)?;
    let metadata = file.metadata().map_err(|error| Failure::io(format_args!("stat {}", path.display()), &error))?;
    // Nobody writes now: whoever set the bit is gone.
    let torn = metadata.permissions().mode() & measurement_log::STICKY != 0;
    let bytes = read(&mut file, path, measurement_log::MAX_SIZE)?;
    Ok(Some(MeasurementLog { bytes, torn, _lock: file }))
}

fn lock(file: &File, path: &Path) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        match flock(file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(()),
            Err(error) if error == rustix::io::Errno::INTR => {}
            Err(error) if error != rustix::io::Errno::WOULDBLOCK => {
                return Err(Failure::io(format_args!("lock {}", path.display()), &io::Error::from(error)));
            }
            Err(_) if start.elapsed() > PATIENCE => {
                let fact = format!("lock {}: somebody has held it for {} s", path.display(), PATIENCE.as_secs());
                return Err(
                    Failure::new(ExitStatus::System, fact).next("see who measures, with 'lslocks'; then repeat")
                );
            }
            Err(_) => thread::sleep(LOOK_AGAIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_log_is_read_with_its_sticky_bit_and_kept_from_writers() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("log");
        fs::write(&path, "records").unwrap();
        let place = Place::Named(path.clone());
        for (mode, torn) in [(0o600, false), (0o1600, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let log = measurement(&place).unwrap().unwrap();
            assert_eq!((log.bytes.as_slice(), log.torn), (&b"records"[..], torn));
            let writer = File::open(&path).unwrap();
            flock(&writer, FlockOperation::NonBlockingLockExclusive).unwrap_err();
            drop(log);
            flock(&writer, FlockOperation::NonBlockingLockExclusive).unwrap();
        }
    }

    /// The bit means something only while nobody writes.
    #[test]
    fn a_writer_is_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("log");
        fs::write(&path, "").unwrap();
        let writer = File::options().append(true).open(&path).unwrap();
        flock(&writer, FlockOperation::LockExclusive).unwrap();
        writer.set_permissions(fs::Permissions::from_mode(0o1600)).unwrap();
        let writing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            io::Write::write_all(&mut &writer, b"record").unwrap();
            writer.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        });
        let log = measurement(&Place::Named(path)).unwrap().unwrap();
        assert_eq!((log.bytes.as_slice(), log.torn), (&b"record"[..], false));
        writing.join().unwrap();
    }

    #[test]
    fn logs_that_are_named_must_be_there() {
        let home = tempfile::tempdir().unwrap();
        let absent = Place::Named(home.path().join("absent"));
        assert_eq!(firmware(&absent).unwrap_err().status, ExitStatus::System);
        assert_eq!(measurement(&absent).unwrap_err().status, ExitStatus::System);
        assert!(firmware(&Place::Usual("/no/such/log")).unwrap().is_none());
        assert!(measurement(&Place::Usual("/no/such/log")).unwrap().is_none());
    }
}
