//! Reading responses (Part 1, section 18), strictly: whatever is not as the specification says is an error.

use std::fmt;

use crate::{command::Tag, reader::Reader, transport::MAX_SIZE};

/// `TPM_ST_RSP_COMMAND`: a TPM's answer to a tag that it does not know, in the form of TPM 1.2 (Part 2, section 6.9).
const TPM_1_2_TAG: u16 = 0x00c4;

/// Why a TPM did not do what it was told (`TPM_RC`, Part 2, section 6.6). Those that need an answer of their own have a
/// name here.
///
/// A code that tells which handle, session or parameter is at fault keeps that in its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseCode {
    /// `TPM_RC_INITIALIZE`: nobody sent `TPM2_Startup`.
    Initialize,
    /// `TPM_RC_FAILURE`: the TPM found itself broken. It answers nothing else until it is reset.
    Failure,
    /// `TPM_RC_AUTH_TYPE`, `TPM_RC_AUTH_MISSING`, `TPM_RC_AUTH_UNAVAILABLE`: the object does not take this way of
    /// authorization.
    AuthUnavailable(u32),
    /// `TPM_RC_PCR_CHANGED`: a policy refers to registers that have changed since it was made. Make it again.
    PcrChanged,
    /// `TPM_RC_NV_LOCKED`: the index is locked until the TPM starts again, or for good.
    NvLocked,
    /// `TPM_RC_NV_UNINITIALIZED`: the index was defined, and never written.
    NvUninitialized,
    /// `TPM_RC_HANDLE`, `TPM_RC_REFERENCE_*`: there is no such object, index or session.
    Handle(u32),
    /// `TPM_RC_AUTH_FAIL`: wrong authorization, and it was counted.
    AuthFail(u32),
    /// `TPM_RC_BAD_AUTH`: wrong authorization, not counted.
    BadAuth(u32),
    /// `TPM_RC_POLICY_FAIL`: the policy does not hold.
    PolicyFail(u32),
    /// `TPM_RC_SIGNATURE`: a signature is not by that key, or not of that digest.
    Signature(u32),
    /// `TPM_RC_INTEGRITY`: an object that another TPM or another key wrapped, or that was changed.
    Integrity(u32),
    /// `TPM_RC_OBJECT_MEMORY`, `TPM_RC_OBJECT_HANDLES`: no room for another object.
    ObjectMemory(u32),
    /// `TPM_RC_SESSION_MEMORY`, `TPM_RC_SESSION_HANDLES`, `TPM_RC_CONTEXT_GAP`: no room for another session.
    SessionMemory(u32),
    /// `TPM_RC_LOCALITY`: not from here.
    Locality,
    /// `TPM_RC_YIELDED`: the TPM stopped for something else. Send the command again.
    Yielded,
    /// `TPM_RC_TESTING`: the TPM tests itself. Send the command again.
    Testing,
    /// `TPM_RC_NV_RATE`: too many writes in too short a time. Waiting helps.
    NvRate,
    /// `TPM_RC_LOCKOUT`: too many wrong authorizations. Waiting helps, sending again does not.
    Lockout,
    /// `TPM_RC_RETRY`: the TPM could not start. Send the command again.
    Retry,
    /// `TPM_RC_NV_UNAVAILABLE`: the TPM's memory cannot be reached now.
    NvUnavailable,
    /// Any other.
    Other(u32),
}

/// Bits of a format 1 code (Part 2, section 6.6.2) that tell which handle, session or parameter is at fault.
const FORMAT_1: u32 = 0x080;
const ERROR_BITS: u32 = 0x0bf;

impl ResponseCode {
    /// The code with this value, which is not 0 (`TPM_RC_SUCCESS`).
    fn new(value: u32) -> Self {
        match value {
            0x100 => Self::Initialize,
            0x101 => Self::Failure,
            0x124 | 0x125 | 0x12f => Self::AuthUnavailable(value),
            0x128 => Self::PcrChanged,
            0x148 => Self::NvLocked,
            0x14a => Self::NvUninitialized,
            0x902 | 0x906 => Self::ObjectMemory(value),
            0x901 | 0x903 | 0x905 => Self::SessionMemory(value),
            0x907 => Self::Locality,
            0x908 => Self::Yielded,
            0x90a => Self::Testing,
            0x910..=0x91f => Self::Handle(value),
            0x920 => Self::NvRate,
            0x921 => Self::Lockout,
            0x922 => Self::Retry,
            0x923 => Self::NvUnavailable,
            _ => Self::format_1(value),
        }
    }

