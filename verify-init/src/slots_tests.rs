//! Boots out of two slots, on the machine in memory.

use iofs_policy::{
    boot_record::BootRecord,
    failure::FailureAction,
    manifest::{Manifest, Place, RollbackIndex, Volume},
    paths::{BOOT_RECORD, MANIFEST, TRUST, TRUST_COPY},
    slots::{
        Chooser, FOOTER_SIZE, FloorKeeper, Footer, HistoryArea, Outcome, RECORD_COPIES, RECORD_SIZE, SlotName,
        SlotRecord, SlotRules, Trial,
    },
    trust::TrustPolicy,
    verity::{CorruptionAction, Superblock},
};
use nix::errno::Errno;

use crate::{
    boot,
    fake::{End, Fake, manifest},
    volume_tests::state,
};

const SLOT: usize = 1 << 20;
pub(crate) const DEVICES: [&str; 2] = ["/dev/vda1", "/dev/vda2"];
pub(crate) const STATE: &str = "/dev/vda3";

/// A release of that version and rollback index.
pub(crate) fn release(version: &str, index: u64) -> Manifest {
    let mut manifest = manifest();
    manifest.image.version = version.parse().unwrap();
    manifest.image.rollback_index = RollbackIndex(index);
    manifest.verity.hash_offset = manifest.verity.parameters.data_blocks * 4096;
    (manifest.data, manifest.tree) = (Place::Slot, Place::Slot);
    manifest
}

fn rules() -> SlotRules {
    SlotRules {
        places: ["PARTLABEL=system_a", "PARTLABEL=system_b"].map(|text| text.parse().unwrap()),
        state: "PARTLABEL=iofs_state".parse().unwrap(),
        tries: 2,
        chooser: Chooser::VerifyInit,
        floor: FloorKeeper::State,
    }
}

/// What lies in a slot.
fn slot(manifest: &Manifest) -> Vec<u8> {
    let mut sealer = Fake::empty();
    sealer.seal(manifest);
    slot_of(manifest, &sealer.files[MANIFEST], None)
}

/// The same with that envelope, and a key history.
pub(crate) fn slot_of(manifest: &Manifest, envelope: &[u8], history: Option<&[u8]>) -> Vec<u8> {
    let superblock =
        Superblock { parameters: manifest.verity.parameters.clone(), uuid: manifest.verity.superblock_uuid.unwrap() };
    let mut bytes = vec![0; SLOT];
    bytes[manifest.verity.hash_offset as usize..][..512].copy_from_slice(&superblock.encode());
    let offset = SLOT / 2;
    bytes[offset..offset + envelope.len()].copy_from_slice(envelope);
    let behind = offset + envelope.len();
    bytes[behind..][..history.map_or(0, <[u8]>::len)].copy_from_slice(history.unwrap_or_default());
    let history = history.map(|history| (behind as u64, history));
    bytes[SLOT - FOOTER_SIZE..].copy_from_slice(&Footer::new((offset as u64, envelope), history).unwrap().encode());
    bytes
}

/// A machine with these releases in its slots.
pub(crate) fn machine(a: Option<&Manifest>, b: Option<&Manifest>) -> Fake {
    let mut fake = Fake::sealed(&release("0", 5));
    fake.after_module.clear();
    let mut trust = TrustPolicy::parse(&fake.files[TRUST]).unwrap();
    trust.slots = Some(rules());
    fake.put(TRUST, &trust.to_json());
    let size = SLOT as u64;
    let partitions =
        [("vda1", "system_a", None, size), ("vda2", "system_b", None, size), ("vda3", "iofs_state", None, size)];
    fake.add_disk("vda", 4 * size, &partitions);
    for (device, release) in DEVICES.into_iter().zip([a, b]) {
        fake.put(device, &release.map_or_else(|| vec![0; SLOT], slot));
    }
    fake.put(STATE, &vec![0; HistoryArea::Second.end() as usize]);
    fake
}

pub(crate) fn record(fake: &Fake) -> SlotRecord {
    SlotRecord::newest(&fake.files[STATE]).0.unwrap()
}

pub(crate) fn set_record(fake: &mut Fake, record: &SlotRecord) {
    fake.device(STATE)[..RECORD_COPIES * RECORD_SIZE].copy_from_slice(&record.encode_both());
}

