//! The kernel's device events on netlink.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
    },
};

/// The kernel's own events; group 2 is udev's.
const KERNEL_GROUP: u32 = 1;
/// The kernel makes events of at most 2048 bytes of keys (`UEVENT_BUFFER_SIZE`) behind a path.
const MAX_EVENT: usize = 8192;
/// Loading drivers makes hundreds of events while nobody reads. What does not fit is found by looking again.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Keeps a broken socket from spinning.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent)?;
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Self(socket))
    }

    /// The next event of the kernel, or `None` after that time.
    pub(super) fn next(&self, wait: Duration) -> io::Result<Option<Vec<u8>>> {
        let until = Instant::now() + wait;
        loop {
            match self.receive() {
                Ok(Some(event)) => return Ok(Some(event)),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
                    poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout)?;
                }
                Err(error) => {
                    if error != Errno::ENOBUFS {
                        thread::sleep(PAUSE);
                    }
                    return Err(error.into());
                }
            }
        }
    }

    /// One message, if it is the kernel's: port 0 is nobody else's.
    fn receive(&self) -> nix::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; MAX_EVENT];
        let (length, sender) = recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffer)?;
        buffer.truncate(length);
        Ok(sender.filter(|sender| sender.pid() == 0).map(|_| buffer))
    }
}
