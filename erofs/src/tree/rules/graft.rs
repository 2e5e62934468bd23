//! What comes into a tree from elsewhere.

use super::RuleError;
use crate::tree::{
    InodeId, Kind, Metadata, Node, Problem, Tree,
    merge::{Effect, merge},
};

/// A tree, or a file without one.
#[derive(Debug, Clone)]
pub enum Graft {
    /// A directory with all that is below.
    Tree(Tree),
    /// Anything else.
    Node(Node),
}

impl Graft {
    /// Puts it at `path`, and returns how many entries came by it, the one at `path` among them.
    pub(super) fn put(&self, tree: &mut Tree, path: &[u8], rule: &str) -> Result<usize, RuleError> {
        match self {
            Self::Tree(graft) => {
                let graft = graft.clone().into_walked();
                let metadata = &graft.node(Tree::ROOT).metadata;
                let at = if path.is_empty() { Tree::ROOT } else { directory(tree, path, metadata, rule)? };
                let names = merge(tree, at, &graft, |_| Effect::Join);
                Ok(1 + names.map_err(|error| RuleError::Tree { rule: rule.into(), error })?)
            }
            Self::Node(node) => put_node(tree, path, node, rule).map(|()| 1),
        }
    }
}

fn put_node(tree: &mut Tree, path: &[u8], node: &Node, rule: &str) -> Result<(), RuleError> {
    let (parent, name) = parent(tree, path, &node.metadata, rule)?;
    let found = tree.entries(parent).get(name);
    if path.is_empty() || found.is_some_and(|id| matches!(tree.node(*id).kind, Kind::Directory)) {
        return Err(RuleError::Directory { rule: rule.into() });
    }
    tree.remove_child(parent, name);
    add(tree, parent, name, node.clone(), path, rule).map(|_| ())
}

/// The directory at `path`, in place of whatever else is there.
fn directory(tree: &mut Tree, path: &[u8], metadata: &Metadata, rule: &str) -> Result<InodeId, RuleError> {
    let (parent, name) = parent(tree, path, metadata, rule)?;
    match tree.entries(parent).get(name).copied() {
        Some(id) if matches!(tree.node(id).kind, Kind::Directory) => return Ok(id),
        Some(_) => tree.remove_child(parent, name),
        None => None,
    };
    add(tree, parent, name, Node::directory(metadata.clone()), path, rule)
}

/// The directory that shall hold what comes to `path`, and the name there.
fn parent<'p>(
    tree: &mut Tree,
    path: &'p [u8],
    metadata: &Metadata,
    rule: &str,
) -> Result<(InodeId, &'p [u8]), RuleError> {
    let (mut at, mut start) = (Tree::ROOT, 0);
    while let Some(length) = path[start..].iter().position(|byte| *byte == b'/') {
        let (name, so_far) = (&path[start..start + length], &path[..start + length]);
        at = match tree.entries(at).get(name).copied() {
            Some(id) => check_directory(tree, id, so_far, rule)?,
            None => {
                let made = Metadata { mtime: metadata.mtime, ..Metadata::with_mode(0o755) };
                add(tree, at, name, Node::directory(made), path, rule)?
            }
        };
        start += length + 1;
    }
    Ok((at, &path[start..]))
}

/// Links are not followed: nobody would see where a file went.
fn check_directory(tree: &Tree, id: InodeId, path: &[u8], rule: &str) -> Result<InodeId, RuleError> {
    let found = match tree.node(id).kind {
        Kind::Directory => return Ok(id),
        Kind::Symlink(_) => "a symbolic link",
        _ => "a file",
    };
    Err(RuleError::Parent { rule: rule.into(), path: path.to_vec(), found })
}

fn add(
    tree: &mut Tree,
    parent: InodeId,
    name: &[u8],
    node: Node,
    path: &[u8],
    rule: &str,
) -> Result<InodeId, RuleError> {
    let added = if path.starts_with(b"/") { Err(Problem::Absolute) } else { tree.add_child(parent, name, node) };
    added.map_err(|problem| RuleError::Tree { rule: rule.into(), error: problem.of(path) })
}
