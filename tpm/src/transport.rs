//! How commands reach a TPM and responses come back.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// The largest command and the largest response, in bytes: `TPM_BUFSIZE` of the Linux kernel, and
/// `TPM_PT_MAX_COMMAND_SIZE` and `TPM_PT_MAX_RESPONSE_SIZE` of common TPMs.
pub const MAX_SIZE: usize = 4096;

/// The header of a command or a response, in bytes (Part 1, section 18): tag, size, code.
pub const HEADER_SIZE: usize = 10;

/// The kernel's resource manager for the first TPM, in Linux since 4.12.
pub const RESOURCE_MANAGER: &str = "/dev/tpmrm0";

/// The first TPM itself. One process at a time can open it.
pub const DIRECT: &str = "/dev/tpm0";

/// How often a device that is not there yet is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Something that carries a command to a TPM and its response back.
pub trait Transport {
    /// Sends one whole command and waits for its whole response. Both have at most [`MAX_SIZE`] bytes.
    ///
    /// What a response holds is not this trait's business: it may be garbage.
    ///
    /// # Errors
    /// A command of another size, and whatever stops the bytes on their way. Whether the TPM executed the command is
    /// unknown then, so that nothing is sent a second time.
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError>;
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        (**self).exchange(command)
    }
}

/// Why bytes did not come through.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A device did not open.
    #[error("open {}: {source} (looked for it for {waited:?})", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// The time from the first attempt to the last.
        waited: Duration,
        /// What the last attempt met.
        source: io::Error,
    },
    /// A socket did not connect.
    #[error("connect to {address}: {source}")]
    Connect {
        /// Where to.
        address: String,
        /// What it met.
        source: io::Error,
    },
    /// A command is too short for its header, or too long.
    #[error("command: expected {HEADER_SIZE} to {MAX_SIZE} bytes, found {0}")]
    CommandSize(usize),
    /// A command was not written.
    #[error("write a command of {size} bytes: {source}")]
    Write {
        /// The command's size in bytes.
        size: usize,
        /// What it met.
        source: io::Error,
    },
    /// A part of a command was written: the device takes whole commands only.
    #[error("write a command: expected {expected} bytes to be taken, found {found}")]
    ShortWrite {
        /// The command's size in bytes.
        expected: usize,
        /// How many bytes were taken.
        found: usize,
    },
    /// A response was not read.
    #[error("read a response: {0}")]
    Read(#[source] io::Error),
    /// A response ended before its time.
    #[error("read a response: expected at least {expected} bytes, found {found} before the end")]
    Ended {
        /// How many bytes it has at least.
        expected: usize,
        /// How many there were.
        found: usize,
    },
    /// A response is too long, or says so.
    #[error("response: expected {HEADER_SIZE} to {MAX_SIZE} bytes, found {0}")]
    ResponseSize(u64),
    /// More came than the response's own size says.
    #[error("response: expected {expected} bytes, found {found}")]
    Trailing {
        /// The size in its header, in bytes.
        expected: usize,
        /// How many bytes came.
        found: usize,
    },
    /// An earlier exchange failed, and its response may still be on the way: it would be taken for another command's.
    #[error("an earlier exchange failed: connect again")]
    OutOfStep,
}

fn check_command(command: &[u8]) -> Result<(), TransportError> {
    if (HEADER_SIZE..=MAX_SIZE).contains(&command.len()) {
        Ok(())
    } else {
        Err(TransportError::CommandSize(command.len()))
    }
}

/// A TPM's character device: each write is a whole command, the next read its whole response.
///
/// There is no time limit: the kernel's driver has one for each command, and cancels what takes longer.
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// Opens a device, and looks for it again for as long as `wait` where it is not there yet: drivers take their time.
    /// It is looked for at least once. The descriptor is close-on-exec.
    ///
    /// # Errors
    /// [`TransportError::Open`]: at once where the device is there and may not be opened.
    pub fn open(path: impl AsRef<Path>, wait: Duration) -> Result<Self, TransportError> {
        let (path, start) = (path.as_ref(), Instant::now());
        loop {
            // The standard library opens everything with O_CLOEXEC.
            let source = match OpenOptions::new().read(true).write(true).open(path) {
                Ok(file) => return Ok(Self(file)),
                Err(source) => source,
            };
            let waited = start.elapsed();
            if !may_come(&source) || waited >= wait {
                return Err(TransportError::Open { path: path.to_owned(), waited, source });
            }
            thread::sleep(LOOK_AGAIN.min(wait - waited));
        }
    }

    /// Opens [`RESOURCE_MANAGER`] as [`Device::open`] does. Where it stays away for all of `wait`, as it does on kernels
    /// older than 4.12, opens [`DIRECT`].
    ///
    /// # Errors
    /// That of [`RESOURCE_MANAGER`] where neither is there, otherwise that of the device that is.
    pub fn open_first(wait: Duration) -> Result<Self, TransportError> {
        first_of(RESOURCE_MANAGER.as_ref(), DIRECT.as_ref(), wait)
    }
}

