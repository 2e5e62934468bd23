//! Somebody on the bus while an object is sealed at enrolment: a proxy in front of swtpm that libtss2 talks to.

mod bus_common;
mod host_common;

use std::{
    env,
    net::TcpStream,
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use bus_common::{Interposer, Side, all_flips, assert_hidden, code_of, forward, serve};
use host_common::SoftwareTpm;
use iofs_tpm::{
    PinnedSrk, Tpm,
    command::{Command as TpmCommand, CommandCode},
    host::{Authorizations, Host, HostError},
    name::Public,
    policy::PolicyDigest,
    sealed::Sealed,
    srk::SRK_HANDLE,
    transport::{Transport, TransportError},
    unlock::{Parent, UnsealPolicy, UnsealRequest, unseal},
};

/// TPM2_Create (Part 3, section 12.1).
const CREATE: u32 = 0x153;

/// Two ports in front of swtpm's: commands pass the man in the middle, and what concerns the emulator only passes as it is.
struct Bus {
    interposer: Arc<Mutex<Interposer>>,
    port: u16,
}

impl Bus {
    fn new(software: &SoftwareTpm) -> Self {
        let upstream = TcpStream::connect(("127.0.0.1", software.port())).unwrap();
        upstream.set_nodelay(true).unwrap();
        let interposer = Arc::new(Mutex::new(Interposer::new(upstream)));
        let (port, data, control) = host_common::two_listeners();
        let shared = Arc::clone(&interposer);
        thread::spawn(move || {
            for client in data.incoming() {
                let mut client = client.unwrap();
                client.set_nodelay(true).unwrap();
                serve(&mut client, &shared);
            }
        });
        let behind = software.port() + 1;
        thread::spawn(move || {
            for client in control.incoming() {
                relay(&client.unwrap(), behind);
            }
        });
        Self { interposer, port }
    }

    fn interposer(&self) -> MutexGuard<'_, Interposer> {
        self.interposer.lock().unwrap()
    }

    fn host(&self) -> Result<Host, HostError> {
        Host::open(&format!("swtpm:host=127.0.0.1,port={}", self.port), &Authorizations::default())
    }

    /// Flushes what a disturbed program left in the TPM: without a resource manager nobody else would.
    fn clean(&self) {
        self.interposer().arm(None);
        for kind in [0x8000_0000, 0x0200_0000] {
            let mut direct = Tpm::new(Direct(self));
            let list = direct.run(&TpmCommand::new(CommandCode::GetCapability).u32(1).u32(kind).u32(64)).unwrap();
            for handle in list[9..].chunks(4) {
                let handle = u32::from_be_bytes(handle.try_into().unwrap());
                direct.run(&TpmCommand::new(CommandCode::FlushContext).u32(handle)).unwrap();
            }
        }
    }
}

fn relay(client: &TcpStream, port: u16) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
    thread::scope(|scope| {
        for (from, to) in [(client, &server), (&server, client)] {
            scope.spawn(move || {
                let _ = std::io::copy(&mut { from }, &mut { to });
                let _ = to.shutdown(std::net::Shutdown::Both);
            });
        }
    });
}

struct Direct<'b>(&'b Bus);

impl Transport for Direct<'_> {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        Ok(forward(&mut self.0.interposer().upstream, command))
    }
}

/// libtss2 writes each failure to standard error, and here are thousands: this test runs in a process that it is told to be
/// quiet in, which has to be said before it starts.
fn in_quiet_process(test: &str) -> bool {
    if env::var_os("TSS2_LOG").is_some() {
        return false;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    let status = command.args([test, "--exact", "--nocapture"]).env("TSS2_LOG", "all+NONE").status().unwrap();
    assert!(status.success(), "{test}, in a process of its own");
    true
}

#[test]
fn bus_interposer_nobody_reads_along_while_a_secret_is_sealed() {
    if in_quiet_process("bus_interposer_nobody_reads_along_while_a_secret_is_sealed") {
        return;
    }
    let software = SoftwareTpm::started();
    // Failures here are no guesses.
    software.tool("tpm2_dictionarylockout", &["--setup-parameters", "-n", "10000", "-t", "1", "-l", "1"]);
    let bus = Bus::new(&software);
    let (secret, auth_value) = (*b"the secret that unlocks the disk", b"the value of a PIN");
    let policy = PolicyDigest::ZERO.auth_value();
    let srk = bus.host().unwrap().provide_srk().unwrap();
    let pin = PinnedSrk::new(Public::parse_sized(&srk.public).unwrap()).unwrap();
    let seal = |flip| {
        bus.clean();
        let mut host = bus.host()?;
        let srk = host.provide_srk()?;
        bus.interposer().arm(flip);
        let sealed = host.seal(&srk, &secret, &policy, Some(auth_value));
        let seen = bus.interposer().seen.clone();
        drop(host);
        assert!(seen.iter().any(|exchange| code_of(&exchange.request) == CommandCode::StartAuthSession.value()));
        assert_hidden(&seen, &secret);
        assert_hidden(&seen, auth_value);
        Ok::<_, HostError>((sealed, seen))
    };
    let opens = |blob: &[u8]| {
        bus.clean();
        let parent = Parent::Pinned { handle: SRK_HANDLE, pin: &pin };
        let policy = UnsealPolicy { auth_value: Some(auth_value), ..UnsealPolicy::default() };
        let sealed = Sealed::parse(blob).unwrap();
        let request = UnsealRequest { parent, sealed: &sealed, persistent: None, policy };
        unseal(&mut Tpm::new(Direct(&bus)), &request).is_ok_and(|found| found.as_slice() == secret)
    };
    let (sealed, seen) = seal(None).unwrap();
    assert!(opens(&sealed.unwrap()));
    let codes: Vec<u32> = seen.iter().map(|exchange| code_of(&exchange.request)).collect();
    let (start, flush) = (CommandCode::StartAuthSession.value(), CommandCode::FlushContext.value());
    assert_eq!(codes, [start, CREATE, flush]);
    // Each bit of what is sent, and one of each byte of what comes back.
    let flips =
        all_flips(&seen[..2]).into_iter().filter(|flip| flip.side == Side::Request || flip.bit % 8 == flip.bit / 8 % 8);
    let (mut done, mut right, mut useless) = (0, 0, 0);
    for flip in flips {
        done += 1;
        if let (Ok(blob), _) = seal(Some(flip)).unwrap() {
            // What was sealed is the secret; or, where the cipher was changed, something that opens nothing: proving that
            // a new keyslot opens finds that out.
            *if opens(&blob) { &mut right } else { &mut useless } += 1;
            assert_eq!((flip.exchange, flip.side), (0, Side::Request), "{flip:?}");
        }
    }
    println!("{done} flips: {right} without consequence, {useless} sealed something else");
}
