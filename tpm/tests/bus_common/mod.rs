//! The man in the middle: what he does with one message, and what he saw.
#![allow(dead_code)]

use std::{
    io::{Read, Write},
    sync::Mutex,
};

/// A connection to a TPM.
pub(crate) trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}
pub(crate) type Wire = Box<dyn Stream>;

/// What passes in each direction for one command.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exchange {
    pub(crate) request: Vec<u8>,
    pub(crate) response: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Request,
    Response,
}

/// Which bit of which exchange is flipped, counted from [`Interposer::arm`] on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flip {
    pub(crate) exchange: usize,
    pub(crate) side: Side,
    pub(crate) bit: usize,
}

/// Whether a command of this code goes to the other TPM.
pub(crate) type Takes = fn(u32) -> bool;

/// What the man in the middle does, and what he saw, before he changed anything.
pub(crate) struct Interposer {
    pub(crate) upstream: Wire,
    pub(crate) flip: Option<Flip>,
    pub(crate) seen: Vec<Exchange>,
    /// Commands that this takes go to another TPM.
    pub(crate) diverted: Option<(Wire, Takes)>,
    /// Answers the next command with TPM_RC_RETRY, after the TPM executed it.
    pub(crate) hide_once: bool,
    /// Sends this in front of the next command of that code.
    pub(crate) meanwhile: Option<(u32, Vec<u8>)>,
}

pub(crate) fn code_of(command: &[u8]) -> u32 {
    u32::from_be_bytes(command[6..10].try_into().unwrap())
}

/// One message of a stream, by the size in its header; `None` at the end.
pub(crate) fn message(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 10];
    stream.read_exact(&mut bytes).ok()?;
    let size = u32::from_be_bytes(bytes[2..6].try_into().unwrap()) as usize;
    bytes.resize(size, 0);
    stream.read_exact(&mut bytes[10..]).ok()?;
    Some(bytes)
}

pub(crate) fn forward(stream: &mut (impl Read + Write), command: &[u8]) -> Vec<u8> {
    stream.write_all(command).unwrap();
    message(stream).expect("swtpm answers")
}

impl Interposer {
    /// Somebody who changes nothing yet.
    pub(crate) fn new(upstream: impl Stream + 'static) -> Self {
        let upstream = Box::new(upstream);
        Self { upstream, flip: None, seen: Vec::new(), diverted: None, hide_once: false, meanwhile: None }
    }

    /// From now on exchanges are counted anew, and this bit is flipped.
    pub(crate) fn arm(&mut self, flip: Option<Flip>) {
        self.seen.clear();
        self.flip = flip;
    }

    pub(crate) fn pass(&mut self, command: &[u8]) -> Vec<u8> {
        if let Some((_, other)) = self.meanwhile.take_if(|(code, _)| *code == code_of(command)) {
            assert_eq!(forward(&mut self.upstream, &other)[6..10], [0; 4]);
        }
        let exchange = self.seen.len();
        let flip = |bytes: &[u8], side| match self.flip {
            Some(flip) if flip.exchange == exchange && flip.side == side => flipped(bytes, flip.bit),
            _ => bytes.to_vec(),
        };
        let upstream = match &mut self.diverted {
            Some((other, takes)) if takes(code_of(command)) => other,
            _ => &mut self.upstream,
        };
        let response = forward(upstream, &flip(command, Side::Request));
        let changed = flip(&response, Side::Response);
        self.seen.push(Exchange { request: command.to_vec(), response });
        if std::mem::take(&mut self.hide_once) { b"\x80\x01\0\0\0\x0a\0\0\x09\x22".to_vec() } else { changed }
    }
}

pub(crate) fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

/// Messages of one client. A message whose size is no longer that of its header ends the connection: a bus has messages,
/// and nobody waits for bytes that do not come.
pub(crate) fn serve(client: &mut (impl Read + Write), interposer: &Mutex<Interposer>) {
    while let Some(command) = message(client) {
        let response = interposer.lock().unwrap().pass(&command);
        let whole = response[2..6] == u32::try_from(response.len()).unwrap().to_be_bytes();
        if client.write_all(&response).is_err() || !whole {
            return;
        }
    }
}

pub(crate) fn all_flips(exchanges: &[Exchange]) -> Vec<Flip> {
    let mut flips = Vec::new();
    for (exchange, passed) in exchanges.iter().enumerate() {
        for (side, bytes) in [(Side::Request, &passed.request), (Side::Response, &passed.response)] {
            flips.extend((0..bytes.len() * 8).map(|bit| Flip { exchange, side, bit }));
        }
    }
    flips
}

pub(crate) fn holds(bytes: &[u8], secret: &[u8]) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret)
}

pub(crate) fn assert_hidden(exchanges: &[Exchange], secret: &[u8]) {
    for exchange in exchanges {
        assert!(!holds(&exchange.request, secret) && !holds(&exchange.response, secret), "passes in clear");
    }
}
