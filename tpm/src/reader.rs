//! Reading big-endian fields from a slice.

use crate::response::ResponseError;

/// What is left of a response. Each field is named as the specification does, for errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&mut self, field: &'static str, size: usize) -> Result<&'a [u8], ResponseError> {
        let left = self.0.len();
        let (bytes, rest) =
            self.0.split_at_checked(size).ok_or(ResponseError::Truncated { field, expected: size, found: left })?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ResponseError> {
        let left = self.0.len();
        let (bytes, rest) =
            self.0.split_first_chunk().ok_or(ResponseError::Truncated { field, expected: N, found: left })?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, ResponseError> {
        self.array(field).map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, ResponseError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, ResponseError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// A `TPM2B_*`: its size in two bytes, then that many bytes (Part 2, section 10.4.1).
    pub(crate) fn sized(&mut self, field: &'static str) -> Result<&'a [u8], ResponseError> {
        let size = self.u16(field)?;
        self.bytes(field, size.into())
    }

    /// A response's parameters behind their size (Part 1, section 18.7).
    pub(crate) fn parameters(&mut self) -> Result<&'a [u8], ResponseError> {
        let size = self.u32("parameterSize")?;
        // A size that no usize holds is larger than what is left.
        self.bytes("parameters", usize::try_from(size).unwrap_or(usize::MAX))
    }

    /// How many elements a `TPML_*` has (Part 2, section 10.9), up to a limit.
    pub(crate) fn count(&mut self, field: &'static str, limit: u32) -> Result<u32, ResponseError> {
        let found = self.u32(field)?;
        if found > limit {
            return Err(ResponseError::Count { field, limit, found });
        }
        Ok(found)
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.0.len()
    }

    /// All bytes that are left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    /// All bytes must have been read.
    pub(crate) fn end(self, field: &'static str) -> Result<(), ResponseError> {
        match self.0.len() {
            0 => Ok(()),
            found => Err(ResponseError::Trailing { field, found }),
        }
    }
}
