//! Random layers of few names, so that they meet.

use std::collections::BTreeMap;

use erofs_image::{
    Metadata, Node, Tree,
    tree::{Device, Kind},
};
use proptest::prelude::*;

/// An entry of a random tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    Directory,
    Opaque,
    File,
    Whiteout,
    /// Another name of the first file.
    Link,
}

fn made() -> impl Strategy<Value = Made> {
    prop_oneof![
        4 => Just(Made::Directory),
        1 => Just(Made::Opaque),
        3 => Just(Made::File),
        1 => Just(Made::Whiteout),
        1 => Just(Made::Link),
    ]
}

/// Paths of few names, so that they meet.
pub fn entries() -> impl Strategy<Value = BTreeMap<String, Made>> {
    prop::collection::btree_map("[abc](/[abc]){0,3}", made(), 0..30).prop_map(|made| {
        let mut kept: BTreeMap<String, Made> = BTreeMap::new();
        let mut file = false;
        for (path, made) in made {
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let fits = parent.is_empty() || matches!(kept.get(parent), Some(Made::Directory | Made::Opaque));
            if fits && (made != Made::Link || file) {
                file |= made == Made::File;
                kept.insert(path, made);
            }
        }
        kept
    })
}

/// Each entry has the layer's number and its own in its metadata.
pub fn tree(entries: &BTreeMap<String, Made>, layer: u32) -> Tree {
    let mut tree = Tree::new(Metadata { uid: layer, ..Metadata::default() });
    let mut first = None;
    for (number, (path, made)) in entries.iter().enumerate() {
        let mut metadata = Metadata { uid: layer, gid: number as u32, ..Metadata::default() };
        let node = match made {
            Made::Directory => Node::directory(metadata),
            Made::Opaque => {
                metadata.xattrs.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
                Node::directory(metadata)
            }
            Made::File => Node::file(metadata, path.clone().into_bytes()),
            Made::Whiteout => Node::other(metadata, Kind::CharacterDevice(Device { major: 0, minor: 0 })),
            Made::Link => {
                tree.link(path.as_bytes(), first.unwrap()).unwrap();
                continue;
            }
        };
        tree.add(path.as_bytes(), node).unwrap();
        if *made == Made::File {
            first.get_or_insert(path.as_bytes());
        }
    }
    tree
}
