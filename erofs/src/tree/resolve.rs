//! From paths to inodes, following symbolic links as if the tree were all there is.

use std::collections::VecDeque;

use super::{InodeId, Kind, Tree};

/// As many symbolic links as Linux follows for one name.
const LINK_LIMIT: usize = 40;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// To something that is there.
    Found(InodeId),
    /// To nothing yet: `name` is missing in `parent`, as the path itself says and no link.
    Missing {
        /// The directory in which it is missing.
        parent: InodeId,
        /// The first part of the path that is missing.
        name: Vec<u8>,
    },
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// A link on the way leads to nothing.
    #[error("a symbolic link on the way leads to nothing")]
    Dangling,
    /// Links lead to each other.
    #[error("symbolic links on the way lead in a circle")]
    Circle,
    /// Something on the way is not a directory.
    #[error("something on the way is not a directory")]
    ThroughFile,
}

impl Tree {
    /// Follows a path, and all links in it, without ever leaving the tree: `..` of the root is the root.
    ///
    /// # Errors
    /// A link to nothing or in a circle, or a file where a directory should be.
    pub fn resolve(&self, path: &[u8]) -> Result<Resolved, ResolveError> {
        let parts = |path: &[u8]| path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<VecDeque<_>>();
        let (mut at, mut links, mut waiting) = (Self::ROOT, 0, parts(path));
        // Parts that a link brought: what it leads to must exist.
        let mut of_link = 0_usize;
        while let Some(part) = waiting.pop_front() {
            let linked = of_link > 0;
            of_link = of_link.saturating_sub(1);
            if !matches!(self.node(at).kind, Kind::Directory) {
                return Err(ResolveError::ThroughFile);
            }
            match &*part {
                b"" | b"." => continue,
                b".." => {
                    at = self.parent(at);
                    continue;
                }
                _ => {}
            }
            let Some(found) = self.entries(at).get(&part).copied() else {
                let missing = Resolved::Missing { parent: at, name: part };
                return if linked { Err(ResolveError::Dangling) } else { Ok(missing) };
            };
            let Kind::Symlink(target) = &self.node(found).kind else {
                at = found;
                continue;
            };
            links += 1;
            if links > LINK_LIMIT {
                return Err(ResolveError::Circle);
            }
            if target.starts_with(b"/") {
                at = Self::ROOT;
            }
            let target = parts(target);
            of_link += target.len();
            target.into_iter().rev().for_each(|part| waiting.push_front(part));
        }
        Ok(Resolved::Found(at))
    }

    /// Up to `limit` bytes from the start of a file to which a path leads; `None` where there is no such file, or it cannot
    /// be read.
    pub fn read_file(&self, path: &[u8], limit: usize) -> Option<Vec<u8>> {
        let Ok(Resolved::Found(id)) = self.resolve(path) else { return None };
        let Kind::File(content) = &self.node(id).kind else { return None };
        let mut bytes = vec![0; content.size().min(limit as u64) as usize];
        content.open().and_then(|reader| reader.read_exact_at(&mut bytes, 0)).ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Metadata, Node};

    fn tree() -> Tree {
        let mut tree = Tree::new(Metadata::default());
        for name in [&b"d"[..], b"d/e"] {
            tree.add(name, Node::directory(Metadata::default())).unwrap();
        }
        tree.add(b"d/e/f", Node::file(Metadata::default(), b"content".to_vec())).unwrap();
        for (name, target) in [
            ("l", "d/e"),
            ("abs", "/d/e/f"),
            ("up", "../../../d"),
            ("d/e/back", "../../l"),
            ("nowhere", "d/no"),
            ("a", "b"),
            ("b", "a"),
            ("out", "../../etc/passwd"),
        ] {
            tree.add(name.as_bytes(), Node::symlink(Metadata::default(), target.as_bytes())).unwrap();
        }
        tree
    }

    #[test]
    fn links_are_followed_within_the_tree() {
        let tree = tree();
        let file = Ok(Resolved::Found(tree.find(b"d/e/f").unwrap()));
        for path in ["d/e/f", "l/f", "abs", "up/e/f", "l/back/back/f", "./d//e/f", "d/../../d/e/f"] {
            assert_eq!(tree.resolve(path.as_bytes()), file, "{path}");
        }
        assert_eq!(tree.resolve(b""), Ok(Resolved::Found(Tree::ROOT)));
        assert_eq!(tree.read_file(b"l/f", 100).unwrap(), b"content");
        assert_eq!(tree.read_file(b"l/f", 3).unwrap(), b"con");
        assert_eq!(tree.read_file(b"d", 3), None);
    }

    #[test]
    fn paths_that_lead_nowhere_say_why() {
        let tree = tree();
        let e = tree.find(b"d/e").unwrap();
        assert_eq!(tree.resolve(b"l/x/y"), Ok(Resolved::Missing { parent: e, name: b"x".to_vec() }));
        for path in [&b"nowhere"[..], b"nowhere/x", b"out"] {
            assert_eq!(tree.resolve(path), Err(ResolveError::Dangling));
        }
        assert_eq!(tree.resolve(b"a/x"), Err(ResolveError::Circle));
        for path in [&b"d/e/f/x"[..], b"abs/x", b"abs/.", b"d/e/f/../f"] {
            assert_eq!(tree.resolve(path), Err(ResolveError::ThroughFile));
        }
    }
}
