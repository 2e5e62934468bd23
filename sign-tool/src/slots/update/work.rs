//! Writing, in the order that makes it safe.

use std::num::NonZeroUsize;

use iofs_policy::{
    keys::KeyRing,
    manifest::Architecture,
    slots::{Candidate, FOOTER_SIZE, Footer, SlotRecord, SlotRules, Trial},
    verity::HashArea,
};

use super::{Outcome, UpdateJob, UpdateReport};
use crate::{
    report::{ExitStatus, Failure},
    slots::{
        blocks::{Blocks, Plan, Tally},
        held,
        incoming::Incoming,
        layout::SlotLayout,
        loader::LoaderFiles,
        record::RecordFile,
        storage::SlotDevice,
    },
    verity::{self, Engine, VerifyJob},
};

/// What the boot loader is to start of a release.
pub(super) struct Loaded<'a> {
    files: &'a LoaderFiles,
    image: Vec<u8>,
}

impl<'a> Loaded<'a> {
    pub(super) fn verify(job: &UpdateJob<'_>, files: &'a LoaderFiles, incoming: &Incoming) -> Result<Self, Failure> {
        let image = incoming.kernel_image(job.source)?;
        files.check_room(job.target.slot, image.len() as u64)?;
        Ok(Self { files, image })
    }
}

/// An update whose release was verified.
pub(super) struct Work<'a> {
    pub(super) job: &'a UpdateJob<'a>,
    pub(super) rules: &'a SlotRules,
    pub(super) keys: &'a KeyRing,
    pub(super) incoming: &'a Incoming,
    pub(super) slot: &'a SlotDevice,
    pub(super) loaded: Option<&'a Loaded<'a>>,
}

