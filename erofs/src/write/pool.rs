//! Threads that read, hash and compress pieces of files.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use super::{
    WriteError,
    clusters::{Encoded, encode},
    encoder::Encoder,
    options::Options,
};
use crate::tree::{Content, Extent};

/// A piece of a file to be read, hashed and perhaps compressed.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) name: Option<String>,
    pub(super) input: Input,
    pub(super) compress: bool,
}

/// Where a piece comes from.
#[derive(Debug)]
pub(super) enum Input {
    /// It was read already.
    Bytes(Vec<u8>),
    /// It is yet to be read.
    Content(Arc<dyn Content>, Extent),
}

/// A piece that is ready.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) raw: Vec<u8>,
    pub(super) digest: blake3::Hash,
    pub(super) encoded: Option<Encoded>,
}

type Reply = Result<Piece, WriteError>;

/// A piece that will be ready.
#[derive(Debug)]
pub(super) enum Promise {
    Now(Box<Reply>),
    Later(Receiver<Reply>),
}

impl Promise {
    pub(super) fn wait(self) -> Reply {
        match self {
            Self::Now(reply) => *reply,
            Self::Later(receiver) => receiver.recv().unwrap_or_else(|_| {
                let source = io::Error::other("a thread ended too early");
                Err(WriteError::Content { name: "a piece".into(), source })
            }),
        }
    }
}

type Task = (Job, Sender<Reply>);

/// The threads. With one there are none: the caller works itself.
#[derive(Debug)]
pub(super) struct Pool {
    sender: Option<Sender<Task>>,
    threads: Vec<JoinHandle<()>>,
    own: Worker,
}

impl Pool {
    pub(super) fn new(options: &Options) -> Self {
        let own = Worker { options: options.clone(), encoder: None };
        let count = options.worker_count();
        if count < 2 {
            return Self { sender: None, threads: Vec::new(), own };
        }
        let (sender, receiver) = channel::<Task>();
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..count).filter_map(|_| {
            let (receiver, mut worker) = (Arc::clone(&receiver), Worker { options: options.clone(), encoder: None });
            // Without a thread the others do its work.
            std::thread::Builder::new().spawn(move || worker.run(&receiver)).ok()
        });
        let threads: Vec<_> = threads.collect();
        Self { sender: (!threads.is_empty()).then_some(sender), threads, own }
    }

    /// How many pieces should be under way, so that no thread waits.
    pub(super) fn depth(&self) -> usize {
        self.threads.len() * 2 + 1
    }

    pub(super) fn submit(&mut self, job: Job) -> Promise {
        let Some(sender) = &self.sender else { return Promise::Now(Box::new(self.own.work(job))) };
        let (reply, receiver) = channel();
        match sender.send((job, reply)) {
            Ok(()) => Promise::Later(receiver),
            Err(unsent) => Promise::Now(Box::new(self.own.work(unsent.0.0))),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.sender = None;
        for thread in self.threads.drain(..) {
            // What a panicking thread held was answered by its promise.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Worker {
    options: Options,
    encoder: Option<Encoder>,
}

impl Worker {
    fn run(&mut self, tasks: &Mutex<Receiver<Task>>) {
        loop {
            let next = tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((job, reply)) = next else { return };
            // Nobody waits any more after an error.
            let _ = reply.send(self.work(job));
        }
    }

    fn work(&mut self, job: Job) -> Reply {
        let (name, raw) = match job.input {
            Input::Bytes(bytes) => (job.name.unwrap_or_default(), bytes),
            Input::Content(content, extent) => {
                let raw = read(&*content, extent).map_err(|source| content_error(&*content, source))?;
                (String::new(), raw)
            }
        };
        let digest = blake3::hash(&raw);
        let encoded = if job.compress {
            let fail = |fact| WriteError::Compress { name, fact };
            Some(self.encode(&raw).map_err(fail)?)
        } else {
            None
        };
        Ok(Piece { raw, digest, encoded })
    }

    fn encode(&mut self, raw: &[u8]) -> Result<Encoded, String> {
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            none => none.insert(Encoder::new(&self.options)?),
        };
        encode(raw, encoder)
    }
}

pub(super) fn content_error(content: &dyn Content, source: io::Error) -> WriteError {
    WriteError::Content { name: content.name(), source }
}

pub(super) fn read(content: &dyn Content, extent: Extent) -> io::Result<Vec<u8>> {
    let size = usize::try_from(extent.length).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = vec![0; size];
    content.open()?.read_exact_at(&mut bytes, extent.start)?;
    Ok(bytes)
}
