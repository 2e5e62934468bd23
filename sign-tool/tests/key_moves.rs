//! Keys that move with releases, and keys that end: `seal`, `sign`, `update`, `mark-good` and `status` on three releases. The
//! first is by key a; the second by a and b, moves the keys to b, and revokes a; the third is by b.

mod power_cut;
mod seal_common;
mod update_common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use iofs_policy::{
    keys::{KeyHistory, KeySequence},
    slots::{HistoryArea, SlotName, Trial},
    trust::{KeyId, TrustPolicy},
};
use iofs_sign::{
    keys,
    sealed::{KEY_HISTORY, MANIFEST, SealedDirectory, TRUST_BEFORE},
    slots::{
        confirm::{BootFiles, confirm_through},
        storage::{Disk, Storage},
    },
};
use power_cut::{Cut, State, points};
use seal_common::{Bench, Random, command, fails, files, iofs_sign, passes, stderr};
use serde_json::{Value, json};
use update_common::{Machine, TRIES, damage};

const SLOT: usize = 1 << 20;
use SlotName::{A, B};

/// Three releases, and the machine for them, which runs the first one.
struct Fleet {
    machine: Machine,
    releases: [PathBuf; 3],
}

/// Makes both keys.
fn bench(machine: &Machine) -> &Bench {
    machine.bench.key("a");
    machine.bench.key("b");
    &machine.bench
}

fn id(bench: &Bench, key: &str) -> KeyId {
    keys::read_public(&bench.path(&format!("{key}.pub.pem"))).unwrap().id()
}

/// The options that name keys.
fn options(bench: &Bench, words: &[&str]) -> Vec<String> {
    let word = |word: &&str| match word.split_once(':') {
        Some(("private", key)) => bench.text(&format!("{key}.pem")),
        Some(("public", key)) => bench.text(&format!("{key}.pub.pem")),
        Some(("id", key)) => id(bench, key).to_string(),
        Some((_, path)) => bench.text(path),
        None => (*word).to_owned(),
    };
    words.iter().map(word).collect()
}

fn seal(machine: &Machine, out: &str, version: &str, words: &[&str]) -> PathBuf {
    fs::write(machine.bench.path("root/etc/version"), version).unwrap();
    let options = options(&machine.bench, words);
    machine.seal(out, version, 1, &options.iter().map(String::as_str).collect::<Vec<_>>())
}

const MOVES: [&str; 10] =
    ["--key", "private:a", "--key", "private:b", "--previous", "path:v1", "--next-key", "public:b", "--revoke", "id:a"];

impl Fleet {
    fn new() -> Self {
        let machine = Machine::new(SLOT);
        bench(&machine);
        let v1 = seal(&machine, "v1", "1", &["--key", "private:a"]);
        let v2 = seal(&machine, "v2", "2", &MOVES);
        let v3 = seal(&machine, "v3", "3", &["--key", "private:b", "--previous", "path:v2"]);
        machine.install(A, &v1);
        machine.boot(A, &v1);
        machine.confirm(A);
        Self { machine, releases: [v1, v2, v3] }
    }

    /// Updates to it and boots it; verify-init goes by the first release's trust policy, as its initramfs stays.
    fn try_out(&self, slot: SlotName, release: &Path) {
        let [v1, ..] = &self.releases;
        assert_eq!(self.machine.updated(release)["slot"], slot.to_string());
        self.machine.boot(slot, v1);
        let candidates = self.machine.candidates();
        let candidate = candidates.iter().find(|one| one.slot == slot).unwrap();
        self.machine.change_record(|record| record.begin(candidate, TRIES));
    }

    fn tool(&self, words: &[&str]) -> Output {
        let bench = &self.machine.bench;
        let mut command = command();
        command.args(words).args(["--boot-record", &bench.text("boot.json"), "--trust", &bench.text("trust.json")]);
        command.output().unwrap()
    }

    fn mark_good_output(&self) -> Output {
        self.tool(&["mark-good", "--json", "--key-history", &self.machine.bench.text("keys.history")])
    }

    fn mark_good(&self) -> Value {
        serde_json::from_str(&passes(&self.mark_good_output())).unwrap()
    }

