//! What the root tree is made of, besides what `--root` names.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use erofs_image::tree::rules::{Pattern, Rule};
use serde::Deserialize;

/// `[tree]`. Everything is applied in the order of these fields.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TreeSection {
    /// Which image of an OCI layout: its tag.
    pub oci_name: Option<String>,
    /// Trees laid over the root, the later over the earlier, as overlayfs does: files, relative to `iofs.toml`.
    pub overlay: Vec<PathBuf>,
    /// Patterns of entries to leave out, with all that is below them.
    pub exclude: Vec<Excluded>,
    /// Files and directories to add: `SRC:DST`, SRC relative to `iofs.toml`.
    pub add: Vec<Added>,
    /// Owners and groups by number: `PATTERN=UID:GID`.
    pub owner: Vec<Owned>,
    /// Modes in octal: `PATTERN=MODE`.
    pub mode: Vec<Moded>,
}

impl TreeSection {
    /// Whether the tree stays as it is.
    pub fn is_empty(&self) -> bool {
        let Self { oci_name: _, overlay, exclude, add, owner, mode } = self;
        overlay.is_empty() && exclude.is_empty() && add.is_empty() && owner.is_empty() && mode.is_empty()
    }

    /// Finds files relative to `home`.
    pub(super) fn found_from(&mut self, home: &Path) {
        for file in self.overlay.iter_mut().chain(self.add.iter_mut().map(|added| &mut added.source)) {
            *file = home.join(&*file);
        }
    }

    /// Adds what a command line names.
    pub fn extend(&mut self, other: Self) {
        self.oci_name = other.oci_name.or(self.oci_name.take());
        self.overlay.extend(other.overlay);
        self.exclude.extend(other.exclude);
        self.add.extend(other.add);
        self.owner.extend(other.owner);
        self.mode.extend(other.mode);
    }

    /// The rules that change what is there.
    pub(crate) fn rules(&self) -> Vec<Rule> {
        let exclude = self.exclude.iter().map(|Excluded(pattern)| Rule::Exclude { pattern: pattern.clone() });
        let owner = self.owner.iter().map(|Owned { pattern, uid, gid }| Rule::Owner {
            pattern: pattern.clone(),
            uid: *uid,
            gid: *gid,
        });
        let mode = self.mode.iter().map(|Moded { pattern, mode }| Rule::Mode { pattern: pattern.clone(), mode: *mode });
        exclude.chain(owner).chain(mode).collect()
    }
}

/// Text that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found:?}")]
pub struct RuleTextError {
    expected: String,
    found: String,
}

fn expected(what: impl Into<String>, found: &str) -> RuleTextError {
    RuleTextError { expected: what.into(), found: found.chars().take(200).collect() }
}

fn pattern(text: &str) -> Result<Pattern, RuleTextError> {
    Pattern::parse(text).map_err(|error| expected(format!("a pattern ({error})"), text))
}

/// What to leave out: a pattern.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Excluded(Pattern);

/// What to add where: `SRC:DST`.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Added {
    pub(crate) source: PathBuf,
    /// Relative to the root.
    pub(crate) path: Vec<u8>,
}

/// Who owns what: `PATTERN=UID:GID`.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Owned {
    pattern: Pattern,
    uid: u32,
    gid: u32,
}

/// Which mode what has: `PATTERN=MODE`.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Moded {
    pattern: Pattern,
    mode: u16,
}

impl FromStr for Excluded {
    type Err = RuleTextError;

    fn from_str(text: &str) -> Result<Self, RuleTextError> {
        pattern(text).map(Self)
    }
}

impl FromStr for Added {
    type Err = RuleTextError;

    fn from_str(text: &str) -> Result<Self, RuleTextError> {
        let wrong = || expected("SRC:DST, a file or directory here and its path in the image", text);
        let (source, path) = text.rsplit_once(':').ok_or_else(wrong)?;
        if source.is_empty() || path.is_empty() {
            return Err(wrong());
        }
        // Whether the path is sound is told with the tree that it belongs to.
        Ok(Self { source: source.into(), path: path.trim_matches('/').as_bytes().to_vec() })
    }
}

impl FromStr for Owned {
    type Err = RuleTextError;

    fn from_str(text: &str) -> Result<Self, RuleTextError> {
        let wrong = || expected("PATTERN=UID:GID, two numbers behind a pattern", text);
        let (left, ids) = text.rsplit_once('=').ok_or_else(wrong)?;
        let (uid, gid) = ids.split_once(':').ok_or_else(wrong)?;
        let number = |id: &str| id.parse().map_err(|_| wrong());
        Ok(Self { pattern: pattern(left)?, uid: number(uid)?, gid: number(gid)? })
    }
}

impl FromStr for Moded {
    type Err = RuleTextError;

    fn from_str(text: &str) -> Result<Self, RuleTextError> {
        let wrong = || expected("PATTERN=MODE, an octal number up to 7777 behind a pattern", text);
        let (left, mode) = text.rsplit_once('=').ok_or_else(wrong)?;
        let mode = u16::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(wrong)?;
        Ok(Self { pattern: pattern(left)?, mode })
    }
}

/// What files hold is understood as what command lines say.
macro_rules! from_text {
    ($($name:ident)*) => {$(
        impl TryFrom<String> for $name {
            type Error = RuleTextError;

            fn try_from(text: String) -> Result<Self, RuleTextError> {
                text.parse()
            }
        }
    )*};
}

from_text!(Excluded Added Owned Moded);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        let text = "exclude = ['usr/share/doc/**']\nadd = ['a:b:/etc/b/']\nowner = ['srv=x=33:0']\nmode = ['**=0755']";
        let section: TreeSection = toml::from_str(text).unwrap();
        assert_eq!((section.add[0].source.to_str(), &section.add[0].path[..]), (Some("a:b"), &b"etc/b"[..]));
        let rules: Vec<String> = section.rules().iter().map(ToString::to_string).collect();
        assert_eq!(rules, ["exclude usr/share/doc/**", "owner srv=x 33:0", "mode ** 0755"]);
        assert!(!section.is_empty() && TreeSection::default().is_empty());
    }

    #[test]
    fn what_is_no_rule_says_what_was_expected() {
        for (text, part) in [
            ("exclude = ['/usr']", "without a slash at either end"),
            ("exclude = ['[a']", "a pattern"),
            ("add = ['motd']", "SRC:DST"),
            ("add = [':etc/motd']", "SRC:DST"),
            ("owner = ['srv=root:root']", "PATTERN=UID:GID, two numbers"),
            ("owner = ['srv']", "PATTERN=UID:GID"),
            ("mode = ['etc=789']", "an octal number up to 7777"),
            ("mode = ['etc=17777']", "an octal number up to 7777"),
        ] {
            let error = toml::from_str::<TreeSection>(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }
}
