//! Container images become the trees that their layers describe.

mod common;
mod layouts;

use std::{fs, path::Path};

use common::{EXACT, listing};
use erofs_image::{
    Tree,
    source::{
        archive::Keep,
        oci::{self, Choice, OciError},
    },
};
use layouts::{Archive, Layout, layer};

/// A tree's paths; behind that of a file its size, behind that of a link the target.
fn paths(tree: &Tree) -> Vec<String> {
    use erofs_image::tree::Kind;
    let listed = listing(tree, EXACT);
    listed
        .into_keys()
        .filter(|path| !path.is_empty())
        .map(|path| {
            let id = tree.find(&path.as_bytes()[1..]).unwrap();
            match &tree.node(id).kind {
                Kind::File(content) => format!("{path}={}", content.size()),
                Kind::Symlink(target) => format!("{path}>{}", String::from_utf8_lossy(target)),
                _ => path,
            }
        })
        .collect()
}

fn load(path: &Path) -> Result<Tree, OciError> {
    oci::load(path, &Choice::default(), &Keep::Plain).map(|unpacked| unpacked.tree)
}

/// What becomes of layers, each given as lines for [`layer`].
fn applied(layers: &[&str]) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&folder.path().join("layout"));
    let archives: Vec<_> = layers.iter().map(|entries| layer(entries)).collect();
    layout.image("latest", "amd64", &archives);
    layout.finish();
    load(&folder.path().join("layout")).map(|tree| paths(&tree)).map_err(|error| error.to_string())
}

#[test]
fn whiteouts_remove_what_is_below_and_nothing_of_their_own_layer() {
    let below = "add('a', d); add('a/b', d); add('a/b/c', d); add('a/b/c/bar'); add('k', data=b'1'); add('gone')";
    // The example of layer.md, with the sign first and last.
    let expected = Ok(["/a", "/a/b", "/a/b/c", "/a/b/c/foo=0", "/k=1"].map(str::to_owned).to_vec());
    let first = "add('a', d); add('a/.wh..wh..opq'); add('a/b', d); add('a/b/c', d); add('a/b/c/foo'); add('.wh.gone')";
    let last = "add('.wh.gone'); add('a', d); add('a/b', d); add('a/b/c', d); add('a/b/c/foo'); add('a/.wh..wh..opq')";
    assert_eq!(applied(&[below, first]), expected);
    assert_eq!(applied(&[below, last]), expected);
    for (layers, expected) in [
        (&["add('f', data=b'1')", "add('.wh.f'); add('f', data=b'22')"][..], &["/f=2"][..]),
        (&["add('f', data=b'1')", "add('f', data=b'22'); add('.wh.f')"], &["/f=2"]),
        (&["add('d', d); add('d/f')", "add('d/g'); add('.wh.d')"], &["/d", "/d/g=0"]),
        (&["add('d/e/f'); add('x')", "add('.wh..wh..opq'); add('y')"], &["/y=0"]),
        (&["add('f')", "add('.wh.f'); add('.wh.f'); add('.wh.none'); add('no/.wh.f')"], &[]),
        (&["add('d', d); add('d/f')", "add('.wh.d'); add('d/.wh.f')"], &[]),
        (&["add('usr/lib/f'); add('lib', s, 'usr/lib')", "add('lib/.wh.f')"], &["/lib>usr/lib", "/usr", "/usr/lib"]),
        (
            &["add('usr/lib/f'); add('lib', s, 'usr/lib')", "add('lib', d); add('lib/.wh.f')"],
            &["/lib", "/usr", "/usr/lib", "/usr/lib/f=0"],
        ),
        (&["add('f')", "add('g')", "add('.wh.f')", "add('f', data=b'4444')"], &["/f=4", "/g=0"]),
    ] {
        assert_eq!(applied(layers), Ok(expected.iter().copied().map(str::to_owned).collect()), "{layers:?}");
    }
}

