//! Damage to a sealed directory: `verify` finds all of it, and names the file.

mod seal_common;

use std::{
    fs::{self, File},
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use iofs_policy::trust::TrustedKeys;
use iofs_sign::{check, keys, report::Output, sealed::SealedDirectory};
use rayon::prelude::*;
use seal_common::{Bench, Random, copy_directory, fails, files, iofs_sign, passes};

/// How many bits are changed, one at a time.
const FLIPS: usize = 10_000;
/// Files of up to this many bytes have each of their bytes changed. Bytes.
const SMALL: usize = 4096;
/// Workers, each with a copy of the directory.
const WORKERS: usize = 4;

/// One bit of one file.
#[derive(Debug, Clone)]
struct Flip {
    file: String,
    offset: u64,
    bit: u8,
}

#[test]
fn every_changed_bit_is_refused_and_its_file_is_named() {
    let seed = std::env::var("IOFS_TEST_SEED").map_or(0x5eed, |seed| seed.parse().unwrap());
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    let flips = flips(&sealed, &mut Random(seed));
    let keys = TrustedKeys::new(vec![keys::read_public(&bench.path("key.pub.pem")).unwrap()], 1).unwrap();
    let share = flips.len().div_ceil(WORKERS);
    let missed: Vec<String> = flips
        .par_chunks(share)
        .enumerate()
        .flat_map_iter(|(number, flips)| {
            let copy = bench.path(&format!("copy-{number}"));
            copy_directory(&sealed, &copy);
            assert_eq!(problem(&copy, &keys), Ok(None));
            let missed: Vec<String> = flips.iter().filter_map(|flip| missed(&copy, &keys, flip)).collect();
            assert_eq!(problem(&copy, &keys), Ok(None), "all bits are back");
            missed
        })
        .collect();
    let first = &missed[..missed.len().min(20)];
    assert!(missed.is_empty(), "{} of {} with IOFS_TEST_SEED={seed}: {first:#?}", missed.len(), flips.len());
}

/// Each byte of the small files; the other changes are spread evenly over the large files, whatever their size.
fn flips(sealed: &Path, random: &mut Random) -> Vec<Flip> {
    let mut flips = Vec::new();
    let mut flip = |file: &str, offset: u64, random: &mut Random| {
        flips.push(Flip { file: file.to_owned(), offset, bit: random.below(8) as u8 });
    };
    let (small, large): (Vec<_>, Vec<_>) = files(sealed).into_iter().partition(|(_, bytes)| bytes.len() <= SMALL);
    assert_eq!(
        (small.len(), large.len()),
        (4, 4),
        "manifest, release, trust, root hash; image, tree, kernel, initramfs"
    );
    for (name, bytes) in &small {
        (0..bytes.len() as u64).for_each(|offset| flip(name, offset, random));
    }
    let spread = FLIPS - small.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    for number in 0..spread {
        let (name, bytes) = &large[number % large.len()];
        let offset = random.below(bytes.len() as u64);
        flip(name, offset, random);
    }
    assert_eq!(flips.len(), FLIPS);
    flips
}

/// What is wrong about the verdict on a directory with that bit changed, if anything.
fn missed(directory: &Path, keys: &TrustedKeys, flip: &Flip) -> Option<String> {
    let file = File::options().read(true).write(true).open(directory.join(&flip.file)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, flip.offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << flip.bit], flip.offset).unwrap();
    let verdict = catch_unwind(AssertUnwindSafe(|| problem(directory, keys)));
    file.write_all_at(&byte, flip.offset).unwrap();
    match verdict {
        Ok(Ok(Some(named))) if named == flip.file => None,
        other => Some(format!("{flip:?}: {other:?}")),
    }
}

/// The file that the first problem names.
fn problem(directory: &Path, keys: &TrustedKeys) -> Result<Option<String>, String> {
    let report = check::check(&SealedDirectory::new(directory), keys, NonZeroUsize::MIN, Output::default());
    let report = report.map_err(|failure| failure.fact)?;
    assert_eq!(report.verified, report.problems.is_empty());
    Ok(report.problems.into_iter().next().map(|problem| problem.artifact))
}

