//! Threads that read, hash and compress pieces of files.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel},
    },
    thread::JoinHandle,
};

use super::{
    WriteError,
    clusters::{Encoded, encode},
    earlier::Unchanged,
    encoder::Encoder,
    holes::{Parts, sparse_piece},
    options::Options,
};
use crate::tree::{Content, Extent};

/// A piece of a file to be read, hashed and perhaps compressed.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) name: Option<String>,
    pub(super) input: Input,
    /// Where it may lie ready.
    pub(super) unchanged: Option<Unchanged>,
    pub(super) compress: bool,
    /// The piece is all of its file.
    pub(super) whole: bool,
    /// No other file has the size of this one, so that a checksum tells its content from all others of this size.
    pub(super) unique: bool,
    /// Where an earlier one of the same content makes this one needless.
    pub(super) repeats: Option<Repeats>,
}

impl Job {
    /// Reads a piece, and no more.
    pub(super) fn new(input: Input) -> Self {
        Self { name: None, input, unchanged: None, compress: false, whole: false, unique: false, repeats: None }
    }
}

/// The piece's place among those that it may repeat: of files of the same size, those with the same start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repeats {
    /// The file's number. Those with lower ones come first into the image.
    pub(super) file: usize,
    pub(super) size: u64,
    pub(super) start: u64,
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
    /// As it is in the file; empty where it came packed.
    pub(super) raw: Vec<u8>,
    /// Its bytes in the file.
    pub(super) length: usize,
    /// Of its bytes in the file; of a unique one the [`checksum`].
    pub(super) digest: blake3::Hash,
    pub(super) encoded: Option<Encoded>,
    /// Of a whole file: the size of chunks and the data, where it is better stored with holes. It is not compressed then.
    pub(super) sparse: Option<(u8, Parts)>,
    /// The same place of an earlier file has the same content: this one was not compressed.
    pub(super) repeated: bool,
    /// Of what the image has of it, where it comes from an earlier one.
    pub(super) stored: Option<blake3::Hash>,
}

/// The first file of all with the same content at the same place, by size, start and digest. It is compressed for all of them.
type Firsts = Arc<Mutex<HashMap<(u64, u64, blake3::Hash), usize>>>;

pub(super) type Reply = Result<Piece, WriteError>;

/// A piece that will be ready.
#[derive(Debug)]
pub(super) enum Promise {
    Now(Box<Reply>),
    Later(Receiver<Reply>),
}

type Task = (Job, SyncSender<Reply>);

/// The threads, of which the caller is one.
#[derive(Debug)]
pub(super) struct Pool {
    sender: Option<Sender<Task>>,
    tasks: Arc<Mutex<Receiver<Task>>>,
    threads: Vec<JoinHandle<()>>,
    own: Worker,
}

impl Pool {
    pub(super) fn new(options: &Options) -> Self {
        let own = Worker { options: options.clone(), encoder: None, firsts: Firsts::default() };
        let (sender, receiver) = channel::<Task>();
        let tasks = Arc::new(Mutex::new(receiver));
        let threads = (1..options.worker_count()).filter_map(|_| {
            let firsts = Arc::clone(&own.firsts);
            let (tasks, mut worker) = (Arc::clone(&tasks), Worker { options: options.clone(), encoder: None, firsts });
            // Without a thread the others do its work.
            std::thread::Builder::new().spawn(move || worker.run(&tasks)).ok()
        });
        let threads: Vec<_> = threads.collect();
        Self { sender: (!threads.is_empty()).then_some(sender), tasks, threads, own }
    }

    /// How many pieces should be under way, so that no thread waits. Without others to wait for, none: what was just read is
    /// written while it is in the processor's cache.
    pub(super) fn depth(&self) -> usize {
        if self.threads.is_empty() { 0 } else { (self.threads.len() + 1) * 2 }
    }

    pub(super) fn submit(&mut self, job: Job) -> Promise {
        let Some(sender) = &self.sender else { return Promise::Now(Box::new(self.own.work(job))) };
        // One reply, so that there is no room for many.
        let (reply, receiver) = sync_channel(1);
        match sender.send((job, reply)) {
            Ok(()) => Promise::Later(receiver),
            Err(unsent) => Promise::Now(Box::new(self.own.work(unsent.0.0))),
        }
    }

