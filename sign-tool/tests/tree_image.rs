//! Images of trees: reproducible, accepted by the tools, and equal to their trees.

mod tree_common;

use std::{os::unix::fs::MetadataExt, path::Path, process::Command};

use iofs_sign::{
    erofs::{self, ImageCompression, ImageOptions, KernelRelease, TimeClamp, check_image},
    report::{ExitStatus, Failure},
    tree::{Source, compare::Ignore, odd::Odd},
};
use tree_common::{assert_same, load, odd, shell, work, write};

const TARABLE: Odd = Odd { xattrs: true, device_links: false, ..Odd::ALL };

fn bytes(tree: &Path, image: &Path) -> Vec<u8> {
    let info = write(tree, image, &ImageOptions::default());
    let bytes = std::fs::read(image).unwrap();
    assert_eq!(bytes.len() as u64, info.blocks * 4096);
    bytes
}

fn first_difference(left: &[u8], right: &[u8]) -> String {
    let count = left.iter().zip(right).filter(|(a, b)| a != b).count();
    let at = left.iter().zip(right).position(|(a, b)| a != b);
    format!("{} and {} bytes, {count} differ, the first at {at:?}", left.len(), right.len())
}

#[test]
fn the_image_does_not_depend_on_order_file_system_or_time() {
    let work = work();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let tree = odd(work.path(), TARABLE);
    let first = bytes(&tree, &work.path().join("1"));
    let second = bytes(&tree, &memory.path().join("2"));
    assert!(first == second, "twice: {}", first_difference(&first, &second));
    let reversed = odd(work.path(), Odd { reversed: true, ..TARABLE });
    let second = bytes(&reversed, &work.path().join("3"));
    assert!(first == second, "other order: {}", first_difference(&first, &second));
    // Attributes of users need Linux 6.6 on a tmpfs.
    let plain = Odd { xattrs: false, ..TARABLE };
    let on_disk = work.path().join("plain");
    std::fs::create_dir(&on_disk).unwrap();
    iofs_sign::tree::odd::build(&on_disk, plain).unwrap();
    let in_memory = odd(memory.path(), plain);
    let first = bytes(&on_disk, &work.path().join("4"));
    let second = bytes(&in_memory, &work.path().join("5"));
    assert!(first == second, "other file system: {}", first_difference(&first, &second));
    let archive = work.path().join("a.tar");
    shell("tar --xattrs --xattrs-include='*' --format=pax -C \"$1\" -cf \"$2\" .", &[&tree, &archive]);
    let first = std::fs::read(work.path().join("1")).unwrap();
    let second = bytes(&archive, &work.path().join("6"));
    assert!(first == second, "archived: {}", first_difference(&first, &second));
}

#[test]
fn another_content_has_another_id() {
    let work = work();
    let tree = work.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), "one").unwrap();
    let options = ImageOptions { clamp: TimeClamp::Epoch(1), ..ImageOptions::default() };
    let one = write(&tree, &work.path().join("1"), &options);
    std::fs::write(tree.join("file"), "two").unwrap();
    let two = write(&tree, &work.path().join("2"), &options);
    assert_ne!(one.uuid, two.uuid);
    assert_eq!((one.uuid.get_version_num(), one.build_time), (8, 1));
    std::fs::write(tree.join("file"), "one").unwrap();
    assert_eq!(write(&tree, &work.path().join("3"), &options), one);
}

#[test]
fn tools_accept_the_image_and_extract_the_tree() {
    let work = work();
    let tree = odd(work.path(), TARABLE);
    // 1.5 leaves holes out when it extracts, and shortens the file.
    ["hole", "sparse"].iter().for_each(|name| std::fs::remove_file(tree.join(name)).unwrap());
    let old = KernelRelease::new(6, 1);
    let ways = [
        ("none", ImageCompression::None, 65536, old),
        ("lz4", ImageCompression::Lz4, 4096, old),
        ("lz4hc", ImageCompression::Lz4Hc(Some(12)), 65536, old),
        ("wide", ImageCompression::Lz4Hc(None), 1 << 20, old),
    ];
    for (name, compression, cluster_size, kernel) in ways {
        let image = work.path().join(name);
        let options = ImageOptions { compression, cluster_size, kernel: Some(kernel), ..ImageOptions::default() };
        let info = write(&tree, &image, &options);
        println!("{name}: {info:?}");
        let extracted = work.path().join(format!("{name}.out"));
        shell("fsck.erofs --extract=\"$2\" --preserve \"$1\" >/dev/null", &[&image, &extracted]);
        // 1.5 extracts neither attributes nor nanoseconds, copies hard links, and changes the owner after the mode.
        let ignore =
            Ignore { xattrs: true, nanoseconds: true, hard_links: true, set_id_modes: true, ..Ignore::default() };
        assert_same(&tree, &extracted, ignore);
        let found = check_image(&image, Some(kernel)).unwrap();
        assert_eq!((found.checksum_holds, found.uuid, found.block_size), (Some(true), info.uuid, 4096));
        let dump = Command::new("dump.erofs").arg("-s").arg(&image).output().unwrap();
        assert!(String::from_utf8_lossy(&dump.stdout).contains(&info.uuid.to_string()));
    }
}

