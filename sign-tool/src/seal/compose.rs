//! The tree of an image: what `--root` names, with overlays over it and rules applied.

use std::{num::NonZeroUsize, path::Path, sync::Arc};

use erofs_image::{
    Tree,
    source::{
        archive::{Keep, Unpacked},
        directory,
        oci::Choice,
    },
    tree::{
        OverlayError, overlay,
        rules::{self, Rule},
    },
};
use iofs_policy::manifest::Architecture;

use super::{
    SealRequest,
    config::tree::{Added, TreeSection},
};
use crate::{
    erofs,
    initramfs::kernel::KernelImage,
    report::{ExitStatus, Failure},
    tree::source::Source,
};

/// Loads it; `source` is what `--root` names, and `keep` is for what comes out of compressed archives. `None` where a ready image is to be used as it is.
pub(super) fn load(
    source: &Source,
    request: &SealRequest,
    kernel: Option<&KernelImage>,
    keep: &Keep,
) -> Result<Option<Unpacked>, Failure> {
    let section = &request.config.tree;
    let architecture = request.config.image.architecture.or(kernel.map(|kernel| kernel.machine.architecture()));
    let choice = Choice {
        name: section.oci_name.clone(),
        architecture: architecture.map(|name| go_name(name).to_owned()),
        variant: None,
    };
    if matches!(source, Source::Erofs(_)) && section.is_empty() {
        return Ok(None);
    }
    let tree_of = |source: &Source| tree_of(source, &choice, request.threads, keep);
    let mut found = tree_of(source)?;
    for path in &section.overlay {
        let upper = tree_of(&Source::open(path)?)?;
        found.remarks.extend(upper.remarks);
        let refused = |error: OverlayError| Failure::new(ExitStatus::BadInput, format!("{}: {error}", path.display()));
        overlay(&mut found.tree, upper.tree).map_err(refused)?;
    }
    found.remarks.extend(apply(&mut found.tree, section)?);
    Ok(Some(found))
}

/// What Go calls processors, and with it OCI.
fn go_name(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "amd64",
        Architecture::Arm64 => "arm64",
    }
}

fn tree_of(source: &Source, choice: &Choice, threads: NonZeroUsize, keep: &Keep) -> Result<Unpacked, Failure> {
    match source {
        Source::Erofs(path) => Ok(Unpacked { tree: of_image(path)?, remarks: Vec::new() }),
        other => Ok(other.load(choice, threads, keep)?.expect("all but ready images are read")),
    }
}

/// The tree that an image holds.
fn of_image(path: &Path) -> Result<Tree, Failure> {
    erofs::check_image(path, None)?;
    Arc::new(erofs::open(path)?).tree().map_err(erofs::damaged(path))
}

/// Follows the rules, and tells which of them had no effect.
fn apply(tree: &mut Tree, section: &TreeSection) -> Result<Vec<String>, Failure> {
    let add = |added: &Added| {
        let graft = directory::graft(&added.source)?;
        Ok(Rule::Add { path: added.path.clone(), graft })
    };
    let added = section.add.iter().map(add).collect::<Result<Vec<_>, Failure>>()?;
    let rules: Vec<Rule> = section.rules().into_iter().chain(added).collect();
    let outcomes = rules::apply(tree, &rules).map_err(|error| Failure::new(ExitStatus::Usage, error.to_string()))?;
    let idle = outcomes.into_iter().filter(|outcome| outcome.matched == 0);
    Ok(idle.map(|outcome| format!("{}: nothing in the tree matches", outcome.rule)).collect())
}
