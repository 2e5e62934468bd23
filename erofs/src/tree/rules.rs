//! Rules for what a tree shall have, and how.
//!
//! ```
//! use erofs_image::{Metadata, Node, Tree, tree::rules::{Graft, Pattern, Rule, apply}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut tree = Tree::new(Metadata::with_mode(0o755));
//! tree.add(b"doc", Node::directory(Metadata::with_mode(0o755)))?;
//! tree.add(b"doc/readme", Node::file(Metadata::with_mode(0o644), b"Long.".to_vec()))?;
//!
//! let hostname = Node::file(Metadata::with_mode(0o600), b"node\n".to_vec());
//! let rules = [
//!     Rule::Exclude { pattern: Pattern::parse("doc/**")? },
//!     Rule::Add { path: b"etc/hostname".to_vec(), graft: Graft::Node(hostname) },
//!     Rule::Mode { pattern: Pattern::parse("etc/*")?, mode: 0o644 },
//!     Rule::Owner { pattern: Pattern::parse("srv/**")?, uid: 33, gid: 33 },
//! ];
//! let outcomes = apply(&mut tree, &rules)?;
//! let unused: Vec<_> = outcomes.iter().filter(|outcome| outcome.matched == 0).collect();
//! assert_eq!(unused[0].rule, "owner srv/** 33:33");
//! assert!(tree.find(b"doc/readme").is_none() && tree.find(b"etc/hostname").is_some());
//! # Ok(())
//! # }
//! ```

mod graft;
mod pattern;
mod walk;

use std::fmt;

pub use self::{graft::Graft, pattern::Pattern};
use super::{InodeId, Kind, Tree, TreeError, error::printable};
use crate::archive::acl;

/// One rule.
#[derive(Debug, Clone)]
pub enum Rule {
    /// Takes entries away, with all that is below them. The root stays.
    Exclude {
        /// Which.
        pattern: Pattern,
    },
    /// Puts a tree or a file from elsewhere where `path` says. Directories that lead there and are missing become root's, with
    /// mode 0755, as old as what is put into them. A tree joins a directory that is there: its own metadata and its files
    /// win. Anything else replaces a file or link of that name, and is refused in place of a directory.
    Add {
        /// Relative to the root; a tree can also take the empty path, which is the root's.
        path: Vec<u8>,
        /// What comes there.
        graft: Graft,
    },
    /// Gives entries to an owner and a group. Modes stay as they are.
    Owner {
        /// Which.
        pattern: Pattern,
        /// The owner.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// Sets the 12 bits of the mode, and with them what an access control list says of owner, mask and others. Symbolic links
    /// have no mode to set, and are not counted.
    Mode {
        /// Which.
        pattern: Pattern,
        /// The bits.
        mode: u16,
    },
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exclude { pattern } => write!(formatter, "exclude {pattern}"),
            Self::Add { path, .. } => write!(formatter, "add {}", printable(path)),
            Self::Owner { pattern, uid, gid } => write!(formatter, "owner {pattern} {uid}:{gid}"),
            Self::Mode { pattern, mode } => write!(formatter, "mode {pattern} {mode:04o}"),
        }
    }
}

/// What a rule did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The rule, as people read it.
    pub rule: String,
    /// How many entries it matched, or put into the tree. A rule that matched nothing is often a mistake.
    pub matched: usize,
}

/// A rule that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// A pattern that means nothing.
    #[error("pattern {pattern:?}: {reason}")]
    Pattern {
        /// As it was given.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A number that no file can have.
    #[error("{rule}: {field}: expected at most {limit}, found {found}")]
    Number {
        /// The rule.
        rule: String,
        /// Which of its numbers.
        field: &'static str,
        /// The largest that there is.
        limit: String,
        /// What it says.
        found: String,
    },
    /// There is no such place.
    #[error("{rule}: {} is {found}, no directory; name the path that it leads to, or exclude it first", printable(.path))]
    Parent {
        /// The rule.
        rule: String,
        /// The part of the path.
        path: Vec<u8>,
        /// What is there.
        found: &'static str,
    },
    /// A file where a directory is.
    #[error("{rule}: expected a name for the file, found a directory there; name the file in it, or exclude it first")]
    Directory {
        /// The rule.
        rule: String,
    },
    /// No tree can hold it.
    #[error("{rule}: {error}")]
    Tree {
        /// The rule.
        rule: String,
        /// What is wrong with it.
        error: TreeError,
    },
}