/// Damages a fresh copy, and expects that `verify` refuses it and first says `expected`.
fn assert_refused(bench: &Bench, sealed: &Path, expected: &str, damage: impl FnOnce(&Path)) {
    let copy = bench.path("damaged");
    let _ = fs::remove_dir_all(&copy);
    copy_directory(sealed, &copy);
    damage(&copy);
    let text = fails(&bench.verify(&copy), 4);
    let first = text.lines().find(|line| line.starts_with("NOT VERIFIED")).unwrap_or_default();
    assert!(first.contains(expected), "expected {expected:?} first: {text}");
    assert!(text.contains("\n next: "), "{text}");
}

#[test]
fn missing_cut_and_extended_files_are_refused() {
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    for (name, bytes) in files(&sealed) {
        let expected = format!("NOT VERIFIED {name}: ");
        assert_refused(&bench, &sealed, &expected, |copy| fs::remove_file(copy.join(&name)).unwrap());
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            assert_refused(&bench, &sealed, &expected, |copy| fs::write(copy.join(&name), &bytes[..length]).unwrap());
        }
        for more in [1, 4096, 300_000] {
            assert_refused(&bench, &sealed, &expected, |copy| {
                let file = File::options().write(true).open(copy.join(&name)).unwrap();
                file.set_len((bytes.len() + more) as u64).unwrap();
            });
        }
        assert_refused(&bench, &sealed, &expected, |copy| {
            fs::write(copy.join(&name), [&bytes[..], b"\n"].concat()).unwrap();
        });
    }
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    for name in files(&sealed).keys() {
        let expected = format!("NOT VERIFIED {name}: ");
        for make in ["mkfifo", "mkdir"] {
            assert_refused(&bench, &sealed, &expected, |copy| {
                let path = copy.join(name);
                fs::remove_file(&path).unwrap();
                passes(&seal_common::tool(make, "coreutils", &[path.to_str().unwrap()]));
            });
        }
    }
}

#[test]
fn files_that_the_release_statement_does_not_list_are_refused() {
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    for name in ["roothash.p7s", "uki.efi", "to-sign.bin", "README", ".hidden"] {
        let expected = format!("NOT VERIFIED {name}: expected no such file");
        assert_refused(&bench, &sealed, &expected, |copy| fs::write(copy.join(name), "x").unwrap());
    }
    // A sealed image alone stays one: a kernel beside it is nobody's.
    let arguments = [bench.image_arguments("alone"), vec!["--key".into(), bench.text("key.pem")]].concat();
    passes(&iofs_sign(arguments));
    passes(&bench.verify(&bench.path("alone")));
    let expected = "NOT VERIFIED initramfs.img: expected no such file";
    assert_refused(&bench, &bench.path("alone"), expected, |copy| {
        fs::copy(sealed.join("initramfs.img"), copy.join("initramfs.img")).unwrap();
    });
}

#[test]
fn swapped_files_are_refused() {
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    let names: Vec<String> = files(&sealed).into_keys().collect();
    for (index, left) in names.iter().enumerate() {
        for right in &names[index + 1..] {
            assert_refused(&bench, &sealed, "NOT VERIFIED", |copy| {
                fs::copy(sealed.join(left), copy.join(right)).unwrap();
                fs::copy(sealed.join(right), copy.join(left)).unwrap();
            });
        }
    }
}

