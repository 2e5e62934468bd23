//! `update` and `bundle`, on releases that `seal` makes. The slots are files here; on devices they are partitions.

mod seal_common;
mod update_common;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use iofs_policy::slots::{FOOTER_SIZE, FloorKeeper, SlotName, Trial};
use seal_common::{Bench, command, fails, files, noise, passes, tool};
use serde_json::{Value, json};
use update_common::{Machine, TRIES, damage, image};

const SLOT: usize = 1 << 20;
use SlotName::{A, B};

#[test]
fn a_newer_release_is_written_into_the_other_slot_and_the_next_boot_tries_it() {
    let machine = Machine::running_v1(SLOT);
    let running = fs::read(machine.slot(A)).unwrap();
    fs::write(machine.bench.path("root/etc/new"), "new").unwrap();
    let v2 = machine.seal("v2", "2", 1, &[]);
    let report = machine.updated(&v2);
    assert_eq!((&report["outcome"], &report["slot"]), (&json!("written"), &json!("b")));
    let blocks = |name: &str| report["blocks"][name].as_u64().unwrap();
    assert_eq!(blocks("total"), blocks("in_place") + blocks("reused") + blocks("read"));
    assert!(blocks("reused") > 60, "most is as it was: {report}");
    assert!(blocks("read") >= 1 && blocks("read") < 10, "{report}");
    let held = machine.held(B).unwrap();
    assert_eq!(held.manifest().image.version.as_str(), "2");
    assert!(machine.is_whole(B, &held));
    assert!(fs::read(machine.slot(B)).unwrap().starts_with(&image(&v2)));
    assert_eq!(machine.record().trial(B, held.digest(), 9), Trial::Trying(TRIES));
    assert_eq!(machine.order(), [B, A]);
    assert_eq!(fs::read(machine.slot(A)).unwrap(), running, "what runs is untouched");
    let again = machine.updated(&v2);
    assert_eq!((&again["outcome"], &again["bytes_written"]), (&json!("already-there"), &json!(0)));
}

#[test]
fn from_a_to_b_and_back_over_three_releases() {
    let machine = Machine::running_v1(SLOT);
    for (version, slot) in [("2", B), ("3", A), ("10", B)] {
        fs::write(machine.bench.path("root/etc/version"), version).unwrap();
        let sealed = machine.seal(&format!("v{version}"), version, 1, &[]);
        assert_eq!(machine.updated(&sealed)["slot"], slot.to_string());
        assert_eq!(machine.order()[0], slot);
        machine.boot(slot, &sealed);
        machine.confirm(slot);
    }
}

#[test]
fn rollback_an_older_release_is_refused_and_so_is_one_below_the_floor() {
    let machine = Machine::new(SLOT);
    let releases = [("old-version", "1", 5), ("old-index", "9", 4), ("same", "2", 5), ("running", "2", 5)];
    let [old, index, same, running] = releases.map(|(out, version, index)| {
        fs::write(machine.bench.path("root/etc/release"), out).unwrap();
        machine.seal(out, version, index, &[])
    });
    machine.install(A, &running);
    machine.boot(A, &running);
    machine.confirm(A);
    let before = fs::read(machine.slot(B)).unwrap();
    for (source, found) in [
        (&old, "found the older 1 (rollback index 5)"),
        (&index, "rollback_index: expected at least 5, found 4"),
        (&same, "found another one of the same version and index"),
        (&running, "found that one itself"),
    ] {
        let text = fails(&machine.update(source, &[]), 4);
        assert!(text.contains(found), "{found}: {text}");
    }
    // Without a boot that says what runs, the floor of the record is what is left.
    let outside = ["--slot", "b", "--device", &machine.bench.text("slot-b"), "--state", &machine.bench.text("state")];
    let arguments = ["update", &machine.bench.text("old-index"), "--trust", &machine.bench.text("trust.json")];
    let text = fails(&command().args(arguments).args(outside).output().unwrap(), 4);
    assert!(text.contains("rollback_index: expected at least 5, found 4"), "{text}");
    assert_eq!(fs::read(machine.slot(B)).unwrap(), before, "nothing was written");
}

