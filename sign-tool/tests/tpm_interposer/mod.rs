//! A man in the middle of a program and its TPM, who stops one command's answer.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::Sender,
    },
    thread,
};

use crate::host_common::{SoftwareTpm, two_free_ports};

/// Between a program and its TPM: after the answer to that many commands, the answer is kept back and the word given.
pub(crate) struct Interposer {
    pub(crate) port: u16,
}

impl Interposer {
    pub(crate) fn before(software: &SoftwareTpm, last: usize, reached: Sender<()>) -> Self {
        let port = two_free_ports();
        let to = software.port();
        let data = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let control = TcpListener::bind(("127.0.0.1", port + 1)).unwrap();
        thread::spawn(move || {
            for client in control.incoming().flatten() {
                let server = TcpStream::connect(("127.0.0.1", to + 1)).unwrap();
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || pipe(back.0, back.1));
                thread::spawn(move || pipe(client, server));
            }
        });
        let count = Arc::new(AtomicUsize::new(0));
        thread::spawn(move || {
            // libtss2 makes a connection for each command.
            for client in data.incoming().flatten() {
                let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
                let (count, reached) = (Arc::clone(&count), reached.clone());
                thread::spawn(move || relay(client, server, last, &count, &reached));
            }
        });
        Self { port }
    }
}

/// Whichever side ends, both do: swtpm serves one connection at a time.
fn pipe(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn relay(mut client: TcpStream, mut server: TcpStream, last: usize, count: &AtomicUsize, reached: &Sender<()>) {
    while let Some(command) = message(&mut client) {
        server.write_all(&command).unwrap();
        let Some(answer) = message(&mut server) else { return };
        if count.fetch_add(1, Ordering::SeqCst) + 1 == last {
            let _ = reached.send(());
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