    fn format_1(value: u32) -> Self {
        let known = value & FORMAT_1 != 0 && value < 0x1000;
        match value & ERROR_BITS {
            0x08b if known => Self::Handle(value),
            0x08e if known => Self::AuthFail(value),
            0x09b if known => Self::Signature(value),
            0x09d if known => Self::PolicyFail(value),
            0x09f if known => Self::Integrity(value),
            0x0a2 if known => Self::BadAuth(value),
            _ => Self::Other(value),
        }
    }

    /// The `TPM_RC` value.
    pub const fn value(self) -> u32 {
        match self {
            Self::Initialize => 0x100,
            Self::Failure => 0x101,
            Self::PcrChanged => 0x128,
            Self::NvLocked => 0x148,
            Self::NvUninitialized => 0x14a,
            Self::Locality => 0x907,
            Self::Yielded => 0x908,
            Self::Testing => 0x90a,
            Self::NvRate => 0x920,
            Self::Lockout => 0x921,
            Self::Retry => 0x922,
            Self::NvUnavailable => 0x923,
            Self::AuthUnavailable(value)
            | Self::Handle(value)
            | Self::AuthFail(value)
            | Self::BadAuth(value)
            | Self::PolicyFail(value)
            | Self::Signature(value)
            | Self::Integrity(value)
            | Self::ObjectMemory(value)
            | Self::SessionMemory(value)
            | Self::Other(value) => value,
        }
    }

    /// Whether the same command may succeed shortly. The TPM has not completed it.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Yielded | Self::Testing | Self::Retry)
    }

    /// The name, and the next step.
    const fn text(self) -> &'static str {
        match self {
            Self::Initialize => "TPM_RC_INITIALIZE: not started, firmware or kernel has to send TPM2_Startup",
            Self::Failure => "TPM_RC_FAILURE: it failed its self-test, power the machine off and on",
            Self::AuthUnavailable(_) => "TPM_RC_AUTH_TYPE or _MISSING or _UNAVAILABLE: not authorized in this way",
            Self::PcrChanged => "TPM_RC_PCR_CHANGED: registers have changed meanwhile",
            Self::NvLocked => "TPM_RC_NV_LOCKED: locked until the next start, or for good",
            Self::NvUninitialized => "TPM_RC_NV_UNINITIALIZED: defined but never written, write it at enrolment",
            Self::Handle(_) => "TPM_RC_HANDLE: there is no such object, index or session",
            Self::AuthFail(_) => "TPM_RC_AUTH_FAIL: wrong authorization, counted towards the lockout",
            Self::BadAuth(_) => "TPM_RC_BAD_AUTH: wrong authorization, not counted",
            Self::PolicyFail(_) => "TPM_RC_POLICY_FAIL: the policy does not hold, look for what was measured otherwise",
            Self::Signature(_) => "TPM_RC_SIGNATURE: the signature is not by that key, or of something else",
            Self::Integrity(_) => "TPM_RC_INTEGRITY: wrapped by another TPM, or changed: enrol again",
            Self::ObjectMemory(_) => "TPM_RC_OBJECT_MEMORY: no room for objects, flush what others left behind",
            Self::SessionMemory(_) => "TPM_RC_SESSION_HANDLES: no room for sessions, flush what others left behind",
            Self::Locality => "TPM_RC_LOCALITY: not allowed from this locality",
            Self::Yielded => "TPM_RC_YIELDED: busy with something else",
            Self::Testing => "TPM_RC_TESTING: busy with its self-test",
            Self::NvRate => "TPM_RC_NV_RATE: too many writes, wait",
            Self::Lockout => "TPM_RC_LOCKOUT: too many wrong authorizations, wait or reset the lockout",
            Self::Retry => "TPM_RC_RETRY: busy",
            Self::NvUnavailable => "TPM_RC_NV_UNAVAILABLE: its memory cannot be reached, try again later",
            Self::Other(_) => "see TPM 2.0 Library, Part 2, section 6.6",
        }
    }
}

