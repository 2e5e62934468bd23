//! `seal` leaves a whole output or none, however it ends.

mod seal_common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use seal_common::{Bench, assert_same, command, fails, files, iofs_sign, noise, passes, stderr, tool};

/// A root tree that takes long enough to seal, as a tar.
fn slow_root(bench: &Bench) {
    fs::write(bench.path("root/usr/bin/big"), noise(4 << 20, 4)).unwrap();
    passes(&tool("tar", "tar", &["-C", &bench.text("root"), "-cf", &bench.text("root.tar"), "."]));
    fs::remove_dir_all(bench.path("root")).unwrap();
    fs::rename(bench.path("root.tar"), bench.path("root")).unwrap();
}

fn start(bench: &Bench, out: &str) -> Child {
    let mut seal = command();
    seal.args(bench.arguments(out)).args(["--key", &bench.text("key.pem")]);
    seal.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The directory that a seal under way fills.
fn partial(bench: &Bench) -> Option<PathBuf> {
    bench.hidden().into_iter().find(|name| name.contains(".partial-")).map(|name| bench.path(&name))
}

/// Waits until the seal has made a file whose name begins like that, or has ended.
fn wait_for(bench: &Bench, seal: &mut Child, file: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline && seal.try_wait().unwrap().is_none() {
        let names = partial(bench).and_then(|partial| fs::read_dir(partial).ok());
        let mut names = names.into_iter().flatten().flatten();
        if names.any(|entry| entry.file_name().to_str().unwrap().starts_with(file)) {
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    false
}

#[test]
fn a_killed_seal_leaves_no_output_and_the_next_one_cleans_up() {
    let bench = Bench::new();
    slow_root(&bench);
    let mut caught = Vec::new();
    for file in ["image.erofs", "image.verity", "trust.json", "initramfs.base", "release.dsse.json"] {
        for signal in [Signal::KILL, Signal::TERM] {
            let mut seal = start(&bench, "out");
            let found = wait_for(&bench, &mut seal, file);
            kill_process(Pid::from_child(&seal), signal).unwrap();
            let status = seal.wait().unwrap();
            if found && !status.success() {
                caught.push(file);
            }
            if bench.path("out").exists() {
                // It was done before the signal came.
                passes(&bench.verify(&bench.path("out")));
                fs::remove_dir_all(bench.path("out")).unwrap();
            }
            assert!(bench.hidden().len() <= 1, "what an earlier seal left is gone: {:?}", bench.hidden());
        }
    }
    assert!(caught.contains(&"image.erofs"), "killed only at {caught:?}");
    passes(&bench.verify(&bench.sealed("out")));
    assert_eq!(bench.hidden(), Vec::<String>::new());
}

#[test]
fn seals_that_run_at_once_do_not_disturb_each_other() {
    let bench = Bench::new();
    let seals: Vec<Child> = ["a", "b", "a", "a"].map(|out| start(&bench, out)).into();
    let statuses: Vec<bool> = seals.into_iter().map(|mut seal| seal.wait().unwrap().success()).collect();
    assert!(statuses[1] && (statuses[0] || statuses[2] || statuses[3]), "{statuses:?}");
    for out in ["a", "b"] {
        passes(&bench.verify(&bench.path(out)));
    }
    assert_eq!(bench.hidden(), Vec::<String>::new());
}

/// In a mount namespace of its own: nothing is mounted outside.
#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let bench = Bench::new();
    fs::create_dir(bench.path("small")).unwrap();
    let script =
        "mount -t tmpfs -o size=\"$1\" none \"$2\"; shift; small=$1; shift; \"$@\"; echo \"$?\"; ls -A \"$small\"";
    let mut ends = Vec::new();
    // From too small for the image to too small for the last file.
    for size in ["100k", "300k", "320k", "340k", "360k"] {
        let mut run = vec!["-rm", "sh", "-c", script, "sh", size].into_iter().map(str::to_owned).collect::<Vec<_>>();
        run.extend([bench.text("small"), env!("CARGO_BIN_EXE_iofs-sign").to_owned()]);
        run.extend(bench.arguments("small/out"));
        run.extend(["--key".to_owned(), bench.text("key.pem")]);
        let output = tool("unshare", "util-linux", &run.iter().map(String::as_str).collect::<Vec<_>>());
        let text = passes(&output);
        assert_eq!(text, "1\n", "with {size}: {}", stderr(&output));
        let text = stderr(&output);
        assert!(text.contains("No space left on device"), "with {size}: {text}");
        ends.push(text.lines().find(|line| line.starts_with("error: ")).unwrap().to_owned());
    }
    // "error: write block 1: …", "error: write the hash tree: …"
    ends.dedup_by(|left, right| left.split(' ').nth(2) == right.split(' ').nth(2));
    assert!(ends.len() > 1, "all failed at the same step: {ends:?}");
}

#[test]
fn inputs_that_cannot_be_sealed_leave_nothing() {
    let bench = Bench::new();
    fs::write(bench.path("text"), "no archive").unwrap();
    fs::write(bench.path("cut.tar"), noise(511, 1)).unwrap();
    let key = bench.text("key.pem");
    let with = |option: &str, name: &str| {
        let mut arguments = bench.arguments("out");
        let at = arguments.iter().position(|argument| argument == option).unwrap();
        arguments[at + 1] = bench.text(name);
        iofs_sign([arguments, vec!["--key".to_owned(), key.clone()]].concat())
    };
    for (option, name, status) in [
        ("--root", "absent", 1),
        ("--root", "text", 3),
        ("--root", "cut.tar", 3),
        ("--root", "vmlinuz", 3),
        ("--kernel", "absent", 1),
        ("--kernel", "text", 3),
        ("--modules", "absent", 5),
        ("--modules", "root", 5),
        ("--init", "absent", 1),
        ("--init", "text", 3),
        ("--out", "absent/out", 1),
        ("--out", "text", 2),
    ] {
        let text = fails(&with(option, name), status);
        assert!(text.contains(&bench.text(name)) || option == "--init", "{option} {name}: {text}");
        assert!(!bench.path("out").exists());
        assert_eq!(bench.hidden(), Vec::<String>::new(), "{option} {name}");
    }
    assert_eq!(fs::read_to_string(bench.path("text")).unwrap(), "no archive");
}

#[test]
fn an_output_that_is_there_is_only_replaced_on_request_and_at_once() {
    let bench = Bench::new();
    let key = bench.text("key.pem");
    let out = bench.sealed("out");
    let first = files(&out);
    let arguments = |more: &[&str]| {
        let more = more.iter().map(|argument| (*argument).to_owned()).collect();
        [bench.arguments("out"), vec!["--key".to_owned(), key.clone()], more].concat()
    };
    let text = fails(&iofs_sign(arguments(&[])), 2);
    assert!(text.contains("exists already") && text.contains("--replace"), "{text}");
    assert_same(&first, &files(&out));
    // A replacement that fails leaves what was there.
    fails(&iofs_sign(arguments(&["--replace", "--compression", "lz4hc,99"])), 2);
    assert_same(&first, &files(&out));

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(fs::read(out.join("roothash")).expect("the name is never free").len(), 64);
                looks += 1;
            }
            looks
        });
        for number in 0..5 {
            fs::write(bench.path("root/number"), [number]).unwrap();
            passes(&iofs_sign(arguments(&["--replace"])));
            passes(&bench.verify(&out));
        }
        done.store(true, Ordering::Relaxed);
        assert!(watcher.join().unwrap() > 100);
    });
    assert_ne!(first["roothash"], files(&out)["roothash"]);
    assert_eq!(bench.hidden(), Vec::<String>::new());
}

