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

/// An entry as a header and content (POSIX.1-2017 `pax`, "ustar Interchange Format").
fn ustar(name: &str, kind: u8, link: &str, owner: (u32, u32), content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000000");
    put(108, &format!("{:07o}", owner.0));
    put(116, &format!("{:07o}", owner.1));
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    put(329, "0000000");
    put(337, "0000000");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut entry = header.to_vec();
    entry.extend(content);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

/// The archive of a layer whose entries have the metadata that [`tree`] gives them; signs stand where `places` puts them.
pub fn archive(entries: &BTreeMap<String, Made>, number: u32, places: &[prop::sample::Index]) -> Vec<u8> {
    let mut parts = vec![ustar("./", b'5', "", (number, 0), b"")];
    let (mut signs, mut first) = (Vec::new(), String::new());
    for (index, (path, made)) in entries.iter().enumerate() {
        let owner = (number, index as u32);
        let (above, name) = path.rsplit_once('/').map_or(("", &**path), |(above, name)| (&path[..=above.len()], name));
        match made {
            Made::Whiteout => signs.push(ustar(&format!("{above}.wh.{name}"), b'0', "", owner, b"")),
            Made::Opaque => signs.push(ustar(&format!("{path}/.wh..wh..opq"), b'0', "", owner, b"")),
            _ => {}
        }
        parts.extend(match made {
            Made::Directory | Made::Opaque => Some(ustar(path, b'5', "", owner, b"")),
            Made::File => Some(ustar(path, b'0', "", owner, path.as_bytes())),
            Made::Link => Some(ustar(path, b'1', &first, owner, b"")),
            Made::Whiteout => None,
        });
        if *made == Made::File && first.is_empty() {
            first.clone_from(path);
        }
    }
    for (number, sign) in signs.into_iter().enumerate() {
        let place = places.get(number % places.len().max(1)).map_or(0, |place| place.index(parts.len() + 1));
        parts.insert(place, sign);
    }
    [parts.concat(), vec![0; 1024]].concat()
}