impl Work<'_> {
    fn io(&self, doing: &str) -> impl Fn(std::io::Error) -> Failure {
        let what = format!("{doing} {}", self.slot.path().display());
        move |error| Failure::io(&what, &error)
    }

    /// What people should know about a slot that was begun.
    fn is_empty(&self, failure: Failure) -> Failure {
        let step = failure.next_step.as_ref().map(|step| format!("; {step}")).unwrap_or_default();
        let next = format!(
            "run the update again; slot {} is empty until then, what runs is untouched{step}",
            self.job.target.slot
        );
        failure.next(next)
    }

    /// Whether the slot holds this very release, and all of it.
    pub(super) fn holds_it(&self, machine: Option<Architecture>) -> bool {
        let machine = machine.unwrap_or(self.incoming.manifest.manifest().image.architecture);
        let held = held::manifest(self.slot, self.job.trust, self.keys, machine);
        held.is_ok_and(|held| held.digest() == self.incoming.manifest.digest())
            && self.read_back("looking at what is there").is_ok()
    }

    /// Of an update that was interrupted at its very end, the boot loader's part is missing.
    pub(super) fn complete(&self) -> Result<(), Failure> {
        match self.loaded {
            Some(loaded) if !self.job.dry_run && !loaded.files.starts(self.job.target.slot)? => self.give_to_loader(),
            _ => Ok(()),
        }
    }

    pub(super) fn worth(&self, record: &SlotRecord, candidate: &Candidate) -> Trial {
        record.trial(candidate.slot, candidate.manifest, self.rules.tries)
    }

    /// Refuses to overwrite what boots if the running release, which nobody has confirmed yet, does not prove good.
    pub(super) fn keeps_a_fallback(&self, record: &SlotRecord) -> Result<(), Failure> {
        let Some(running) = &self.job.target.running else { return Ok(()) };
        if self.job.give_up_fallback || self.worth(record, &running.candidate) == Trial::Good {
            return Ok(());
        }
        let Ok(held) = held::manifest(self.slot, self.job.trust, self.keys, Architecture::CURRENT) else {
            return Ok(());
        };
        let fallback = Candidate::new(self.job.target.slot, &held);
        if !self.worth(record, &fallback).may_start() || fallback.rollback_index < record.floor {
            return Ok(());
        }
        let (name, version, on_trial) = (fallback.slot, &fallback.version, &running.candidate.version);
        let fact = format!(
            "slot {name}: expected one that is no fallback, found release {version}, and release {on_trial}, which runs, on trial"
        );
        Err(Failure::new(ExitStatus::Usage, fact)
            .next("confirm what runs with 'iofs-sign mark-good' first; or, where it cannot be, add --give-up-fallback"))
    }

    pub(super) fn all_in_place(&self) -> Tally {
        let total = self.incoming.tree.parameters().data_blocks;
        Tally { total, in_place: total, ..Tally::default() }
    }

    /// From the slot's end to its end.
    pub(super) fn write(&self, blocks: &Blocks<'_>, plan: &Plan) -> Result<UpdateReport, Failure> {
        let cleared = self.clear()?;
        let fill = || {
            let (written, tally) = self.write_blocks(blocks, plan)?;
            let area = self.write_area()?;
            self.read_back("reading back")?;
            Ok((written + area, tally))
        };
        let (written, tally) = fill().map_err(|failure| self.is_empty(failure))?;
        let finished = self.finish()?;
        Ok(self.report(Outcome::Written, tally, cleared + written + finished))
    }

    fn write_blocks(&self, blocks: &Blocks<'_>, plan: &Plan) -> Result<(u64, Tally), Failure> {
        let (tally, block_size) = (plan.tally(), u64::from(self.incoming.tree.parameters().data_block_size));
        let progress = self.job.output.progress("writing", (tally.total - tally.in_place) * block_size);
        let written = blocks.write(plan, self.job.storage, &progress);
        progress.finish();
        written
    }

    /// Empties the slot: first what the boot loader would start with it, then its end, without which nothing in it counts, then
    /// what the record says of it. The other way round, a power cut in between would give what failed before its tries back.
    fn clear(&self) -> Result<u64, Failure> {
        self.loaded.map_or(Ok(()), |loaded| loaded.files.remove(self.job.target.slot))?;
        let fail = self.io("clear the end of the slot");
        let zeros = [0; FOOTER_SIZE];
        let offset = SlotLayout::footer_offset(self.slot.size());
        self.job.storage.write(self.slot.file(), &zeros, offset).map_err(&fail)?;
        self.job.storage.sync(self.slot.file()).map_err(&fail)?;
        self.change_record(|record| record.forget(self.job.target.slot)).map_err(|failure| self.is_empty(failure))?;
        Ok(FOOTER_SIZE as u64)
    }

    /// The key history, and where it goes; none where there is none.
    fn history(&self) -> Option<(u64, &[u8])> {
        self.incoming.history.as_deref().map(|history| (self.incoming.layout.history_offset, history))
    }

    /// Writes what is behind the image: superblock, tree, envelope, and key history.
    fn write_area(&self) -> Result<u64, Failure> {
        let Incoming { layout, tree, head, envelope, .. } = self.incoming;
        let tree_offset = layout.hash_offset + head.len() as u64;
        let parts =
            [(head.as_slice(), layout.hash_offset), (tree.bytes(), tree_offset), (envelope, layout.envelope_offset)];
        let parts = parts.into_iter().chain(self.history().map(|(offset, bytes)| (bytes, offset)));
        let write = |(bytes, offset)| self.slot.write_differing(self.job.storage, bytes, offset);
        let written = parts.map(write).sum::<std::io::Result<u64>>().map_err(self.io("write the slot"))?;
        self.slot.settle(self.job.storage).map_err(self.io("store the slot"))?;
        Ok(written)
    }

    /// Reads everything from the device itself, and compares it with what was signed.
    fn read_back(&self, label: &str) -> Result<(), Failure> {
        let Incoming { layout, head, envelope, manifest, .. } = self.incoming;
        let verity = &manifest.manifest().verity;
        let job = VerifyJob {
            engine: Engine::best(),
            data: self.slot.file(),
            hash: self.slot.file(),
            area: HashArea { offset: layout.hash_offset, superblock: verity.superblock_uuid.is_some() },
            parameters: &verity.parameters,
            root_hash: &verity.root_hash,
            threads: self.job.threads,
            limit: NonZeroUsize::MIN,
        };
        let progress = self.job.output.progress(label, layout.data_bytes);
        let result = verity::verify(&job, &progress);
        progress.finish();
        let differs = |what: &dyn std::fmt::Display| {
            let fact = format!("slot {}: read back: {what}", self.slot.path().display());
            Failure::new(ExitStatus::NotVerified, fact).next("if it happens again, replace the device: it fails")
        };
        result.map_err(|error| differs(&error))?;
        let parts = [("superblock", &head[..], layout.hash_offset), ("manifest", envelope, layout.envelope_offset)];
        let history = self.history().map(|(offset, bytes)| ("key history", bytes, offset));
        for (name, bytes, offset) in parts.into_iter().chain(history) {
            let mut found = vec![0; bytes.len()];
            self.slot.read(&mut found, offset).map_err(self.io("read back the slot"))?;
            if found != *bytes {
                return Err(differs(&format_args!(
                    "{name} at byte {offset}: expected what was written, found other bytes"
                )));
            }
        }
        Ok(())
    }

    /// Makes the slot one that holds the release, and gives it its tries.
    fn finish(&self) -> Result<u64, Failure> {
        let Incoming { layout, envelope, manifest, .. } = self.incoming;
        let footer = Footer::new((layout.envelope_offset, envelope), self.history())
            .map_err(|error| Failure::new(ExitStatus::BadInput, error.to_string()))?;
        let offset = SlotLayout::footer_offset(self.slot.size());
        let fail = |error| self.is_empty(self.io("write the end of the slot")(error));
        self.job.storage.write(self.slot.file(), &footer.encode(), offset).map_err(fail)?;
        self.job.storage.sync(self.slot.file()).map_err(fail)?;
        let install = |record: &mut SlotRecord| {
            record.install(self.job.target.slot, manifest.digest(), self.rules.tries);
        };
        self.change_record(install).map_err(|failure| {
            failure.next("the slot holds the release, and the next boot tries it: see why the record cannot be written")
        })?;
        self.give_to_loader()?;
        Ok(FOOTER_SIZE as u64)
    }

    /// Last of all: from here on the boot loader starts the release.
    fn give_to_loader(&self) -> Result<(), Failure> {
        let Some(Loaded { files, image }) = self.loaded else { return Ok(()) };
        let slot = self.job.target.slot;
        files.write(slot, image, self.rules.tries).map_err(|failure| {
            failure
                .next(format!("run the update again: slot {slot} is whole, and the boot loader does not start it yet"))
        })
    }

    /// Reads the record anew, since others may have changed it, and writes it.
    fn change_record(&self, change: impl FnOnce(&mut SlotRecord)) -> Result<(), Failure> {
        let mut file = RecordFile::open(&self.job.target.state, true)?;
        change(&mut file.record);
        file.save_through(self.job.storage)
    }

    pub(super) fn report(&self, outcome: Outcome, blocks: Tally, bytes_written: u64) -> UpdateReport {
        let Incoming { manifest, tree, envelope, history, .. } = self.incoming;
        let (image, verity) = (&manifest.manifest().image, &manifest.manifest().verity);
        let block_size = u64::from(verity.parameters.data_block_size.bytes());
        UpdateReport {
            outcome,
            slot: self.job.target.slot,
            device: self.slot.path().to_owned(),
            version: image.version.clone(),
            rollback_index: image.rollback_index,
            manifest_digest: manifest.digest(),
            root_hash: verity.root_hash.clone(),
            blocks,
            bytes_read: (envelope.len() + history.as_ref().map_or(0, Vec::len) + tree.bytes().len()) as u64
                + blocks.read * block_size,
            bytes_written,
        }
    }
}
