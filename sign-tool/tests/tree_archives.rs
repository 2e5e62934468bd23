//! Archives made by the usual tools unpack to the tree that they were made of.

mod tree_common;

use std::{os::unix::fs::MetadataExt, path::Path};

use iofs_sign::{
    archive::{
        compression::Compression,
        entry::{Content, Entry},
        error::ArchiveError,
        initramfs::{Segment, Visitor, walk},
        input::Input,
    },
    report::ExitStatus,
    tree::{Source, compare::Ignore, odd::Odd},
};
use tree_common::{assert_same, load, odd, shell, unpack, work};

#[test]
fn a_pax_archive_keeps_everything() {
    let work = work();
    let tree = odd(work.path(), Odd { device_links: false, ..Odd::default() });
    let archive = work.path().join("a.tar");
    shell("tar --xattrs --xattrs-include='*' --format=pax -C \"$1\" -cf \"$2\" .", &[&tree, &archive]);
    assert_same(&tree, &unpack(&archive, work.path()).unwrap().path(), Ignore::default());
}

#[test]
fn access_lists_in_text_and_sparse_files_of_each_version_are_kept() {
    let work = work();
    let tree = odd(work.path(), Odd { device_links: false, many: 300, ..Odd::default() });
    for version in ["0.0", "0.1", "1.0"] {
        let archive = work.path().join(format!("{version}.tar"));
        let script = format!(
            "tar --acls --xattrs --xattrs-include='*' --xattrs-exclude='system.posix*' --sparse --sparse-version={version} \
             --format=pax -C \"$1\" -cf \"$2\" ."
        );
        shell(&script, &[&tree, &archive]);
        let unpacked = unpack(&archive, work.path()).unwrap();
        assert_same(&tree, &unpacked.path(), Ignore::default());
        let blocks = unpacked.path().join("hole").metadata().unwrap().blocks();
        assert_eq!(blocks, 0, "holes stay holes");
    }
}

#[test]
fn a_gnu_archive_keeps_what_it_can_hold() {
    let work = work();
    let tree = odd(work.path(), Odd { xattrs: false, device_links: false, many: 300, ..Odd::default() });
    for option in ["", "--sparse"] {
        let archive = work.path().join(format!("gnu{option}.tar"));
        shell(&format!("tar --format=gnu {option} -C \"$1\" -cf \"$2\" ."), &[&tree, &archive]);
        let unpacked = unpack(&archive, work.path()).unwrap();
        assert_same(&tree, &unpacked.path(), Ignore { nanoseconds: true, ..Ignore::default() });
    }
}

#[test]
fn every_compression_gives_the_same_tree() {
    let work = work();
    let tree = odd(work.path(), Odd { xattrs: false, device_links: false, many: 300, ..Odd::default() });
    let plain = work.path().join("a.tar");
    shell("tar --format=pax -C \"$1\" -cf \"$2\" .", &[&tree, &plain]);
    for (command, expected) in [
        ("gzip -c", Compression::Gzip),
        ("xz -0 -c", Compression::Xz),
        ("zstd -q -c", Compression::Zstd),
        ("lz4 -q -c", Compression::Lz4),
        ("lz4 -q -c -l", Compression::Lz4),
    ] {
        let packed = work.path().join("packed");
        shell(&format!("{command} <\"$1\" >\"$2\""), &[&plain, &packed]);
        assert_eq!(Source::open(&packed).unwrap(), Source::Tar(packed.clone(), expected));
        assert_same(&tree, &unpack(&packed, work.path()).unwrap().path(), Ignore::default());
    }
    let packed = work.path().join("packed");
    std::fs::write(&packed, b"BZh91AY&SY").unwrap();
    let error = load(&packed).unwrap_err();
    assert_eq!(error.status, ExitStatus::BadInput);
    assert!(error.to_string().contains("bzip2 compression is not supported"), "{error}");
}

