//! Running commands, again where the TPM asks for that.

use std::{thread, time::Duration};

use zeroize::Zeroizing;

use crate::{
    command::{Command, CommandCode, Tag},
    reader::Reader,
    response::{Outer, ResponseCode, ResponseError},
    session::{self, Auth, SessionError, Unaccepted},
    transport::{HEADER_SIZE, Transport, TransportError},
};

/// How often a command is sent that the TPM is too busy for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// How many times at most, at least once.
    pub attempts: u32,
    /// The pause before the second attempt. Each further pause is twice as long.
    pub first_pause: Duration,
    /// No pause is longer.
    pub longest_pause: Duration,
}

impl Default for Retry {
    /// About 10 seconds in 26 attempts. A self-test of all algorithms takes a slow TPM a few seconds.
    fn default() -> Self {
        Self { attempts: 26, first_pause: Duration::from_millis(5), longest_pause: Duration::from_millis(500) }
    }
}

impl Retry {
    fn pause_after(&self, attempt: u32) -> Duration {
        let doublings = 2_u32.saturating_pow(attempt.saturating_sub(1));
        self.first_pause.saturating_mul(doublings).min(self.longest_pause)
    }
}

/// A TPM.
#[derive(Debug)]
pub struct Tpm<T> {
    transport: T,
    retry: Retry,
}

/// Why a command brought no result.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Command or response did not come through. Whether the TPM executed the command is unknown.
    #[error("{command}: {source}")]
    Transport {
        /// The command.
        command: CommandCode,
        /// What stopped it.
        source: TransportError,
    },
    /// The response is malformed. Whether the TPM executed the command is unknown.
    #[error("{command}: malformed response: {source}")]
    Malformed {
        /// The command.
        command: CommandCode,
        /// What is wrong with the response.
        source: ResponseError,
    },
    /// The TPM did not execute the command.
    #[error("{command}: the TPM answers {code}")]
    Refused {
        /// The command.
        command: CommandCode,
        /// The reason.
        code: ResponseCode,
    },
    /// The TPM was busy each time that the command was sent.
    #[error("{command}: the TPM answers {code}, {attempts} times in a row")]
    Busy {
        /// The command.
        command: CommandCode,
        /// The last answer.
        code: ResponseCode,
        /// How many times it was sent.
        attempts: u32,
    },
    /// A session did not vouch for command or response. Whether the TPM executed the command is unknown where the
    /// response was the reason.
    #[error("{command}: {source}")]
    Session {
        /// The command.
        command: CommandCode,
        /// What is wrong.
        source: SessionError,
    },
}