fn first_of(preferred: &Path, fallback: &Path, wait: Duration) -> Result<Device, TransportError> {
    match Device::open(preferred, wait) {
        Err(TransportError::Open { path, waited, source }) if may_come(&source) => {
            Device::open(fallback, Duration::ZERO).map_err(|error| match error {
                TransportError::Open { source: other, .. } if may_come(&other) => {
                    TransportError::Open { path, waited, source }
                }
                other => other,
            })
        }
        found => found,
    }
}

/// Whether a device that did not open is not there yet. Its node appears before its driver answers.
fn may_come(error: &io::Error) -> bool {
    const ENXIO: i32 = 6;
    const ENODEV: i32 = 19;
    error.kind() == ErrorKind::NotFound || matches!(error.raw_os_error(), Some(ENXIO | ENODEV))
}

impl Transport for Device {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        check_command(command)?;
        // A second write would be a second command: what was not taken at once is not written again.
        match self.0.write(command) {
            Ok(found) if found == command.len() => {}
            Ok(found) => return Err(TransportError::ShortWrite { expected: command.len(), found }),
            Err(source) => return Err(TransportError::Write { size: command.len(), source }),
        }
        // One byte more than allowed, so that a longer response is seen.
        let mut response = vec![0; MAX_SIZE + 1];
        let found = read(&mut self.0, &mut response)?;
        match found {
            0 => Err(TransportError::Ended { expected: HEADER_SIZE, found }),
            1..=MAX_SIZE => {
                response.truncate(found);
                Ok(response)
            }
            _ => Err(TransportError::ResponseSize(found as u64)),
        }
    }
}

/// One read that no signal interrupts.
fn read(from: &mut impl Read, into: &mut [u8]) -> Result<usize, TransportError> {
    loop {
        match from.read(into) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other.map_err(TransportError::Read),
        }
    }
}

/// The data socket of a software TPM (`swtpm socket --server type=tcp,…` or `type=unixio,…`), for tests.
#[derive(Debug)]
pub struct Socket {
    /// `None` after an exchange failed.
    stream: Option<Stream>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Connects by TCP. No read and no write takes longer than `limit`, which is not zero.
    ///
    /// # Errors
    /// [`TransportError::Connect`]
    pub fn tcp(address: SocketAddr, limit: Duration) -> Result<Self, TransportError> {
        let connect = || {
            let stream = TcpStream::connect_timeout(&address, limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let stream = connect().map_err(|source| TransportError::Connect { address: address.to_string(), source })?;
        Ok(Self { stream: Some(Stream::Tcp(stream)) })
    }

    /// Connects to a Unix socket. No read and no write takes longer than `limit`, which is not zero.
    ///
    /// # Errors
    /// [`TransportError::Connect`]
    pub fn unix(path: impl AsRef<Path>, limit: Duration) -> Result<Self, TransportError> {
        let path = path.as_ref();
        let connect = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            Ok(stream)
        };
        let address = || path.display().to_string();
        let stream = connect().map_err(|source| TransportError::Connect { address: address(), source })?;
        Ok(Self { stream: Some(Stream::Unix(stream)) })
    }
}

impl Transport for Socket {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        check_command(command)?;
        let mut stream = self.stream.take().ok_or(TransportError::OutOfStep)?;
        let response = match &mut stream {
            Stream::Tcp(tcp) => over_stream(tcp, command)?,
            Stream::Unix(unix) => over_stream(unix, command)?,
        };
        self.stream = Some(stream);
        Ok(response)
    }
}

/// A stream has no messages: the size in the response's header says where it ends.
fn over_stream(stream: &mut (impl Read + Write), command: &[u8]) -> Result<Vec<u8>, TransportError> {
    stream.write_all(command).map_err(|source| TransportError::Write { size: command.len(), source })?;
    let mut buffer = vec![0; MAX_SIZE + 1];
    let mut found = read_to(stream, &mut buffer, 0, HEADER_SIZE)?;
    let declared = u32::from_be_bytes([buffer[2], buffer[3], buffer[4], buffer[5]]);
    let size = usize::try_from(declared).ok().filter(|size| (HEADER_SIZE..=MAX_SIZE).contains(size));
    let size = size.ok_or(TransportError::ResponseSize(declared.into()))?;
    found = read_to(stream, &mut buffer, found, size)?;
    if found > size {
        return Err(TransportError::Trailing { expected: size, found });
    }
    buffer.truncate(size);
    Ok(buffer)
}

