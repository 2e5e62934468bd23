//! Without a TPM: what is wrong with responses, and what is not sent.

use zeroize::Zeroizing;

use super::*;
use crate::transport::TransportError;

fn session() -> Session {
    let key = Zeroizing::new([0x5a; SIZE]);
    Session {
        handle: 0x0200_0000,
        kind: SessionKind::Hmac,
        key,
        nonce_tpm: [1; SIZE],
        in_step: true,
        proves_auth_value: true,
    }
}

/// Answers TPM2_Unseal with this parameter under [`session`], as a TPM does; and changes one byte of its answer.
struct Answering {
    parameter: Vec<u8>,
    change: Option<usize>,
    asked: usize,
}

impl Transport for Answering {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        self.asked += 1;
        // Behind header, object handle, the area's size, session handle and the nonce's size.
        let nonce_caller = &command[10 + 4 + 4 + 4 + 2..][..SIZE];
        let (nonce_tpm, attributes) = ([2; SIZE], command[10 + 4 + 4 + 4 + 2 + SIZE]);
        let hash = crypto::sha256(&[&[0; 4], &0x15e_u32.to_be_bytes(), &self.parameter]);
        let hmac = crypto::hmac(&[0x5a; SIZE], &[&hash, &nonce_tpm, nonce_caller, &[attributes]]);
        // At most some hundred bytes.
        let mut bytes = (self.parameter.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.parameter);
        sized(&mut bytes, &nonce_tpm);
        bytes.push(attributes);
        sized(&mut bytes, &hmac);
        let size = (10 + bytes.len() as u32).to_be_bytes();
        let mut response = [&[0x80, 2][..], &size, &[0; 4], &bytes].concat();
        if let Some(change) = self.change {
            response[change] ^= 1;
        }
        Ok(response)
    }
}

fn unseal(change: Option<usize>, session: &mut Session) -> (Result<Vec<u8>, CommandError>, usize) {
    let mut tpm = Tpm::new(Answering { parameter: b"\0\x06secret".to_vec(), change, asked: 0 });
    let command = Command::new(CommandCode::Unseal).handle(0x8000_0000);
    let answer = tpm.execute(&command, &mut [session.with(&[], Protection::Integrity)]);
    let answer = answer.map(|answer| answer.parameters.to_vec());
    (answer, tpm.into_transport().asked)
}

#[test]
fn a_right_answer_is_taken_and_its_nonce_kept() {
    let mut session = session();
    assert_eq!(unseal(None, &mut session).0.unwrap(), b"\0\x06secret");
    assert_eq!(session.nonce_tpm, [2; SIZE]);
    assert_eq!(unseal(None, &mut session).0.unwrap(), b"\0\x06secret");
}

#[test]
fn a_changed_answer_is_refused_and_the_session_is_not_used_again() {
    for change in 0..10 + 4 + 8 + 2 + SIZE + 1 + 2 + SIZE {
        let mut session = session();
        let error = unseal(Some(change), &mut session).0.unwrap_err();
        assert!(!matches!(error, CommandError::Transport { .. }), "{error}");
        if matches!(error, CommandError::Refused { .. }) {
            continue;
        }
        let (error, asked) = unseal(None, &mut session);
        let out_of_step = matches!(error, Err(CommandError::Session { source: SessionError::OutOfStep, .. }));
        assert!(out_of_step && asked == 0, "byte {change}");
    }
}

#[test]
fn a_response_without_what_was_to_be_encrypted_is_refused() {
    for parameter in [&[][..], &[0], &[0, 2, 7]] {
        let mut session = session();
        let mut tpm = Tpm::new(Answering { parameter: parameter.to_vec(), change: None, asked: 0 });
        let command = Command::new(CommandCode::Unseal).handle(0x8000_0000);
        let error = tpm.execute(&command, &mut [session.with(&[], Protection::HiddenResponse)]).err();
        let unencrypted = matches!(error, Some(CommandError::Session { source: SessionError::Unencrypted, .. }));
        assert!(unencrypted && !session.in_step, "{parameter:?}");
    }
}

#[test]
fn keys_are_not_shown() {
    let mut session = session();
    assert_eq!(format!("{session:?}"), "Session { handle: 33554432, kind: Hmac, .. }");
    let auth = format!("{:?}", session.with(b"value", Protection::Integrity));
    assert_eq!(auth, "Auth(Some(Session { handle: 33554432, kind: Hmac, .. }))");
}

#[test]
fn zeros_at_the_end_of_a_value_do_not_count() {
    for (value, expected) in [(&b"ab\0\0"[..], &b"ab"[..]), (b"a\0b", b"a\0b"), (b"\0", b""), (b"", b"")] {
        assert_eq!(trimmed(value), expected);
    }
}
