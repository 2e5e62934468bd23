//! What every verb shares on its way out: errors as a fact and a next step, exit codes, JSON, progress.

use std::{
    fmt,
    io::{ErrorKind, IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// The process's exit code. These numbers are a promise to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    /// 1: an operation of the system failed (I/O, permissions, a child process).
    System = 1,
    /// 2: the command line or the configuration asks for something that cannot be.
    Usage = 2,
    /// 3: an input is malformed, or not what it must be.
    BadInput = 3,
    /// 4: a signature, digest or block does not verify.
    NotVerified = 4,
    /// 5: a program or a kernel ability that is needed is missing.
    Missing = 5,
}

/// An error as people read it: one line of fact, then what to do next.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// The class of the failure, which is also the exit code.
    pub status: ExitStatus,
    /// What happened: names the input, the field, what was expected and what was found.
    pub fact: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_step: Option<String>,
}

impl Failure {
    /// A failure without advice.
    pub fn new(status: ExitStatus, fact: impl Into<String>) -> Self {
        Self { status, fact: fact.into(), next_step: None }
    }

    /// Adds the next step.
    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        self.next_step = Some(step.into());
        self
    }

    /// Says which file it is about.
    #[must_use]
    pub fn about(self, path: &std::path::Path) -> Self {
        Self { fact: format!("{}: {}", path.display(), self.fact), ..self }
    }

    /// A failed call of the system on a named object, such as `read /a/b`.
    pub fn io(doing: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::new(ExitStatus::System, format!("{doing}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "error: {}", self.fact)?;
        match &self.next_step {
            Some(step) => write!(formatter, "\n next: {step}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// Where a verb's results go. Progress and warnings use standard error, results standard output.
#[derive(Debug, Clone, Copy, Default)]
pub struct Output {
    /// Print results as one JSON document instead of text.
    pub json: bool,
    /// Print no progress and no remarks.
    pub quiet: bool,
}

impl Output {
    /// Prints the result: `value` with `--json`, else the text.
    pub fn result<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) {
        let text = if self.json {
            serde_json::to_string_pretty(value).expect("results hold no maps with odd keys")
        } else {
            text()
        };
        let mut stdout = std::io::stdout().lock();
        let written = writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush());
        match written {
            // A reader that has seen enough, such as `head`, is no error.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => self.warn(format_args!("print the result: {error}")),
            _ => {}
        }
    }

    /// Says something that the user should know although all went well.
    pub fn warn(&self, text: impl fmt::Display) {
        eprintln!("warning: {text}");
    }

    /// A progress bar over `length` bytes; silent if nobody watches or `--quiet` was given.
    pub fn progress(&self, label: &str, length: u64) -> Progress {
        let bar = ProgressBar::new(length).with_message(label.to_owned());
        bar.set_style(
            ProgressStyle::with_template("{msg:24} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}")
                .expect("the template is constant"),
        );
        Progress::new(bar, self.quiet)
    }

    /// A spinner for work whose length is unknown.
    pub fn spinner(&self, label: &str) -> Progress {
        let bar = ProgressBar::new_spinner().with_message(label.to_owned());
        Progress::new(bar, self.quiet)
    }
}

/// A running progress display, gone when dropped. Cheap to clone, safe to advance from any thread.
#[derive(Debug, Clone)]
pub struct Progress(ProgressBar);

impl Progress {
    fn new(bar: ProgressBar, quiet: bool) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        } else {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self(bar)
    }

    /// A display that shows nothing, for library callers.
    pub fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Advances by `amount` bytes.
    pub fn advance(&self, amount: u64) {
        self.0.inc(amount);
    }

    /// Removes the display.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
