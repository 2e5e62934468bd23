//! Archives by the usual tools give the images of the trees that they were made of.

mod common;

use std::{fs, path::Path, process::Command};

use common::{EXACT, assert_same, listing, odd, write};
use erofs_image::{
    Compression, Options, Tree,
    source::{
        archive::{self, Keep, UnpackError, Unpacked},
        directory,
    },
};

/// Runs a line of shell with `$1`, `$2`.
fn shell(line: &str, arguments: [&Path; 2]) {
    let run = Command::new("sh").args(["-ec", line, "sh"]).args(arguments).output().unwrap();
    assert!(
        run.status.success(),
        "{line}: {} (apt-get install tar cpio gzip xz-utils zstd)",
        String::from_utf8_lossy(&run.stderr)
    );
}

/// The odd tree without what no archive keeps.
fn odd_tree(folder: &Path) -> std::path::PathBuf {
    let root = folder.join("root");
    fs::create_dir(&root).unwrap();
    odd::build(&root, false);
    // GNU tar leaves sockets out, and knows no hard links of devices.
    shell("find \"$1\" -type s -delete; rm \"$2\"", [&root, &root.join("d/character")]);
    root
}

fn is_the_image_of(expected: &Tree, found: &Unpacked, what: &str) {
    assert_eq!(found.remarks, [] as [&str; 0]);
    assert_same(&listing(expected, EXACT), &listing(&found.tree, EXACT), what);
    let options = Options { compression: Compression::Lz4, ..Options::default() };
    assert!(write(expected, &options).0 == write(&found.tree, &options).0, "{what}: other bytes");
}

/// As it is, packed as the image will have it, and packed in another way.
fn keeps() -> [Keep; 4] {
    let packed = |compression| Keep::Packed(Options { compression, threads: 2, ..Options::default() });
    let zstd = Compression::Zstd { level: 3 };
    [Keep::Plain, packed(Compression::Lz4), packed(zstd), packed(Compression::None)]
}

#[test]
fn a_pax_archive_gives_the_bytes_of_its_tree_however_it_is_compressed() {
    let folder = tempfile::tempdir().unwrap();
    let root = odd_tree(folder.path());
    let expected = directory::load(&root).unwrap();
    let tar = "tar --xattrs --xattrs-include='*' --format=pax -C \"$1\"";
    for (name, line) in [
        ("plain", format!("{tar} -cf \"$2\" .")),
        ("sorted", format!("{tar} --sort=name -cf \"$2\" .")),
        ("sparse", format!("{tar} --sparse -cf \"$2\" .")),
        ("acls", format!("{tar} --acls --xattrs-exclude='system.posix*' -cf \"$2\" .")),
        ("gzip", format!("{tar} -cf - . | gzip -1 >\"$2\"")),
        ("zstd", format!("{tar} --sparse -cf - . | zstd -q -1 >\"$2\"")),
        ("xz", format!("{tar} -cf - . | xz -0 >\"$2\"")),
    ] {
        let packed = folder.path().join(name);
        shell(&line, [&root, &packed]);
        for keep in keeps() {
            is_the_image_of(&expected, &archive::tar(&packed, &keep).unwrap(), &format!("{name}, {keep:?}"));
        }
    }
}

