//! A man in the middle of a program and its TPM: he reads, changes, or keeps an answer back until the program is dead.
#![allow(dead_code)]

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use crate::host_common::{SoftwareTpm, two_listeners};

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Command,
    Answer,
}

/// Sees each message with the number of its command, and may change it. Whether it goes on.
type Touch = Arc<dyn Fn(Way, usize, &mut Vec<u8>) -> bool + Send + Sync>;

/// Between a program and its TPM. Commands are counted from 1.
pub(crate) struct Interposer {
    pub(crate) port: u16,
}

impl Interposer {
    /// After the answer to that many commands, the answer is kept back and the word given.
    fn before(software: &SoftwareTpm, last: usize, reached: Sender<()>) -> Self {
        Self::touching(software, move |way, number, _| {
            let held = way == Way::Answer && number == last;
            if held {
                let _ = reached.send(());
            }
            !held
        })
    }

    pub(crate) fn touching(
        software: &SoftwareTpm,
        touch: impl Fn(Way, usize, &mut Vec<u8>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let (port, data, control) = two_listeners();
        let to = software.port();
        thread::spawn(move || {
            for client in control.incoming().flatten() {
                let server = TcpStream::connect(("127.0.0.1", to + 1)).unwrap();
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || pipe(back.0, back.1));
                thread::spawn(move || pipe(client, server));
            }
        });
        let (count, touch): (_, Touch) = (Arc::new(AtomicUsize::new(0)), Arc::new(touch));
        thread::spawn(move || {
            // libtss2 makes a connection for each command.
            for client in data.incoming().flatten() {
                let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
                let (count, touch) = (Arc::clone(&count), Arc::clone(&touch));
                thread::spawn(move || relay(client, server, &count, &touch));
            }
        });
        Self { port }
    }

    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }
}

/// Runs a program, which gets its TPM's TCTI, and kills it once the TPM executed that many commands, before the answer to
/// the last one. Says whether it came to that: else the program has succeeded with fewer.
pub(crate) fn killed_behind(software: &SoftwareTpm, last: usize, program: impl FnOnce(&str) -> Command) -> bool {
    let (sender, reached) = channel();
    let interposer = Interposer::before(software, last, sender);
    let mut child = program(&interposer.tcti()).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    // The word comes, or the program ends by itself.
    let killed = loop {
        match reached.recv_timeout(Duration::from_millis(2)) {
            Ok(()) => break true,
            Err(RecvTimeoutError::Timeout) if child.try_wait().unwrap().is_none() => {}
            Err(_) => break false,
        }
    };
    if killed {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    assert!(killed || status.success());
    killed
}

/// What the kernel's resource manager does when a program is gone.
pub(crate) fn flush(software: &SoftwareTpm) {
    for kind in ["--transient-object", "--loaded-session", "--saved-session"] {
        software.try_tool("tpm2_flushcontext", &[kind]);
    }
}

/// Whichever side ends, both do: swtpm serves one connection at a time.
fn pipe(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn relay(mut client: TcpStream, mut server: TcpStream, count: &AtomicUsize, touch: &Touch) {
    while let Some(mut command) = message(&mut client) {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        if !touch(Way::Command, number, &mut command) || server.write_all(&command).is_err() {
            return;
        }
        let Some(mut answer) = message(&mut server) else { return };
        if !touch(Way::Answer, number, &mut answer) {
            // Held until the program is dead.
            let _ = client.read(&mut [0]);
            return;
        }
        if client.write_all(&answer).is_err() {
            return;
        }
    }
}

/// A command or an answer: its size is behind its tag.
fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut header = [0; 10];
    stream.read_exact(&mut header).ok()?;
    let size = u32::from_be_bytes(header[2..6].try_into().unwrap()) as usize;
    let mut message = header.to_vec();
    message.resize(size, 0);
    stream.read_exact(&mut message[10..]).ok()?;
    Some(message)
}