    /// As `mark-good`, on a device that may lose its power.
    fn confirm_on(&self, storage: &dyn Storage) -> bool {
        let bench = &self.machine.bench;
        let (boot, trust) = (iofs_sign::status::read(&bench.path("boot.json")).unwrap(), self.machine.trust());
        let files = BootFiles { trust: &trust, history: &bench.path("keys.history"), loader: None };
        confirm_through(storage, &boot, boot.slot.as_ref().unwrap(), files, false).is_ok()
    }

    /// Cuts the confirmation of what was booted last at all points. It moves the keys on to `moved`.
    fn survives(&self, slot: SlotName, moved: u64, seed: u64) {
        let (state, mut random) = (self.machine.state(), Random(seed));
        let (before, whole) = (fs::read(&state).unwrap(), Cut::after(u64::MAX));
        assert!(self.confirm_on(&whole));
        let State { writes, syncs, .. } = whole.0.into_inner().unwrap();
        let points = points(&writes, &mut random);
        let mut found = [0; 2];
        for &point in &points {
            fs::write(&state, &before).unwrap();
            let cut = Cut::after(point);
            self.confirm_on(&cut);
            cut.lose(&mut random);
            // The record is readable, and so are the keys that it names: both are asserted there.
            let (record, sequence) = (self.machine.record(), self.machine.keys().sequence().0);
            assert!([moved - 1, moved].contains(&sequence), "byte {point}: {sequence}");
            let is_good = match slot {
                A => record.a.unwrap().trial == Trial::Good,
                B => record.b.unwrap().trial == Trial::Good,
            };
            assert_eq!(is_good, sequence == moved, "byte {point}: confirmed, and the keys moved, or neither");
            assert!(self.machine.order().contains(&slot), "byte {point}");
            found[usize::from(sequence == moved)] += 1;
            assert!(self.confirm_on(&Disk), "byte {point}: the next run goes on");
            assert_eq!(self.machine.keys().sequence().0, moved, "byte {point}");
        }
        println!("{} points: {found:?} before and behind; {} writes, {syncs} syncs", points.len(), writes.len());
        assert!(found.iter().all(|count| *count > 10), "{found:?}");
    }

    fn status(&self) -> Value {
        serde_json::from_str::<Value>(&passes(&self.tool(&["status", "--json"]))).unwrap()["slots"].take()
    }

    fn id(&self, key: &str) -> String {
        id(&self.machine.bench, key).to_string()
    }
}

#[test]
fn keys_move_over_three_releases_once_each_is_confirmed() {
    let fleet = Fleet::new();
    let [_, v2, v3] = &fleet.releases;
    let (a, b) = (fleet.id("a"), fleet.id("b"));
    assert_eq!(fleet.status()["keys"], json!({ "sequence": 0, "threshold": 1, "trusted": [a], "revoked": [] }));

    fleet.try_out(B, v2);
    assert_eq!(fleet.machine.order(), [B, A], "on trial, the first release is what it falls back to");
    assert_eq!(fleet.status()["keys"]["sequence"], 0, "nothing moves before it is confirmed");
    let moved = json!({ "sequence": 1, "threshold": 1, "trusted": [b], "revoked": [a] });
    assert_eq!(fleet.mark_good()["keys"], moved);
    assert!(fleet.mark_good().get("keys").is_none(), "it is moved already");
    assert_eq!(fleet.machine.order(), [B], "what only the old key signed boots no more");
    let status = fleet.status();
    assert_eq!(status["keys"], moved);
    assert!(status["slots"][0]["refused"].as_str().unwrap().contains("expected 1 by trusted keys"), "{status:#}");
    assert!(status["slots"][1].get("refused").is_none(), "{status:#}");
    let told = passes(&fleet.tool(&["status"]));
    for line in ["  boots no more: signatures: expected 1", "keys:      moved once; 1 must sign", "  revoked  "] {
        assert!(told.contains(line), "{line}: {told}");
    }

    fleet.try_out(A, v3);
    assert!(fleet.mark_good().get("keys").is_none());
    assert_eq!(fleet.machine.order(), [A, B]);
    assert_eq!(fleet.status()["keys"], moved);
}