/// Reads until there are at least `expected` bytes, and returns how many there are.
fn read_to(
    stream: &mut impl Read,
    buffer: &mut [u8],
    mut found: usize,
    expected: usize,
) -> Result<usize, TransportError> {
    while found < expected {
        match read(stream, &mut buffer[found..])? {
            0 => return Err(TransportError::Ended { expected, found }),
            more => found += more,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    const COMMAND: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];

    /// A FIFO that is open for both directions gives back what was written to it.
    fn fifo(folder: &Path) -> PathBuf {
        let path = folder.join("tpm");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }

    #[test]
    fn a_device_takes_one_write_and_gives_one_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut device = Device::open(fifo(folder.path()), Duration::ZERO).unwrap();
        assert_eq!(device.exchange(&COMMAND).unwrap(), COMMAND);
        let largest = vec![7; MAX_SIZE];
        assert_eq!(device.exchange(&largest).unwrap(), largest);
        device.0.write_all(&[0; 100]).unwrap();
        let error = device.exchange(&largest).unwrap_err();
        assert!(matches!(error, TransportError::ResponseSize(4097)), "{error}");
    }

    #[test]
    fn a_device_at_its_end_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, []).unwrap();
        let error = Device::open(path, Duration::ZERO).unwrap().exchange(&COMMAND).unwrap_err();
        assert!(matches!(error, TransportError::Ended { expected: 10, found: 0 }), "{error}");
    }

    #[test]
    fn commands_of_a_size_that_no_tpm_takes_are_not_sent() {
        let folder = tempfile::tempdir().unwrap();
        let mut device = Device::open(fifo(folder.path()), Duration::ZERO).unwrap();
        for size in [0, 9, 4097] {
            let error = device.exchange(&vec![0; size]).unwrap_err();
            assert!(matches!(error, TransportError::CommandSize(found) if found == size), "{error}");
        }
        assert_eq!(device.exchange(&COMMAND).unwrap(), COMMAND, "nothing of the others is in the way");
    }

    #[test]
    fn a_late_device_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tpm");
        let late = folder.path().to_owned();
        let driver = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            fifo(&late)
        });
        let start = Instant::now();
        let mut device = Device::open(&path, Duration::from_secs(60)).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(100));
        assert!(start.elapsed() < Duration::from_secs(30), "it did not wait for the deadline");
        assert_eq!(device.exchange(&COMMAND).unwrap(), COMMAND);
        driver.join().unwrap();
    }

    #[test]
    fn a_device_that_stays_away_is_named_at_the_deadline() {
        let wait = Duration::from_millis(50);
        let start = Instant::now();
        let error = Device::open("/nowhere/tpm", wait).unwrap_err();
        assert!(start.elapsed() >= wait);
        assert!(matches!(&error, TransportError::Open { waited, .. } if *waited >= wait));
        assert!(error.to_string().starts_with("open /nowhere/tpm: No such file"), "{error}");
    }

    #[test]
    fn a_device_that_may_not_be_opened_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let error = Device::open(folder.path(), Duration::from_secs(60)).unwrap_err();
        assert!(matches!(error, TransportError::Open { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn the_direct_device_is_taken_where_there_is_no_resource_manager() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent");
        let wait = Duration::from_millis(20);
        let error = first_of(&absent, &folder.path().join("absent too"), wait).unwrap_err();
        assert!(matches!(&error, TransportError::Open { path, .. } if *path == absent), "{error}");
        let error = first_of(&absent, folder.path(), wait).unwrap_err();
        assert!(matches!(&error, TransportError::Open { path, .. } if path == folder.path()), "{error}");
        let mut device = first_of(&absent, &fifo(folder.path()), wait).unwrap();
        assert_eq!(device.exchange(&COMMAND).unwrap(), COMMAND);
    }

    /// A socket whose other end sends these pieces, whatever it is asked, and closes.
    fn answering(pieces: &'static [&'static [u8]]) -> Socket {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        thread::spawn(move || {
            far.read_exact(&mut [0; COMMAND.len()]).unwrap();
            for piece in pieces {
                far.write_all(piece).unwrap();
                thread::sleep(Duration::from_millis(5));
            }
        });
        Socket { stream: Some(Stream::Unix(near)) }
    }

    #[test]
    fn a_response_in_pieces_is_put_together() {
        let mut socket = answering(&[&[0x80], &[1, 0, 0, 0, 11, 0, 0], &[0, 0], &[7]]);
        assert_eq!(socket.exchange(&COMMAND).unwrap(), [0x80, 1, 0, 0, 0, 11, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn a_socket_that_failed_is_not_used_again() {
        let wrong: [(&[&[u8]], &str); 5] = [
            (&[], "expected at least 10 bytes, found 0"),
            (&[&[0x80, 1, 0, 0, 0, 12, 0, 0, 0, 0, 7]], "expected at least 12 bytes, found 11"),
            (&[&[0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0]], "expected 10 to 4096 bytes, found 9"),
            (&[&[0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]], "expected 10 to 4096 bytes, found 4294967295"),
            (&[&[0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0, 7]], "expected 10 bytes, found 11"),
        ];
        for (pieces, expected) in wrong {
            let mut socket = answering(pieces);
            let error = socket.exchange(&COMMAND).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(matches!(socket.exchange(&COMMAND), Err(TransportError::OutOfStep)));
        }
    }
}
