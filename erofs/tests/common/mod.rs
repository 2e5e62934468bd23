//! What the tests share: trees, comparisons, and the tools of erofs-utils.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::{
    collections::BTreeMap,
    process::{Command, Output},
    sync::Arc,
};

use erofs_image::{
    Image, ImageWriter, Options, Tree, Written,
    tree::{InodeId, Kind, printable},
};

pub mod odd;
pub mod random;
pub mod utils;

/// What a way of carrying a tree cannot carry.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lossy {
    pub xattrs: bool,
    pub special_modes: bool,
    pub links: bool,
    pub times: bool,
}

pub const EXACT: Lossy = Lossy { xattrs: false, special_modes: false, links: false, times: false };

/// Everything of a tree, by path.
pub fn listing(tree: &Tree, lossy: Lossy) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut first_names: BTreeMap<InodeId, String> = BTreeMap::new();
    let mut waiting = vec![(String::new(), Tree::ROOT)];
    while let Some((path, id)) = waiting.pop() {
        for (name, child) in tree.entries(id).iter().rev() {
            waiting.push((format!("{path}/{}", printable(name)), *child));
        }
        let first = first_names.entry(id).or_insert_with(|| path.clone()).clone();
        let line = describe(tree, id, lossy, &first);
        found.insert(path, line);
    }
    found
}

fn describe(tree: &Tree, id: InodeId, lossy: Lossy, first: &str) -> String {
    let node = tree.node(id);
    let metadata = &node.metadata;
    let what = match &node.kind {
        Kind::File(content) => {
            let size = content.size();
            let open = content.open().unwrap();
            let mut hasher = blake3::Hasher::new();
            let mut buffer = vec![0; 1 << 20];
            let mut at = 0;
            while at < size {
                let length = (size - at).min(1 << 20) as usize;
                open.read_exact_at(&mut buffer[..length], at).unwrap();
                hasher.update(&buffer[..length]);
                at += length as u64;
            }
            format!("file of {size} bytes, {}", hasher.finalize())
        }
        other => format!("{other:?}"),
    };
    let mode = if lossy.special_modes { metadata.mode & 0o777 } else { metadata.mode };
    let mtime = if lossy.times { Default::default() } else { metadata.mtime };
    let directory = matches!(node.kind, Kind::Directory);
    let links = if lossy.links || directory { String::new() } else { format!("{} {first}", tree.links(id)) };
    let xattrs = if lossy.xattrs { Default::default() } else { metadata.xattrs.clone() };
    let Kind::Symlink(_) = node.kind else {
        return format!("{what} {mode:o} {}:{} {:?} {links} {xattrs:?}", metadata.uid, metadata.gid, mtime);
    };
    format!("{what} {}:{} {:?} {links} {xattrs:?}", metadata.uid, metadata.gid, mtime)
}

/// Fails with the first entries that differ.
pub fn assert_same(expected: &BTreeMap<String, String>, found: &BTreeMap<String, String>, what: &str) {
    let keys = expected.keys().chain(found.keys());
    let differing = keys.filter(|key| expected.get(*key) != found.get(*key));
    let lines: Vec<_> = differing
        .take(5)
        .map(|key| format!("{key}:\n  expected {:?}\n  found    {:?}", expected.get(key), found.get(key)))
        .collect();
    assert!(lines.is_empty(), "{what}:\n{}", lines.join("\n"));
}

/// The image of a tree, in memory.
pub fn write(tree: &Tree, options: &Options) -> (Vec<u8>, Written) {
    let mut bytes = Vec::new();
    let written = ImageWriter::new(options.clone(), &mut bytes).unwrap().finish(tree.clone()).unwrap();
    (bytes, written)
}

/// The tree that our reader finds, after it has checked the image to its last byte.
pub fn read(bytes: Vec<u8>) -> Tree {
    let image = Arc::new(Image::open(bytes).unwrap());
    image.check().unwrap();
    image.tree().unwrap()
}

/// Runs a tool, and fails with its messages unless it succeeds.
pub fn tool(name: &str, arguments: &[&str]) -> Output {
    let output = Command::new(name).args(arguments).env("PATH", path()).output();
    let output = output.unwrap_or_else(|error| panic!("{name}: {error}; run 'scripts/install-deps test'"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{name} {arguments:?}: {}\n{text}", output.status);
    output
}

/// Debian has some among the system administrator's programs.
fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