#[test]
fn a_device_that_skipped_the_middle_release_follows_by_the_history_of_the_third() {
    let fleet = Fleet::new();
    let [_, _, v3] = &fleet.releases;
    let bundle = fleet.machine.bench.path("v3.iofs");
    let listed = passes(&iofs_sign(["bundle".as_ref(), v3.as_os_str(), "--out".as_ref(), bundle.as_os_str()]));
    assert!(listed.contains("manifest.dsse.json, keys.history, trust.json"), "{listed}");
    fleet.try_out(B, &bundle);
    let marked = fleet.mark_good();
    assert_eq!(marked["keys"]["trusted"], json!([fleet.id("b")]), "{marked:#}");
    assert_eq!(fleet.machine.keys().sequence(), KeySequence(1));
    assert_eq!(fleet.machine.order(), [B]);
}

#[test]
fn stolen_key_a_newer_release_by_a_key_that_ended_is_refused_although_it_moves_the_keys_itself() {
    let fleet = Fleet::new();
    let [_, v2, _] = &fleet.releases;
    let late = seal(&fleet.machine, "late", "9", &["--key", "private:a"]);
    fleet.machine.bench.key("thief");
    let theirs =
        ["--key", "private:a", "--key", "private:thief", "--previous", "path:v1", "--next-key", "public:thief"];
    let theirs = seal(&fleet.machine, "theirs", "9", &theirs);
    passes(&fleet.machine.update(&late, &["--dry-run"]));
    passes(&fleet.machine.update(&theirs, &["--dry-run"]));
    fleet.try_out(B, v2);
    fleet.mark_good();
    let before = fs::read(fleet.machine.slot(A)).unwrap();
    for release in [&late, &theirs] {
        let text = fails(&fleet.machine.update(release, &[]), 4);
        assert!(text.contains("expected 1 by trusted keys"), "{text}");
    }
    assert_eq!(fs::read(fleet.machine.slot(A)).unwrap(), before);
    // Written there from outside, verify-init passes it over.
    fleet.machine.boot(B, &fleet.releases[0]);
    let slot = fs::read(fleet.machine.slot(A)).unwrap();
    let state = fs::read(fleet.machine.state()).unwrap();
    fs::write(fleet.machine.state(), vec![0; 1 << 20]).unwrap();
    fleet.machine.install(A, &theirs);
    fs::write(fleet.machine.state(), state).unwrap();
    assert_ne!(fs::read(fleet.machine.slot(A)).unwrap(), slot);
    assert_eq!(fleet.machine.order(), [B]);
}

#[test]
fn confirmed_keys_that_are_damaged_fall_back_to_those_of_the_trust_policy_and_are_mended() {
    let fleet = Fleet::new();
    let [_, v2, v3] = &fleet.releases;
    fleet.try_out(B, v2);
    fleet.mark_good();
    let kept = fleet.machine.record().keys.unwrap();
    assert_eq!(kept.area, HistoryArea::First);
    damage(&fleet.machine.state(), kept.area.offset() + 100);
    let status = fleet.status();
    assert_eq!(status["keys"]["sequence"], 0);
    assert!(status["problems"][0].as_str().unwrap().contains("confirmed keys: expected the"), "{status:#}");
    let output = fleet.machine.update(v3, &["--dry-run"]);
    passes(&output);
    assert!(stderr(&output).contains("the keys of the trust policy count"), "{}", stderr(&output));
    fleet.mark_good();
    assert_eq!(fleet.machine.record().keys.unwrap().area, HistoryArea::Second);
    assert_eq!(fleet.machine.keys().sequence(), KeySequence(1));
}