#[test]
fn releases_for_others_and_by_others_are_refused_before_anything_is_written() {
    let machine = Machine::running_v1(SLOT);
    machine.bench.key("stranger");
    let stranger = machine.seal("stranger-release", "2", 1, &["--key", &machine.bench.text("stranger.pem")]);
    let other = machine.seal_as("bus", "other", "2", 1, &[]);
    let before = [fs::read(machine.slot(B)).unwrap(), fs::read(machine.state()).unwrap()];
    let text = fails(&machine.update(&stranger, &[]), 4);
    assert!(text.contains("expected 1 by trusted keys"), "{text}");
    let text = fails(&machine.update(&other, &[]), 4);
    assert!(text.contains("image id: expected car, found bus"), "{text}");
    let plain = machine.bench.sealed("plain");
    let text = fails(&machine.update(&plain, &[]), 3);
    assert!(text.contains("expected \\\"slot\\\""), "{text}");
    assert_eq!([fs::read(machine.slot(B)).unwrap(), fs::read(machine.state()).unwrap()], before);
}

#[test]
fn a_block_or_a_tree_that_is_not_the_signed_one_is_refused_before_anything_is_written() {
    let machine = Machine::running_v1(SLOT);
    fs::write(machine.bench.path("root/usr/bin/tool"), noise(300_000, 7)).unwrap();
    machine.seal("v2", "2", 1, &[]);
    let before = [fs::read(machine.slot(B)).unwrap(), fs::read(machine.state()).unwrap()];
    for (file, offset, found) in [
        ("image.erofs", 20 * 4096 + 7, "data block 20 at byte 81920: expected the signed digest"),
        ("image.verity", 4096 + 40, "hash tree level 0 block 0"),
    ] {
        let path = machine.bench.path("v2").join(file);
        damage(&path, offset);
        let text = fails(&machine.update(&machine.bench.path("v2"), &[]), 4);
        assert!(text.contains(found) && text.contains(file), "{file}: {text}");
        damage(&path, offset);
    }
    let path = machine.bench.path("v2/image.erofs");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 4096]).unwrap();
    let text = fails(&machine.update(&machine.bench.path("v2"), &[]), 3);
    assert!(text.contains("image.erofs: expected at least"), "{text}");
    assert_eq!([fs::read(machine.slot(B)).unwrap(), fs::read(machine.state()).unwrap()], before);
    // The superblock in the source is not looked at: it is made from the manifest.
    fs::write(&path, whole).unwrap();
    damage(&machine.bench.path("v2/image.verity"), 3);
    assert_eq!(machine.updated(&machine.bench.path("v2"))["outcome"], "written");
}

#[test]
fn corruption_mode_a_corrupt_block_of_the_running_slot_comes_from_the_source() {
    let machine = Machine::running_v1(SLOT);
    let v2 = machine.seal("v2", "2", 1, &[]);
    let clean = serde_json::from_str::<Value>(&passes(&machine.update(&v2, &["--dry-run"]))).unwrap();
    damage(&machine.slot(A), 30 * 4096);
    let report = machine.updated(&v2);
    let blocks = |name: &str, report: &Value| report["blocks"][name].as_u64().unwrap();
    assert_eq!(blocks("read", &report), blocks("read", &clean) + 1, "{clean} {report}");
    assert!(machine.is_whole(B, &machine.held(B).unwrap()));
    // A tree that is not the signed one is of no use, but no obstacle.
    let held = machine.held(A).unwrap();
    damage(&machine.slot(A), held.manifest().verity.hash_offset + 4096);
    fs::write(machine.bench.path("root/etc/new"), "new").unwrap();
    let v3 = machine.seal("v3", "3", 1, &[]);
    let output = machine.update(&v3, &[]);
    assert!(seal_common::stderr(&output).contains("nothing of it is reused"), "{}", seal_common::stderr(&output));
    assert!(passes(&output).contains("\"reused\": 0"));
}

