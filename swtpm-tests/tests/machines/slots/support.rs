//! A device with two slots, and releases for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iofs_policy::{
    manifest::RollbackIndex,
    slots::{ConfirmedKeys, HistoryArea, RECORD_SIZE, SlotName, SlotRecord},
    verity::CorruptionAction,
};
use iofs_sign::{
    disk::{DiskPartition, DiskReport},
    seal::{SealRequest, config::SlotsSection},
};
use serde_json::Value;
use swtpm_tests::{
    Ending, Line, Machine, ScratchDisk, TpmState, Vm,
    chain::{Chain, ROOT_REACHED},
};

/// From power-on to the end of a tiny root, on a busy host.
pub(super) const BOOT: Duration = Duration::from_secs(180);
pub(super) const TRIES: u8 = 2;

/// A release that says its version, does what `script` says, and switches the machine off.
pub(super) fn release(version: &str, index: u64, script: &str, change: impl FnOnce(&mut SealRequest)) -> Result<Chain> {
    Chain::tiny("trixie", &format!("echo 'RELEASE {version}'\n{script}"), |request| {
        let config = &mut request.config;
        config.slots = Some(SlotsSection { tries: TRIES, ..SlotsSection::default() });
        config.image.version = Some(version.parse().expect("valid"));
        config.image.rollback_index = RollbackIndex(index);
        config.trust.minimum_rollback_index = Some(RollbackIndex(1));
        config.boot.on_corruption = CorruptionAction::Restart;
        change(request);
    })
}

/// Not changed.
pub(super) fn as_is(_: &mut SealRequest) {}

/// A disk with two slots, whose first release is in slot a and in the initramfs that boots it.
pub(super) struct Device<'a> {
    name: String,
    first: Chain,
    pub(super) disk: ScratchDisk,
    report: DiskReport,
    tpm: Option<&'a TpmState>,
}

impl<'a> Device<'a> {
    pub(super) fn new(name: &str, first: Chain) -> Result<Self> {
        let (disk, report) = first.disk()?;
        Ok(Self { name: name.to_owned(), first, disk, report, tpm: None })
    }

    pub(super) fn with_tpm(self, tpm: &'a TpmState) -> Self {
        Self { tpm: Some(tpm), ..self }
    }

    fn partition(&self, label: &str) -> Result<&DiskPartition> {
        find(&self.report, label)
    }

    pub(super) fn slot(&self, slot: SlotName) -> Result<&DiskPartition> {
        self.partition(&format!("system_{slot}"))
    }

    /// Puts a release into a slot, as whoever has the disk can do.
    pub(super) fn put(&self, slot: SlotName, release: &Chain) -> Result<()> {
        let (partition, (disk, report)) = (self.slot(slot)?, release.disk()?);
        let theirs = find(&report, "system_a")?;
        ensure!(theirs.size == partition.size, "slots of {} and {} bytes", theirs.size, partition.size);
        let size = usize::try_from(partition.size)?;
        self.disk.write(partition.offset, &disk.read(theirs.offset, size)?)
    }

    /// Clears a slot's end, without which nothing in it counts.
    pub(super) fn clear(&self, slot: SlotName) -> Result<()> {
        let slot = self.slot(slot)?;
        self.disk.write(slot.offset + slot.size - 4096, &[0; 4096])
    }

    pub(super) fn state(&self) -> Result<Vec<u8>> {
        self.disk.read(self.partition("iofs_state")?.offset, 2 * RECORD_SIZE)
    }

    pub(super) fn set_state(&self, bytes: &[u8]) -> Result<()> {
        self.disk.write(self.partition("iofs_state")?.offset, bytes)
    }

    pub(super) fn record(&self) -> Result<SlotRecord> {
        record_in(&self.disk, self.partition("iofs_state")?.offset)
    }

    /// Keeps the keys that a release moved, as `mark-good` does besides.
    pub(super) fn confirm_keys(&self, release: &Chain) -> Result<()> {
        let history = release.directory().key_history()?.context("the release moves keys")?;
        let (bytes, area, mut record) = (history.to_bytes(), HistoryArea::First, self.record()?);
        self.disk.write(self.partition("iofs_state")?.offset + area.offset(), &bytes)?;
        record.keys = Some(ConfirmedKeys::new(&history, &bytes, area));
        record.sequence += 1;
        self.set_state(&record.encode_both())
    }

    /// Confirms the last boot, as `mark-good` does on the running system; and its orderly end.
    pub(super) fn confirm(&self) -> Result<()> {
        let mut record = self.record()?;
        let last = record.boots.last().context("there was a boot")?.clone();
        let trust = self.first.directory().trust()?;
        let rules = trust.slots.context("the device has slots")?;
        ensure!(record.confirm(last.slot, last.manifest, &rules) && record.ended(last.slot, last.manifest));
        record.sequence += 1;
        self.set_state(&record.encode_both())
    }

    pub(super) fn machine(&self) -> Machine {
        let machine = self.first.machine(&self.name, &self.disk);
        self.tpm.iter().fold(machine, |machine, tpm| machine.tpm(tpm))
    }

    pub(super) fn start(&self) -> Result<Vm> {
        self.machine().start()
    }

    /// Boots until the machine ends, and says which release was reached and how it ended.
    pub(super) fn boot(&self) -> Result<(Option<String>, Ending)> {
        let mut vm = self.start()?;
        let ending = vm.wait_for_end(BOOT)?;
        Ok((reached(&vm), ending))
    }
}

pub(super) fn find<'a>(report: &'a DiskReport, label: &str) -> Result<&'a DiskPartition> {
    report.partitions.iter().find(|one| one.label == label).with_context(|| format!("a partition {label}"))
}

/// The record of tries in the partition that begins there.
pub(super) fn record_in(disk: &ScratchDisk, offset: u64) -> Result<SlotRecord> {
    Ok(SlotRecord::newest(&disk.read(offset, 2 * RECORD_SIZE)?).0?)
}

/// The release whose root was reached.
pub(super) fn reached(vm: &Vm) -> Option<String> {
    vm.console().find(&Line::containing(ROOT_REACHED))?;
    let line = vm.console().find(&Line::containing("RELEASE "))?;
    Some(line.text.split_once("RELEASE ")?.1.trim().to_owned())
}

/// Runs what may fail within `change`.
pub(super) fn sealed(
    seal: impl FnOnce(Box<dyn FnOnce(&mut SealRequest) + '_>) -> Result<Chain>,
    change: impl FnOnce(&mut SealRequest) -> Result<()>,
) -> Result<Chain> {
    let mut changed = Ok(());
    let chain = seal(Box::new(|request| changed = change(request)))?;
    changed.map(|()| chain)
}

/// What `status` tells of the slot that runs, or of the other one.
pub(super) fn slot_that_runs(status: &Value, runs: bool) -> Result<&Value> {
    let slots = status["slots"]["slots"].as_array().context("two slots")?;
    slots.iter().find(|one| one["running"] == runs).with_context(|| format!("a slot that runs: {runs}"))
}
