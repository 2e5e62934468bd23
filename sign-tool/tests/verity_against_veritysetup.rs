//! Our hash trees against those of the real `veritysetup` (written for 2.6.1): same bytes, same text, and each accepts
//! what the other wrote. Cases that only one of the two refuses have a test of their own that says so.

#[path = "veritysetup/mod.rs"]
mod support;

use std::{fs, os::unix::fs::FileExt};

use iofs_policy::verity::{Geometry, HashAlgorithm, HashFormat, ParameterError};
use iofs_sign::verity::{Artifact, Fault, FormatError, Mismatch, VerifyError};
use support::{Bench, Case, flip_bit, iofs_sign, noise, root_hash_in, text, veritysetup};

const SIZES: [u64; 4] = [512, 1024, 2048, 4096];
const ALGORITHMS: [HashAlgorithm; 2] = [HashAlgorithm::Sha256, HashAlgorithm::Sha512];
const FORMATS: [HashFormat; 2] = [HashFormat::Normal, HashFormat::ChromeOs];

#[test]
fn trees_are_the_same_around_each_change_of_depth() {
    let bench = Bench::new();
    for blocks in [1, 2, 127, 128, 129, 16383, 16384, 16385] {
        Case::new(blocks).assert_same(&bench);
        Case::new(blocks).blocks_of(512, 4096).algorithm(HashAlgorithm::Sha512).assert_same(&bench);
        Case::new(blocks).blocks_of(512, 512).format(HashFormat::ChromeOs).assert_same(&bench);
    }
}

#[test]
fn trees_are_the_same_for_all_block_sizes() {
    let bench = Bench::new();
    for data in SIZES {
        for hash in SIZES {
            for algorithm in ALGORITHMS {
                for format in FORMATS {
                    Case::new(129).blocks_of(data, hash).algorithm(algorithm).format(format).assert_same(&bench);
                }
            }
        }
    }
    Case::new(33).blocks_of(16384, 65536).assert_same(&bench);
    Case::new(33).blocks_of(65536, 512).assert_same(&bench);
}

#[test]
fn trees_are_the_same_for_all_salts() {
    let bench = Bench::new();
    for size in [0, 1, 32, 64, 256] {
        for algorithm in ALGORITHMS {
            for format in FORMATS {
                for blocks in [1, 3] {
                    Case::new(blocks).salt_of(size).algorithm(algorithm).format(format).assert_same(&bench);
                }
            }
        }
    }
}

#[test]
fn trees_are_the_same_at_all_offsets() {
    let bench = Bench::new();
    Case::new(2).at(512, true).assert_same(&bench);
    Case::new(300).at(3584, true).assert_same(&bench);
    for blocks in [1, 2, 300] {
        for (offset, superblock) in [(4096, true), (12288, true), (0, false), (8192, false)] {
            Case::new(blocks).at(offset, superblock).assert_same(&bench);
            Case::new(blocks).blocks_of(512, 1024).at(offset, superblock).assert_same(&bench);
        }
    }
}

/// veritysetup rewrites the whole hash block around the superblock, which it cannot read while there is none; with any
/// tree behind it there is.
#[test]
fn a_lone_superblock_within_a_block_is_written_although_veritysetup_fails() {
    let bench = Bench::new();
    let case = Case::new(1).at(512, true);
    let data = bench.data(case.data_bytes());
    let [theirs, ours] = ["theirs", "ours"].map(|name| bench.fresh(name));
    assert!(!veritysetup("format", &[&data, &theirs], &case.format_options()).status.success());
    let root_hash = case.format_ours(&data, &ours, 1).unwrap();
    assert_eq!(fs::read(&ours).unwrap().len(), 4096);
    let options = [case.options(), vec![root_hash.to_string()]].concat();
    assert!(veritysetup("verify", &[&data, &ours], &options).status.success());
}

#[test]
fn appended_trees_are_the_same() {
    for (blocks, superblock) in [(1, true), (1, false), (300, true), (300, false)] {
        let bench = Bench::new();
        let case = Case::new(blocks);
        let case = case.clone().at(case.data_bytes(), superblock);
        let [theirs, ours] = ["theirs", "ours"].map(|name| {
            let path = bench.fresh(name);
            fs::copy(bench.data(case.data_bytes()), &path).unwrap();
            path
        });
        let output = veritysetup("format", &[&theirs, &theirs], &case.format_options());
        let root_hash = case.format_ours(&ours, &ours, 2).unwrap();
        assert_eq!(root_hash, root_hash_in(&text(&output.stdout)));
        assert!(fs::read(&theirs).unwrap() == fs::read(&ours).unwrap(), "the files differ: {case:?}");
        case.verify_ours(&ours, &ours, &root_hash, [2, 1]).unwrap();
        let options = [case.options(), vec![root_hash.to_string()]].concat();
        assert!(veritysetup("verify", &[&ours, &ours], &options).status.success());
    }
}