/// The next boot of the same machine.
pub(crate) fn again(fake: &Fake) -> Fake {
    let mut next = machine(None, None);
    for device in DEVICES.into_iter().chain([STATE]) {
        next.put(device, &fake.files[device]);
    }
    next.broken.clone_from(&fake.broken);
    next
}

fn booted(fake: &Fake) -> (SlotName, String) {
    let record: BootRecord = serde_json::from_slice(&fake.files[BOOT_RECORD]).unwrap();
    (record.slot.unwrap().name, record.image_version)
}

pub(crate) fn boots(fake: &mut Fake) -> (SlotName, String) {
    assert!(matches!(boot(fake), End::Init(..)), "{}", fake.console);
    booted(fake)
}

fn position(fake: &Fake, call: &str) -> usize {
    fake.calls.iter().position(|one| one.starts_with(call)).unwrap_or_else(|| panic!("{call}: {:#?}", fake.calls))
}

#[test]
fn what_a_slot_needed_is_not_loaded_again_for_a_volume() {
    let mut with_volume = release("2", 6);
    with_volume.volumes = vec![Volume { optional: true, ..state() }];
    let mut fake = machine(Some(&with_volume), None);
    fake.crypt = true;
    assert_eq!(boots(&mut fake), (SlotName::A, "2".to_owned()));
    let mut loaded = fake.modules.clone();
    loaded.sort();
    loaded.dedup();
    assert_eq!((loaded.len(), fake.modules.len(), fake.count("watch_devices")), (6, 6, 2), "{:?}", fake.modules);
}

#[test]
fn the_newest_release_is_booted_and_that_it_is_tried_is_written_down_first() {
    let mut fake = machine(Some(&release("1", 5)), Some(&release("2", 5)));
    assert_eq!(boots(&mut fake), (SlotName::B, "2".to_owned()));
    let written = position(&fake, "write_at /dev/vda3 0");
    assert!(written < position(&fake, "create_mapping root"));
    assert_eq!(fake.count("write_at"), 2, "both copies, once");
    assert_eq!(fake.count("watch_devices"), 1, "nothing is left to be searched for");
    let record = record(&fake);
    assert_eq!((record.b.unwrap().trial, record.a), (Trial::Trying(1), None));
    assert_eq!(record.boots[0].outcome, Outcome::Started);
    assert!(TrustPolicy::parse(&fake.files[TRUST_COPY]).unwrap().slots.is_some());
    let table = &fake.tables["root"].1.text;
    assert!(table.starts_with("1 253:2 253:2 4096 4096 100 101 sha256"), "{table}");
}

#[test]
fn a_release_that_nobody_confirms_falls_back_after_its_tries() {
    let mut fake = machine(Some(&release("1", 5)), Some(&release("2", 5)));
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(boots(&mut fake).0);
        fake = again(&fake);
        fake.put("/dev/dm-3", &[0; 100 * 4096]);
    }
    assert_eq!(order, [SlotName::B, SlotName::B, SlotName::A]);
}

#[test]
fn a_release_that_is_refused_makes_room_for_the_other_slot_until_nothing_is_left() {
    let mut fake = machine(Some(&release("1", 5)), Some(&release("2", 5)));
    fake.broken.push(("create_mapping root", Errno::EINVAL));
    let mut ends = Vec::new();
    for _ in 0..6 {
        ends.push(boot(&mut fake));
        if ends.len() < 6 {
            fake = again(&fake);
        }
    }
    let (next, stop) = (End::Stopped(FailureAction::Reboot), End::Stopped(FailureAction::Halt));
    assert_eq!(ends, [&next, &next, &next, &stop, &next, &stop].map(Clone::clone));
    let outcomes: Vec<_> = record(&fake).boots.iter().map(|boot| boot.slot).collect();
    use SlotName::{A, B};
    assert_eq!(outcomes, [B, B, A, A, B, A], "whoever starts the machine again has one more try");
}

#[test]
fn without_anything_to_boot_the_sealed_action_follows_and_a_way_out_is_named() {
    let mut fake = machine(None, None);
    assert_eq!(boot(&mut fake), End::Stopped(FailureAction::Halt));
    for text in
        ["before stage \"chosen\": neither slot can be booted", "slot a: slot footer: expected", "iofs-sign update"]
    {
        assert!(fake.console.contains(text), "{text}: {}", fake.console);
    }
}