/// The value, its name or where to find it, and what it asks for.
impl fmt::Display for ResponseCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#05x} ({})", self.value(), self.text())
    }
}

/// Why a response is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// A field is cut off.
    #[error("{field}: expected {expected} bytes, found {found}")]
    Truncated {
        /// The field.
        field: &'static str,
        /// Its size in bytes.
        expected: usize,
        /// How many bytes are left.
        found: usize,
    },
    /// Something follows where nothing may.
    #[error("{field}: expected its end, found {found} more bytes")]
    Trailing {
        /// What should have ended.
        field: &'static str,
        /// How many bytes follow.
        found: usize,
    },
    /// The size in the header is not the response's.
    #[error("responseSize: expected {expected}, the number of bytes that came, found {found}")]
    Size {
        /// How many bytes came.
        expected: usize,
        /// What the header says, in bytes.
        found: u32,
    },
    /// The response is too large.
    #[error("response: expected at most {MAX_SIZE} bytes, found {0}")]
    TooLarge(usize),
    /// The tag is not the one that this response has.
    #[error("tag: expected {expected:#06x}, found {found:#06x}")]
    Tag {
        /// The right tag.
        expected: u16,
        /// The tag in the header.
        found: u16,
    },
    /// A list has more elements than there can be.
    #[error("{field}: expected at most {limit} elements, found {found}")]
    Count {
        /// The list.
        field: &'static str,
        /// How many there can be.
        limit: u32,
        /// How many it says there are.
        found: u32,
    },
    /// A field has a value that it cannot have here.
    #[error("{field}: expected {expected}, found {found}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it can be.
        expected: &'static str,
        /// What it is.
        found: u32,
    },
}

/// A response whose header is well-formed.
pub(crate) enum Outer<'a> {
    /// The command was executed: this is what follows the header.
    Done(Reader<'a>),
    /// It was not.
    Refused(ResponseCode),
}

impl<'a> Outer<'a> {
    /// The header's size is the number of bytes; a response of success has its command's tag, one of failure
    /// `TPM_ST_NO_SESSIONS` and nothing but the header.
    pub(crate) fn parse(bytes: &'a [u8], command: Tag) -> Result<Self, ResponseError> {
        if bytes.len() > MAX_SIZE {
            return Err(ResponseError::TooLarge(bytes.len()));
        }
        let mut reader = Reader::new(bytes);
        let tag = reader.u16("tag")?;
        let size = reader.u32("responseSize")?;
        let code = reader.u32("responseCode")?;
        if usize::try_from(size) != Ok(bytes.len()) {
            return Err(ResponseError::Size { expected: bytes.len(), found: size });
        }
        if code != 0 {
            return refused(tag, code, reader).map(Self::Refused);
        }
        if tag != command.value() {
            return Err(ResponseError::Tag { expected: command.value(), found: tag });
        }
        Ok(Self::Done(reader))
    }
}

fn refused(tag: u16, code: u32, rest: Reader<'_>) -> Result<ResponseCode, ResponseError> {
    rest.end("response without success")?;
    if tag != Tag::NoSessions.value() && tag != TPM_1_2_TAG {
        return Err(ResponseError::Tag { expected: Tag::NoSessions.value(), found: tag });
    }
    Ok(ResponseCode::new(code))
}

/// A well-formed response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response<'a> {
    /// The command was executed. These are its response's parameters, without handles and authorization.
    Done(&'a [u8]),
    /// It was not.
    Refused(ResponseCode),
}

impl<'a> Response<'a> {
    /// Reads the response to a command with that tag, which has no handles in its response, and no authorization but the
    /// password's.
    ///
    /// # Errors
    /// Each byte must be accounted for: the header's size is the number of bytes; a response of success has its command's
    /// tag, one of failure `TPM_ST_NO_SESSIONS` and nothing but the header.
    pub fn parse(bytes: &'a [u8], command: Tag) -> Result<Self, ResponseError> {
        match (Outer::parse(bytes, command)?, command) {
            (Outer::Refused(code), _) => Ok(Self::Refused(code)),
            (Outer::Done(reader), Tag::NoSessions) => Ok(Self::Done(reader.rest())),
            (Outer::Done(mut reader), Tag::Sessions) => {
                let parameters = reader.parameters()?;
                Authorization::read(&mut reader)?.of_password()?;
                reader.end("authorization area")?;
                Ok(Self::Done(parameters))
            }
        }
    }
}