#[test]
fn an_initramfs_with_microcode_in_front_is_unpacked_as_a_whole() {
    let work = work();
    let tree = odd(work.path(), Odd { xattrs: false, many: 300, ..Odd::default() });
    let early = work.path().join("early");
    std::fs::create_dir_all(early.join("kernel/x86/microcode")).unwrap();
    std::fs::write(early.join("kernel/x86/microcode/GenuineIntel.bin"), [7; 5000]).unwrap();
    let seconds = Ignore { nanoseconds: true, ..Ignore::default() };
    let expected = work.path().join("expected");
    shell("cp -a \"$1\" \"$3\"; cp -a \"$2/kernel\" \"$3/\"; touch -r \"$1\" \"$3\"", &[&tree, &early, &expected]);
    for (command, compression) in [
        ("gzip -c", Compression::Gzip),
        ("xz -0 -c --check=crc32", Compression::Xz),
        ("zstd -q -c", Compression::Zstd),
        ("lz4 -q -c -l", Compression::Lz4),
        ("lz4 -q -c", Compression::Lz4),
        ("cat", Compression::None),
    ] {
        let image = work.path().join("initrd.img");
        let script = format!(
            "pack() {{ (cd \"$1\"; find . -print0 | LC_ALL=C sort -z | cpio -0 --quiet -o -H $2); }}
             {{ (cd \"$2\"; find kernel -print0 | cpio -0 --quiet -o -H newc); head -c 3000 /dev/zero | head -c 2048; \
             pack \"$1\" crc | {command}; }} >\"$3\""
        );
        shell(&script, &[&tree, &early, &image]);
        assert_eq!(Source::open(&image).unwrap(), Source::Initramfs(image.clone()));
        assert_same(&expected, &unpack(&image, work.path()).unwrap().path(), seconds);
        let segments = segments(&image);
        assert_eq!(segments.len(), 2, "{segments:#?}");
        assert_eq!((segments[0].offset, segments[0].compression), (0, Compression::None));
        assert_eq!((segments[1].compression, segments[1].offset % 4), (compression, 0));
        assert_eq!(segments[0].entries, 4);
    }
}

fn segments(image: &Path) -> Vec<Segment> {
    struct Nothing;
    impl Visitor for Nothing {
        type Error = ArchiveError;
        fn entry(&mut self, _: &Segment, _: u64, _: &Entry, _: &mut dyn Content) -> Result<(), ArchiveError> {
            Ok(())
        }
    }
    walk(&mut Input::new(std::fs::File::open(image).unwrap(), "initrd.img"), &mut Nothing).unwrap()
}

/// As `clean_path` and `do_name` of Linux `init/initramfs.c` do: another kind replaces, the same kind is written to.
#[test]
fn later_archives_of_an_initramfs_change_files_as_the_kernel_does() {
    let work = work();
    let script = "cd \"$1\"; mkdir a b
        echo long old text >a/file; ln a/file a/again; echo new >b/file; chmod 600 b/file; touch -d @1000 b/file
        echo dir >a/dir; mkdir b/dir
        echo old >a/plain; ln a/plain a/kept; ln -s file b/plain
        mknod a/null c 1 3; mknod b/null c 1 5; chmod 666 b/null
        ln -s file a/link; echo through >b/link
        echo one >a/empty; : >b/empty
        for part in a b; do (cd $part; find . | sort | cpio --quiet -o -H newc | zstd -q -c); done >all";
    shell(script, &[work.path()]);
    let tree = unpack(&work.path().join("all"), work.path()).unwrap();
    let file = |name: &str| tree.path().join(name);
    let content = |name: &str| std::fs::read_to_string(file(name)).unwrap();
    assert_eq!(content("file"), "new\n");
    assert_eq!(content("again"), "new\n", "the other name of a file that is written to in place");
    let again = file("again").metadata().unwrap();
    assert_eq!((again.mode() & 0o7777, again.mtime(), again.nlink()), (0o600, 1000, 2));
    assert!(file("dir").is_dir());
    assert!(file("plain").is_symlink());
    assert_eq!(content("kept"), "old\n", "the other name of a file that is replaced");
    let device = file("null").metadata().unwrap();
    assert_eq!((device.rdev(), device.mode() & 0o7777), (0x103, 0o666), "mknod fails on the one that is there");
    assert!(file("link").symlink_metadata().unwrap().is_file());
    assert_eq!(content("link"), "through\n");
    assert_eq!(content("empty"), "");
}

#[test]
fn what_is_no_tree_is_named() {
    let work = work();
    let path = work.path().join("x");
    for (content, expected) in [
        (&b"hsqs1234"[..], "a squashfs image"),
        (b"", "an empty file"),
        (&[0; 5000], "zeros"),
        (b"\x7fELF", "a program"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = load(&path).unwrap_err();
        assert_eq!(error.status, ExitStatus::BadInput);
        assert!(error.fact.contains(expected), "{error}");
    }
}