#[test]
fn what_was_in_an_existing_file_stays_around_the_tree() {
    let bench = Bench::new();
    let case = Case::new(200).at(4096, true);
    let data = bench.data(case.data_bytes());
    let [theirs, ours] = ["theirs", "ours"].map(|name| bench.fresh(name));
    for path in [&theirs, &ours] {
        fs::write(path, noise(100_000, 3)).unwrap();
    }
    assert!(veritysetup("format", &[&data, &theirs], &case.format_options()).status.success());
    case.format_ours(&data, &ours, 2).unwrap();
    assert!(fs::read(&theirs).unwrap() == fs::read(&ours).unwrap());
}

#[test]
fn thread_counts_give_the_same_bytes() {
    let bench = Bench::new();
    let case = Case::new(20_000).blocks_of(1024, 512);
    let data = bench.data(case.data_bytes());
    let trees = [1, 2, 3, 16].map(|threads| {
        let path = bench.fresh("tree");
        let root_hash = case.format_ours(&data, &path, threads).unwrap();
        (fs::read(path).unwrap(), root_hash)
    });
    assert!(trees.iter().all(|tree| *tree == trees[0]));
}

#[test]
fn command_prints_the_same_text_and_writes_the_same_files() {
    let bench = Bench::new();
    let hash = bench.path("hash");
    let cases = [
        Case::new(10),
        Case::new(1),
        Case::new(5).salt_of(0),
        Case::new(300).at(4096, true),
        Case::new(10).at(0, false),
        Case::new(10).algorithm(HashAlgorithm::Sha512).format(HashFormat::ChromeOs),
        Case::new(129).blocks_of(512, 1024),
    ];
    for case in cases {
        let data = bench.data(case.data_bytes());
        let run = |tool: fn(&str, &[&std::path::Path], &[String]) -> std::process::Output| {
            let (hash, root) = (bench.fresh("hash"), bench.fresh("root"));
            let options = [case.format_options(), vec![format!("--root-hash-file={}", root.display())]].concat();
            let output = tool("format", &[&data, &hash], &options);
            assert!(output.status.success(), "{}", text(&output.stderr));
            (text(&output.stdout), fs::read(&root).unwrap(), fs::read(&hash).unwrap())
        };
        assert_eq!(run(veritysetup), run(iofs_sign), "{case:?}");
        let root = format!("--root-hash-file={}", bench.path("root").display());
        for tool in [veritysetup, iofs_sign] {
            let output = tool("verify", &[&data, &hash], &[case.options(), vec![root.clone()]].concat());
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
    }
}

#[test]
fn defaults_are_random_and_verify() {
    let bench = Bench::new();
    let data = bench.data(40960);
    let run = || {
        let hash = bench.fresh("hash");
        let output = iofs_sign("format", &[&data, &hash], &[]);
        (root_hash_in(&text(&output.stdout)), fs::read(hash).unwrap())
    };
    let (first, second) = (run(), run());
    assert_ne!(first.0, second.0);
    assert_ne!(first.1[16..32], second.1[16..32]);
    let output = veritysetup("verify", &[&data, &bench.path("hash")], &[second.0.to_string()]);
    assert!(output.status.success());
}

/// veritysetup rounds down and leaves the tail unprotected; for empty data it fails as we do.
#[test]
fn data_that_is_empty_or_not_whole_blocks_is_refused() {
    let bench = Bench::new();
    for (content, expected) in [(0, "found an empty file"), (5000, "expected a multiple of 4096 bytes, found 5000")] {
        let (data, hash) = (bench.path("odd"), bench.path("tree"));
        fs::write(&data, noise(content, 5)).unwrap();
        let output = iofs_sign("format", &[&data, &hash], &[]);
        assert_eq!(output.status.code(), Some(3));
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("\n next: "));
        assert!(!hash.exists(), "a failed run leaves no file");
    }
    let output = iofs_sign("format", &[&bench.path("odd"), &bench.path("tree")], &["--data-blocks=1".to_owned()]);
    assert!(output.status.success());
}

