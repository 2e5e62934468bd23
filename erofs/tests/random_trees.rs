//! Random trees survive the round trip.

mod common;

use std::fs;

use common::{EXACT, assert_same, listing, odd, read, utils::Utils, write};
use erofs_image::{
    Compression, Metadata, Node, Options, Time, Tree,
    tree::{Device, InodeId, Kind},
    write::KernelRelease,
};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::RngSeed};

/// An entry to be added to one of the directories that are there.
#[derive(Debug, Clone)]
struct Step {
    directory: Index,
    name: Vec<u8>,
    metadata: Metadata,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Directory,
    /// Parts: their size, whether they compress, a seed.
    File(Vec<(usize, bool, u64)>),
    Symlink(usize),
    Device(u32, u32),
    Fifo,
    Link(Index),
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let xattr = (prop::sample::select(vec!["user.", "trusted.", "security."]), "[a-z]{1,20}", vec(any::<u8>(), 0..200));
    let xattrs = prop_oneof![3 => Just(Vec::new()), 1 => vec(xattr, 0..6)];
    let id = || prop_oneof![Just(0_u32), 0..70_000_u32, any::<u32>()];
    // What ext4 can hold, since one test extracts to it.
    let time = prop_oneof![Just((7, 0)), (-2_000_000_000..15_000_000_000_i64, 0..1_000_000_000_u32)];
    (0..0o10000_u16, id(), id(), time, xattrs).prop_map(|(mode, uid, gid, (seconds, nanoseconds), xattrs)| {
        let xattrs = xattrs.into_iter().map(|(prefix, name, value)| ((prefix.to_owned() + &name).into_bytes(), value));
        Metadata { mode, uid, gid, mtime: Time { seconds, nanoseconds }, xattrs: xattrs.collect() }
    })
}

fn what() -> impl Strategy<Value = What> {
    let size = prop_oneof![4 => 0..5000_usize, 3 => 0..70_000_usize, 1 => 0..1_500_000_usize];
    let part = (size, any::<bool>(), 0..4_u64);
    prop_oneof![
        2 => Just(What::Directory),
        6 => vec(part, 0..6).prop_map(What::File),
        1 => (1..4096_usize).prop_map(What::Symlink),
        1 => (0..4096_u32, 0..1_048_576_u32).prop_map(|(major, minor)| What::Device(major, minor)),
        1 => Just(What::Fifo),
        1 => any::<Index>().prop_map(What::Link),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let byte = any::<u8>().prop_filter("no slash, no zero", |byte| *byte != 0 && *byte != b'/');
    let name = prop_oneof![vec(byte, 1..256), "[a-c]{1,3}".prop_map(String::into_bytes)];
    (any::<Index>(), name, metadata(), what()).prop_map(|(directory, name, metadata, what)| Step {
        directory,
        name,
        metadata,
        what,
    })
}

fn build(steps: &[Step]) -> Tree {
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    let (mut directories, mut others) = (vec![Tree::ROOT], Vec::<InodeId>::new());
    for step in steps {
        let parent = *step.directory.get(&directories);
        let kind = match &step.what {
            What::Link(target) => {
                if !others.is_empty() {
                    // A name that is there already is refused, which is as good.
                    let _ = tree.link_child(parent, &step.name, *target.get(&others));
                }
                continue;
            }
            What::Directory => Kind::Directory,
            What::File(parts) => Node::file(Metadata::default(), content(parts)).kind,
            What::Symlink(length) => Kind::Symlink(vec![b't'; *length]),
            What::Device(major, minor) => Kind::CharacterDevice(Device { major: *major, minor: *minor }),
            What::Fifo => Kind::Fifo,
        };
        let directory = matches!(kind, Kind::Directory);
        if let Ok(id) = tree.add_child(parent, &step.name, Node::other(step.metadata.clone(), kind)) {
            if directory { directories.push(id) } else { others.push(id) }
        }
    }
    tree
}

/// Linux lets files and directories alone have attributes of users, and erofs-utils 1.8 take an empty one for the end of them.
fn extractable(mut steps: Vec<Step>) -> Vec<Step> {
    for step in &mut steps {
        let users = matches!(step.what, What::File(_) | What::Directory);
        step.metadata.xattrs.retain(|name, value| !value.is_empty() && (users || !name.starts_with(b"user.")));
    }
    steps
}

fn content(parts: &[(usize, bool, u64)]) -> Vec<u8> {
    let part = |(size, compresses, seed): &(usize, bool, u64)| {
        if *compresses { odd::text(*size, *seed as usize) } else { odd::noise(*size, *seed) }
    };
    parts.iter().flat_map(part).collect()
}

fn options() -> impl Strategy<Value = Options> {
    let compression = prop_oneof![
        Just(Compression::None),
        Just(Compression::Lz4),
        Just(Compression::Lz4hc { level: 3 }),
        Just(Compression::Zstd { level: 1 }),
    ];
    let blocks = prop::sample::select(vec![1_usize, 2, 3, 16, 256]);
    (compression, blocks, 1..4_usize).prop_map(|(compression, blocks, threads)| Options {
        compression,
        cluster_size: blocks * 4096,
        threads,
        kernel: KernelRelease::new(6, 12),
        ..Options::default()
    })
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn random_trees_are_read_as_they_were(steps in vec(step(), 0..40), options in options()) {
        let tree = build(&steps);
        let found = read(write(&tree, &options).0);
        assert_same(&listing(&tree, EXACT), &listing(&found, EXACT), "a random tree");
    }
}

proptest! {
    #![proptest_config(config(20))]

    #[test]
    fn erofs_utils_accept_and_extract_random_trees_as_they_were(steps in vec(step(), 0..40), options in options()) {
        let tree = build(&extractable(steps));
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::write(&image, write(&tree, &options).0).unwrap();
        for utils in Utils::BOTH.into_iter().filter(|utils| utils.knows(options.compression)) {
            utils.accept(&image);
            let found = utils.extract(&image, &folder.path().join(format!("{utils:?}")));
            assert_same(&listing(&tree, utils.lossy()), &listing(&found, utils.lossy()), "a random tree");
        }
    }
}