#[test]
fn a_slot_that_is_too_small_running_or_in_use_is_refused() {
    let machine = Machine::running_v1(SLOT);
    let v2 = machine.seal("v2", "2", 1, &[]);
    File::options().write(true).open(machine.slot(B)).unwrap().set_len(200_000).unwrap();
    let text = fails(&machine.update(&v2, &[]), 3);
    assert!(text.contains("slot b on") && text.contains("bytes for this release, found 200000"), "{text}");
    let at = |slot: &str, device: &str, state: &str| {
        let (device, state) = (machine.bench.text(device), machine.bench.text(state));
        machine.update(&v2, &["--slot", slot, "--device", &device, "--state", &state])
    };
    let text = fails(&at("a", "slot-b", "state"), 2);
    assert!(text.contains("expected the slot that does not run, found a"), "{text}");
    let text = fails(&at("b", "slot-a", "state"), 2);
    assert!(text.contains("expected the slot that does not run, found the running one"), "{text}");
    fs::hard_link(machine.slot(A), machine.bench.path("link")).unwrap();
    let text = fails(&at("b", "link", "state"), 2);
    assert!(text.contains("found the running one"), "{text}");
    let text = fails(&at("b", "slot-b", "slot-b"), 2);
    assert!(text.contains("found the record of tries"), "{text}");
    let busy = File::open(machine.slot(B)).unwrap();
    rustix::fs::flock(&busy, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let text = fails(&machine.update(&v2, &[]), 2);
    assert!(text.contains("expected one that is not in use"), "{text}");
    assert!(machine.held(B).is_none() && machine.order() == [A]);
}

#[test]
fn a_machine_whose_other_slot_is_missing_or_is_a_file_or_that_has_none_is_told_so() {
    let machine = Machine::running_v1(SLOT);
    let v2 = machine.seal("v2", "2", 1, &[]);
    let change = |file: &str, pointer: &str, value: Value| {
        let path = machine.bench.path(file);
        let before = fs::read(&path).unwrap();
        let mut json: Value = serde_json::from_slice(&before).unwrap();
        *json.pointer_mut(pointer).unwrap() = value;
        fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
        before
    };
    let file = json!({ "file": "ext4:PARTLABEL=boot:/system_b" });
    for (name, pointer, value, status, found) in [
        (
            "boot.json",
            "/slot/devices/1",
            Value::Null,
            5,
            "slot b: expected its partition (PARTLABEL=system_b), found none",
        ),
        ("boot.json", "/slot", Value::Null, 3, "boot record: slot: expected the slot that was booted, found none"),
        ("trust.json", "/slots/places/1", file, 2, "slot b is the file /system_b"),
        ("trust.json", "/slots", Value::Null, 3, "slots: expected the rules of two slots, found none"),
    ] {
        let before = change(name, pointer, value);
        let text = fails(&machine.update(&v2, &[]), status);
        assert!(text.contains(found) && text.contains("next_step"), "{found}: {text}");
        fs::write(machine.bench.path(name), before).unwrap();
    }
    assert_eq!(machine.updated(&v2)["outcome"], "written");
}

#[test]
fn a_release_without_the_counter_is_refused_where_the_tpm_keeps_the_floor() {
    let machine = Machine::running_v1(SLOT);
    let v2 = machine.seal("v2", "2", 1, &[]);
    let mut trust = machine.trust();
    trust.slots.as_mut().unwrap().floor = FloorKeeper::Tpm;
    fs::write(machine.bench.path("trust.json"), trust.to_json()).unwrap();
    let text = fails(&machine.update(&v2, &[]), 4);
    assert!(text.contains("tpm.rollback: expected the TPM's counter"), "{text}");
}

#[test]
fn what_a_release_on_trial_would_fall_back_to_is_not_overwritten() {
    let machine = Machine::running_v1(SLOT);
    let v2 = machine.seal("v2", "2", 1, &[]);
    let v3 = machine.seal("v3", "3", 1, &[]);
    machine.updated(&v2);
    machine.boot(B, &v2);
    let candidates = machine.candidates();
    machine.change_record(|record| record.begin(&candidates[1], TRIES));
    let text = fails(&machine.update(&v3, &[]), 2);
    assert!(text.contains("slot a: expected one that is no fallback, found release 1, and release 2"), "{text}");
    assert_eq!(machine.order(), [B, A]);
    let before = fs::read(machine.slot(A)).unwrap();
    passes(&machine.update(&v3, &["--give-up-fallback"]));
    assert_eq!(machine.held(A).unwrap().manifest().image.version.as_str(), "3");
    // What is no fallback any more may go.
    fs::write(machine.slot(A), &before).unwrap();
    let digest = machine.held(A).unwrap().digest();
    machine.change_record(|record| record.corrupt(A, digest));
    assert_eq!(machine.updated(&v3)["outcome"], "written");
    // And what was confirmed needs none.
    fs::write(machine.slot(A), &before).unwrap();
    machine.confirm(B);
    assert_eq!(machine.updated(&v3)["outcome"], "written");
}

#[test]
fn a_dry_run_says_what_an_update_would_do_and_writes_nothing() {
    let machine = Machine::running_v1(SLOT);
    let v2 = machine.seal("v2", "2", 1, &[]);
    let before = [fs::read(machine.slot(B)).unwrap(), fs::read(machine.state()).unwrap()];
    let dry: Value = serde_json::from_str(&passes(&machine.update(&v2, &["--dry-run"]))).unwrap();
    assert_eq!([fs::read(machine.slot(B)).unwrap(), fs::read(machine.state()).unwrap()], before);
    let real = machine.updated(&v2);
    assert_eq!((&dry["outcome"], &dry["bytes_written"]), (&json!("would-write"), &json!(0)));
    assert_eq!((&dry["blocks"], &dry["bytes_read"]), (&real["blocks"], &real["bytes_read"]));
}

#[test]
fn a_release_that_went_bad_in_its_slot_or_used_up_its_tries_is_written_again() {
    let machine = Machine::running_v1(SLOT);
    let v2 = machine.seal("v2", "2", 1, &[]);
    machine.updated(&v2);
    let digest = machine.held(B).unwrap().digest();
    damage(&machine.slot(B), 30 * 4096 + 1);
    machine.change_record(|record| record.corrupt(B, digest));
    assert_eq!(machine.order(), [A]);
    let report = machine.updated(&v2);
    assert_eq!((&report["outcome"], &report["blocks"]["reused"]), (&json!("written"), &json!(1)), "{report}");
    assert_eq!(machine.order(), [B, A]);
    let candidates = machine.candidates();
    machine.change_record(|record| (0..TRIES).for_each(|_| record.begin(&candidates[1], TRIES)));
    assert_eq!(machine.order(), [A]);
    let report = machine.updated(&v2);
    assert_eq!((&report["outcome"], &report["blocks"]["in_place"]), (&json!("written"), &report["blocks"]["total"]));
    assert_eq!(report["bytes_written"], 2 * FOOTER_SIZE, "only its end");
    assert_eq!(machine.order(), [B, A]);
}

#[test]
fn a_bundle_updates_as_its_directory_does_and_tar_reads_it() {
    let machine = Machine::running_v1(SLOT);
    let v2 = machine.seal("v2", "2", 1, &[]);
    let bundle = |out: &str| {
        let out = machine.bench.text(out);
        passes(&command().args(["bundle", v2.to_str().unwrap(), "--out", &out]).output().unwrap())
    };
    assert!(
        bundle("v2.iofs")
            .contains("release.dsse.json, manifest.dsse.json, trust.json, image.verity, image.erofs, roothash")
    );
    bundle("again.iofs");
    let bytes = fs::read(machine.bench.path("v2.iofs")).unwrap();
    assert!(bytes == fs::read(machine.bench.path("again.iofs")).unwrap(), "the same directory gives the same bytes");
    fs::create_dir(machine.bench.path("unpacked")).unwrap();
    passes(&tool("tar", "tar", &["-xf", &machine.bench.text("v2.iofs"), "-C", &machine.bench.text("unpacked")]));
    seal_common::assert_same(&files(&machine.bench.path("unpacked")), &files(&v2));

    let path = machine.bench.path("v2.iofs");
    for cut in [0, 100, 1000, bytes.len() / 2, bytes.len() - 1024, bytes.len() - 1] {
        fs::write(machine.bench.path("cut.iofs"), &bytes[..cut]).unwrap();
        let text = fails(&machine.update(&machine.bench.path("cut.iofs"), &[]), 3);
        assert!(text.contains("found the bundle's end at byte"), "{cut}: {text}");
    }
    let text = fails(&machine.update(&machine.bench.path("vmlinuz"), &[]), 3);
    assert!(text.contains("expected a file of a sealed directory"), "{text}");
    assert!(machine.held(B).is_none());
    let dry: Value = serde_json::from_str(&passes(&machine.update(&v2, &["--dry-run"]))).unwrap();
    let report = machine.updated(&path);
    assert_eq!((&report["outcome"], &report["blocks"]), (&json!("written"), &dry["blocks"]));
    assert!(machine.is_whole(B, &machine.held(B).unwrap()));
}

#[test]
fn what_waits_for_signatures_or_does_not_verify_is_not_bundled() {
    let bench = Bench::new();
    let bundle = |directory: &str| {
        let (directory, out) = (bench.text(directory), bench.text("out"));
        command().args(["bundle", &directory, "--out", &out]).output().unwrap()
    };
    let public = bench.text("key.pub.pem");
    bench.seal("waiting", &["--unsigned", "--trust", &public]);
    let text = fails(&bundle("waiting"), 3);
    assert!(text.contains("found one that waits for a signature"), "{text}");
    bench.sealed("sealed");
    damage(&bench.path("sealed/image.erofs"), 10);
    let text = fails(&bundle("sealed"), 4);
    assert!(text.contains("image.erofs: data block 0"), "{text}");
    assert!(!bench.path("out").exists() && bench.hidden().is_empty());
}

/// The acceptance figure, on a tree of 96 MB that does not compress, in many files.
#[test]
fn an_update_that_changes_one_small_file_writes_at_most_two_percent() {
    let machine = Machine::new(128 << 20);
    let folder = machine.bench.path("root/usr/lib");
    fs::create_dir(&folder).unwrap();
    (0..96).for_each(|number| fs::write(folder.join(format!("lib{number}")), noise(1 << 20, 100 + number)).unwrap());
    fs::write(folder.join("lib50x"), noise(30_000, 1)).unwrap();
    let v1 = machine.seal("v1", "1", 1, &[]);
    machine.install(A, &v1);
    machine.install(B, &v1);
    machine.boot(A, &v1);
    machine.confirm(A);
    fs::write(folder.join("lib50x"), noise(30_000, 2)).unwrap();
    let v2 = machine.seal("v2", "2", 1, &[]);
    let report = machine.updated(&v2);
    let number = |pointer: &str| report.pointer(pointer).unwrap().as_u64().unwrap();
    let (total, in_place) = (number("/blocks/total"), number("/blocks/in_place"));
    println!("{report:#}");
    assert!((total - in_place) * 50 <= total, "{report}");
    assert!(number("/bytes_written") * 50 <= total * 4096, "{report}");
    let mut end = [0; 64];
    File::open(machine.slot(B)).unwrap().read_exact_at(&mut end, (128 << 20) - 4096).unwrap();
    assert!(end.starts_with(b"IOFSSLOT"));
}