#[test]
fn requests_that_both_refuse() {
    let bench = Bench::new();
    let data = bench.data(40960);
    let refused = [
        ("--data-blocks=11", 3),
        ("--format=2", 2),
        ("--hash=md6", 2),
        ("--data-block-size=1000", 2),
        ("--hash-block-size=256", 2),
        ("--hash-offset=100", 2),
        ("--salt=xyz", 2),
        ("--salt=abc", 2),
        ("--uuid=1234", 2),
    ];
    for (option, status) in refused {
        let paths = [data.as_path(), &bench.fresh("tree")];
        assert!(!veritysetup("format", &paths, &[option.to_owned()]).status.success(), "{option}");
        let paths = [data.as_path(), &bench.fresh("tree")];
        let output = iofs_sign("format", &paths, &[option.to_owned()]);
        assert_eq!(output.status.code(), Some(status), "{option}: {}", text(&output.stderr));
    }
    let overlapping = ["--hash-offset=4096".to_owned(), "--data-blocks=10".to_owned()];
    let before = fs::read(&data).unwrap();
    assert!(!veritysetup("format", &[&data, &data], &overlapping).status.success());
    assert_eq!(iofs_sign("format", &[&data, &data], &overlapping).status.code(), Some(2));
    assert!(fs::read(&data).unwrap() == before, "the data is as it was");
}

/// veritysetup rounds the offset of a tree without superblock down; a table line could not say where it is.
#[test]
fn a_tree_without_superblock_must_start_on_a_block() {
    let bench = Bench::new();
    let case = Case::new(3).at(512, false);
    let refused = case.format_ours(&bench.data(case.data_bytes()), &bench.path("tree"), 1);
    let expected = ParameterError::HashOffset { hash_block_size: 4096, found: 512 };
    assert!(matches!(refused, Err(FormatError::Parameter(error)) if error == expected));
}

fn mismatches(case: &Case, paths: [&std::path::Path; 2], root: &str, limit: usize) -> Vec<Mismatch> {
    let verify = |threads| case.verify_ours(paths[0], paths[1], &root.parse().unwrap(), [threads, limit]);
    let found = [1, 2, 7].map(|threads| match verify(threads) {
        Err(VerifyError::Mismatch(mismatches)) => mismatches,
        other => panic!("expected mismatches, found {other:?}"),
    });
    assert!(found.iter().all(|mismatches| *mismatches == found[0]), "the result depends on the thread count");
    found[0].clone()
}

#[test]
fn a_bit_flipped_in_any_level_is_named_precisely() {
    for case in [Case::new(1000).blocks_of(1024, 512), Case::new(1000).blocks_of(512, 512).format(HashFormat::ChromeOs)]
    {
        let bench = Bench::new();
        let (data, tree) = (bench.data(case.data_bytes()), bench.path("tree"));
        let root = case.format_ours(&data, &tree, 2).unwrap().to_string();
        let geometry = Geometry::new(&case.parameters).unwrap();
        let start = case.area.tree_range(&case.parameters, &geometry).unwrap().start;
        assert_eq!(geometry.levels().len(), 3);
        for (number, level) in geometry.levels().iter().enumerate() {
            for block in [0, level.blocks / 2, level.blocks - 1] {
                let offset = start + (level.first_block + block) * 512;
                flip_bit(&tree, offset + 3);
                let found = mismatches(&case, [&data, &tree], &root, 100);
                flip_bit(&tree, offset + 3);
                assert_eq!(found.len(), 1, "{found:?}");
                assert_eq!(found[0].artifact, Artifact::HashTree { level: number });
                assert_eq!((found[0].block, found[0].offset), (block, offset));
                assert_eq!(number == 2, matches!(found[0].fault, Fault::RootHash { .. }));
                let each = 16u64.pow(number as u32 + 1);
                assert_eq!(found[0].data_blocks, block * each..1000.min((block + 1) * each));
            }
        }
        let size = u64::from(case.parameters.data_block_size);
        for block in [0, 15, 16, 500, 999] {
            flip_bit(&data, block * size + size - 1);
            let found = mismatches(&case, [&data, &tree], &root, 100);
            flip_bit(&data, block * size + size - 1);
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].artifact, found[0].block, found[0].offset), (Artifact::Data, block, block * size));
        }
    }
}

