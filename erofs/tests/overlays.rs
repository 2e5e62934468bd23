//! A tree over another is what overlayfs shows.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use common::{
    EXACT, assert_same, listing, odd,
    random::{Made, entries, tree},
    tool, write,
};
use erofs_image::{
    Compression, Metadata, Node, Options, Tree,
    source::directory,
    tree::{Kind, overlay},
};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};

/// An overlay that is mounted until it is dropped.
struct Mount {
    folder: tempfile::TempDir,
}

impl Mount {
    /// With directories for the layers, still empty and not mounted.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the kernel shows, and what we make of the same layers.
    fn both(&self, option: &str) -> (Tree, Tree) {
        let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| self.path(name));
        let mut ours = directory::load(&lower).unwrap();
        overlay(&mut ours, directory::load(&upper).unwrap()).unwrap();
        let layers = [("lowerdir", lower), ("upperdir", upper), ("workdir", work)];
        let layers: Vec<_> = layers.iter().map(|(key, path)| format!("{key}={}", path.display())).collect();
        let options = format!("{}{option}", layers.join(","));
        tool("mount", &["-t", "overlay", "overlay", "-o", &options, merged.to_str().unwrap()]);
        (directory::load(&merged).unwrap(), ours)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.path("merged")).status();
    }
}

fn whiteout(path: &Path) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).unwrap();
}

fn mark(path: &Path, attribute: &str, value: &[u8]) {
    lsetxattr(path, attribute, value, XattrFlags::empty()).unwrap();
}