/// `signature_confusion`: everything that is mixed here was signed by the right key.
#[test]
fn files_of_another_release_by_the_same_key_are_refused() {
    let bench = Bench::new();
    // One salt for both: the same content has the same root hash, whatever it is called.
    fs::write(bench.path("iofs.toml"), "[verity]\nsalt = \"00ff\"\n").unwrap();
    let signed = ["--key", &bench.text("key.pem"), "--config", &bench.text("iofs.toml")];
    let sealed = bench.seal("sealed", &signed);
    let other = bench.seal("other", &[&signed[..], &["--id", "plane", "--rollback-index", "3"]].concat());
    for (name, bytes) in files(&sealed) {
        if bytes == fs::read(other.join(&name)).unwrap() {
            continue;
        }
        let swap = |copy: &Path| {
            fs::copy(other.join(&name), copy.join(&name)).unwrap();
        };
        // With another manifest it is the release statement that speaks of something else.
        let named = if name == "manifest.dsse.json" { "release.dsse.json" } else { &name };
        assert_refused(&bench, &sealed, &format!("NOT VERIFIED {named}: "), swap);
    }
    // Both documents of the other release, with everything else of this one.
    assert_refused(&bench, &sealed, "NOT VERIFIED trust.json: ", |copy| {
        for name in ["manifest.dsse.json", "release.dsse.json"] {
            fs::copy(other.join(name), copy.join(name)).unwrap();
        }
    });
    // One document in the place of the other: the payload type is signed, too.
    assert_refused(&bench, &sealed, "NOT VERIFIED manifest.dsse.json: envelope: payloadType", |copy| {
        fs::copy(sealed.join("release.dsse.json"), copy.join("manifest.dsse.json")).unwrap();
    });
    assert_refused(&bench, &sealed, "NOT VERIFIED manifest.dsse.json: signature by trusted key", |copy| {
        let text = fs::read_to_string(sealed.join("release.dsse.json")).unwrap();
        fs::write(copy.join("manifest.dsse.json"), text.replace("iofs.release", "iofs.manifest")).unwrap();
    });
}

#[test]
fn other_keys_and_missing_signatures_are_refused() {
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    bench.key("other");
    let with_keys = |names: &[&str], threshold: &str| {
        let mut arguments = vec!["verify".to_owned(), bench.text("sealed"), "--threshold".into(), threshold.into()];
        arguments.extend(names.iter().flat_map(|name| ["--key".to_owned(), bench.text(&format!("{name}.pub.pem"))]));
        iofs_sign(arguments)
    };
    let text = fails(&with_keys(&["other"], "1"), 4);
    assert!(text.contains("NOT VERIFIED manifest.dsse.json: ") && text.contains("release.dsse.json: "), "{text}");
    fails(&with_keys(&["key", "other"], "2"), 4);
    fails(&with_keys(&["key", "other"], "3"), 2);
    fails(&with_keys(&["key", "key"], "1"), 2);
    passes(&with_keys(&["other", "key"], "1"));

    bench.seal("unsigned", &["--unsigned", "--trust", &bench.text("key.pub.pem")]);
    let text = fails(&bench.verify(&bench.path("unsigned")), 4);
    assert!(
        text.starts_with("NOT VERIFIED manifest.dsse.json: envelope: signatures: expected 1 to 16, found 0"),
        "{text}"
    );
    fs::create_dir(bench.path("empty")).unwrap();
    let text = fails(&bench.verify(&bench.path("empty")), 4);
    assert!(text.starts_with("NOT VERIFIED manifest.dsse.json: open "), "{text}");
    let text = fails(&bench.verify(&bench.path("none")), 1);
    assert!(text.contains("No such file"), "{text}");
    passes(&bench.verify(&sealed));
}

/// A signature beyond those that were asked for is checked all the same.
#[test]
fn every_bit_of_a_second_signature_is_checked() {
    let bench = Bench::new();
    bench.key("second");
    let sealed = bench.seal("sealed", &["--key", &bench.text("key.pem"), "--key", &bench.text("second.pem")]);
    passes(&bench.verify(&sealed));
    let keys = TrustedKeys::new(vec![keys::read_public(&bench.path("key.pub.pem")).unwrap()], 1).unwrap();
    let bytes = fs::read(sealed.join("release.dsse.json")).unwrap();
    let start = bytes.windows(12).position(|window| window == b"\"signatures\"").unwrap();
    for offset in start as u64..bytes.len() as u64 {
        for bit in 0..8 {
            let flip = Flip { file: "release.dsse.json".into(), offset, bit };
            assert_eq!(missed(&sealed, &keys, &flip), None);
        }
    }
}
