//! Writing commands (Part 1, section 18).

use std::fmt;

use zeroize::Zeroizing;

use crate::{name::Name, transport::HEADER_SIZE};

/// Which command (Part 2, section 6.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommandCode {
    /// `TPM2_NV_Increment` (Part 3, section 31.8)
    NvIncrement,
    /// `TPM2_CreatePrimary` (Part 3, section 24.1)
    CreatePrimary,
    /// `TPM2_PCR_Event` (Part 3, section 22.3)
    PcrEvent,
    /// `TPM2_NV_Read` (Part 3, section 31.13)
    NvRead,
    /// `TPM2_Import` (Part 3, section 13.3)
    Import,
    /// `TPM2_Load` (Part 3, section 12.2)
    Load,
    /// `TPM2_Unseal` (Part 3, section 12.7)
    Unseal,
    /// `TPM2_FlushContext` (Part 3, section 28.4)
    FlushContext,
    /// `TPM2_LoadExternal` (Part 3, section 12.3)
    LoadExternal,
    /// `TPM2_NV_ReadPublic` (Part 3, section 31.6)
    NvReadPublic,
    /// `TPM2_PolicyNV` (Part 3, section 23.9)
    PolicyNv,
    /// `TPM2_PolicyOR` (Part 3, section 23.6)
    PolicyOr,
    /// `TPM2_PolicyAuthorize` (Part 3, section 23.16)
    PolicyAuthorize,
    /// `TPM2_PolicyAuthValue` (Part 3, section 23.17)
    PolicyAuthValue,
    /// `TPM2_ReadPublic` (Part 3, section 12.4)
    ReadPublic,
    /// `TPM2_StartAuthSession` (Part 3, section 11.1)
    StartAuthSession,
    /// `TPM2_VerifySignature` (Part 3, section 20.1)
    VerifySignature,
    /// `TPM2_GetCapability` (Part 3, section 30.2)
    GetCapability,
    /// `TPM2_GetRandom` (Part 3, section 16.1)
    GetRandom,
    /// `TPM2_PCR_Read` (Part 3, section 22.4)
    PcrRead,
    /// `TPM2_PolicyPCR` (Part 3, section 23.7)
    PolicyPcr,
    /// `TPM2_PCR_Extend` (Part 3, section 22.2)
    PcrExtend,
    /// `TPM2_PolicyGetDigest` (Part 3, section 23.19)
    PolicyGetDigest,
}

impl CommandCode {
    /// The `TPM_CC` value and the name in the specification.
    const fn parts(self) -> (u32, &'static str) {
        match self {
            Self::CreatePrimary => (0x131, "TPM2_CreatePrimary"),
            Self::NvIncrement => (0x134, "TPM2_NV_Increment"),
            Self::PcrEvent => (0x13c, "TPM2_PCR_Event"),
            Self::PolicyNv => (0x149, "TPM2_PolicyNV"),
            Self::NvRead => (0x14e, "TPM2_NV_Read"),
            Self::Import => (0x156, "TPM2_Import"),
            Self::Load => (0x157, "TPM2_Load"),
            Self::Unseal => (0x15e, "TPM2_Unseal"),
            Self::FlushContext => (0x165, "TPM2_FlushContext"),
            Self::LoadExternal => (0x167, "TPM2_LoadExternal"),
            Self::NvReadPublic => (0x169, "TPM2_NV_ReadPublic"),
            Self::PolicyAuthorize => (0x16a, "TPM2_PolicyAuthorize"),
            Self::PolicyOr => (0x171, "TPM2_PolicyOR"),
            Self::PolicyAuthValue => (0x16b, "TPM2_PolicyAuthValue"),
            Self::ReadPublic => (0x173, "TPM2_ReadPublic"),
            Self::StartAuthSession => (0x176, "TPM2_StartAuthSession"),
            Self::VerifySignature => (0x177, "TPM2_VerifySignature"),
            Self::GetCapability => (0x17a, "TPM2_GetCapability"),
            Self::GetRandom => (0x17b, "TPM2_GetRandom"),
            Self::PcrRead => (0x17e, "TPM2_PCR_Read"),
            Self::PolicyPcr => (0x17f, "TPM2_PolicyPCR"),
            Self::PcrExtend => (0x182, "TPM2_PCR_Extend"),
            Self::PolicyGetDigest => (0x189, "TPM2_PolicyGetDigest"),
        }
    }

    /// The `TPM_CC` value.
    pub const fn value(self) -> u32 {
        self.parts().0
    }

