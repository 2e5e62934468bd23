//! Reading and writing the big-endian structures of TPM 2.0 (Library specification, Part 2).

/// Why a structure was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// It ends too early.
    #[error("{field}: expected {expected} bytes, found {found}")]
    Truncated {
        /// The field's name in the specification.
        field: &'static str,
        /// How many bytes it has.
        expected: usize,
        /// How many are left.
        found: usize,
    },
    /// It goes on behind its end.
    #[error("{field}: expected its end, found {found} more bytes")]
    Trailing {
        /// The structure's name in the specification.
        field: &'static str,
        /// How many bytes are left.
        found: usize,
    },
    /// A field holds something else than it may.
    #[error("{field}: expected {expected}, found {found:#x}")]
    Value {
        /// The field's name in the specification.
        field: &'static str,
        /// What may be there.
        expected: &'static str,
        /// What is.
        found: u32,
    },
}

/// What is left of a structure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&mut self, field: &'static str, size: usize) -> Result<&'a [u8], FieldError> {
        let found = self.0.len();
        let split = self.0.split_at_checked(size);
        let (bytes, rest) = split.ok_or(FieldError::Truncated { field, expected: size, found })?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, FieldError> {
        let bytes = self.bytes(field, 2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, FieldError> {
        let bytes = self.bytes(field, 4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A `TPM2B_*`: its size in two bytes, then that many bytes (Part 2, section 10.4.1).
    pub(crate) fn sized(&mut self, field: &'static str) -> Result<&'a [u8], FieldError> {
        let size = self.u16(field)?;
        self.bytes(field, size.into())
    }

    /// All bytes must have been read.
    pub(crate) fn end(self, field: &'static str) -> Result<(), FieldError> {
        match self.0.len() {
            0 => Ok(()),
            found => Err(FieldError::Trailing { field, found }),
        }
    }
}

/// A `TPM2B_*` around bytes, of which there are fewer than 65536.
pub(crate) fn sized(bytes: &[u8]) -> Vec<u8> {
    let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&size.to_be_bytes(), bytes].concat()
}
