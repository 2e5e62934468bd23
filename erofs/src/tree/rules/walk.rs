//! Which entries patterns match.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use globset::{Candidate, GlobSet, GlobSetBuilder};

use super::{Pattern, RuleError};
use crate::tree::{InodeId, Kind, Tree, below};

/// An entry: the name that a walk comes by, and what it names.
pub(super) struct Place<'t> {
    pub(super) id: InodeId,
    /// With its directory; the root has none.
    pub(super) name: Option<(InodeId, &'t [u8])>,
}

/// Calls `found` with each pattern's number and each entry that it matches, entries in the order of a walk.
pub(super) fn matches<'p>(
    tree: &Tree,
    patterns: impl Iterator<Item = (usize, &'p Pattern)>,
    mut found: impl FnMut(usize, &Place<'_>),
) -> Result<(), RuleError> {
    let (numbers, patterns): (Vec<usize>, Vec<&Pattern>) = patterns.unzip();
    if patterns.is_empty() {
        return Ok(());
    }
    let set = compile(&patterns)?;
    let root = Place { id: Tree::ROOT, name: None };
    for (number, _) in numbers.iter().zip(&patterns).filter(|(_, pattern)| pattern.matches_root()) {
        found(*number, &root);
    }
    let (mut waiting, mut matched) = (vec![(Vec::new(), Tree::ROOT)], Vec::new());
    while let Some((path, directory)) = waiting.pop() {
        for (name, id) in tree.entries(directory) {
            let child = below(&path, name);
            set.matches_candidate_into(&Candidate::new(OsStr::from_bytes(&child)), &mut matched);
            let place = Place { id: *id, name: Some((directory, name)) };
            matched.iter().for_each(|index| found(numbers[*index], &place));
            if matches!(tree.node(*id).kind, Kind::Directory) {
                waiting.push((child, *id));
            }
        }
    }
    Ok(())
}

fn compile(patterns: &[&Pattern]) -> Result<GlobSet, RuleError> {
    let mut builder = GlobSetBuilder::new();
    for pattern in patterns {
        builder.add(pattern.glob.clone());
    }
    builder.build().map_err(|error| RuleError::Pattern {
        pattern: error.glob().unwrap_or("all patterns together").to_owned(),
        reason: error.kind().to_string(),
    })
}
