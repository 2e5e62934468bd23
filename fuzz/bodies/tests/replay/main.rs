//! Every target over its corpus, and for a while over mutations of it.
//!
//! `IOFS_FUZZ_RUNS` sets how many runs each target gets, `IOFS_FUZZ_SEED` the seed of the mutations, `IOFS_FUZZ_TARGET`
//! picks one target. The same seed gives the same inputs.

mod mutate;

use std::{
    collections::BTreeSet,
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use iofs_fuzz_bodies::{Body, TARGETS};
use mutate::Mutator;

const RUNS: u64 = 50_000;
const SEED: u64 = 0x1f05;

fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The seeds of a target, by name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = home().join("corpus").join(target);
    let mut seeds: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "{} holds no seed", folder.display());
    seeds
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: expected a number")))
}

#[test]
fn seeds_are_accepted_unless_their_name_says_that_they_fail() {
    let mut wrong = Vec::new();
    for (target, body) in TARGETS {
        for (name, bytes) in seeds(target) {
            match catch_unwind(AssertUnwindSafe(|| body(&bytes))) {
                Ok(accepted) if accepted != name.starts_with("fail_") => {}
                Ok(accepted) => wrong.push(format!("{target}/{name}: accepted: {accepted}")),
                Err(_) => wrong.push(format!("{target}/{name}: broke the invariant of its target")),
            }
        }
    }
    assert!(wrong.is_empty(), "see fuzz/corpus/README.md:\n{}", wrong.join("\n"));
}

#[test]
fn mutated_seeds_break_no_invariant() {
    let wanted = env::var("IOFS_FUZZ_TARGET").ok();
    let targets: Vec<_> = TARGETS.iter().filter(|(name, _)| wanted.as_deref().is_none_or(|one| one == *name)).collect();
    assert!(!targets.is_empty(), "IOFS_FUZZ_TARGET names no target");
    let next = AtomicUsize::new(0);
    let broken = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((name, body)) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    broken.lock().unwrap().extend(fuzz(name, *body));
                }
            });
        }
    });
    let broken = broken.into_inner().unwrap();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Runs one target, up to the first input that breaks its invariant: the answer says how to go on from there.
fn fuzz(target: &str, body: Body) -> Option<String> {
    let seeds: Vec<Vec<u8>> = seeds(target).into_iter().map(|(_, bytes)| bytes).collect();
    let seed = number("IOFS_FUZZ_SEED", SEED);
    let breaks = |input: &[u8]| catch_unwind(AssertUnwindSafe(|| body(input))).is_err();
    let (run, input) = (0..number("IOFS_FUZZ_RUNS", RUNS))
        .map(|run| (run, Mutator::new(seed, run).mutate(&seeds)))
        .find(|(_, input)| breaks(input))?;
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{target}-{seed}-{run}"));
    fs::write(&kept, input).unwrap();
    Some(format!(
        "{target}: the invariant does not hold for {} (seed {seed}, run {run})\n\
         again: IOFS_FUZZ_TARGET={target} IOFS_FUZZ_SEED={seed} IOFS_FUZZ_RUNS={} \
         cargo test --package iofs-fuzz-bodies\n\
         keep it: move that file to fuzz/corpus/{target}/, named fail_… if the parser shall refuse it",
        kept.display(),
        run + 1
    ))
}

#[test]
fn cargo_fuzz_runs_exactly_these_targets() {
    let manifest: toml::Table = fs::read_to_string(home().join("Cargo.toml")).unwrap().parse().unwrap();
    let declared: BTreeSet<&str> =
        manifest["bin"].as_array().unwrap().iter().filter_map(|bin| bin["name"].as_str()).collect();
    let targets: BTreeSet<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(declared, targets);
    for target in targets {
        let source = fs::read_to_string(home().join(format!("fuzz_targets/{target}.rs"))).unwrap();
        assert!(source.contains(&format!("iofs_fuzz_bodies::{target}(")), "fuzz_targets/{target}.rs runs another body");
    }
    let folders: BTreeSet<String> = fs::read_dir(home().join("corpus"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert!(folders.iter().map(String::as_str).eq(TARGETS.iter().map(|(name, _)| *name)), "{folders:?}");
}