#[test]
fn an_initramfs_of_several_archives_gives_one_tree() {
    let folder = tempfile::tempdir().unwrap();
    let (root, packed) = (folder.path().join("root"), folder.path().join("initrd"));
    for name in ["early/kernel", "root/kernel/x86", "root/bin"] {
        fs::create_dir_all(folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("early/kernel/old"), "of the first archive").unwrap();
    fs::write(root.join("kernel/x86/microcode"), odd::noise(9000, 1)).unwrap();
    fs::write(root.join("bin/sh"), odd::text(300_000, 2)).unwrap();
    fs::hard_link(root.join("bin/sh"), root.join("bin/bash")).unwrap();
    std::os::unix::fs::symlink("bin/sh", root.join("init")).unwrap();
    shell("find \"$1\" \"$1\"/../early -exec touch -h -d @1700000000 {} +", [&root, &root]);
    let line = "cd \"$1\"; pack() { find . | cpio --quiet -o -H \"$1\"; }
        (cd ../early && pack newc) >\"$2\"; pack crc | zstd -q >>\"$2\"";
    shell(line, [&root, &packed]);
    let found = keeps().map(|keep| archive::initramfs(&packed, &keep).unwrap());
    fs::write(root.join("kernel/old"), "of the first archive").unwrap();
    shell("find \"$1\" -exec touch -h -d @1700000000 {} +", [&root, &root]);
    for found in found {
        is_the_image_of(&directory::load(&root).unwrap(), &found, "initramfs");
    }
}

/// A tar of these entries by Python, which writes what honest tools do not.
fn forged(folder: &Path, entries: &str) -> Result<Unpacked, UnpackError> {
    let packed = folder.join("forged.tar");
    let script = "import tarfile,sys,io
t = tarfile.open(sys.argv[1], 'w')
def add(name, kind=tarfile.REGTYPE, link='', data=b''):
    i = tarfile.TarInfo(name); i.type = kind; i.linkname = link; i.size = len(data); i.mode = 0o755
    t.addfile(i, io.BytesIO(data))
d, s, h = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
exec(sys.argv[2])
t.close()";
    let run = Command::new("python3").args(["-c", script]).arg(&packed).arg(entries).output();
    let run = run.expect("apt-get install python3");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    archive::tar(&packed, &Keep::Plain)
}

#[test]
fn names_that_lead_out_of_the_tree_or_nowhere_are_refused_by_entry_and_offset() {
    let folder = tempfile::tempdir().unwrap();
    for (entries, expected) in [
        (
            "add('a/../../b')",
            "forged.tar: entry a/../../b at offset 0: name: expected a path below the root, found `..`",
        ),
        ("add('a'); add('a/b')", "entry a/b at offset 512: its directory: something on the way is not a directory"),
        (
            "add('l', s, 'l'); add('l/b')",
            "entry l/b at offset 512: its directory: symbolic links on the way lead in a circle",
        ),
        ("add('l', s, 'no'); add('l/b')", "its directory: a symbolic link on the way leads to nothing"),
        ("add('h', h, 'no')", "entry h at offset 0: hard link: expected an earlier file as target, found none"),
        ("add('d', d); add('h', h, 'd')", "hard link: expected an earlier file as target, found a directory"),
        ("add('d/f'); add('d')", "an earlier entry made a directory of that name that is not empty"),
        ("add('.', s, '/')", "expected a directory as the root"),
        ("add('d/' + 'n' * 256)", "at offset 1024: name: expected a path below the root, found a part of 256 bytes"),
        (
            "add('l', s, 't' * 5000)",
            "entry l: linkname: expected 1 to 4095 bytes without NUL, found 5000 bytes that begin with ttt",
        ),
        ("add('v', b'M')", "entry v: an entry of GNU's multi-volume or incremental archives (type M) is not supported"),
        ("add('q', b'Q')", "forged.tar: offset 0, entry q: an entry of type Q is not supported"),
    ] {
        let error = forged(folder.path(), entries).unwrap_err().to_string();
        assert!(error.contains(expected), "{entries}: {error}");
    }
}

#[test]
fn links_in_names_stay_within_the_tree_and_later_entries_win() {
    let folder = tempfile::tempdir().unwrap();
    let entries = "add('usr/lib', d); add('lib', s, '/../usr/lib'); add('lib/a', data=b'1'); add('up', s, '../../..'); add('up/b');
add('lib/a', data=b'22'); add('/abs/c'); add('c', h, 'lib/a'); add('e', s, 'x'); add('e', d)";
    let tree = forged(folder.path(), entries).unwrap().tree;
    let found: Vec<_> = listing(&tree, EXACT).into_keys().collect();
    assert_eq!(found, ["", "/abs", "/abs/c", "/b", "/c", "/e", "/lib", "/up", "/usr", "/usr/lib", "/usr/lib/a"]);
    assert!(listing(&tree, EXACT)["/c"].contains("file of 2 bytes"));
}