/// TPMS_AUTH_RESPONSE (Part 2, section 10.13.3).
pub(crate) struct Authorization<'a> {
    pub(crate) nonce: &'a [u8],
    pub(crate) attributes: u8,
    pub(crate) hmac: &'a [u8],
}

impl<'a> Authorization<'a> {
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, ResponseError> {
        let nonce = reader.sized("nonceTPM")?;
        let attributes = reader.u8("sessionAttributes")?;
        Ok(Self { nonce, attributes, hmac: reader.sized("hmac")? })
    }

    /// A password has neither nonce nor HMAC (Part 1, section 19.4).
    pub(crate) fn of_password(&self) -> Result<(), ResponseError> {
        for (field, bytes) in [("nonceTPM", self.nonce), ("hmac", self.hmac)] {
            if !bytes.is_empty() {
                // A TPM2B has fewer than 65536 bytes.
                let found = bytes.len() as u32;
                return Err(ResponseError::Value { field, expected: "no bytes for a password", found });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::transport::HEADER_SIZE;

    /// Success and two bytes of parameters.
    const DONE: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0, 0, 0xab, 0xcd];
    /// TPM2_PCR_Extend's, from swtpm 0.7.1.
    const EXTENDED: [u8; 19] = [0x80, 0x02, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    /// TPM_RC_RETRY
    const RETRY: [u8; 10] = [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x09, 0x22];

    fn with(mut bytes: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
        bytes[at] = value;
        bytes
    }

    /// [`EXTENDED`] with a nonce of one byte.
    fn with_nonce() -> Vec<u8> {
        let mut bytes = with(with(EXTENDED.to_vec(), 5, 20), 15, 1);
        bytes.insert(16, 7);
        bytes
    }

    #[test]
    fn well_formed_responses_are_read() {
        assert_eq!(Response::parse(&DONE, Tag::NoSessions), Ok(Response::Done(&[0xab, 0xcd])));
        assert_eq!(Response::parse(&EXTENDED, Tag::Sessions), Ok(Response::Done(&[])));
        for tag in [Tag::NoSessions, Tag::Sessions] {
            assert_eq!(Response::parse(&RETRY, tag), Ok(Response::Refused(ResponseCode::Retry)));
        }
    }

    #[test]
    fn a_tpm_1_2_that_knows_no_such_tag_refuses() {
        let bytes = [0x00, 0xc4, 0, 0, 0, 10, 0, 0, 0, 0x1e];
        assert_eq!(Response::parse(&bytes, Tag::Sessions), Ok(Response::Refused(ResponseCode::Other(0x1e))));
    }

    #[test]
    fn a_response_with_anything_wrong_is_an_error_that_names_it() {
        let cases = [
            (with(DONE.to_vec(), 5, 13), Tag::NoSessions, "responseSize: expected 12"),
            (with(DONE.to_vec(), 2, 1), Tag::NoSessions, "responseSize: expected 12"),
            (DONE.to_vec(), Tag::Sessions, "tag: expected 0x8002, found 0x8001"),
            (EXTENDED.to_vec(), Tag::NoSessions, "tag: expected 0x8001, found 0x8002"),
            (with(DONE.to_vec(), 9, 1), Tag::NoSessions, "response without success: expected its end, found 2"),
            (with(RETRY.to_vec(), 1, 2), Tag::Sessions, "tag: expected 0x8001, found 0x8002"),
            (with(EXTENDED.to_vec(), 13, 3), Tag::Sessions, "sessionAttributes: expected 1 bytes, found 0"),
            (with(EXTENDED.to_vec(), 10, 0xff), Tag::Sessions, "parameters: expected 4278190080 bytes, found 5"),
            (with(EXTENDED.to_vec(), 15, 1), Tag::Sessions, "hmac: expected 2 bytes, found 1"),
            (with_nonce(), Tag::Sessions, "nonceTPM: expected no bytes for a password, found 1"),
            (with(EXTENDED.to_vec(), 18, 1), Tag::Sessions, "hmac: expected 1 bytes, found 0"),
            (vec![0; MAX_SIZE + 1], Tag::NoSessions, "expected at most 4096 bytes, found 4097"),
            (RETRY[..9].to_vec(), Tag::NoSessions, "responseCode: expected 4 bytes, found 3"),
            (vec![], Tag::NoSessions, "tag: expected 2 bytes, found 0"),
        ];
        for (bytes, tag, expected) in cases {
            let error = Response::parse(&bytes, tag).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} for {expected:?}");
        }
    }

    #[test]
    fn a_cut_or_lengthened_response_is_an_error() {
        for (whole, tag) in [(&DONE[..], Tag::NoSessions), (&EXTENDED, Tag::Sessions), (&RETRY, Tag::NoSessions)] {
            for length in 0..whole.len() {
                assert!(Response::parse(&whole[..length], tag).is_err(), "{length} bytes of {whole:?}");
            }
            assert!(Response::parse(&[whole, &[0]].concat(), tag).is_err());
        }
    }

    #[test]
    fn codes_keep_their_value() {
        for value in 1..0x1_0000 {
            assert_eq!(ResponseCode::new(value).value(), value);
        }
        let transient: Vec<u32> = (1..0x1000).filter(|value| ResponseCode::new(*value).is_transient()).collect();
        assert_eq!(transient, [0x908, 0x90a, 0x922]);
        assert_eq!(ResponseCode::new(0x1c4).to_string(), "0x1c4 (see TPM 2.0 Library, Part 2, section 6.6)");
    }

    #[test]
    fn codes_that_ask_for_something_have_a_name_and_a_next_step() {
        let cases = [
            (ResponseCode::Failure, 0x101, "power the machine off and on"),
            (ResponseCode::AuthUnavailable(0x12f), 0x12f, "not authorized in this way"),
            (ResponseCode::NvUninitialized, 0x14a, "write it at enrolment"),
            (ResponseCode::AuthFail(0x98e), 0x98e, "counted towards the lockout"),
            (ResponseCode::AuthFail(0xa8e), 0xa8e, "TPM_RC_AUTH_FAIL"),
            (ResponseCode::BadAuth(0x9a2), 0x9a2, "not counted"),
            (ResponseCode::PolicyFail(0x99d), 0x99d, "look for what was measured otherwise"),
            (ResponseCode::Integrity(0x1df), 0x1df, "wrapped by another TPM"),
            (ResponseCode::Handle(0x18b), 0x18b, "no such object"),
            (ResponseCode::Handle(0x910), 0x910, "no such object"),
            (ResponseCode::ObjectMemory(0x902), 0x902, "flush what others left behind"),
            (ResponseCode::SessionMemory(0x905), 0x905, "flush what others left behind"),
            (ResponseCode::Locality, 0x907, "locality"),
            (ResponseCode::NvRate, 0x920, "wait"),
        ];
        for (expected, value, text) in cases {
            let code = ResponseCode::new(value);
            assert_eq!((code, code.value()), (expected, value));
            assert!(code.to_string().contains(text), "{code}");
            assert!(!code.is_transient());
        }
    }

    fn tags() -> impl Strategy<Value = Tag> {
        prop_oneof![Just(Tag::NoSessions), Just(Tag::Sessions)]
    }

    proptest! {
        #[test]
        fn any_bytes_at_all_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), tag in tags()) {
            let _ = Response::parse(&bytes, tag);
        }

        #[test]
        fn what_is_read_is_accounted_for(
            body in prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..32),
            code in prop_oneof![Just(0), Just(0x922), any::<u32>()],
            number in prop_oneof![Just(0x8001), Just(0x8002), Just(0x00c4), any::<u16>()],
            tag in tags(),
        ) {
            let size = u32::try_from(HEADER_SIZE + body.len()).unwrap();
            let bytes = [&number.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes(), &body].concat();
            match Response::parse(&bytes, tag) {
                Ok(Response::Done(parameters)) => {
                    prop_assert!(code == 0 && number == tag.value());
                    let around = if tag == Tag::Sessions { 4 + 5 } else { 0 };
                    prop_assert_eq!(parameters.len() + around, body.len());
                }
                Ok(Response::Refused(found)) => {
                    prop_assert!(code != 0 && body.is_empty());
                    prop_assert_eq!(found.value(), code);
                }
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
