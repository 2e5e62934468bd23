//! QEMU's control socket, as far as tests need it: start the machine, and learn how it ended.
//!
//! The protocol: <https://www.qemu.org/docs/master/interop/qmp-spec.html>.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// The connection to one machine.
#[derive(Debug)]
pub(crate) struct Qmp {
    socket: UnixStream,
    shutdown: Arc<Mutex<Option<String>>>,
}

impl Qmp {
    /// Leaves negotiation mode, in which QEMU takes no commands and sends no events. QEMU answers once the machine is
    /// whole, so an answer also means that it accepted its arguments.
    pub(crate) fn negotiate(socket: UnixStream, patience: Duration) -> io::Result<Self> {
        let mut events = BufReader::new(socket.try_clone()?);
        let shutdown = Arc::new(Mutex::new(None));
        let mut qmp = Self { socket, shutdown: Arc::clone(&shutdown) };
        qmp.socket.set_read_timeout(Some(patience))?;
        qmp.execute("qmp_capabilities")?;
        skip_to_answer(&mut events)?;
        qmp.socket.set_read_timeout(None)?;
        thread::spawn(move || listen(events, &shutdown));
        Ok(qmp)
    }

    /// Sends a command without arguments. The answer is not awaited: the commands used here cannot fail.
    pub(crate) fn execute(&mut self, command: &str) -> io::Result<()> {
        writeln!(self.socket, "{}", json!({ "execute": command }))
    }

    /// The reason that QEMU gave when the machine shut down, in the terms of its `ShutdownCause`.
    pub(crate) fn shutdown_reason(&self) -> Option<String> {
        self.shutdown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn skip_to_answer(messages: &mut impl BufRead) -> io::Result<()> {
    let mut line = String::new();
    while !line.starts_with(r#"{"return""#) {
        line.clear();
        if messages.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

fn listen(events: impl BufRead, shutdown: &Mutex<Option<String>>) {
    for line in events.lines() {
        let Ok(line) = line else { return };
        if let Some(reason) = shutdown_reason(&line) {
            // The first one counts: the later ones are those of our own `quit`.
            shutdown.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        }
    }
}

fn shutdown_reason(line: &str) -> Option<String> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is_shutdown = message.get("event")? == "SHUTDOWN";
    is_shutdown.then(|| message["data"]["reason"].as_str().unwrap_or("unknown").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_ends_before_the_answer_is_an_error() {
        let mut greeted = &b"{\"QMP\": {}}\n{\"return\": {}}\n"[..];
        assert!(skip_to_answer(&mut greeted).is_ok());
        let mut ended = &b"{\"QMP\": {}}\n"[..];
        assert!(skip_to_answer(&mut ended).is_err());
    }

    #[test]
    fn only_the_shutdown_event_gives_a_reason() {
        let event =
            r#"{"timestamp": {"seconds": 1}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;
        assert_eq!(shutdown_reason(event).as_deref(), Some("guest-reset"));
        assert_eq!(shutdown_reason(r#"{"event": "RESUME"}"#), None);
        assert_eq!(shutdown_reason(r#"{"return": {}}"#), None);
        assert_eq!(shutdown_reason("not json"), None);
    }
}
