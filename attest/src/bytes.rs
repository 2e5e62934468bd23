//! Reading fields of fixed size from a slice, in either byte order: TPM structures are big-endian, firmware's log is
//! little-endian. And writing the one shape that TPMs take.

/// Why a structure could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The bytes end within a field.
    #[error("{field}: expected {expected} bytes, found {found}")]
    Truncated {
        /// The field, as its specification names it.
        field: &'static str,
        /// Its size in bytes.
        expected: usize,
        /// The bytes that are left.
        found: usize,
    },
    /// Bytes follow the last field.
    #[error("{field}: expected nothing behind it, found {found} bytes")]
    Trailing {
        /// The structure.
        field: &'static str,
        /// How many bytes follow.
        found: usize,
    },
}

/// What is left of a structure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&mut self, field: &'static str, size: usize) -> Result<&'a [u8], FieldError> {
        let found = self.0.len();
        let (bytes, rest) =
            self.0.split_at_checked(size).ok_or(FieldError::Truncated { field, expected: size, found })?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FieldError> {
        let found = self.0.len();
        let (bytes, rest) = self.0.split_first_chunk().ok_or(FieldError::Truncated { field, expected: N, found })?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, FieldError> {
        self.array(field).map(u8::from_be_bytes)
    }

    pub(crate) fn u16_be(&mut self, field: &'static str) -> Result<u16, FieldError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(crate) fn u32_be(&mut self, field: &'static str) -> Result<u32, FieldError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(crate) fn u64_be(&mut self, field: &'static str) -> Result<u64, FieldError> {
        self.array(field).map(u64::from_be_bytes)
    }

    pub(crate) fn u16_le(&mut self, field: &'static str) -> Result<u16, FieldError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32_le(&mut self, field: &'static str) -> Result<u32, FieldError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64_le(&mut self, field: &'static str) -> Result<u64, FieldError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A `TPM2B_*`: its size in two bytes, then that many bytes (TPM 2.0 Library, Part 2, section 10.4.1).
    pub(crate) fn sized(&mut self, field: &'static str) -> Result<&'a [u8], FieldError> {
        let size = self.u16_be(field)?;
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
