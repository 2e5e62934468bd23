//! Asking for secrets on the terminal, without echo.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::AsFd,
};

use iofs_sign::report::{ExitStatus, Failure};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use zeroize::Zeroizing;

/// The longest answer, in bytes: what cryptsetup takes at most.
const MAX_ANSWER: usize = 512;
const END_OF_TEXT: u8 = 0x03;
const END_OF_TRANSMISSION: u8 = 0x04;
const ERASE_LINE: u8 = 0x15;
const BACKSPACE: [u8; 2] = [0x08, 0x7f];

/// The terminal in a state in which it shows nothing and lets every byte through: the keys that would end this program and
/// leave the terminal mute are looked at here.
struct Silent<'t> {
    terminal: &'t File,
    before: Termios,
}

impl<'t> Silent<'t> {
    fn new(terminal: &'t File) -> io::Result<Self> {
        let before = termios::tcgetattr(terminal.as_fd())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        termios::tcsetattr(terminal.as_fd(), OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(self.terminal.as_fd(), OptionalActions::Now, &self.before);
    }
}

/// Asks for a secret. `otherwise` is the option that does without a terminal.
///
/// # Errors
/// There is no terminal, or whoever sits there ended it.
pub(super) fn secret(question: &str, otherwise: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(|error| {
        Failure::new(ExitStatus::Usage, format!("no terminal to ask for the {question}: {error}"))
            .next(format!("run this on a terminal, or name a file with {otherwise}"))
    })?;
    let failed = |error: io::Error| Failure::io(format_args!("ask for the {question}"), &error);
    write!(&terminal, "{question}: ").map_err(failed)?;
    let silent = Silent::new(&terminal).map_err(failed)?;
    let answer = line(&terminal);
    drop(silent);
    let _ = writeln!(&terminal);
    match answer.map_err(failed)? {
        Some(answer) => Ok(answer),
        None => Err(Failure::new(ExitStatus::Usage, format!("no {question} was given"))
            .next(format!("repeat, or name a file with {otherwise}"))),
    }
}

/// One line without its end. `None` where it is broken off or too long.
fn line(mut from: impl Read) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    // As large as it becomes: no copy is left behind by growing.
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    loop {
        let mut byte = Zeroizing::new([0]);
        if from.read(&mut *byte)? == 0 {
            return Ok(None);
        }
        match byte[0] {
            b'\n' | b'\r' => return Ok(Some(line)),
            END_OF_TEXT | END_OF_TRANSMISSION => return Ok(None),
            ERASE_LINE => line.clear(),
            byte if BACKSPACE.contains(&byte) => erase(&mut line),
            _ if line.len() == MAX_ANSWER => return Ok(None),
            byte => line.push(byte),
        }
    }
}

/// A letter of UTF-8 has several bytes.
fn erase(line: &mut Vec<u8>) {
    while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_is_mended_and_is_broken_off() {
        for (typed, expected) in [
            ("secret\nmore", Some("secret")),
            ("\r", Some("")),
            ("sx\u{7f}ecret\n", Some("secret")),
            ("sä\u{8}ecret\n", Some("secret")),
            ("\u{7f}a\n", Some("a")),
            ("wrong\u{15}right\n", Some("right")),
            ("secret", None),
            ("secret\u{3}", None),
            ("\u{4}", None),
        ] {
            let found = line(typed.as_bytes()).unwrap();
            assert_eq!(found.as_deref().map(Vec::as_slice), expected.map(str::as_bytes), "{typed:?}");
        }
        assert!(line(&[b'a'; MAX_ANSWER + 1][..]).unwrap().is_none());
    }
}
