//! A machine's serial console: collected by a thread, awaited line by line.

use std::{
    env, fmt,
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How much of the console an error shows.
const TAIL: usize = 60;

/// Longer lines are cut into pieces: a guest that prints without end must not take the host's memory line by line.
const LONGEST_LINE: usize = 16 * 1024;

/// One line, without line end, colours and other control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleLine {
    /// When its end arrived, counted from the machine's start.
    pub at: Duration,
    /// What it says; bytes that are not UTF-8 are replaced.
    pub text: String,
}

impl ConsoleLine {
    /// The text without the kernel's `[    1.234567] ` in front.
    pub fn message(&self) -> &str {
        without_kernel_time(&self.text)
    }
}

/// What to wait for.
pub struct Line {
    description: String,
    matches: Box<dyn Fn(&ConsoleLine) -> bool + Send + Sync>,
}

impl Line {
    /// A line that says `text` and nothing else; the kernel's time in front does not count.
    pub fn exactly(text: &str) -> Self {
        let wanted = text.to_owned();
        Self::matching(&format!("the line {text:?}"), move |line| line.message() == wanted || line.text == wanted)
    }

    /// A line with `text` somewhere in it.
    pub fn containing(text: &str) -> Self {
        let wanted = text.to_owned();
        Self::matching(&format!("a line containing {text:?}"), move |line| line.text.contains(&wanted))
    }

    /// A line that `matches` accepts; `description` is what errors call it.
    pub fn matching(description: &str, matches: impl Fn(&ConsoleLine) -> bool + Send + Sync + 'static) -> Self {
        Self { description: description.to_owned(), matches: Box::new(matches) }
    }

    /// Whether `line` is such a line.
    pub fn accepts(&self, line: &ConsoleLine) -> bool {
        (self.matches)(line)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Line({})", self.description)
    }
}

/// An awaited line that did not come.
#[derive(Debug)]
pub struct ConsoleError {
    /// What was awaited.
    pub awaited: String,
    /// Why it can come no more: the deadline passed, or the machine ended.
    pub reason: String,
    /// The console's last lines.
    pub tail: Vec<String>,
    /// Where the whole console was logged.
    pub log: PathBuf,
}

impl fmt::Display for ConsoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, and the console did not show {}", self.reason, self.awaited)?;
        writeln!(f, "---- the console's last {} lines; all of them: {}", self.tail.len(), self.log.display())?;
        for line in &self.tail {
            writeln!(f, "{line}")?;
        }
        write!(f, "---- end of the console")
    }
}

impl std::error::Error for ConsoleError {}

/// The collected output of one machine.
#[derive(Debug)]
pub struct Console {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    log: PathBuf,
}

impl Console {
    /// Collects what `source` gives, until it ends, and writes each line to the file `log` as it comes.
    ///
    /// # Errors
    ///
    /// Where the log cannot be made.
    pub fn reading(source: impl Read + Send + 'static, log: &Path) -> io::Result<Self> {
        let file = File::create(log)?;
        let shared = Arc::new(Shared::default());
        let reader = thread::spawn({
            let shared = Arc::clone(&shared);
            let started = Instant::now();
            move || collect(source, file, &shared, started)
        });
        Ok(Self { shared, reader: Some(reader), log: log.to_owned() })
    }

    /// Waits for `line` among those that came after the one awaited last, so that a row of calls also states an order.
    ///
    /// # Errors
    ///
    /// Once `patience` is over, or at once where the machine has ended without printing it.
    pub fn wait_for_line(&self, line: &Line, patience: Duration) -> Result<ConsoleLine, ConsoleError> {
        let patience = scaled(patience);
        self.wait(&line.description, patience, |collected| {
            let at = collected.lines.iter().skip(collected.seen).position(|candidate| line.accepts(candidate))?;
            collected.seen += at + 1;
            collected.lines.get(collected.seen - 1).cloned()
        })
    }

    /// Waits until the last, still unfinished line ends in `text`: a prompt, which waits for an answer on its own line.
    ///
    /// # Errors
    ///
    /// As [`Console::wait_for_line`].
    pub fn wait_for_prompt(&self, text: &str, patience: Duration) -> Result<(), ConsoleError> {
        let awaited = format!("a prompt ending in {text:?}");
        self.wait(&awaited, scaled(patience), |collected| collected.partial.ends_with(text).then_some(()))
    }

