//! Writing commands (Part 1, section 18).

use std::fmt;

use crate::transport::HEADER_SIZE;

/// `TPM_RS_PW`: authorization by a password instead of a session (Part 2, section 7.4).
const PASSWORD: u32 = 0x4000_0009;

/// Where the size stands in a command's header.
const SIZE: std::ops::Range<usize> = 2..6;

/// Which command (Part 2, section 6.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommandCode {
    /// `TPM2_GetCapability` (Part 3, section 30.2)
    GetCapability,
    /// `TPM2_PCR_Read` (Part 3, section 22.4)
    PcrRead,
    /// `TPM2_PCR_Extend` (Part 3, section 22.2)
    PcrExtend,
}

impl CommandCode {
    /// The `TPM_CC` value.
    pub const fn value(self) -> u32 {
        match self {
            Self::GetCapability => 0x0000_017a,
            Self::PcrRead => 0x0000_017e,
            Self::PcrExtend => 0x0000_0182,
        }
    }
}

/// The command's name in the specification.
impl fmt::Display for CommandCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::GetCapability => "TPM2_GetCapability",
            Self::PcrRead => "TPM2_PCR_Read",
            Self::PcrExtend => "TPM2_PCR_Extend",
        })
    }
}

/// Whether a command or a response has an authorization area (`TPM_ST`, Part 2, section 6.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tag {
    /// `TPM_ST_NO_SESSIONS`
    NoSessions,
    /// `TPM_ST_SESSIONS`
    Sessions,
}

impl Tag {
    /// The `TPM_ST` value.
    pub const fn value(self) -> u16 {
        match self {
            Self::NoSessions => 0x8001,
            Self::Sessions => 0x8002,
        }
    }
}

/// A command's bytes. The constructors write what comes in front of the parameters, in the order that the
/// specification demands; parameters are appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    code: CommandCode,
    tag: Tag,
    bytes: Vec<u8>,
}

impl Command {
    /// A command without handles and without authorization.
    pub fn plain(code: CommandCode) -> Self {
        Self::start(code, Tag::NoSessions)
    }

    /// A command on one handle, authorized by the empty password (Part 1, section 19.4).
    ///
    /// This proves nothing and protects nothing. It is what registers ask for that anybody may extend.
    pub fn with_empty_password(code: CommandCode, handle: u32) -> Self {
        // TPMS_AUTH_COMMAND (Part 2, section 10.13.2): session, nonce, attributes, hmac; the sized ones are empty.
        const AUTHORIZATION_SIZE: u32 = 4 + 2 + 1 + 2;
        Self::start(code, Tag::Sessions).u32(handle).u32(AUTHORIZATION_SIZE).u32(PASSWORD).u16(0).u8(0).u16(0)
    }

    fn start(code: CommandCode, tag: Tag) -> Self {
        let command = Self { code, tag, bytes: Vec::with_capacity(64) };
        command.u16(tag.value()).u32(0).u32(code.value())
    }

    /// Which command this is.
    pub fn code(&self) -> CommandCode {
        self.code
    }

    /// Whether it has an authorization area: the response to it has one too.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// The whole command.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends a byte.
    #[must_use]
    pub fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    /// Appends a number of two bytes.
    #[must_use]
    pub fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends a number of four bytes.
    #[must_use]
    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends bytes as they are.
    ///
    /// A command may become larger than [`MAX_SIZE`](crate::transport::MAX_SIZE); transports refuse it then.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        // The first bytes are the header's own; no size is right before it is whole.
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() >= HEADER_SIZE {
            // What no u32 holds is far above MAX_SIZE, and so refused like any other command that is too large.
            let size = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
            self.bytes[SIZE].copy_from_slice(&size.to_be_bytes());
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_command_is_its_header_and_parameters() {
        let command = Command::plain(CommandCode::GetCapability).u32(5).u32(0).u32(64);
        let expected = [0x80, 0x01, 0, 0, 0, 22, 0, 0, 0x01, 0x7a, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 64];
        assert_eq!(command.as_bytes(), expected);
        assert_eq!((command.code(), command.tag()), (CommandCode::GetCapability, Tag::NoSessions));
    }

    #[test]
    fn an_authorized_command_has_handle_and_authorization_in_front() {
        let command = Command::with_empty_password(CommandCode::PcrExtend, 11).u32(0);
        let mut expected = vec![0x80, 0x02, 0, 0, 0, 31, 0, 0, 0x01, 0x82, 0, 0, 0, 11];
        expected.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(command.as_bytes(), expected);
        assert_eq!(command.tag(), Tag::Sessions);
    }
}
