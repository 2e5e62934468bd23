//! A question on the console, whose answer is not shown.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::termios::{
        FlushArg, InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcflush, tcgetattr, tcsetattr,
    },
};
use zeroize::Zeroizing;

use crate::system::Question;

const BACKSPACE: [u8; 2] = [0x08, 0x7f];
/// Ctrl-U: begin again.
const KILL: u8 = 0x15;
/// Ctrl-D: no answer.
const END: u8 = 0x04;

/// Asks at `path`. Nothing that was typed before counts: whoever holds a key down answers nothing.
pub(super) fn ask(path: &Path, question: &Question<'_>) -> io::Result<Zeroizing<Vec<u8>>> {
    // Without O_NOCTTY the console would become PID 1's controlling terminal, and Ctrl-C its signal.
    let mut terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits())
        .open(path)?;
    let silent = Silent::new(&terminal)?;
    terminal.write_all(question.prompt.as_bytes())?;
    let answer = read_line(&mut terminal, question);
    let _ = terminal.write_all(b"\n");
    drop(silent);
    answer
}

/// A terminal that shows nothing of what is typed and makes no signals of it, until this is dropped.
struct Silent {
    terminal: File,
    before: Termios,
}

impl Silent {
    fn new(terminal: &File) -> io::Result<Self> {
        let terminal = terminal.try_clone()?;
        let before = tcgetattr(&terminal)?;
        let mut quiet = before.clone();
        quiet.local_flags &=
            !(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::IEXTEN);
        quiet.input_flags &= !(InputFlags::ICRNL | InputFlags::INLCR | InputFlags::IGNCR | InputFlags::IXON);
        quiet.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        quiet.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        // Not TCSAFLUSH, which waits for a serial port to send what it has: it need not have anybody who takes it.
        tcsetattr(&terminal, SetArg::TCSANOW, &quiet)?;
        tcflush(&terminal, FlushArg::TCIFLUSH)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // What was typed behind the answer is nobody's.
        let _ = tcflush(&self.terminal, FlushArg::TCIFLUSH);
        let _ = tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}

fn read_line(terminal: &mut File, question: &Question<'_>) -> io::Result<Zeroizing<Vec<u8>>> {
    let until = Instant::now() + question.patience;
    // All of its room at once: a vector that grows would leave copies behind.
    let mut answer = Zeroizing::new(Vec::with_capacity(question.limit));
    let mut too_long = false;
    loop {
        let mut byte = Zeroizing::new([0]);
        match terminal.read(&mut byte[..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => match byte[0] {
                b'\r' | b'\n' if too_long => return Err(Errno::E2BIG.into()),
                b'\r' | b'\n' => return Ok(answer),
                END if answer.is_empty() => return Err(ErrorKind::UnexpectedEof.into()),
                KILL => answer.clear(),
                one if BACKSPACE.contains(&one) => drop(answer.pop()),
                _ if answer.len() >= question.limit => too_long = true,
                one => answer.push(one),
            },
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(terminal, until)?,
            Err(error) => return Err(error),
        }
        if Instant::now() >= until {
            return Err(ErrorKind::TimedOut.into());
        }
    }
}

fn wait(terminal: &File, until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    // Longer waits are cut in pieces.
    let timeout = PollTimeout::try_from(left.min(Duration::from_secs(60))).unwrap_or(PollTimeout::ZERO);
    let mut watched = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
    match poll(&mut watched, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    match watched[0].revents() {
        Some(events) if events.intersects(gone) && !events.contains(PollFlags::POLLIN) => {
            Err(ErrorKind::UnexpectedEof.into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsRawFd, path::PathBuf, thread};

    use nix::{
        fcntl::OFlag,
        pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt},
    };

    use super::*;

    /// A terminal of which the test has the other end.
    fn terminal() -> (PtyMaster, PathBuf) {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname_r(&master).unwrap().into();
        (master, name)
    }

    /// Types once the prompt is there, and returns the answer with all that the terminal showed.
    fn answer(typed: &'static [u8], patience: Duration) -> (io::Result<Zeroizing<Vec<u8>>>, String) {
        let (mut master, path) = terminal();
        let keep = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(&path).unwrap();
        master.write_all(b"typed before\n").unwrap();
        let asked = path.clone();
        let asking = thread::spawn(move || ask(&asked, &Question { prompt: "Passphrase: ", limit: 8, patience }));
        let mut shown = Vec::new();
        while !shown.ends_with(b"Passphrase: ") {
            let mut byte = [0];
            master.read_exact(&mut byte).unwrap();
            shown.push(byte[0]);
        }
        shown.clear();
        master.write_all(typed).unwrap();
        let answer = asking.join().unwrap();
        let echo = tcgetattr(&keep).unwrap().local_flags.contains(LocalFlags::ECHO);
        assert!(echo, "the terminal is as it was");
        let mut rest = [0; 100];
        assert!(master.as_raw_fd() > 0);
        let count = master.read(&mut rest).unwrap();
        (answer, String::from_utf8_lossy(&rest[..count]).into_owned())
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn an_answer_is_not_shown_and_what_was_typed_before_does_not_count() {
        let (answer, shown) = answer(b"s3cret\r", SOON);
        assert_eq!(answer.unwrap().as_slice(), b"s3cret");
        assert_eq!(shown, "\r\n");
    }

    #[test]
    fn keys_that_edit_do_and_keys_that_interrupt_do_not() {
        assert_eq!(answer(b"wrong\x15ax\x7fb\x08\x08\x08cd\x03\n", SOON).0.unwrap().as_slice(), b"cd\x03");
    }

    #[test]
    fn debug_shell_no_answer_a_late_one_and_a_long_one_are_errors() {
        assert_eq!(answer(b"\x04", SOON).0.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(answer(b"slow", Duration::from_millis(300)).0.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(answer(b"123456789\r", SOON).0.unwrap_err().raw_os_error(), Some(Errno::E2BIG as i32));
        let held = answer(b"\r\r\r\r\r\r", SOON).0.unwrap();
        assert_eq!(held.len(), 0);
    }

    #[test]
    fn debug_shell_a_closed_console_is_an_error() {
        let (master, path) = terminal();
        let asking = thread::spawn(move || ask(&path, &Question { prompt: "?", limit: 8, patience: SOON }));
        thread::sleep(Duration::from_millis(200));
        drop(master);
        assert!(asking.join().unwrap().is_err());
        let nowhere = Question { prompt: "?", limit: 8, patience: SOON };
        assert!(ask("/dev/null".as_ref(), &nowhere).is_err(), "no terminal");
    }
}
