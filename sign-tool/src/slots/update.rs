//! Writing a release into the slot that does not run.
//!
//! The order is what makes it safe. Until the slot's footer is cleared, nothing was written, and all that will be needed of
//! the source was read and verified. From there until the footer is written again the slot is empty, whatever happens. The
//! footer is written only once every block was read back from the device and verified. What runs is never touched.

mod open;
mod work;

use std::{num::NonZeroUsize, path::PathBuf};

use iofs_policy::{
    digest::Sha256Digest,
    manifest::{Architecture, ImageVersion, RollbackIndex},
    slots::SlotName,
    trust::TrustPolicy,
    verity::RootHash,
};
use serde::Serialize;

use self::{
    open::{claim, machine_keys, running},
    work::{Loaded, Work},
};
use super::{
    blocks::{Blocks, Running, Tally},
    incoming::Incoming,
    loader::LoaderFiles,
    rules,
    source::Source,
    storage::Storage,
    target::Target,
};
use crate::report::{Failure, Output};

/// What to write where.
pub struct UpdateJob<'a> {
    /// The release.
    pub source: &'a Source,
    /// What the machine accepts.
    pub trust: &'a TrustPolicy,
    /// The slot, and what runs.
    pub target: &'a Target,
    /// Find out what would be done, and write nothing.
    pub dry_run: bool,
    /// Write even over what a running release that nobody has confirmed would fall back to.
    pub give_up_fallback: bool,
    /// The most threads to use.
    pub threads: NonZeroUsize,
    /// What the boot loader starts, where that chooses.
    pub loader: Option<&'a LoaderFiles>,
    /// How it is written.
    pub storage: &'a dyn Storage,
    /// Where progress and remarks go.
    pub output: Output,
}

/// What became of the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It holds the release now, and the next boot tries it.
    Written,
    /// It held the release already, whole.
    AlreadyThere,
    /// It was only looked at.
    WouldWrite,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct UpdateReport {
    /// What became of the slot.
    pub outcome: Outcome,
    /// The slot.
    pub slot: SlotName,
    /// Its device.
    pub device: PathBuf,
    /// The release's version.
    pub version: ImageVersion,
    /// Its rollback index.
    pub rollback_index: RollbackIndex,
    /// The digest of its manifest.
    pub manifest_digest: Sha256Digest,
    /// Its root hash.
    pub root_hash: RootHash,
    /// How many blocks of the image come from where.
    pub blocks: Tally,
    /// How much of the source was needed, in bytes: manifest, tree and blocks.
    pub bytes_read: u64,
    /// How much was written to the slot, in bytes: blocks, tree, manifest, and its end twice.
    pub bytes_written: u64,
}

/// Verifies a release and writes it into a slot.
///
/// # Errors
/// The release is not for this machine, or not newer than what runs; the slot is the running one, in use or too small; or a
/// device fails. Unless the failure says otherwise, nothing was written.
pub fn update(job: &UpdateJob<'_>) -> Result<UpdateReport, Failure> {
    let rules = rules::of(job.trust)?;
    let machine = job.target.running.as_ref().map(|_| Architecture::CURRENT);
    let keys = machine_keys(job)?;
    let incoming = Incoming::verify(job.source, job.trust, &keys, machine)?;
    let loaded = job.loader.map(|files| Loaded::verify(job, files, &incoming)).transpose()?;
    let (slot, record) = claim(job, rules, &incoming)?;
    let work = Work { job, rules, keys: &keys, incoming: &incoming, slot: &slot, loaded: loaded.as_ref() };
    if work.worth(&record, &incoming.candidate(job.target.slot)).may_start() && work.holds_it(machine) {
        work.complete()?;
        return Ok(work.report(Outcome::AlreadyThere, work.all_in_place(), 0));
    }
    work.keeps_a_fallback(&record)?;
    let running = running(job, &keys);
    let running = running.as_ref().map(|(slot, tree)| Running { slot, tree });
    let blocks = Blocks::new(&slot, &incoming.tree, job.source.image(), running, job.threads);
    let progress = job.output.progress("comparing", incoming.layout.data_bytes);
    let plan = blocks.plan(&progress)?;
    progress.finish();
    if job.dry_run {
        return Ok(work.report(Outcome::WouldWrite, plan.tally(), 0));
    }
    work.write(&blocks, &plan)
}