impl CommandError {
    /// The reason that the TPM gave.
    pub fn code(&self) -> Option<ResponseCode> {
        match self {
            Self::Refused { code, .. } | Self::Busy { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// What a command brought.
pub(crate) struct Answer {
    /// The handle in front of the parameters: 0 where the command has none there.
    pub(crate) handle: u32,
    /// Possibly a secret.
    pub(crate) parameters: Zeroizing<Vec<u8>>,
}

impl<T: Transport> Tpm<T> {
    /// A TPM behind that transport.
    pub fn new(transport: T) -> Self {
        Self::with_retry(transport, Retry::default())
    }

    /// The same, with a patience of its own.
    pub fn with_retry(transport: T, retry: Retry) -> Self {
        Self { transport, retry }
    }

    /// The transport, for tests that count.
    #[cfg(test)]
    pub(crate) fn into_transport(self) -> T {
        self.transport
    }

    /// Sends a command without authorizations, and returns the response's parameters.
    ///
    /// It is sent again, after a pause, for as long as the TPM answers [`ResponseCode::Retry`],
    /// [`ResponseCode::Yielded`] or [`ResponseCode::Testing`] and [`Retry`] allows.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn run(&mut self, command: &Command) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        self.execute(command, &mut []).map(|answer| answer.parameters)
    }

    /// The same with authorizations: at most three, those of the command's handles first. One that encrypts is the first:
    /// others would have to cover its nonce (Part 1, section 19.6.5).
    ///
    /// Where sessions vouch for the response, each byte of it was sent by the TPM as an answer to exactly this command,
    /// but for a handle, which no authorization covers, and a refusal, which has none.
    pub(crate) fn execute(&mut self, command: &Command, auths: &mut [Auth<'_>]) -> Result<Answer, CommandError> {
        let code = command.code();
        let failed = |source| CommandError::Session { command: code, source };
        let tag = if auths.is_empty() { Tag::NoSessions } else { Tag::Sessions };
        let bytes = session::authorize(command, auths).map_err(failed)?;
        match self.until_done(code, &bytes, tag) {
            Ok(response) => finish(code, auths, &response).map_err(|error| match error {
                Unaccepted::Response(source) => malformed(code, source),
                Unaccepted::Session(source) => failed(source),
            }),
            Err(error) => {
                if error.code().is_some() {
                    session::keep(auths);
                }
                Err(error)
            }
        }
    }

    /// A response of success.
    fn until_done(&mut self, command: CommandCode, bytes: &[u8], tag: Tag) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        let mut attempt = 1;
        loop {
            let response = self.transport.exchange(bytes).map(Zeroizing::new);
            let response = response.map_err(|source| CommandError::Transport { command, source })?;
            match Outer::parse(&response, tag).map_err(|source| malformed(command, source))? {
                Outer::Done(_) => return Ok(response),
                Outer::Refused(code) if !code.is_transient() => return Err(CommandError::Refused { command, code }),
                Outer::Refused(code) if attempt >= self.retry.attempts => {
                    return Err(CommandError::Busy { command, code, attempts: attempt });
                }
                Outer::Refused(_) => thread::sleep(self.retry.pause_after(attempt)),
            }
            attempt += 1;
        }
    }
}

/// Reads a response of success: handle, parameters, authorizations.
fn finish(command: CommandCode, auths: &mut [Auth<'_>], response: &[u8]) -> Result<Answer, Unaccepted> {
    let mut reader = Reader::new(response.get(HEADER_SIZE..).unwrap_or_default());
    let handle = if command.answers_handle() { reader.u32("handle") } else { Ok(0) };
    let handle = handle.map_err(Unaccepted::Response)?;
    if auths.is_empty() {
        return Ok(Answer { handle, parameters: Zeroizing::new(reader.rest().to_vec()) });
    }
    let parameters = reader.parameters().map_err(Unaccepted::Response)?;
    let mut parameters = Zeroizing::new(parameters.to_vec());
    session::accept(command, auths, reader, &mut parameters)?;
    Ok(Answer { handle, parameters })
}

pub(crate) fn malformed(command: CommandCode, source: ResponseError) -> CommandError {
    CommandError::Malformed { command, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: Retry = Retry { attempts: 3, first_pause: Duration::ZERO, longest_pause: Duration::ZERO };

    /// Answers these codes in a row, then with success and a parameter.
    struct Busy {
        codes: Vec<u16>,
        commands: Vec<Vec<u8>>,
    }

    impl Transport for Busy {
        fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
            let code = self.codes.get(self.commands.len());
            self.commands.push(command.to_vec());
            Ok(match code.map(|code| code.to_be_bytes()) {
                Some([high, low]) => vec![0x80, 0x01, 0, 0, 0, 10, 0, 0, high, low],
                None => vec![0x80, 0x01, 0, 0, 0, 11, 0, 0, 0, 0, 42],
            })
        }
    }

    fn run(codes: &[u16]) -> (Result<Vec<u8>, CommandError>, usize) {
        let mut tpm = Tpm::with_retry(Busy { codes: codes.to_vec(), commands: Vec::new() }, PROMPT);
        let command = Command::new(CommandCode::PcrRead).u32(0);
        let result = tpm.run(&command).map(|parameters| parameters.to_vec());
        let bytes = command.encode(&[], command.parameters());
        assert!(tpm.transport.commands.iter().all(|sent| *sent == bytes));
        (result, tpm.transport.commands.len())
    }

    #[test]
    fn a_busy_tpm_is_asked_again() {
        let (result, sent) = run(&[0x922, 0x922]);
        assert_eq!((result.unwrap(), sent), (vec![42], 3));
        let (result, sent) = run(&[0x908, 0x90a]);
        assert_eq!((result.unwrap(), sent), (vec![42], 3));
    }

    #[test]
    fn a_tpm_that_stays_busy_is_an_error_in_the_end() {
        let (result, sent) = run(&[0x922, 0x90a, 0x908, 0x908]);
        let error = result.unwrap_err();
        let expected =
            "TPM2_PCR_Read: the TPM answers 0x908 (TPM_RC_YIELDED: busy with something else), 3 times in a row";
        assert_eq!((error.to_string().as_str(), sent), (expected, 3));
    }

    #[test]
    fn other_answers_are_final() {
        for (value, code) in [
            (0x100, ResponseCode::Initialize),
            (0x128, ResponseCode::PcrChanged),
            (0x921, ResponseCode::Lockout),
            (0x1c4, ResponseCode::Other(0x1c4)),
        ] {
            let (result, sent) = run(&[value]);
            assert!(matches!(result, Err(CommandError::Refused { code: found, .. }) if found == code));
            assert_eq!(sent, 1);
        }
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let retry = Retry::default();
        let pauses: Vec<Duration> = (1..retry.attempts).map(|attempt| retry.pause_after(attempt)).collect();
        let milliseconds: Vec<u128> = pauses.iter().take(9).map(Duration::as_millis).collect();
        assert_eq!(milliseconds, [5, 10, 20, 40, 80, 160, 320, 500, 500]);
        let total: Duration = pauses.iter().sum();
        assert!((9..11).contains(&total.as_secs()), "{total:?}");
        assert_eq!(retry.pause_after(u32::MAX), retry.longest_pause);
    }
}