#[test]
fn a_state_partition_without_room_for_keys_is_refused_by_update_and_by_mark_good() {
    let fleet = Fleet::new();
    let [_, v2, _] = &fleet.releases;
    let shrink = |bytes| fs::File::options().write(true).open(fleet.machine.state()).unwrap().set_len(bytes).unwrap();
    shrink(HistoryArea::Second.end() - 1);
    let text = fails(&fleet.machine.update(v2, &[]), 1);
    assert!(text.contains("expected at least 270336 bytes, to keep moved keys, found 270335"), "{text}");
    assert!(fleet.machine.held(B).is_none());
    shrink(HistoryArea::Second.end());
    fleet.try_out(B, v2);
    shrink(8192);
    let before = fs::read(fleet.machine.state()).unwrap();
    let text = fails(&fleet.mark_good_output(), 1);
    assert!(text.contains("to keep moved keys, found 8192"), "{text}");
    assert_eq!(fs::read(fleet.machine.state()).unwrap(), before);
}

#[test]
fn a_release_that_does_not_carry_the_history_is_refused() {
    let fleet = Fleet::new();
    let [v1, v2, _] = &fleet.releases;
    let forgot = seal(&fleet.machine, "forgot", "3", &["--key", "private:b"]);
    let text = fails(&fleet.machine.update(&forgot, &[]), 4);
    assert!(text.contains("expected 1 by trusted keys"), "{text}");
    fleet.try_out(B, v2);
    fleet.mark_good();
    let text = fails(&fleet.machine.update(&forgot, &[]), 4);
    assert!(text.contains("key history: expected all moves up to 1, found those up to 0"), "{text}");
    assert!(text.contains("seal the release with --previous"), "{text}");
    let history = fleet.machine.bench.path("keys.history");
    fs::remove_file(&history).unwrap();
    fleet.machine.change_record(|record| record.keys = None);
    let text = fails(&fleet.mark_good_output(), 4);
    assert!(text.contains("keys.history: expected key moves up to 1, as this boot had, found none"), "{text}");
    fs::copy(v1.join("trust.json"), &history).unwrap();
    fails(&fleet.mark_good_output(), 3);
}

