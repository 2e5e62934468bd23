//! The same input gives the same bytes, wherever and however it is sealed.

mod seal_common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use iofs_sign::tree::odd::{Odd, build};
use seal_common::{Bench, assert_same, command, files, noise, passes, tool};

type Files = BTreeMap<String, Vec<u8>>;

/// What both kinds of file system and tar can carry.
const PORTABLE: Odd = Odd { xattrs: false, device_links: false, ..Odd::ALL };

/// Seals a tree into `out` with the bench's kernel and key, and makes a disk image of that.
fn sealed(bench: &Bench, root: &Path, out: &Path, options: &[&str], epoch: Option<u64>) -> Files {
    let mut seal = command();
    seal.args(["seal", "--key", &bench.text("key.pem"), "--kernel", &bench.text("vmlinuz")]);
    seal.args(["--modules", &bench.text("modules"), "--init", &bench.text("init")]).args(options);
    seal.arg("--root").arg(root).arg("--out").arg(out);
    seal.envs(epoch.map(|epoch| ("SOURCE_DATE_EPOCH", epoch.to_string())));
    passes(&seal.output().unwrap());
    passes(&bench.verify(out));
    let disk = out.with_extension("disk");
    passes(&command().arg("disk").arg(out).arg("--out").arg(&disk).output().unwrap());
    let mut all = files(out);
    assert_eq!(all.len(), 8, "{:?}", all.keys());
    all.insert("disk".to_owned(), fs::read(disk).unwrap());
    all
}

fn odd_tree(root: &Path, odd: Odd) {
    assert!(rustix::process::geteuid().is_root(), "this test makes device nodes and owners: run it as root");
    fs::create_dir(root).unwrap();
    build(root, odd).unwrap();
}

#[test]
fn creation_order_threads_and_places_do_not_matter() {
    let bench = Bench::new();
    let (first, second) = (bench.path("first"), bench.path("second"));
    odd_tree(&first, Odd::default());
    odd_tree(&second, Odd { reversed: true, ..Odd::default() });
    let expected = sealed(&bench, &first, &bench.path("a"), &["--threads", "1"], None);
    assert_same(&expected, &sealed(&bench, &first, &bench.path("b"), &["--threads", "4"], None));
    assert_same(&expected, &sealed(&bench, &second, &bench.path("elsewhere with spaces"), &[], None));
}

#[test]
fn file_systems_and_tar_do_not_matter() {
    let bench = Bench::new();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    odd_tree(&bench.path("tree"), PORTABLE);
    let expected = sealed(&bench, &bench.path("tree"), &bench.path("a"), &[], None);

    let elsewhere = memory.path().join("tree");
    odd_tree(&elsewhere, Odd { reversed: true, ..PORTABLE });
    assert_same(&expected, &sealed(&bench, &elsewhere, &memory.path().join("out"), &[], None));

    let archive = bench.text("tree.tar");
    passes(&tool("tar", "tar", &["--format=pax", "-C", &bench.text("tree"), "-cf", &archive, "."]));
    assert_same(&expected, &sealed(&bench, Path::new(&archive), &bench.path("b"), &[], None));
    passes(&tool("zstd", "zstd", &["-q", &archive]));
    let packed = bench.path("tree.tar.zst");
    assert_same(&expected, &sealed(&bench, &packed, &memory.path().join("from tar"), &[], None));
}