#[test]
fn what_seal_did_not_write_is_never_replaced() {
    let bench = Bench::new();
    let key = bench.text("key.pem");
    let seal = |more: &[&str]| {
        let more = more.iter().map(|argument| (*argument).to_owned()).collect();
        iofs_sign([bench.image_arguments("out"), vec!["--key".to_owned(), key.clone()], more].concat())
    };
    let out = bench.path("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("thesis.txt"), "years").unwrap();
    let text = fails(&seal(&["--replace"]), 2);
    assert!(text.contains("is not the output of an earlier seal"), "{text}");
    assert_eq!(fs::read_to_string(out.join("thesis.txt")).unwrap(), "years");
    fs::remove_dir_all(&out).unwrap();
    fs::write(&out, "a file").unwrap();
    fails(&seal(&["--replace"]), 2);
    fs::remove_file(&out).unwrap();
    std::os::unix::fs::symlink("nowhere", &out).unwrap();
    fails(&seal(&[]), 2);
    fs::remove_file(&out).unwrap();
    // An empty directory is as good as a free name.
    fs::create_dir(&out).unwrap();
    passes(&seal(&[]));
    passes(&bench.verify(&out));
}

#[test]
fn a_dry_run_writes_nothing_and_finds_what_would_fail() {
    let bench = Bench::new();
    let key = bench.text("key.pem");
    let run = |more: &[&str]| {
        let more = more.iter().map(|argument| (*argument).to_owned()).collect();
        iofs_sign(
            [bench.arguments("out"), vec!["--key".to_owned(), key.clone(), "--dry-run".to_owned()], more].concat(),
        )
    };
    let before = listing(&bench);
    let text = passes(&run(&[]));
    assert!(text.contains("would write") && text.contains("6.1.0-test"), "{text}");
    let plan: serde_json::Value = serde_json::from_str(&passes(&run(&["--json"]))).unwrap();
    assert_eq!(plan["kernel_release"], "6.1.0-test");
    assert_eq!(plan["threshold"], 1);
    fails(&run(&["--threshold", "2"]), 2);
    fails(&run(&["--compression", "zstd"]), 2);
    assert_eq!(before, listing(&bench));
    fs::create_dir_all(bench.path("out/full")).unwrap();
    fails(&run(&[]), 2);
}

fn listing(bench: &Bench) -> String {
    passes(&tool("find", "findutils", &[&bench.text(""), "-printf", "%p %s %T@\n"]))
}

#[test]
fn a_disk_image_appears_whole_or_not_at_all() {
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    let disk = |out: &Path| command().arg("disk").arg(&sealed).arg("--out").arg(out).output().unwrap();
    passes(&disk(&bench.path("disk")));
    let before = fs::read(bench.path("disk")).unwrap();
    fs::remove_file(sealed.join("image.verity")).unwrap();
    fails(&disk(&bench.path("disk")), 1);
    assert!(before == fs::read(bench.path("disk")).unwrap());
    fails(&disk(&bench.path("other")), 1);
    assert!(!bench.path("other").exists());
    assert_eq!(bench.hidden(), Vec::<String>::new());
}
