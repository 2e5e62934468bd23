//! What umoci and skopeo make of the same images, and a real root in layers.

mod common;
mod layouts;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    EXACT, assert_same, listing, odd,
    random::{archive as random_archive, entries},
    tool, write,
};
use erofs_image::{
    Compression, Options, Tree,
    source::{
        archive::{self, Keep},
        directory,
        oci::{self, Choice},
    },
};
use layouts::{Archive, Layout};
use proptest::prelude::*;

/// Runs a line of shell with the folder as `$1`, and fails with its messages.
fn shell(line: &str, folder: &Path) {
    let run = Command::new("sh").args(["-ec", line, "sh"]).arg(folder).output().unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{line}: {text} (apt-get install tar gzip zstd umoci skopeo)");
}

fn load(path: &Path) -> Tree {
    // As the images below are written.
    let keep = Keep::Packed(Options { compression: Compression::Lz4, ..Options::default() });
    let loaded = oci::load(path, &Choice::default(), &keep).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.remarks, [] as [&str; 0]);
    loaded.tree
}

fn same_image(expected: &Tree, found: &Tree, what: &str) {
    assert_same(&listing(expected, EXACT), &listing(found, EXACT), what);
    let options = Options { compression: Compression::Lz4, ..Options::default() };
    assert!(write(expected, &options).0 == write(found, &options).0, "{what}: other bytes");
}

/// Two layers: the second changes, replaces and removes things of the first, and links to one.
const LAYERS: &str = "cd \"$1\"; mkdir -p one/d/sub one/gone/below one/opaque/old one/becomes two/d two/opaque/new
echo 1 >one/d/f; echo 2 >one/d/sub/g; echo 3 >one/gone/below/h; echo 4 >one/opaque/old/i; echo 5 >one/becomes/j; echo 6 >one/k
ln one/d/f one/d/also; ln -s d one/link; mkfifo one/pipe; echo 7 >one/l
echo changed >two/d/f; echo file >two/becomes; echo new >two/opaque/new/i; chmod 2710 two/opaque; chown 5:6 two/becomes
touch two/.wh.gone two/d/sub-is-kept two/.wh.k two/opaque/.wh..wh..opq; ln -s nowhere two/l
find one two -exec touch -h -d @1700000000.25 {} +
touch -d @1600000000 two two/d one one/d
tar --format=pax -C one -cf 1.tar .
# Signs come first within each directory.
tar --format=pax --sort=name -C two -cf 2.tar .wh.gone .wh.k opaque/.wh..wh..opq --exclude=.wh.* .
test \"$(tar tf 2.tar | grep -c '\\.wh\\.')\" = 3";

fn two_layers(folder: &Path, archive: Archive) -> PathBuf {
    let path = folder.join("layout");
    let mut layout = Layout::new(&path);
    let tars = ["1.tar", "2.tar"].map(|name| fs::read(folder.join(name)).unwrap());
    layout.packed(archive, false, "latest", &tars);
    layout.finish();
    path
}

