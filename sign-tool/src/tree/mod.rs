//! Root trees, in whatever form they come.

#[doc(hidden)]
pub mod compare;
#[doc(hidden)]
pub mod odd;
pub mod source;

pub use self::source::{Source, SourceError};