#[test]
fn first_mismatches_are_those_of_the_first_data() {
    let bench = Bench::new();
    let case = Case::new(5000).blocks_of(4096, 512);
    let (data, tree) = (bench.data(case.data_bytes()), bench.path("tree"));
    let root = case.format_ours(&data, &tree, 2).unwrap().to_string();
    let file = fs::OpenOptions::new().write(true).open(&data).unwrap();
    for block in [4999, 4000, 2500, 1000, 77] {
        file.write_all_at(b"changed", block * 4096).unwrap();
    }
    let blocks = |limit| mismatches(&case, [&data, &tree], &root, limit).iter().map(|m| m.block).collect::<Vec<_>>();
    assert_eq!(blocks(1), [77]);
    assert_eq!(blocks(3), [77, 1000, 2500]);
    assert_eq!(blocks(100), [77, 1000, 2500, 4000, 4999]);
}

#[test]
fn a_single_block_is_checked_against_the_root_hash_itself() {
    let bench = Bench::new();
    let case = Case::new(1).at(0, false);
    let (data, tree) = (bench.data(4096), bench.path("tree"));
    let root = case.format_ours(&data, &tree, 1).unwrap().to_string();
    flip_bit(&data, 9);
    let found = mismatches(&case, [&data, &tree], &root, 1);
    assert_eq!(found[0].artifact, Artifact::Data);
    assert!(matches!(found[0].fault, Fault::RootHash { .. }));
}

/// Such a tree verifies in the kernel; veritysetup refuses it, and so do we.
#[test]
fn padding_that_is_not_zero_is_refused() {
    let bench = Bench::new();
    let case = Case::new(3).at(0, false);
    let (data, tree) = (bench.data(case.data_bytes()), bench.path("tree"));
    case.format_ours(&data, &tree, 1).unwrap();
    let mut block = fs::read(&tree).unwrap();
    block[200] = 1;
    fs::write(&tree, &block).unwrap();
    // The block is all of the tree, so its digest is what a single data block of the same bytes comes to.
    let root = Case::new(1).at(0, false).format_ours(&tree, &bench.path("none"), 1).unwrap().to_string();
    let found = mismatches(&case, [&data, &tree], &root, 9);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].fault, Fault::Padding { offset: 200, found: 1 });
    let options = [case.options(), vec![root]].concat();
    assert!(!veritysetup("verify", &[&data, &tree], &options).status.success());
}

#[test]
fn files_that_end_early_are_malformed_and_not_merely_unverified() {
    let bench = Bench::new();
    let case = Case::new(300);
    let (data, tree) = (bench.data(case.data_bytes()), bench.path("tree"));
    let root = case.format_ours(&data, &tree, 1).unwrap().to_string();
    let options = std::slice::from_ref(&root);
    for (path, size) in [(&tree, 8192), (&tree, 100), (&tree, 0), (&data, 4096), (&data, 0)] {
        let whole = fs::read(path).unwrap();
        fs::write(path, &whole[..size]).unwrap();
        let output = iofs_sign("verify", &[&data, &tree], options);
        fs::write(path, &whole).unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    }
    assert!(iofs_sign("verify", &[&data, &tree], options).status.success());
}

#[test]
fn command_names_what_is_wrong_and_exits_with_4() {
    let bench = Bench::new();
    let case = Case::new(300);
    let (data, tree) = (bench.data(case.data_bytes()), bench.path("tree"));
    let root = case.format_ours(&data, &tree, 1).unwrap().to_string();
    flip_bit(&data, 200 * 4096);
    flip_bit(&data, 299 * 4096);
    let output = iofs_sign("verify", &[&data, &tree], &[root.clone(), "--max-mismatches=10".to_owned()]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).starts_with("error: data block 200 at byte 819200: expected digest "));
    assert_eq!(text(&output.stdout).lines().count(), 2);
    let output = iofs_sign("verify", &[&data, &tree], &[root.clone(), "--json".to_owned()]);
    assert!(text(&output.stdout).contains("\"block\": 200"));
    let output = iofs_sign("verify", &[&data, &tree], &[root.clone(), "--hash=sha512".to_owned()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("hash algorithm: expected sha512 as given, found sha256"));
    let output = iofs_sign("verify", &[&data, &tree], &[root[2..].to_owned()]);
    assert_eq!(output.status.code(), Some(2));
    let output = iofs_sign("verify", &[&data, &data], &[root]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("superblock at byte 0: magic: expected"));
}