    /// Whether the response has a handle in front of its parameters.
    pub const fn answers_handle(self) -> bool {
        matches!(self, Self::CreatePrimary | Self::Load | Self::LoadExternal | Self::StartAuthSession)
    }
}

/// The command's name in the specification.
impl fmt::Display for CommandCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.parts().1)
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

/// A command without its authorizations: those depend on the session's state, and come in when it is sent.
///
/// Parameters may be secrets: they are zeroed afterwards, and not shown.
pub struct Command {
    code: CommandCode,
    handles: Vec<u8>,
    /// What authorizations cover instead of the handles (Part 1, section 16).
    names: Vec<u8>,
    parameters: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Command").field("code", &self.code).finish_non_exhaustive()
    }
}

/// Room for the parameters of most commands, so that secrets are not left behind by a growing vector.
const ROOM: usize = 512;

impl Command {
    /// A command without handles and parameters. Handles come first, then parameters, in the order of Part 3.
    pub fn new(code: CommandCode) -> Self {
        let parameters = Zeroizing::new(Vec::with_capacity(ROOM));
        Self { code, handles: Vec::new(), names: Vec::new(), parameters }
    }

    /// Which command this is.
    pub fn code(&self) -> CommandCode {
        self.code
    }

    /// Appends the handle of a register, a session or a hierarchy: the handle is its Name (Part 1, section 16).
    #[must_use]
    pub fn handle(mut self, handle: u32) -> Self {
        self.handles.extend_from_slice(&handle.to_be_bytes());
        self.names.extend_from_slice(&handle.to_be_bytes());
        self
    }

    /// Appends the handle of an object or of an NV index, with its Name.
    #[must_use]
    pub fn named(mut self, handle: u32, name: &Name) -> Self {
        self.handles.extend_from_slice(&handle.to_be_bytes());
        self.names.extend_from_slice(name.as_bytes());
        self
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

    /// Appends a `TPM2B_*`. What is larger than 65535 bytes makes a command that every transport refuses.
    #[must_use]
    pub fn sized(self, bytes: &[u8]) -> Self {
        self.u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX)).bytes(bytes)
    }

    /// Appends bytes as they are.
    ///
    /// A command may become larger than [`MAX_SIZE`](crate::transport::MAX_SIZE); transports refuse it then.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.parameters.extend_from_slice(bytes);
        self
    }

    /// The Names of the handles, one after the other.
    pub(crate) fn names(&self) -> &[u8] {
        &self.names
    }

    /// The parameters as they are before any encryption.
    pub(crate) fn parameters(&self) -> &[u8] {
        &self.parameters
    }

    /// The whole command, with these authorizations (TPMS_AUTH_COMMAND, one after the other) and these parameters.
    pub(crate) fn encode(&self, authorizations: &[u8], parameters: &[u8]) -> Vec<u8> {
        let tag = if authorizations.is_empty() { Tag::NoSessions } else { Tag::Sessions };
        let area = if authorizations.is_empty() { 0 } else { 4 + authorizations.len() };
        let size = HEADER_SIZE + self.handles.len() + area + parameters.len();
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(&tag.value().to_be_bytes());
        // What no u32 holds is far above MAX_SIZE, and so refused like any other command that is too large.
        bytes.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(&self.code.value().to_be_bytes());
        bytes.extend_from_slice(&self.handles);
        if tag == Tag::Sessions {
            // At most three authorizations of at most some hundred bytes.
            bytes.extend_from_slice(&(authorizations.len() as u32).to_be_bytes());
            bytes.extend_from_slice(authorizations);
        }
        bytes.extend_from_slice(parameters);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_command_is_its_header_and_parameters() {
        let command = Command::new(CommandCode::GetCapability).u32(5).u32(0).u32(64);
        let expected = [0x80, 0x01, 0, 0, 0, 22, 0, 0, 0x01, 0x7a, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 64];
        assert_eq!(command.encode(&[], command.parameters()), expected);
    }

    #[test]
    fn an_authorized_command_has_handle_and_authorization_in_front() {
        let command = Command::new(CommandCode::PcrExtend).handle(11).u32(0);
        let mut expected = vec![0x80, 0x02, 0, 0, 0, 31, 0, 0, 0x01, 0x82, 0, 0, 0, 11];
        expected.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let password = [0x40, 0, 0, 9, 0, 0, 0, 0, 0];
        assert_eq!(command.encode(&password, command.parameters()), expected);
        assert_eq!(command.names(), [0, 0, 0, 11]);
    }

    #[test]
    fn parameters_are_not_shown() {
        let command = Command::new(CommandCode::Unseal).sized(b"secret");
        assert_eq!(format!("{command:?}"), "Command { code: Unseal, .. }");
    }
}
