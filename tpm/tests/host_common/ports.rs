//! Two ports in a row for a software TPM, which no other test of this project takes.

use std::{
    fs,
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

/// Below the ports that the kernel gives to whoever connects.
const FIRST: u16 = 10_000;
const PAIRS: u16 = 5_000;

/// The ports are taken for as long as this lives: by a name that the kernel frees however the test ends. swtpm binds them by
/// itself, and between looking for a free port and that another test would find the same one, and talk to this one's TPM.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) first: u16,
    _name: UnixListener,
}

impl Ports {
    pub(crate) fn take() -> Self {
        let start = std::process::id() % u32::from(PAIRS);
        let pairs = (0..PAIRS).map(|pair| (pair + start as u16) % PAIRS);
        pairs.map(|pair| FIRST + 2 * pair).find_map(Self::of).expect("two free ports")
    }

    /// Whether somebody listens at both: swtpm takes the second one first, and a connection to see would be one that it serves
    /// (Linux `Documentation/networking/proc_net_tcp.rst`).
    pub(crate) fn listen(&self) -> bool {
        let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let listens = |port: u16| {
            let address = format!("0100007F:{port:04X}");
            table.lines().any(|line| {
                let mut fields = line.split_whitespace().skip(1);
                fields.next() == Some(&*address) && fields.nth(1) == Some("0A")
            })
        };
        listens(self.first) && listens(self.first + 1)
    }

    fn of(first: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("iofs-test-ports-{first}")).ok()?;
        let name = UnixListener::bind_addr(&name).ok()?;
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        (is_free(first) && is_free(first + 1)).then_some(Self { first, _name: name })
    }
}