#[test]
fn umoci_unpacks_the_same_tree() {
    let folder = tempfile::tempdir().unwrap();
    shell(LAYERS, folder.path());
    let ours = load(&two_layers(folder.path(), Archive::Gzip));
    shell("cd \"$1\"; umoci unpack --image layout:latest bundle", folder.path());
    let theirs = directory::load(&folder.path().join("bundle/rootfs")).unwrap();
    same_image(&theirs, &ours, "umoci, ours");
    assert!(listing(&ours, EXACT).contains_key("/opaque/new/i") && !listing(&ours, EXACT).contains_key("/gone"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// It obeys signs where it meets them, so they come first.
    #[test]
    fn umoci_unpacks_the_same_of_random_layers(all in prop::collection::vec(entries(), 1..5)) {
        let folder = tempfile::tempdir().unwrap();
        let archives: Vec<_> = (0..).zip(&all).map(|(number, entries)| random_archive(entries, number, &[])).collect();
        let mut layout = Layout::new(&folder.path().join("layout"));
        layout.packed(Archive::Plain, false, "latest", &archives);
        layout.finish();
        shell("cd \"$1\"; umoci unpack --image layout:latest bundle", folder.path());
        let theirs = directory::load(&folder.path().join("bundle/rootfs")).unwrap();
        prop_assert_eq!(listing(&theirs, EXACT), listing(&load(&layout.path), EXACT));
    }
}

#[test]
fn what_umoci_packs_is_the_tree_that_it_packed() {
    let folder = tempfile::tempdir().unwrap();
    shell(
        "cd \"$1\"; umoci init --layout made; umoci new --image made:t; umoci unpack --image made:t bundle
mkdir root; cd bundle/rootfs; mkdir -p a/b/c d/e; echo 1 >a/f; ln a/f a/b/g; echo 2 >d/e/h; ln -s a l; echo 3 >i
find . -exec touch -h -d @1700000000 {} +; cd ../..; umoci repack --refresh-bundle --image made:t bundle
cd bundle/rootfs; rm -r d i; echo 4 >d; rm l; mkdir l; echo 5 >a/b/c/j; ln a/f k; chmod 0700 a/b; setfattr -n user.x -v y a/f
find . -exec touch -h -d @1700000001 {} +; cd ../..; umoci repack --image made:t bundle",
        folder.path(),
    );
    let theirs = directory::load(&folder.path().join("bundle/rootfs")).unwrap();
    same_image(&theirs, &load(&folder.path().join("made")), "umoci's tree, ours of its image");
}

#[test]
fn skopeo_copies_of_an_image_are_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    shell(LAYERS, folder.path());
    let expected = load(&two_layers(folder.path(), Archive::Plain));
    let to = |name: &str| folder.path().join(name);
    let copy = |arguments: &[&str]| {
        let fixed = ["--insecure-policy", "copy", "--quiet"];
        tool("skopeo", &[&fixed[..], arguments].concat());
    };
    let from = format!("oci:{}:latest", to("layout").display());
    copy(&[&from, &format!("oci-archive:{}:other", to("packed.tar").display())]);
    copy(&["--dest-compress-format", "zstd", "--dest-compress", &from, &format!("oci:{}:other", to("zstd").display())]);
    for name in ["layout", "packed.tar", "zstd"] {
        assert!(oci::is_layout(&to(name)), "{name}");
        same_image(&expected, &load(&to(name)), name);
    }
    assert!(!oci::is_layout(&to("1.tar")) && !oci::is_layout(&to("none")));
    // An archive in which a layer's content stays where it lies.
    shell("cd \"$1/layout\"; tar -cf ../plain.tar .", folder.path());
    assert!(oci::is_layout(&to("plain.tar")));
    same_image(&expected, &load(&to("plain.tar")), "plain.tar");
    let bytes = fs::read(to("plain.tar")).unwrap();
    let at = bytes.windows(7).position(|bytes| bytes == b"changed").unwrap();
    fs::write(to("plain.tar"), [&bytes[..at], b"forged!", &bytes[at + 7..]].concat()).unwrap();
    let error = oci::load(&to("plain.tar"), &Choice::default(), &Keep::Plain).unwrap_err().to_string();
    assert!(error.contains("digest: expected sha256:"), "{error}");
    shell("cd \"$1/layout\"; tar -rf ../plain.tar index.json", folder.path());
    assert!(
        oci::load(&to("plain.tar"), &Choice::default(), &Keep::Plain)
            .unwrap_err()
            .to_string()
            .contains("each name once")
    );
}

#[test]
fn odd_files_survive_in_layers() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    odd::build(&root, false);
    let tar = "tar --format=pax --xattrs --xattrs-include='*' --sparse";
    shell(
        &format!(
            "cd \"$1\"; find root -type s -delete; rm root/d/character; {tar} -C root -cf 1.tar --exclude=./many --exclude=./d .
{tar} -C root -cf 2.tar ./d ./many ./sizes-4097 --no-recursion ."
        ),
        folder.path(),
    );
    let expected = directory::load(&root).unwrap();
    for archive in [Archive::Plain, Archive::Gzip, Archive::Zstd] {
        let path = two_layers(folder.path(), archive);
        same_image(&expected, &load(&path), "the directory, its layers");
        fs::remove_dir_all(path).unwrap();
    }
}

/// The root of a Debian by `make cache`, in three layers of three kinds, of which the lower have what the upper take away.
#[test]
fn debian_in_layers_is_the_image_of_debian_in_one_archive() {
    let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache/roots/trixie.tar");
    assert!(whole.exists(), "{} is missing; run 'make cache'", whole.display());
    let expected = archive::tar(&whole, &Keep::Plain).unwrap().tree;
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&whole, folder.path().join("whole.tar")).unwrap();
    shell(
        "cd \"$1\"; mkdir root junk signs; tar --xattrs --xattrs-include='*' -C root -xpf whole.tar
mkdir -p junk/old/d junk/usr/bin junk/etc/stale junk/var/lib/dpkg signs/usr/bin signs/etc
for name in old/d/f usr/bin/junk etc/stale/f etc/passwd var/lib/dpkg/status; do echo old >junk/$name; done
touch signs/.wh.old signs/usr/bin/.wh.junk signs/etc/.wh..wh..opq
pack() { tar --format=pax --xattrs --xattrs-include='*' \"$@\"; }
pack -C root -cf 1.tar --exclude=./usr/share --exclude=./usr/lib --exclude=./etc --exclude=./var/lib/dpkg .
pack -C junk -rf 1.tar old usr/bin/junk etc var/lib/dpkg/status
pack -C root -cf 2.tar ./usr/lib ./var/lib/dpkg -C ../signs .wh.old usr/bin/.wh.junk
pack -C root -cf 3.tar ./etc ./usr/share -C ../signs etc/.wh..wh..opq",
        folder.path(),
    );
    let mut layout = Layout::new(&folder.path().join("layout"));
    let packed = [("1.tar", Archive::Plain), ("2.tar", Archive::Gzip), ("3.tar", Archive::Zstd)];
    let layers =
        packed.map(|(name, archive)| layout.layer(archive, false, &fs::read(folder.path().join(name)).unwrap()));
    let manifest = layout.manifest("amd64", &layers);
    layout.add("debian", manifest);
    layout.finish();
    let found = load(&layout.path);
    assert!(expected.len() > 3000);
    same_image(&expected.into_walked(), &found, "one archive, three layers");
}
