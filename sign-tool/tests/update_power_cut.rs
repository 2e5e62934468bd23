//! Power lost at any byte that an update writes. Whatever was written since the last time that the device was told to store
//! it may be there or not, sector by sector, as on disks with a cache.

mod power_cut;
mod seal_common;
mod update_common;

use std::{
    fs::{self, File},
    io,
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    path::Path,
    sync::Mutex,
};

use iofs_policy::slots::{SlotName, Trial};
use iofs_sign::{
    report::{Failure, Output},
    slots::{
        source::Source,
        storage::{Disk, Storage},
        target::Target,
        update::{UpdateJob, UpdateReport, update},
    },
};
use power_cut::{Cut, State, points};
use seal_common::{Random, noise};
use update_common::Machine;

const SLOT: usize = 1 << 20;
use SlotName::{A, B};

fn run(machine: &Machine, sealed: &Path, storage: &dyn Storage) -> Result<UpdateReport, Failure> {
    let (source, trust) = (Source::open(sealed).unwrap(), machine.trust());
    let record = iofs_sign::status::read(&machine.bench.path("boot.json")).unwrap();
    let target = Target::of_boot(&record, trust.slots.as_ref().unwrap()).unwrap();
    assert_eq!((target.slot, &target.device, &target.state), (B, &machine.slot(B), &machine.state()));
    let threads = NonZeroUsize::MIN;
    let output = Output { json: false, quiet: true };
    update(&UpdateJob {
        source: &source,
        trust: &trust,
        target: &target,
        dry_run: false,
        give_up_fallback: false,
        threads,
        loader: None,
        storage,
        output,
    })
}

/// What both slots and the record hold.
fn snapshot(machine: &Machine) -> [Vec<u8>; 3] {
    [machine.slot(A), machine.slot(B), machine.state()].map(|path| fs::read(path).unwrap())
}

fn restore(machine: &Machine, snapshot: &[Vec<u8>; 3]) {
    let paths = [machine.slot(A), machine.slot(B), machine.state()];
    paths.iter().zip(snapshot).for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
}

/// What has to hold at any moment: a slot whose manifest verifies is whole, unless the record knows better, and the next boot
/// starts one that is: the new release as soon as its slot holds it, whatever was known of it before.
fn boots_a_good_version(machine: &Machine, point: u64) {
    let record = machine.record();
    for slot in SlotName::ALL {
        let Some(held) = machine.held(slot) else { continue };
        let known_bad = record.trial(slot, held.digest(), update_common::TRIES) == Trial::Corrupt;
        assert!(known_bad || machine.is_whole(slot, &held), "byte {point}: slot {slot} looks whole and is not");
    }
    let first = *machine.order().first().unwrap_or_else(|| panic!("byte {point}: nothing is left to boot"));
    assert!(machine.is_whole(first, &machine.held(first).unwrap()), "byte {point}: slot {first}");
    let new = machine.held(B).filter(|held| held.manifest().image.version.as_str() == "2" && machine.is_whole(B, held));
    assert!(new.is_none() || first == B, "byte {point}: the new release is there and is not tried");
}

/// Cuts the update at all points, from the machine as it is.
fn survives(machine: &Machine, sealed: &Path, seed: u64) {
    let (mut random, before) = (Random(seed), snapshot(machine));
    let whole = Cut::after(u64::MAX);
    run(machine, sealed, &whole).unwrap();
    let State { writes, syncs, .. } = whole.0.into_inner().unwrap();
    let (after, total) = (snapshot(machine), writes.iter().sum::<u64>());
    let mut failures = 0;
    let points = points(&writes, &mut random);
    for &point in &points {
        restore(machine, &before);
        let cut = Cut::after(point);
        let failed = run(machine, sealed, &cut).is_err();
        assert!(failed || point >= total, "byte {point} of {total}");
        failures += usize::from(failed);
        cut.lose(&mut random);
        assert!(fs::read(machine.slot(A)).unwrap() == before[0], "byte {point}: what runs is untouched");
        boots_a_good_version(machine, point);
        run(machine, sealed, &Disk).unwrap();
        assert_eq!(machine.order(), [B, A], "byte {point}: the next run goes on to the end");
        assert!(fs::read(machine.slot(B)).unwrap() == after[1], "byte {point}");
    }
    println!("{} points, {failures} cuts, {} writes of {total} bytes, {syncs} syncs", points.len(), writes.len());
    assert!(failures * 10 > points.len() * 9);
}

fn next_release(machine: &Machine) -> std::path::PathBuf {
    fs::write(machine.bench.path("root/etc/new"), noise(50_000, 9)).unwrap();
    machine.seal("v2", "2", 1, &[])
}

/// A device that changes a bit of one of the writes.
struct Liar {
    write: usize,
    count: Mutex<usize>,
}

impl Storage for Liar {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut count = self.count.lock().unwrap();
        *count += 1;
        let mut bytes = bytes.to_vec();
        if *count == self.write {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        file.write_all_at(&bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }
}

#[test]
fn a_device_that_returns_other_bytes_than_were_written_leaves_the_slot_empty() {
    let machine = Machine::running_v1(SLOT);
    let v2 = next_release(&machine);
    let before = snapshot(&machine);
    // Behind the slot's end and both copies of the record come blocks, superblock, tree and manifest.
    let count = 10 - 3 - 3;
    for write in 4..4 + count {
        let liar = Liar { write, count: Mutex::new(0) };
        let failure = run(&machine, &v2, &liar).unwrap_err();
        assert!(failure.fact.contains("read back: "), "write {write}: {failure}");
        assert!(failure.next_step.unwrap().contains("slot b is empty until then"));
        assert_eq!(machine.order(), [A], "write {write}");
        run(&machine, &v2, &Disk).unwrap();
        assert_eq!(machine.order(), [B, A], "write {write}");
        restore(&machine, &before);
    }
}

#[test]
fn power_cut_at_any_byte_of_an_update_of_an_empty_slot_boots_a_good_version() {
    let machine = Machine::running_v1(SLOT);
    let v2 = next_release(&machine);
    survives(&machine, &v2, 1);
}

#[test]
fn power_cut_at_any_byte_of_an_update_over_an_older_release_boots_a_good_version() {
    let machine = Machine::new(SLOT);
    let v0 = machine.seal("v0", "0.9", 1, &[]);
    fs::write(machine.bench.path("root/usr/bin/tool"), noise(290_000, 4)).unwrap();
    let v1 = machine.seal("v1", "1", 1, &[]);
    machine.install(B, &v0);
    machine.install(A, &v1);
    machine.boot(B, &v0);
    machine.confirm(B);
    machine.boot(A, &v1);
    machine.confirm(A);
    let v2 = next_release(&machine);
    survives(&machine, &v2, 2);
}

#[test]
fn power_cut_at_any_byte_of_an_update_over_a_corrupt_copy_of_the_same_release_boots_a_good_version() {
    let machine = Machine::running_v1(SLOT);
    let v2 = next_release(&machine);
    machine.updated(&v2);
    let held = machine.held(B).unwrap();
    for block in [3, 20, 40, 41, 70] {
        update_common::damage(&machine.slot(B), block * 4096 + 9);
    }
    machine.change_record(|record| record.corrupt(B, held.digest()));
    assert_eq!(machine.order(), [A]);
    survives(&machine, &v2, 3);
}