#[test]
fn rollback_a_release_below_the_recorded_floor_is_passed_over() {
    let mut fake = machine(Some(&release("1", 6)), Some(&release("2", 5)));
    set_record(&mut fake, &SlotRecord { floor: RollbackIndex(6), ..SlotRecord::default() });
    assert_eq!(boots(&mut fake), (SlotName::A, "1".to_owned()));
    let mut fake = machine(None, Some(&release("2", 5)));
    set_record(&mut fake, &SlotRecord { floor: RollbackIndex(6), ..SlotRecord::default() });
    assert_eq!(boot(&mut fake), End::Stopped(FailureAction::Halt));
    assert!(fake.console.contains("slot b: rollback index: expected at least 6, found 5"), "{}", fake.console);
}

#[test]
fn rollback_where_the_tpm_keeps_the_floor_a_release_that_does_not_ask_it_is_refused() {
    let mut fake = machine(Some(&release("1", 5)), None);
    let mut trust = TrustPolicy::parse(&fake.files[TRUST]).unwrap();
    trust.slots = Some(SlotRules { floor: FloorKeeper::Tpm, ..rules() });
    fake.put(TRUST, &trust.to_json());
    assert_eq!(boot(&mut fake), End::Stopped(FailureAction::Halt));
    assert!(fake.console.contains("tpm.rollback: expected a rule"), "{}", fake.console);
}

#[test]
fn corruption_mode_a_slot_that_ended_abruptly_is_read_whole_and_a_corrupt_one_is_out() {
    let mut fake = machine(Some(&release("1", 5)), Some(&release("2", 5)));
    boots(&mut fake);
    // Nothing is to be read behind the mapping: what the kernel says of a corrupt block.
    let mut fake = again(&fake);
    assert_eq!(boots(&mut fake).0, SlotName::A, "{}", fake.console);
    assert_eq!((fake.count("create_mapping iofs-check"), fake.count("remove_mapping iofs-check")), (1, 1));
    let after = record(&fake);
    assert_eq!((after.b.unwrap().trial, after.boots[0].outcome), (Trial::Corrupt, Outcome::Corrupt));

    let mut fake = again(&fake);
    assert_eq!(boot(&mut fake), End::Stopped(FailureAction::Halt), "the other one too: it stops");
    assert!(fake.console.contains("not all verify"), "{}", fake.console);
}

#[test]
fn a_slot_that_was_shut_down_in_order_is_not_read() {
    let mut fake = machine(Some(&release("1", 5)), None);
    boots(&mut fake);
    let mut after = record(&fake);
    let digest = after.a.unwrap().manifest;
    assert!(after.confirm(SlotName::A, digest, &rules()) && after.ended(SlotName::A, digest));
    set_record(&mut fake, &after);
    let mut fake = again(&fake);
    boots(&mut fake);
    assert_eq!(fake.count("create_mapping iofs-check"), 0);
    assert_eq!(record(&fake).a.unwrap().trial, Trial::Good, "it is confirmed and costs no try");
}

#[test]
fn a_machine_whose_state_is_lost_boots_the_newest_release() {
    for broken in [&[0xff; 2 * RECORD_SIZE][..], &[]] {
        let mut fake = machine(Some(&release("1", 5)), Some(&release("2", 5)));
        fake.put(STATE, broken);
        fake.broken.push(("write_at", Errno::EIO));
        assert_eq!(boots(&mut fake).0, SlotName::B);
        assert!(fake.console.contains("warning: /dev/vda3"), "{}", fake.console);
    }
}

/// The same machine, as a boot loader starts it with the initramfs of release 1.
fn loader_starts_1(mut fake: Fake) -> Fake {
    let mut sealer = Fake::empty();
    sealer.seal(&release("1", 5));
    fake.put(MANIFEST, &sealer.files[MANIFEST]);
    let mut trust = TrustPolicy::parse(&fake.files[TRUST]).unwrap();
    trust.slots = Some(SlotRules { chooser: Chooser::BootLoader, ..rules() });
    fake.put(TRUST, &trust.to_json());
    fake
}

#[test]
fn where_the_boot_loader_chooses_only_its_own_release_is_booted_and_it_counts() {
    let mut fake = loader_starts_1(machine(Some(&release("1", 5)), Some(&release("2", 5))));
    let mut used_up = SlotRecord::default();
    used_up.install(SlotName::A, sealer_digest(&release("1", 5)), 0);
    set_record(&mut fake, &used_up);
    assert_eq!(boots(&mut fake), (SlotName::A, "1".to_owned()));
}