/// Applies rules, and returns what each did, in their order.
///
/// All rules of one kind come before those of the next: exclude, add, owner, mode. So what is added is never excluded, and
/// gets the owners and modes that rules say. Among rules of one kind, a later one wins. An entry counts for each pattern that
/// matches it, even where another rule excludes it too. A file with several names is one file: a rule for one of its names
/// changes it under all.
///
/// # Errors
/// A rule with an impossible number, or a path that leads nowhere. The tree may then have changed.
pub fn apply(tree: &mut Tree, rules: &[Rule]) -> Result<Vec<Outcome>, RuleError> {
    rules.iter().try_for_each(check)?;
    let mut matched = vec![0; rules.len()];
    exclude(tree, rules, &mut matched)?;
    for (rule, matched) in rules.iter().zip(&mut matched) {
        if let Rule::Add { path, graft } = rule {
            *matched = graft.put(tree, path, &rule.to_string())?;
        }
    }
    own(tree, rules, &mut matched)?;
    set_modes(tree, rules, &mut matched)?;
    let outcomes = rules.iter().zip(matched);
    Ok(outcomes.map(|(rule, matched)| Outcome { rule: rule.to_string(), matched }).collect())
}

fn check(rule: &Rule) -> Result<(), RuleError> {
    let number = |field, limit: &str, found: String| {
        Err(RuleError::Number { rule: rule.to_string(), field, limit: limit.into(), found })
    };
    // 4294967295 is the kernel's "no such id".
    match rule {
        Rule::Owner { uid: u32::MAX, .. } => number("owner", "4294967294", u32::MAX.to_string()),
        Rule::Owner { gid: u32::MAX, .. } => number("group", "4294967294", u32::MAX.to_string()),
        Rule::Mode { mode, .. } if *mode > 0o7777 => number("mode", "7777", format!("{mode:o}")),
        _ => Ok(()),
    }
}

fn exclude(tree: &mut Tree, rules: &[Rule], matched: &mut [usize]) -> Result<(), RuleError> {
    let patterns = rules.iter().enumerate().filter_map(|(number, rule)| match rule {
        Rule::Exclude { pattern } => Some((number, pattern)),
        _ => None,
    });
    let mut removed = Vec::new();
    walk::matches(tree, patterns, |rule, place| {
        if let Some((parent, name)) = place.name {
            matched[rule] += 1;
            removed.push((parent, name.to_vec()));
        }
    })?;
    for (parent, name) in removed {
        tree.remove_child(parent, &name);
    }
    Ok(())
}

fn own(tree: &mut Tree, rules: &[Rule], matched: &mut [usize]) -> Result<(), RuleError> {
    let patterns = rules.iter().enumerate().filter_map(|(number, rule)| match rule {
        Rule::Owner { pattern, .. } => Some((number, pattern)),
        _ => None,
    });
    for (rule, id) in ordered(tree, patterns)? {
        matched[rule] += 1;
        if let Rule::Owner { uid, gid, .. } = &rules[rule] {
            let metadata = tree.metadata_mut(id);
            (metadata.uid, metadata.gid) = (*uid, *gid);
        }
    }
    Ok(())
}

fn set_modes(tree: &mut Tree, rules: &[Rule], matched: &mut [usize]) -> Result<(), RuleError> {
    let patterns = rules.iter().enumerate().filter_map(|(number, rule)| match rule {
        Rule::Mode { pattern, .. } => Some((number, pattern)),
        _ => None,
    });
    for (rule, id) in ordered(tree, patterns)? {
        if let Rule::Mode { mode, .. } = &rules[rule]
            && !matches!(tree.node(id).kind, Kind::Symlink(_))
        {
            matched[rule] += 1;
            set_mode(tree, id, *mode);
        }
    }
    Ok(())
}

/// As `chmod` does: an access control list decides in place of the mode, so it changes too.
fn set_mode(tree: &mut Tree, id: InodeId, mode: u16) {
    let metadata = tree.metadata_mut(id);
    metadata.mode = mode;
    if let Some(list) = metadata.xattrs.get_mut(acl::Kind::Access.attribute()) {
        acl::set_mode(list, mode);
    }
}

/// What rules match, in the rules' order.
fn ordered<'p>(
    tree: &Tree,
    patterns: impl Iterator<Item = (usize, &'p Pattern)>,
) -> Result<Vec<(usize, InodeId)>, RuleError> {
    let mut found = Vec::new();
    walk::matches(tree, patterns, |rule, place| found.push((rule, place.id)))?;
    found.sort_by_key(|(rule, _)| *rule);
    Ok(found)
}
