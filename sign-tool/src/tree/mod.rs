//! From a root tree, in whatever form it comes, to a directory that an image is made of.

pub mod acl;
pub mod namespace;
pub mod source;
pub mod staging;

pub use self::source::{Source, SourceError};
