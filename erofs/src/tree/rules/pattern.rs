//! Patterns for paths.

use std::fmt;

use globset::{Glob, GlobBuilder};

use super::RuleError;

/// No path is longer, and the size of what is compiled grows with the pattern.
const PATTERN_LIMIT: usize = 4096;

/// A glob over a path relative to the root.
///
/// `*` stands for any bytes but slashes, `?` for one byte, `[a-z]` and `[!a-z]` for one of some or others, `{a,b}` for either;
/// `**` in place of a name stands for any number of directories, and at the end for all that is below. A backslash takes the
/// next character as it is. Patterns are matched to bytes: a letter beyond ASCII is several, and a name that is not UTF-8 can
/// be told by `?` and `*`. The root itself is matched by `.` and by `**` alone.
#[derive(Clone)]
pub struct Pattern {
    pub(super) glob: Glob,
}

impl Pattern {
    /// Understands a pattern.
    ///
    /// # Errors
    /// What no path can match: a slash at either end, or a syntax error.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let wrong = |reason: String| RuleError::Pattern { pattern: text.chars().take(100).collect(), reason };
        if text.is_empty() {
            return Err(wrong("expected a pattern, found nothing; the root is '.'".into()));
        }
        if text.len() > PATTERN_LIMIT {
            return Err(wrong(format!("expected at most {PATTERN_LIMIT} bytes, found {}", text.len())));
        }
        if text.starts_with('/') || text.ends_with('/') {
            return Err(wrong("expected a path from the root without a slash at either end; leave it out".into()));
        }
        let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
        glob.map(|glob| Self { glob }).map_err(|error| wrong(error.kind().to_string()))
    }

    pub(super) fn matches_root(&self) -> bool {
        matches!(self.glob.glob(), "." | "**")
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.glob.glob())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.glob.glob())
    }
}
