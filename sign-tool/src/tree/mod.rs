//! From a root tree, in whatever form it comes, to a directory that an image is made of.

#[doc(hidden)]
pub mod compare;
pub mod namespace;
#[doc(hidden)]
pub mod odd;
pub mod source;
pub mod staging;

pub use self::source::{Source, SourceError, Tree};