/// Every kind of thing over every other.
fn fill(lower: &Path, upper: &Path) {
    for root in [lower, upper] {
        for name in ["joined/deep/er", "opaque/x", "only"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
    }
    for name in
        ["joined/f", "joined/g", "joined/deep/h", "opaque/gone", "opaque/x/gone", "only/here", "file", "covered"]
    {
        fs::write(lower.join(name), name).unwrap();
    }
    fs::hard_link(lower.join("joined/f"), lower.join("joined/other")).unwrap();
    fs::create_dir_all(lower.join("dir/below")).unwrap();
    fs::create_dir_all(lower.join("hidden/below")).unwrap();
    fs::create_dir_all(lower.join("linked/below")).unwrap();
    symlink("dir", lower.join("link")).unwrap();
    fs::write(upper.join("joined/f"), "of the upper layer").unwrap();
    fs::hard_link(upper.join("joined/f"), upper.join("joined/deep/also")).unwrap();
    fs::write(upper.join("dir"), "now a file").unwrap();
    symlink("joined", upper.join("linked")).unwrap();
    fs::create_dir(upper.join("link")).unwrap();
    fs::create_dir(upper.join("covered")).unwrap();
    fs::write(upper.join("opaque/new"), odd::text(9000, 1)).unwrap();
    for name in ["hidden", "joined/g", "joined/deep/h", "file", "never"] {
        whiteout(&upper.join(name));
    }
    fs::set_permissions(upper.join("joined"), fs::Permissions::from_mode(0o1750)).unwrap();
    mark(&lower.join("joined"), "user.of", b"the lower layer");
    mark(&upper.join("joined/deep"), "user.of", b"the upper layer");
}

#[test]
fn an_overlay_is_what_the_kernel_shows_of_the_same_layers() {
    let mount = Mount::new();
    let (lower, upper) = (mount.path("lower"), mount.path("upper"));
    fill(&lower, &upper);
    mark(&upper.join("opaque"), "trusted.overlay.opaque", b"y");
    mark(&upper.join("joined"), "trusted.overlay.origin", b"somewhere");
    let (kernel, ours) = mount.both(",redirect_dir=off,metacopy=off,index=off");
    assert_same(&listing(&kernel, EXACT), &listing(&ours, EXACT), "kernel, ours");
    let options = Options { compression: Compression::Lz4, ..Options::default() };
    assert!(write(&kernel, &options).0 == write(&ours, &options).0, "other bytes");
    let found = listing(&ours, EXACT);
    assert!(found.contains_key("/only/here") && !found.contains_key("/opaque/gone") && !found.contains_key("/never"));
}

#[test]
fn users_overlays_have_their_marks_among_users_attributes() {
    let mount = Mount::new();
    fill(&mount.path("lower"), &mount.path("upper"));
    mark(&mount.path("upper/opaque"), "user.overlay.opaque", b"y");
    let (kernel, ours) = mount.both(",userxattr");
    assert_same(&listing(&kernel, EXACT), &listing(&ours, EXACT), "kernel, ours");
    assert!(!listing(&ours, EXACT).contains_key("/opaque/gone"));
}

#[test]
fn an_opaque_root_hides_nothing() {
    let mount = Mount::new();
    fill(&mount.path("lower"), &mount.path("upper"));
    mark(&mount.path("upper"), "trusted.overlay.opaque", b"y");
    let (kernel, ours) = mount.both("");
    assert_same(&listing(&kernel, EXACT), &listing(&ours, EXACT), "kernel, ours");
}

/// Linux shows it so from 6.7 on, and hid it before.
#[test]
fn a_mark_that_is_escaped_for_an_overlay_in_an_overlay_loses_its_escape() {
    let mut upper = Tree::new(Metadata::with_mode(0o755));
    for name in ["trusted.overlay.overlay.opaque", "trusted.overlay.origin", "user.overlay.x", "user.x"] {
        upper.metadata_mut(Tree::ROOT).xattrs.insert(name.into(), b"y".to_vec());
    }
    let mut base = Tree::new(Metadata::default());
    overlay(&mut base, upper).unwrap();
    let found: Vec<_> = base.node(Tree::ROOT).metadata.xattrs.keys().collect();
    assert_eq!(found, [&b"trusted.overlay.opaque"[..], b"user.x"]);
}

#[test]
fn upper_layers_that_are_not_whole_are_refused_by_path_and_attribute() {
    for (attribute, value) in [
        ("trusted.overlay.redirect", &b"/elsewhere"[..]),
        ("trusted.overlay.metacopy", b""),
        ("user.overlay.whiteout", b""),
        ("trusted.overlay.opaque", b"x"),
    ] {
        let mut upper = Tree::new(Metadata::with_mode(0o755));
        upper.add(b"d", Node::directory(Metadata::default())).unwrap();
        let mut metadata = Metadata::default();
        metadata.xattrs.insert(attribute.into(), value.to_vec());
        upper.add(b"d/e", Node::directory(metadata)).unwrap();
        let mut base = Tree::new(Metadata::default());
        let error = overlay(&mut base, upper).unwrap_err().to_string();
        assert!(error.starts_with(&format!("d/e: {attribute}: expected an upper layer that is whole")), "{error}");
        assert_eq!(base.len(), 1);
    }
}

/// The layer of each path, as the document has it: what is above wins, and what is below is seen where nothing above hides it.
fn expected(lower: &BTreeMap<String, Made>, upper: &BTreeMap<String, Made>) -> BTreeMap<String, u32> {
    let above = upper.iter().filter(|(_, made)| **made != Made::Whiteout).map(|(path, _)| (path.clone(), 2));
    let hidden = |path: &String| {
        let ends = path.match_indices('/').map(|(at, _)| at);
        upper.contains_key(path)
            || ends.clone().any(|end| !matches!(upper.get(&path[..end]), None | Some(Made::Directory)))
    };
    let below = lower.keys().filter(|path| !hidden(path)).map(|path| (path.clone(), 1));
    above.chain(below).collect()
}

/// Makes the entries that make sense where a kernel mounts them: signs where there is something below to act on.
fn store(entries: &BTreeMap<String, Made>, root: &Path, layer: u32, lower: Option<&BTreeMap<String, Made>>) {
    let mut first = None;
    for (path, made) in entries {
        let at = root.join(path);
        let joined = |end: usize| {
            let below = lower.and_then(|lower| lower.get(&path[..end]));
            entries.get(&path[..end]) == Some(&Made::Directory) && matches!(below, Some(Made::Directory | Made::Opaque))
        };
        match made {
            Made::Directory | Made::Opaque => fs::create_dir(&at).unwrap(),
            Made::File => fs::write(&at, path).unwrap(),
            Made::Link => fs::hard_link(root.join(first.unwrap()), &at).unwrap(),
            Made::Whiteout if lower.is_some() && path.match_indices('/').all(|(end, _)| joined(end)) => whiteout(&at),
            Made::Whiteout => continue,
        }
        if *made == Made::Opaque && lower.is_some() {
            mark(&at, "trusted.overlay.opaque", b"y");
        }
        if *made == Made::File {
            first.get_or_insert(path);
        }
        std::os::unix::fs::lchown(&at, Some(layer), Some(path.len() as u32)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_kernel_shows_the_same_of_random_layers(lower in entries(), upper in entries()) {
        let mount = Mount::new();
        store(&lower, &mount.path("lower"), 1, None);
        store(&upper, &mount.path("upper"), 2, Some(&lower));
        let (kernel, ours) = mount.both("");
        prop_assert_eq!(listing(&kernel, EXACT), listing(&ours, EXACT));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_path_comes_from_the_layer_that_the_document_says(lower in entries(), upper in entries()) {
        // The base is what it is: its own whiteouts and marks mean nothing.
        let mut base = tree(&lower, 1);
        overlay(&mut base, tree(&upper, 2)).unwrap();
        let mut found: BTreeMap<String, u32> = BTreeMap::new();
        for path in listing(&base, EXACT).into_keys().filter(|path| !path.is_empty()) {
            let id = base.find(&path.as_bytes()[1..]).unwrap();
            found.insert(path[1..].to_owned(), base.node(id).metadata.uid);
        }
        prop_assert_eq!(found, expected(&lower, &upper));
        prop_assert_eq!(base.node(Tree::ROOT).metadata.uid, 2);
        let walked = base.clone().into_walked();
        prop_assert_eq!(listing(&walked, EXACT), listing(&base, EXACT));
        for id in walked.ids() {
            let names: usize = walked.ids().map(|at| walked.entries(at).values().filter(|child| **child == id).count()).sum();
            if !matches!(walked.node(id).kind, Kind::Directory) {
                prop_assert_eq!(walked.links(id) as usize, names);
            }
        }
    }
}
