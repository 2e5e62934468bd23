//! What is wrong with one field.

use std::borrow::Cow;

/// A field of the metadata is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}, found {found}")]
pub struct FieldError {
    /// Its path, such as `segments.0.encryption`.
    pub field: String,
    /// What it may be.
    pub expected: Cow<'static, str>,
    /// What it is.
    pub found: String,
}

/// The same, as it travels: a result with it is as small as one can be, which PID 1 has hundreds of.
pub(crate) type Fault = Box<FieldError>;

impl FieldError {
    pub(crate) fn new(
        field: impl Into<String>,
        expected: impl Into<Cow<'static, str>>,
        found: impl Into<String>,
    ) -> Fault {
        Box::new(Self { field: field.into(), expected: expected.into(), found: found.into() })
    }
}