    /// Does it at once, whatever else waits.
    pub(super) fn work(&mut self, job: Job) -> Reply {
        self.own.work(job)
    }

    /// Waits for a piece, and works meanwhile.
    pub(super) fn wait(&mut self, promise: Promise) -> Reply {
        let receiver = match promise {
            Promise::Now(reply) => return *reply,
            Promise::Later(receiver) => receiver,
        };
        loop {
            match receiver.try_recv() {
                Ok(reply) => return reply,
                Err(TryRecvError::Disconnected) => return Err(ended()),
                Err(TryRecvError::Empty) => {}
            }
            // A thread that waits for work holds the lock: there is none then.
            let next = self.tasks.try_lock().ok().and_then(|tasks| tasks.try_recv().ok());
            let Some((job, reply)) = next else { return receiver.recv().unwrap_or_else(|_| Err(ended())) };
            // That may be the one that is waited for.
            let _ = reply.send(self.own.work(job));
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
    firsts: Firsts,
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
        if let Some(piece) = self.ready(&job)? {
            return Ok(piece);
        }
        let (name, raw) = match job.input {
            Input::Bytes(bytes) => (job.name.unwrap_or_default(), bytes),
            Input::Content(content, extent) => {
                let raw = if job.whole { content.read_all() } else { read(&*content, extent) };
                (String::new(), raw.map_err(|source| content_error(&*content, source))?)
            }
        };
        let digest = if job.unique { checksum(&raw) } else { blake3::hash(&raw) };
        let sparse = if job.whole { sparse_piece(&raw, job.compress) } else { None };
        let repeats = job.repeats.is_some_and(|place| self.repeats(digest, place));
        let compress = job.compress && sparse.is_none();
        let repeated = compress && repeats;
        let encoded = if compress && !repeated {
            let fail = |fact| WriteError::Compress { name, fact };
            Some(self.encode(&raw).map_err(fail)?)
        } else {
            None
        };
        Ok(Piece { length: raw.len(), raw, digest, encoded, sparse, repeated, stored: None })
    }

    /// Whether an earlier file has this content there. Jobs end in any order: of two at once, both may be the first.
    fn repeats(&self, digest: blake3::Hash, place: Repeats) -> bool {
        let mut firsts = self.firsts.lock().unwrap_or_else(PoisonError::into_inner);
        let first = firsts.entry((place.size, place.start, digest)).or_insert(place.file);
        *first = place.file.min(*first);
        *first < place.file
    }

    /// The piece, where it was made before.
    fn ready(&self, job: &Job) -> Result<Option<Piece>, WriteError> {
        let Input::Content(content, extent) = &job.input else { return Ok(None) };
        if let Some(piece) = job.unchanged.as_ref().and_then(|unchanged| unchanged.piece(*extent)) {
            return Ok(Some(piece));
        }
        let Some(packed) = content.packed().filter(|_| job.compress) else { return Ok(None) };
        packed.piece(*extent, job.unique, &self.options).map_err(|source| content_error(&**content, source))
    }

    fn encode(&mut self, raw: &[u8]) -> Result<Encoded, String> {
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            none => none.insert(Encoder::new(&self.options)?),
        };
        encode(raw, encoder)
    }
}

/// What stands for the digest where no other content can be taken for this one: CRC-32C, several times as fast.
pub(super) fn checksum(bytes: &[u8]) -> blake3::Hash {
    let mut digest = [0; blake3::OUT_LEN];
    digest[..4].copy_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
    blake3::Hash::from_bytes(digest)
}

fn ended() -> WriteError {
    let source = io::Error::other("a thread ended too early");
    WriteError::Content { name: "a piece".into(), source }
}

pub(super) fn content_error(content: &dyn Content, source: io::Error) -> WriteError {
    WriteError::Content { name: content.name(), source }
}

pub(super) fn read(content: &dyn Content, extent: Extent) -> io::Result<Vec<u8>> {
    content.open()?.read_part(extent)
}