#[test]
fn a_sealed_release_gives_fresh_devices_the_keys_of_its_day() {
    let fleet = Fleet::new();
    let (a, b) = (id(&fleet.machine.bench, "a"), id(&fleet.machine.bench, "b"));
    for (release, key, sequence) in fleet.releases.iter().zip([&a, &b, &b]).zip([0, 1, 1]).map(|((r, k), s)| (r, k, s))
    {
        let directory = SealedDirectory::new(release);
        let trust = directory.trust().unwrap();
        assert_eq!(trust.keys.ids().collect::<Vec<_>>(), [*key]);
        assert_eq!((trust.key_sequence, trust.revoked.len()), (KeySequence(sequence), sequence as usize));
        assert_eq!(directory.key_history().unwrap().map(|history| history.last().0), (sequence > 0).then_some(1));
        assert!(!directory.has(TRUST_BEFORE));
        let public = fleet.machine.bench.path(if *key == a { "a.pub.pem" } else { "b.pub.pem" });
        let verify = ["verify".as_ref(), release.as_os_str(), "--key".as_ref(), public.as_os_str()];
        passes(&iofs_sign(verify));
    }
    let told = passes(&iofs_sign(["inspect".as_ref(), fleet.releases[1].as_os_str()]));
    for line in [
        "  keys from here on: move 1",
        "key history of 1 moves",
        "move 1 by release 2",
        &format!("    revoked key: {a}"),
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    let json: Value = serde_json::from_str(&passes(&iofs_sign([
        "--json".as_ref(),
        "inspect".as_ref(),
        fleet.releases[2].join(KEY_HISTORY).as_os_str(),
    ])))
    .unwrap();
    assert_eq!((&json["kind"], &json["moves"][0]["trusted"]), (&json!("key-history"), &json!([b.to_string()])));
    // A disk of the third release boots by its own trust policy, which passes its history over.
    let disk = fleet.machine.bench.path("disk");
    passes(&iofs_sign(["disk".as_ref(), fleet.releases[2].as_os_str(), "--out".as_ref(), disk.as_os_str()]));
    fleet.machine.install(A, &fleet.releases[2]);
    fleet.machine.boot(A, &fleet.releases[2]);
    assert_eq!(fleet.machine.order(), [A]);
}

#[test]
fn the_keys_before_and_the_next_ones_sign_on_different_machines() {
    let fleet = Fleet::new();
    let bench = &fleet.machine.bench;
    let offline = ["--unsigned", "--previous", "path:v1", "--next-key", "public:b", "--revoke", "id:a"];
    let config = bench.text("iofs.toml");
    let mut arguments = bench.image_arguments("offline");
    arguments.extend(["--config".to_owned(), config]);
    arguments.extend(options(bench, &offline));
    passes(&iofs_sign(&arguments));
    let offline = bench.path("offline");
    let sign = |key: &str| {
        let key = bench.path(key);
        iofs_sign(["--json".as_ref(), "sign".as_ref(), offline.as_os_str(), "--key".as_ref(), key.as_os_str()])
    };
    bench.key("stranger");
    assert!(fails(&sign("stranger.pem"), 2).contains("is not among those that this image trusts"));
    let waits: Value = serde_json::from_str(&passes(&sign("b.pem"))).unwrap();
    assert_eq!((&waits["document"], waits["signed_by"].as_array().unwrap().len()), (&json!(MANIFEST), 1));
    assert_eq!(waits["keys_before"], json!({ "signed_by": [], "threshold": 1 }));
    let bundle = bench.text("offline.iofs");
    fails(&iofs_sign(["bundle", offline.to_str().unwrap(), "--out", &bundle]), 3);
    let next = ["--key", "private:b", "--previous", "path:offline"];
    let mut arguments = bench.image_arguments("next");
    arguments.extend(options(bench, &next));
    assert!(fails(&iofs_sign(&arguments), 2).contains("expected a signed release"));
    let waits: Value = serde_json::from_str(&passes(&sign("a.pem"))).unwrap();
    assert_eq!(waits["document"], "release.dsse.json", "the keys before have no word on it: {waits:#}");
    let done: Value = serde_json::from_str(&passes(&sign("b.pem"))).unwrap();
    assert_eq!(done["waits_for"], "nothing");
    assert!(!offline.join(TRUST_BEFORE).exists());
    passes(&iofs_sign(["verify", offline.to_str().unwrap(), "--key", &bench.text("b.pub.pem")]));
    // The order of the signatures differs from that of `seal`, and nothing else does.
    let history = |path: &Path| SealedDirectory::new(path).key_history().unwrap().unwrap();
    let payload = |history: &KeyHistory| history.numbered().next().unwrap().1.unverified_payload().len();
    assert_eq!(history(&offline).last(), history(&fleet.releases[1]).last());
    assert!(payload(&history(&offline)) > 100);
}

#[test]
fn moves_that_cannot_be_are_refused_before_anything_is_sealed() {
    let fleet = Fleet::new();
    let bench = &fleet.machine.bench;
    let config = bench.text("iofs.toml");
    let refused = |words: &[&str], status: i32, found: &str| {
        let mut arguments = bench.image_arguments("out");
        arguments.extend(["--config", &config].map(str::to_owned));
        arguments.extend(options(bench, words));
        let text = fails(&iofs_sign(&arguments), status);
        assert!(text.contains(found), "{found}: {text}");
        assert!(!bench.path("out").exists());
    };
    let from = |previous: &'static str, more: &[&'static str]| {
        [&["--key", "private:b", "--previous", previous], more].concat()
    };
    refused(&from("path:v2", &["--next-key", "public:a"]), 2, "expected no revoked key among the trusted ones");
    refused(&from("path:v2", &["--next-key", "public:b", "--revoke", "id:b"]), 2, "expected no revoked key");
    refused(&from("path:v2", &["--revoke", "id:b"]), 2, "threshold: expected 1 to 0");
    refused(&from("path:v2", &["--next-key", "public:b", "--next-threshold", "2"]), 2, "threshold: expected 1 to 1");
    refused(&["--key", "private:a", "--previous", "path:v2"], 2, "is not among those that this image trusts");
    refused(&["--key", "private:a", "--next-key", "public:b"], 2, "--previous");
    refused(&["--key", "private:b", "--previous", "path:v2", "--trust", "public:a"], 2, "cannot be used with");
    refused(&from("path:missing", &[]), 3, "trust.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.clone() + "keys = [\"a.pub.pem\"]\n").unwrap();
    refused(&from("path:v2", &[]), 2, "trust.keys: ");
    fs::write(&config, text.clone() + "threshold = 2\n").unwrap();
    refused(&from("path:v2", &[]), 2, "trust.threshold: expected at most 1");
    fs::write(&config, text.replace("[slots]\n", "")).unwrap();
    refused(&from("path:v2", &["--next-key", "public:b"]), 2, "since the release is for no slot");
    let history = bench.path("v2").join(KEY_HISTORY);
    let bytes = fs::read(&history).unwrap();
    fs::remove_file(&history).unwrap();
    refused(&from("path:v2", &[]), 4, "expected one that ends with key move 1, found none");
    fs::write(&history, String::from_utf8(bytes).unwrap().replace("first 1", "first 2")).unwrap();
    refused(&from("path:v2", &[]), 4, "expected key move 1 as its last, found 2");
}

#[test]
fn verify_notices_every_document_of_a_move_that_was_exchanged() {
    let fleet = Fleet::new();
    let [_, v2, v3] = &fleet.releases;
    let verify = |release: &Path| {
        let public = fleet.machine.bench.path("b.pub.pem");
        iofs_sign(["--json".as_ref(), "verify".as_ref(), release.as_os_str(), "--key".as_ref(), public.as_os_str()])
    };
    let wrong = |release: &Path, file: &str, bytes: &[u8], found: &str| {
        let before = fs::read(release.join(file)).unwrap();
        fs::write(release.join(file), bytes).unwrap();
        let output = verify(release);
        assert_eq!(output.status.code(), Some(4));
        let told = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(found), "{found}: {told}");
        fs::write(release.join(file), before).unwrap();
    };
    passes(&verify(v2));
    let history = files(v2)[KEY_HISTORY].clone();
    let other = String::from_utf8(history.clone()).unwrap().replace("first 1", "first 2");
    wrong(v3, KEY_HISTORY, other.as_bytes(), "expected key move 1 as its last, found 2");
    let mut trust = TrustPolicy::parse(&files(v2)["trust.json"]).unwrap();
    trust.key_sequence = KeySequence(0);
    wrong(v2, "trust.json", &trust.to_json(), "expected the keys that the manifest moves to (1), found others");
    wrong(v3, KEY_HISTORY, b"iofs-key-history 1\n", "line 2: expected");
}