    /// Waits until `text` stands in the unfinished line, or in one that came after the line awaited last: for a prompt behind which
    /// the kernel may have printed a record already.
    ///
    /// # Errors
    ///
    /// As [`Console::wait_for_line`].
    pub fn wait_for_text(&self, text: &str, patience: Duration) -> Result<(), ConsoleError> {
        self.wait(&format!("the text {text:?}"), scaled(patience), |collected| {
            if let Some(at) = collected.lines.iter().skip(collected.seen).position(|line| line.text.contains(text)) {
                collected.seen += at + 1;
                return Some(());
            }
            collected.partial.contains(text).then_some(())
        })
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<ConsoleLine> {
        self.shared.lock().lines.clone()
    }

    /// The first line so far that `line` accepts; what was awaited before plays no part.
    pub fn find(&self, line: &Line) -> Option<ConsoleLine> {
        self.shared.lock().lines.iter().find(|candidate| line.accepts(candidate)).cloned()
    }

    /// Where the console is logged.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until the source has ended and all of it is collected.
    pub(crate) fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            // A reader that panicked has closed the console; what it had collected is still there.
            let _ = reader.join();
        }
    }

    /// An error that shows the console's end.
    pub(crate) fn error(&self, awaited: &str, reason: &str) -> ConsoleError {
        self.shared.lock().error(awaited, reason, &self.log)
    }

    fn wait<T>(
        &self,
        awaited: &str,
        patience: Duration,
        mut look: impl FnMut(&mut Collected) -> Option<T>,
    ) -> Result<T, ConsoleError> {
        let deadline = Instant::now() + patience;
        let mut collected = self.shared.lock();
        loop {
            if let Some(found) = look(&mut collected) {
                return Ok(found);
            }
            if collected.closed {
                return Err(collected.error(awaited, "the machine has ended", &self.log));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(collected.error(awaited, &format!("{patience:?} are over"), &self.log));
            }
            let woken = self.shared.changed.wait_timeout(collected, left);
            collected = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// `patience` times `IOFS_TEST_PATIENCE`, for machines that are slower or busier than most.
pub(crate) fn scaled(patience: Duration) -> Duration {
    let factor = env::var("IOFS_TEST_PATIENCE").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1);
    patience * factor
}

#[derive(Debug, Default)]
struct Shared {
    collected: Mutex<Collected>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Collected> {
        // A test that failed while it looked must not hide its message behind a second panic.
        self.collected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Collected {
    lines: Vec<ConsoleLine>,
    partial: String,
    /// How many lines were passed by those awaited.
    seen: usize,
    closed: bool,
}

impl Collected {
    fn error(&self, awaited: &str, reason: &str, log: &Path) -> ConsoleError {
        let unfinished = Some(&self.partial).filter(|partial| !partial.is_empty());
        let all = self.lines.iter().map(|line| &line.text).chain(unfinished);
        let skipped = (self.lines.len() + usize::from(unfinished.is_some())).saturating_sub(TAIL);
        ConsoleError {
            awaited: awaited.to_owned(),
            reason: reason.to_owned(),
            tail: all.skip(skipped).cloned().collect(),
            log: log.to_owned(),
        }
    }
}

/// Marks the console closed however the collecting thread ends, so that nobody waits for a dead one.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

fn collect(mut source: impl Read, mut log: File, shared: &Shared, started: Instant) {
    let _closing = Closing(shared);
    let mut cleaner = Cleaner::default();
    let mut bytes = [0; 4096];
    loop {
        let count = match source.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let lines = cleaner.push(&bytes[..count]);
        record(lines, cleaner.partial(), &mut log, shared, started.elapsed());
    }
    let rest = cleaner.partial();
    if !rest.is_empty() {
        record(vec![rest], String::new(), &mut log, shared, started.elapsed());
    }
}

fn record(lines: Vec<String>, partial: String, log: &mut File, shared: &Shared, at: Duration) {
    for line in &lines {
        // The log helps after a failure; where it cannot be written (a full disk) the test still decides.
        let _ = writeln!(log, "{:9.3} {line}", at.as_secs_f64());
    }
    let mut collected = shared.lock();
    collected.lines.extend(lines.into_iter().map(|text| ConsoleLine { at, text }));
    collected.partial = partial;
    drop(collected);
    shared.changed.notify_all();
}

/// Turns a terminal's byte stream into plain lines; sequences may be cut anywhere between two reads.
#[derive(Debug, Default)]
struct Cleaner {
    line: Vec<u8>,
    within: Within,
}

/// Where in a control sequence (ECMA-48, section 5.4) the stream is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Within {
    #[default]
    Text,
    Escape,
    ControlSequence,
    CommandString,
}

impl Cleaner {
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            self.within = self.step(byte);
            let ended = byte == b'\n' && self.within == Within::Text;
            if ended || self.line.len() >= LONGEST_LINE {
                let mut line = self.partial();
                self.line.clear();
                if let Some(at) = record_within(&line) {
                    let record = line.split_off(at);
                    self.line.extend(std::mem::replace(&mut line, record).into_bytes());
                }
                lines.push(line);
            }
        }
        lines
    }

    fn partial(&self) -> String {
        String::from_utf8_lossy(&self.line).into_owned()
    }

    fn step(&mut self, byte: u8) -> Within {
        match (self.within, byte) {
            // A line end closes any sequence, so that a stray escape cannot swallow the lines after it.
            (_, b'\n') => Within::Text,
            (_, 0x1b) => Within::Escape,
            (Within::Text, _) => {
                if byte == b'\t' || (byte >= b' ' && byte != 0x7f) {
                    self.line.push(byte);
                }
                Within::Text
            }
            (Within::Escape, b'[') => Within::ControlSequence,
            (Within::Escape, b']' | b'P') => Within::CommandString,
            // Intermediate bytes, as in `ESC ( B`: the final one follows.
            (Within::Escape, b' '..=b'/') => Within::Escape,
            (Within::Escape, _) | (Within::ControlSequence, b'@'..=b'~') | (Within::CommandString, 0x07) => {
                Within::Text
            }
            (unfinished, _) => unfinished,
        }
    }
}

/// Where the kernel printed a record into a line that was not finished: a terminal sends a line's end apart from what is before it.
/// What a guest says of a record has a space in front.
fn record_within(line: &str) -> Option<usize> {
    let mut brackets = line.match_indices('[').map(|(at, _)| at);
    brackets.find(|&at| {
        let (before, rest) = line.split_at(at);
        !before.is_empty() && !before.ends_with(' ') && without_kernel_time(rest).len() < rest.len()
    })
}

fn without_kernel_time(text: &str) -> &str {
    let Some((time, message)) = text.strip_prefix('[').and_then(|rest| rest.split_once("] ")) else {
        return text;
    };
    let time = time.trim_start();
    let is_time = time.contains('.') && time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_time { message } else { text }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