#[test]
fn a_ready_image_is_taken_as_it_is_and_a_damaged_one_refused() {
    let work = work();
    let tree = work.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), "content").unwrap();
    let image = work.path().join("image");
    write(&tree, &image, &ImageOptions::default());
    assert_eq!(Source::open(&image).unwrap(), Source::Erofs(image.clone()));
    let whole = std::fs::read(&image).unwrap();
    let mut damaged = whole.clone();
    damaged[1024 + 20] ^= 1;
    std::fs::write(&image, damaged).unwrap();
    let failure = Failure::from(check_image(&image, None).unwrap_err());
    assert!(failure.status == ExitStatus::BadInput && failure.fact.contains("checksum"), "{failure}");
    std::fs::write(&image, &whole[..whole.len() - 1]).unwrap();
    let failure = Failure::from(check_image(&image, None).unwrap_err());
    assert!(failure.fact.contains("blocks"), "{failure}");
}

#[test]
fn what_the_kernel_lacks_is_refused_with_a_way_out() {
    let work = work();
    let refused = |compression, kernel| {
        let options = ImageOptions { compression, kernel, ..ImageOptions::default() };
        let mut image = Vec::new();
        let error = erofs::write(load(work.path()).unwrap(), &mut image, &options).unwrap_err();
        assert_eq!(image.len(), 0);
        Failure::from(error)
    };
    let failure = refused(ImageCompression::Zstd(None), Some(KernelRelease::new(6, 1)));
    assert_eq!(failure.status, ExitStatus::Usage);
    assert!(failure.fact.contains("6.10") && failure.next_step.unwrap().contains("lz4"));
    let failure = refused(ImageCompression::Lz4Hc(Some(13)), None);
    assert!(failure.fact.contains("3 to 12"), "{failure}");
}

#[test]
fn sockets_and_times_before_1970_are_stored() {
    let work = work();
    let (tree, image) = (work.path().join("tree"), work.path().join("image"));
    std::fs::create_dir(&tree).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    shell("echo >\"$1\"; touch -d @0.5 \"$1\"", &[&tree.join("first")]);
    write(&tree, &image, &ImageOptions::default());
    let dump = Command::new("dump.erofs").arg("--path=/socket").arg(&image).output().unwrap();
    assert!(String::from_utf8_lossy(&dump.stdout).contains("SOCK"), "{dump:?}");
    shell("touch -d @-1 \"$1\"", &[&tree.join("first")]);
    let early = write(&tree, &image, &ImageOptions { clamp: TimeClamp::Epoch(0), ..ImageOptions::default() });
    assert_eq!(early.build_time, 0);
    let extracted = work.path().join("out");
    shell("fsck.erofs --extract=\"$2\" --preserve \"$1\" >/dev/null", &[&image, &extracted]);
    assert_eq!(extracted.join("first").metadata().unwrap().mtime(), -1);
}

#[test]
fn the_image_does_not_depend_on_the_number_of_threads() {
    let work = work();
    let tree = work.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let words = (0..6_000_000_u32).flat_map(|number| (number.wrapping_mul(2_654_435_761) >> 16).to_le_bytes());
    std::fs::write(tree.join("large"), words.collect::<Vec<u8>>()).unwrap();
    for name in 0..40 {
        std::fs::write(tree.join(name.to_string()), vec![name; 300_000]).unwrap();
    }
    let zstd = (ImageCompression::Zstd(Some(1)), Some(KernelRelease::new(6, 12)));
    for (compression, kernel) in [(ImageCompression::Lz4, None), (ImageCompression::Lz4Hc(Some(3)), None), zstd] {
        let with = |threads| {
            let options = ImageOptions { compression, kernel, threads, ..ImageOptions::default() };
            let image = work.path().join("image");
            let info = write(&tree, &image, &options);
            (info, std::fs::read(image).unwrap())
        };
        let first = with(1);
        for threads in [2, 8] {
            let again = with(threads);
            assert_eq!(first.0, again.0);
            assert!(first.1 == again.1, "{compression:?}: {}", first_difference(&first.1, &again.1));
        }
    }
}