#[test]
fn what_a_boot_loader_starts_in_vain_more_often_than_it_has_tries_stops_the_machine() {
    let mut fake = loader_starts_1(machine(Some(&release("1", 5)), Some(&release("2", 5))));
    let mut corrupt = SlotRecord::default();
    corrupt.begin(&candidate_of(&release("1", 5)), 2);
    corrupt.corrupt(SlotName::A, sealer_digest(&release("1", 5)));
    corrupt.boots.clear();
    set_record(&mut fake, &corrupt);
    for expected in [FailureAction::Reboot, FailureAction::Reboot, release("1", 5).on_failure] {
        let End::Stopped(action) = boot(&mut fake) else { panic!("{}", fake.console) };
        assert_eq!(action, expected, "{}", fake.console);
        fake = loader_starts_1(again(&fake));
    }
    assert_eq!(record(&fake).boots.len(), 3);
}

fn candidate_of(manifest: &Manifest) -> iofs_policy::slots::Candidate {
    let image = &manifest.image;
    iofs_policy::slots::Candidate {
        slot: SlotName::A,
        manifest: sealer_digest(manifest),
        version: image.version.clone(),
        rollback_index: image.rollback_index,
    }
}

fn sealer_digest(manifest: &Manifest) -> iofs_policy::digest::Sha256Digest {
    iofs_policy::digest::Sha256Digest::of(&manifest.to_json())
}

#[test]
fn whatever_call_fails_a_slot_is_booted_or_the_machine_stops_with_a_report() {
    let fresh = || machine(Some(&release("1", 5)), Some(&release("2", 5)));
    let mut clean = fresh();
    boot(&mut clean);
    for number in 0..clean.calls.len() {
        let mut fake = fresh();
        fake.fail = Some((number, Errno::EIO));
        if let End::Stopped(_) = boot(&mut fake) {
            assert!(fake.console.contains("BOOT REFUSED") || fake.calls[number] == "print", "{}", fake.calls[number]);
        }
    }
}

/// A machine whose release 1 in slot a is confirmed, with release 2 in slot b and so many tries.
fn on_trial(tries: u8) -> Fake {
    let [one, two] = ["1", "2"].map(|version| {
        let mut release = release(version, 5);
        release.verity.on_corruption = CorruptionAction::Eio;
        release
    });
    let mut fake = machine(Some(&one), Some(&two));
    let mut known = SlotRecord::default();
    known.begin(&candidate_of(&one), 2);
    assert!(known.confirm(SlotName::A, sealer_digest(&one), &rules()) && known.ended(SlotName::A, sealer_digest(&one)));
    known.install(SlotName::B, sealer_digest(&two), tries);
    set_record(&mut fake, &known);
    fake
}

/// The tries that slot b has left.
fn tries_of_b(fake: &Fake) -> u8 {
    match record(fake).b.unwrap().trial {
        Trial::Trying(left) => left,
        other => panic!("{other:?}"),
    }
}

#[test]
fn power_cut_at_any_byte_of_a_slot_switch_leaves_a_record_that_is_read_and_a_release_that_boots() {
    let refuses = ("create_mapping root", Errno::EINVAL);
    let mut points = 0;
    for (tries, broken) in [(2, None), (1, Some(refuses)), (0, None), (0, Some(refuses))] {
        let start = || {
            let mut fake = on_trial(tries);
            fake.broken.extend(broken);
            fake
        };
        let mut whole = start();
        boot(&mut whole);
        let total = whole.count("write_at") * RECORD_SIZE;
        let edges =
            (0..=total / RECORD_SIZE).flat_map(|copy| [0, 1, RECORD_SIZE - 1].map(|at| copy * RECORD_SIZE + at));
        let within = (1..=80).map(|number| number * 7919 % total);
        for point in edges.chain(within) {
            let mut cut = start();
            cut.power = Some(point);
            boot(&mut cut);
            let mut next = again(&cut);
            next.broken.clear();
            assert!(tries_of_b(&next) <= tries, "byte {point}: no try comes back");
            let (slot, _) = boots(&mut next);
            let expected = if tries_of_b(&cut) > 0 { SlotName::B } else { SlotName::A };
            assert_eq!(slot, expected, "byte {point} of {total}");
            points += 1;
        }
    }
    assert!(points >= 300, "{points}");
}