#[test]
fn what_a_layer_adds_takes_the_place_of_what_is_below_whatever_that_is() {
    for (layers, expected) in [
        (&["add('d/e/f')", "add('d', data=b'1')"][..], &["/d=1"][..]),
        (&["add('d', data=b'1')", "add('d', d); add('d/f')"], &["/d", "/d/f=0"]),
        (&["add('l', s, 'd'); add('d/f')", "add('l', d)"], &["/d", "/d/f=0", "/l"]),
        (
            &["add('usr/lib', d); add('lib', s, '/usr/lib')", "add('lib/f')"],
            &["/lib>/usr/lib", "/usr", "/usr/lib", "/usr/lib/f=0"],
        ),
        (&["add('f', data=b'1'); add('g', h, 'f')", "add('f', data=b'22')"], &["/f=2", "/g=1"]),
    ] {
        assert_eq!(applied(layers), Ok(expected.iter().copied().map(str::to_owned).collect()), "{layers:?}");
    }
}

#[test]
fn hard_links_lead_to_the_files_of_lower_layers_unless_those_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(folder.path());
    layout.image("", "amd64", &[layer("add('d/f', data=b'1')"), layer("add('g', h, 'd/f')"), layer("add('.wh.d')")]);
    layout.finish();
    let tree = load(folder.path()).unwrap();
    assert_eq!((paths(&tree), tree.links(tree.find(b"g").unwrap())), (vec!["/g=1".to_owned()], 1));
    for second in ["add('g', h, 'f'); add('.wh.f')", "add('.wh.f'); add('g', h, 'f')"] {
        let error = applied(&["add('f')", second]).unwrap_err();
        assert!(error.contains("entry g at offset") && error.contains("expected an earlier file"), "{error}");
    }
}

#[test]
fn signs_that_name_nothing_or_lead_out_are_refused_by_layer_and_entry() {
    for (entries, expected) in [
        ("add('.wh...')", "entry .wh... at offset 0: name: expected `.wh.` and the name of what the layer removes"),
        ("add('.wh..')", "no name behind it"),
        ("add('.wh.')", "no name behind it"),
        ("add('a/../.wh.b')", "name: expected a path below the root, found `..`"),
        ("add('.wh.a/b')", "a directory of such a name"),
        ("add('.wh.a', d)", "a directory of such a name"),
    ] {
        let error = applied(&["add('a/b')", entries]).unwrap_err();
        assert!(error.starts_with("layer blobs/sha256/") && error.contains(expected), "{entries}: {error}");
    }
}

#[test]
fn a_layer_is_read_in_each_compression_and_by_either_familys_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = None;
    for (number, archive) in [Archive::Plain, Archive::Gzip, Archive::Zstd].into_iter().enumerate() {
        for docker in [false, true] {
            let path = folder.path().join(format!("{number}{docker}"));
            let mut layout = Layout::new(&path);
            layout.packed(archive, docker, "latest", &[layer("add('f', data=b'x' * 100000)"), layer("add('g')")]);
            layout.finish();
            let found = listing(&load(&path).unwrap(), EXACT);
            assert_eq!(expected.get_or_insert(found.clone()), &found, "{archive:?}");
        }
    }
    // Of several streams, as eStargz writes them, and with a frame that is passed over, as zstd:chunked does.
    let tar = layer("add('f', data=b'x' * 100000); add('g')");
    let parts = tar.chunks(50_000).flat_map(|part| Archive::Gzip.pack(part)).collect::<Vec<_>>();
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, b't', b'o', b'c', b'!'];
    let framed = [Archive::Zstd.pack(&tar), skippable.to_vec()].concat();
    for (archive, packed) in [(Archive::Gzip, parts), (Archive::Zstd, framed)] {
        let mut layout = Layout::new(&folder.path().join(format!("{archive:?}")));
        let blob = layout.blob(&archive.media_type(false), &packed);
        let manifest = layout.manifest("amd64", &[blob]);
        layout.add("", manifest);
        layout.finish();
        assert_eq!(expected.as_ref(), Some(&listing(&load(&layout.path).unwrap(), EXACT)), "{archive:?}");
    }
    assert!(expected.unwrap()["/f"].contains("file of 100000 bytes"));
    assert!(oci::is_layout(&folder.path().join("0false")) && !oci::is_layout(folder.path()));
    fs::remove_dir_all(folder.path().join("0false/blobs")).unwrap();
    assert!(load(&folder.path().join("0false")).unwrap_err().to_string().contains("there is no blobs/sha256/"));
}
