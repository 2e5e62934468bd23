//! `inspect` lists images, reads them to their last byte, and takes files out of them.

mod seal_common;
mod tree_common;

use std::{fs, os::unix::process::CommandExt, path::Path, process::Command};

use iofs_sign::tree::{compare::Ignore, odd::Odd};
use seal_common::{Bench, fails, iofs_sign, passes, stderr};
use tree_common::{assert_same, write};

fn odd_image(bench: &Bench) -> String {
    tree_common::odd(&bench.path("."), Odd { many: 300, ..Odd::default() });
    write(&bench.path("tree"), &bench.path("image"), &Default::default());
    bench.text("image")
}

#[test]
fn an_image_is_listed_checked_and_unpacked_to_the_tree_that_it_was_made_of() {
    let bench = Bench::new();
    let image = odd_image(&bench);
    let text = passes(&iofs_sign(["inspect", &image, "--check", "--list"]));
    let count = walkdir::WalkDir::new(bench.path("tree")).into_iter().count();
    assert!(text.contains(" inodes by ") && text.lines().count() > count, "{text}");
    for line in ["drwxr-xr-x     0     0", " -> /etc/passwd", "-rw-r--r-- 70000 80000", "crw--w----"] {
        assert!(text.contains(line), "{line}");
    }
    passes(&iofs_sign(["inspect", &image, "--extract-all", &bench.text("again")]));
    assert_same(&bench.path("tree"), &bench.path("again"), Ignore::default());
    let text = fails(&iofs_sign(["inspect", &image, "--extract-all", &bench.text("again")]), 2);
    assert!(text.contains("exists already"), "{text}");
    let output = iofs_sign(["inspect", &image, "--extract", "/sizes/4096"]);
    assert!(output.status.success() && output.stdout == fs::read(bench.path("tree/sizes/4096")).unwrap());
    for name in ["sizes", "none", "sizes/4096/x"] {
        let text = fails(&iofs_sign(["inspect", &image, "--extract", name]), 3);
        assert!(text.contains("no regular file") && text.contains("--list"), "{text}");
    }
}

#[test]
fn damage_is_told_by_structure_and_field_and_leaves_nothing() {
    let bench = Bench::new();
    let image = odd_image(&bench);
    let whole = fs::read(&image).unwrap();
    let mut refused = 0;
    for at in (4096..whole.len()).step_by(whole.len() / 60) {
        let mut bytes = whole.clone();
        bytes[at..at + 16].iter_mut().for_each(|byte| *byte ^= 0x5a);
        fs::write(&image, bytes).unwrap();
        let output = iofs_sign(["inspect", &image, "--check"]);
        if output.status.success() {
            continue;
        }
        let text = fails(&output, 3);
        assert!(text.contains("expected") || text.contains("not supported"), "{text}");
        refused += 1;
    }
    // Plain content has no sign of its own; dm-verity tells there.
    assert!(refused > 5, "{refused}");
    fs::write(&image, &whole[..whole.len() - 4096]).unwrap();
    assert!(
        fails(&iofs_sign(["inspect", &image, "--extract-all", &bench.text("out")]), 3).contains("blocks: expected")
    );
    assert!(!bench.path("out").exists() && bench.hidden().is_empty());
    fs::write(&image, "nothing").unwrap();
    assert!(fails(&iofs_sign(["inspect", &image, "--check"]), 3).contains("erofs"));
}

#[test]
fn an_ordinary_user_unpacks_what_is_not_root_s_to_make() {
    const NOBODY: u32 = 65_534;
    let bench = Bench::new();
    let image = odd_image(&bench);
    fs::copy(env!("CARGO_BIN_EXE_iofs-sign"), bench.path("iofs-sign")).unwrap();
    fs::remove_dir_all(bench.path("tree")).unwrap();
    std::os::unix::fs::chown(bench.path("."), Some(NOBODY), Some(NOBODY)).unwrap();
    let out = bench.path("out");
    let mut inspect = Command::new(bench.path("iofs-sign"));
    inspect.args(["inspect", &image, "--extract-all"]).arg(&out).uid(NOBODY).gid(NOBODY);
    let output = inspect.output().unwrap();
    passes(&output);
    let text = stderr(&output);
    for kind in ["devices left out", "attributes left out", "owners left out"] {
        assert!(text.contains(kind), "{text}");
    }
    assert!(out.join("sizes/4096").is_file() && !Path::new(&out).join("dev-char").exists());
}