/// Without root's rights, subordinate ids, or anything unpacked: owners and devices are numbers in an archive.
#[test]
fn an_ordinary_user_seals_directories_and_archives_to_root_s_bytes() {
    const NOBODY: u32 = 65_534;
    let bench = Bench::new();
    odd_tree(&bench.path("tree"), Odd { device_links: false, many: 300, ..Odd::default() });
    let pack = "tar --xattrs --xattrs-include='*' --format=pax -C \"$1/tree\" -cf \"$1/tree.tar\" .
        xz -0 -k \"$1/tree.tar\"
        cd \"$1/tree\"; find . | sort | cpio --quiet -o -H newc | gzip -1 >\"$1/initrd.img\"";
    passes(&tool("sh", "tar cpio gzip xz-utils", &["-ec", pack, "sh", &bench.text("")]));
    // Where others may run it, and read all that they seal.
    fs::copy(env!("CARGO_BIN_EXE_iofs-sign"), bench.path("iofs-sign")).unwrap();
    fs::remove_dir_all(bench.path("tree")).unwrap();
    passes(&tool("chown", "coreutils", &["-R", &NOBODY.to_string(), &bench.text("")]));
    for (number, source) in ["root", "tree.tar", "tree.tar.xz", "initrd.img"].into_iter().enumerate() {
        let expected = sealed(&bench, &bench.path(source), &bench.path(&format!("root-{number}")), &[], None);
        let out = bench.path(&format!("user-{number}"));
        let mut seal = Command::new(bench.path("iofs-sign"));
        seal.args(["seal", "--key", &bench.text("key.pem"), "--kernel", &bench.text("vmlinuz"), "--modules"]);
        seal.args([&bench.text("modules"), "--init", &bench.text("init"), "--root", &bench.text(source), "--out"]);
        passes(&seal.arg(&out).uid(NOBODY).gid(NOBODY).env("PATH", "").output().unwrap());
        let found = files(&out);
        assert!(found.iter().all(|(name, bytes)| expected[name] == *bytes) && found.len() == 8, "{source}");
    }
}

#[test]
fn a_sealed_image_seals_again_to_the_same_bytes() {
    let bench = Bench::new();
    let names = ["--id", "car", "--image-version", "7"];
    let expected = sealed(&bench, &bench.path("root"), &bench.path("a"), &names, None);
    assert_same(&expected, &sealed(&bench, &bench.path("a/image.erofs"), &bench.path("b"), &names, None));
}

#[test]
fn times_after_source_date_epoch_do_not_matter() {
    let bench = Bench::new();
    let epoch = 1_700_000_000;
    let at = |seconds: u64, out: &str, epoch: Option<u64>| {
        let root = bench.path("root");
        for name in ["usr/bin/tool", "etc/os-release", "usr/bin", "usr", "etc", ""] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            fs::File::open(root.join(name)).unwrap().set_modified(time).unwrap();
        }
        sealed(&bench, &root, &bench.path(out), &[], epoch)
    };
    // The symlink's time is that of its making, and so after the epoch.
    let expected = at(1_800_000_000, "a", Some(epoch));
    assert_same(&expected, &at(1_900_000_000, "b", Some(epoch)));
    assert_same(&expected, &at(epoch, "c", Some(epoch)));
    let image = |files: &Files| files["image.erofs"].clone();
    assert_ne!(image(&expected), image(&at(1_600_000_000, "d", Some(epoch))), "earlier times are kept");
    assert_ne!(image(&expected), image(&at(1_800_000_000, "e", None)));
}

#[test]
fn any_other_content_gives_another_root_hash_and_id_and_another_image_another_salt() {
    let bench = Bench::new();
    let before = sealed(&bench, &bench.path("root"), &bench.path("a"), &[], None);
    let renamed = sealed(&bench, &bench.path("root"), &bench.path("b"), &["--id", "plane"], None);
    fs::write(bench.path("root/usr/bin/tool"), noise(300_000, 9)).unwrap();
    let changed = sealed(&bench, &bench.path("root"), &bench.path("c"), &[], None);
    for name in ["image.verity", "roothash", "manifest.dsse.json", "release.dsse.json", "disk"] {
        assert_ne!(before[name], changed[name], "{name}");
        assert_ne!(before[name], renamed[name], "{name}");
    }
    assert_ne!(before["image.erofs"], changed["image.erofs"]);
    assert_eq!(before["image.erofs"], renamed["image.erofs"]);
    assert_eq!((&before["vmlinuz"], &before["trust.json"]), (&changed["vmlinuz"], &changed["trust.json"]));
    // Bytes 16 to 32 of the superblock are its id, those from 88 on the salt.
    let (id, salt) = (16..32, 88..120);
    for other in [&changed, &renamed] {
        assert_ne!(before["image.verity"][id.clone()], other["image.verity"][id.clone()]);
    }
    assert_eq!(before["image.verity"][salt.clone()], changed["image.verity"][salt.clone()]);
    assert_ne!(before["image.verity"][salt.clone()], renamed["image.verity"][salt]);
}