#[test]
fn power_cut_at_any_byte_of_mark_good_leaves_the_keys_before_or_the_next_ones() {
    let fleet = Fleet::new();
    let [_, v2, _] = &fleet.releases;
    fleet.try_out(B, v2);
    fleet.survives(B, 1, 1);
    fleet.machine.bench.key("c");
    let again = ["--key", "private:b", "--key", "private:c", "--previous", "path:v2", "--next-key", "public:c"];
    let again = seal(&fleet.machine, "again", "4", &again);
    fleet.try_out(A, &again);
    assert_eq!(fleet.machine.record().keys.unwrap().area, HistoryArea::First);
    fleet.survives(A, 2, 2);
    assert_eq!(fleet.machine.record().keys.unwrap().area, HistoryArea::Second);
}

#[test]
fn keys_that_move_in_two_steps_leave_a_fallback_all_the_time() {
    let fleet = Fleet::new();
    let both = [
        &["--key", "private:a", "--key", "private:b", "--previous", "path:v1"][..],
        &["--next-key", "public:a", "--next-key", "public:b"],
    ];
    let both = seal(&fleet.machine, "both", "2", &both.concat());
    let next = ["--key", "private:b", "--previous", "path:both", "--next-key", "public:b", "--revoke", "id:a"];
    let next = seal(&fleet.machine, "next", "3", &next);
    fleet.try_out(B, &both);
    fleet.mark_good();
    assert_eq!(fleet.machine.order(), [B, A], "key a counts as well");
    fleet.try_out(A, &next);
    assert_eq!(fleet.mark_good()["keys"]["sequence"], 2);
    assert_eq!(fleet.machine.order(), [A, B], "key b signed that one, too");
    let late = seal(&fleet.machine, "late", "9", &["--key", "private:a"]);
    fails(&fleet.machine.update(&late, &[]), 4);
}
