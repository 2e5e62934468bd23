//! Verdicts on many quotes: one JSON document a line, in and out.

use std::{
    io::{self, BufRead, Write},
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use iofs_policy::hex;
use serde::{Deserialize, Serialize};

use crate::{
    enrolment::Device,
    evidence::{self, Evidence},
    policy_file::Policy,
    verify::{Attested, Reference, Refusal, Verification, verify},
};

/// The longest line that is read, in bytes: the largest evidence with its device record.
pub const MAX_LINE: usize = evidence::MAX_SIZE + (1 << 16);

/// What all lines are held against.
#[derive(Debug, Clone)]
pub struct Config {
    /// The releases that the devices may run.
    pub references: Vec<Reference>,
    /// What is demanded besides.
    pub policy: Policy,
}

/// One line of input.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The device, as it was enrolled.
    pub device: Device,
    /// The nonce that it was sent, in hexadecimal.
    pub nonce: String,
    /// What it answered.
    pub evidence: Evidence,
}

/// One line of output.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// The number of the input's line, from 1.
    pub line: u64,
    /// The device's name, where the line could be read.
    pub device: Option<String>,
    /// The outcome.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Attested or refused, and nothing between.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Outcome {
    /// The device runs a release.
    Attested {
        /// What is proven.
        attested: Box<Attested>,
    },
    /// Nothing is proven.
    Refused {
        /// [`Refusal::reason`], or `input` for a line that is none.
        reason: &'static str,
        /// The fact.
        message: String,
        /// What to do.
        next: &'static str,
    },
}

impl Outcome {
    fn input(message: String) -> Self {
        Self::Refused { reason: "input", message, next: "write {\"device\", \"nonce\", \"evidence\"} on one line" }
    }
}

impl From<Result<Attested, Refusal>> for Outcome {
    fn from(result: Result<Attested, Refusal>) -> Self {
        match result {
            Ok(attested) => Self::Attested { attested: Box::new(attested) },
            Err(refusal) => {
                Self::Refused { reason: refusal.reason(), message: refusal.to_string(), next: refusal.next_step() }
            }
        }
    }
}

impl Verdict {
    /// The JSON form, ended by a newline.
    pub fn to_json_line(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).unwrap_or_else(|_| b"{\"verdict\":\"refused\"}".to_vec());
        json.push(b'\n');
        json
    }
}

/// Verifies one line. Whatever goes wrong is a refusal.
pub fn verify_line(config: &Config, number: u64, line: &[u8]) -> Verdict {
    let verdict = catch_unwind(AssertUnwindSafe(|| judge(config, line)));
    let (device, outcome) = verdict.unwrap_or((None, Err(Refusal::Internal).into()));
    Verdict { line: number, device, outcome }
}

fn judge(config: &Config, line: &[u8]) -> (Option<String>, Outcome) {
    if line.len() > MAX_LINE {
        return (None, Outcome::input(too_long()));
    }
    let input: Input = match serde_json::from_slice(line) {
        Ok(input) => input,
        Err(error) => return (None, Outcome::input(format!("line: {error}"))),
    };
    let Input { device, nonce, evidence } = input;
    let outcome = match hex::decode(&nonce) {
        Ok(nonce) => {
            let (references, policy) = (&config.references, &config.policy);
            verify(&Verification { device: &device, nonce: &nonce, references, policy }, &evidence).into()
        }
        Err(error) => Outcome::input(format!("nonce: {error}")),
    };
    (Some(device.name), outcome)
}

fn too_long() -> String {
    format!("line: expected at most {MAX_LINE} bytes, found more")
}

/// A line, or that it was too long to be kept.
type Line = Option<Vec<u8>>;

/// A line on its way to whoever is free, with the place where the verdict is awaited.
struct Job {
    number: u64,
    line: Line,
    verdict: SyncSender<Verdict>,
}

/// Verifies lines until the reader ends: verdicts come in the order of their lines, each as soon as it and those before it
/// are done. At most four lines a thread are in memory. Empty lines have no verdict, but count.
///
/// # Errors
/// Those of the reader and the writer. What a line holds is never an error.
pub fn verify_jsonl(
    reader: impl BufRead + Send,
    mut writer: impl Write,
    config: &Config,
    threads: NonZeroUsize,
) -> io::Result<()> {
    let depth = threads.get().saturating_mul(2);
    let (jobs, job) = sync_channel::<Job>(depth);
    let (places, place) = sync_channel::<Receiver<Verdict>>(depth);
    let job = Mutex::new(job);
    thread::scope(|scope| {
        for _ in 0..threads.get() {
            scope.spawn(|| work(config, &job));
        }
        let reading = scope.spawn(|| read_lines(reader, jobs, places));
        let written = write_verdicts(&mut writer, place);
        let read = reading.join().unwrap_or_else(|_| Err(io::Error::other("the reader failed")));
        written.and(read)
    })
}

fn work(config: &Config, jobs: &Mutex<Receiver<Job>>) {
    loop {
        // The lock is held while waiting: whoever has it gets the next line.
        let Ok(receiver) = jobs.lock() else { return };
        let Ok(Job { number, line, verdict }) = receiver.recv() else { return };
        drop(receiver);
        let found = match line {
            Some(line) => verify_line(config, number, &line),
            None => Verdict { line: number, device: None, outcome: Outcome::input(too_long()) },
        };
        // Nobody waits any more if the writer failed.
        let _ = verdict.send(found);
    }
}

fn read_lines(
    mut reader: impl BufRead,
    jobs: SyncSender<Job>,
    places: SyncSender<Receiver<Verdict>>,
) -> io::Result<()> {
    let mut number = 0;
    while let Some(line) = read_line(&mut reader)? {
        number += 1;
        if line.as_ref().is_some_and(|line| line.trim_ascii().is_empty()) {
            continue;
        }
        let (verdict, place) = sync_channel(1);
        if places.send(place).is_err() || jobs.send(Job { number, line, verdict }).is_err() {
            break;
        }
    }
    drop((jobs, places));
    Ok(())
}

/// Reads one line without its end. The outer `None` is the end of the input.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Line>> {
    let (mut line, mut any, mut kept) = (Vec::new(), false, true);
    loop {
        let buffer = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if buffer.is_empty() {
            return Ok(any.then_some(kept.then_some(line)));
        }
        any = true;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        kept &= line.len() + part.len() <= MAX_LINE;
        if kept {
            line.extend_from_slice(part);
        } else {
            line = Vec::new();
        }
        let used = end.map_or(buffer.len(), |end| end + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(kept.then_some(line)));
        }
    }
}

fn write_verdicts(writer: &mut impl Write, places: Receiver<Receiver<Verdict>>) -> io::Result<()> {
    for place in places {
        let verdict = place.recv().map_err(|_| io::Error::other("a line was lost"))?;
        writer.write_all(&verdict.to_json_line())?;
        writer.flush()?;
    }
    Ok(())
}
