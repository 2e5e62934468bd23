//! An initramfs as a distribution builds it, with microcode in front, gives the tree that cpio(1) extracts.

mod tree_common;

use std::path::Path;

use iofs_sign::{
    erofs::ImageOptions,
    tree::{Source, compare::Ignore},
};
use tree_common::{assert_same, shell, unpack, work, write};

/// dracut's initramfs for any machine, behind an archive such as the packages of microcode give it.
const BUILD: &str = "
    cd \"$1\"
    version=$(cat \"$2/version\")
    mkdir -p early/kernel/x86/microcode temporary
    head -c 100000 /dev/urandom >early/kernel/x86/microcode/GenuineIntel.bin
    (cd early; find . -print0 | sort -z | cpio --quiet -0 -o -H newc) >early.cpio
    dracut --quiet --force --no-hostonly --gzip --tmpdir \"$PWD/temporary\" --kver \"$version\" \\
        --kmoddir \"$2/lib/modules/$version\" \"$PWD/main.img\"
    cat early.cpio main.img >initrd.img";

/// GNU cpio makes devices and owners as root, and takes one archive at a time.
const EXTRACT: &str = "
    mkdir \"$1/expected\"; cd \"$1/expected\"
    cpio --quiet -id --preserve-modification-time --no-absolute-filenames <../early.cpio
    gzip -dc ../main.img >../main.cpio
    cpio --quiet -idu --preserve-modification-time --no-absolute-filenames <../main.cpio";

#[test]
fn every_entry_of_dracut_s_initramfs_survives() {
    let work = work();
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache/kernels/bookworm");
    assert!(kernel.join("vmlinuz").exists(), "{} is missing: run `make cache`", kernel.display());
    shell(BUILD, &[work.path(), &kernel.canonicalize().unwrap()]);
    shell(EXTRACT, &[work.path()]);
    let image = work.path().join("initrd.img");
    assert_eq!(Source::open(&image).unwrap(), Source::Initramfs(image.clone()));

    let tree = unpack(&image, work.path()).unwrap();
    // cpio(1) sets a directory's time before it fills it, and a symlink's not at all.
    let expected = work.path().join("expected");
    assert_same(&expected, &tree.path(), Ignore { directory_times: true, symlink_times: true, ..Ignore::default() });

    let listed = std::process::Command::new("sh")
        .args([
            "-ec",
            "for part in early main; do cpio --quiet -it <\"$1/$part.cpio\"; done | sed 's,^\\./,,' | sort -u | wc -l",
            "sh",
        ])
        .arg(work.path())
        .output()
        .unwrap();
    let count: usize = String::from_utf8(listed.stdout).unwrap().trim().parse().unwrap();
    assert_eq!(walkdir::WalkDir::new(tree.path()).into_iter().count(), count);
    assert!(count > 500, "an initramfs of {count} entries proves nothing");

    write(&image, &work.path().join("image"), &ImageOptions::default());
}
