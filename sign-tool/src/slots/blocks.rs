//! Where each block of a new image comes from. What is in its place already stays; what the running slot has somewhere is
//! copied from there; only the rest is read from the source.
//!
//! What the slot holds is told by hashing it, not by the tree of what was in it: the answer is as good after an update that
//! was cut off, when nothing vouches for the old tree any more, and reading costs less than writing.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;

use super::{
    source::Part,
    storage::{SlotDevice, Storage, runs},
};
use crate::{
    report::{ExitStatus, Failure, Progress},
    verity::{Tree, in_parallel},
};

/// How much of a slot a thread works on at once, in bytes.
const PIECE: u64 = 1 << 20;

/// Where a block comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It is there.
    InPlace,
    /// It is this block of the running slot.
    Running(u64),
    /// It is the source's.
    Source,
}

/// How many blocks come from where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// All.
    pub total: u64,
    /// Those that are there already.
    pub in_place: u64,
    /// Those that the running slot has.
    pub reused: u64,
    /// Those that are read from the source.
    pub read: u64,
}

/// The running slot, whose blocks are told by their digests.
#[derive(Debug, Clone, Copy)]
pub struct Running<'a> {
    /// The device.
    pub slot: &'a SlotDevice,
    /// Its tree.
    pub tree: &'a Tree,
}

/// A new image, and all that its blocks may come from.
#[derive(Debug)]
pub struct Blocks<'a> {
    slot: &'a SlotDevice,
    tree: &'a Tree,
    image: &'a Part,
    running: Option<Running<'a>>,
    /// Which block of the running slot has a digest.
    known: HashMap<&'a [u8], u64>,
    threads: NonZeroUsize,
}

/// What was found: every block of the source that is needed was read once, and was the signed one.
#[derive(Debug)]
pub struct Plan(Vec<Origin>);

impl Plan {
    /// How many blocks come from where.
    pub fn tally(&self) -> Tally {
        let count = |what: fn(&Origin) -> bool| self.0.iter().filter(|origin| what(origin)).count() as u64;
        Tally {
            total: self.0.len() as u64,
            in_place: count(|origin| *origin == Origin::InPlace),
            reused: count(|origin| matches!(origin, Origin::Running(_))),
            read: count(|origin| *origin == Origin::Source),
        }
    }
}

impl<'a> Blocks<'a> {
    /// `running` is of use only where its tree hashes as the new one does.
    pub fn new(
        slot: &'a SlotDevice,
        tree: &'a Tree,
        image: &'a Part,
        running: Option<Running<'a>>,
        threads: NonZeroUsize,
    ) -> Self {
        let running = running.filter(|running| running.tree.hashes_like(tree));
        let leaves = running
            .iter()
            .flat_map(|Running { tree, .. }| (0..tree.parameters().data_blocks).map(|block| (tree.leaf(block), block)));
        Self { slot, tree, image, running, known: leaves.collect(), threads }
    }

    fn block_size(&self) -> u64 {
        self.tree.parameters().data_block_size.into()
    }

    fn pieces(&self) -> u64 {
        self.tree.parameters().data_blocks.div_ceil(self.piece_blocks())
    }

    fn piece_blocks(&self) -> u64 {
        PIECE / self.block_size()
    }

    /// The blocks of a piece.
    fn piece(&self, number: u64) -> std::ops::Range<u64> {
        let blocks = self.piece_blocks();
        number * blocks..self.tree.parameters().data_blocks.min((number + 1) * blocks)
    }

    /// Finds out where each block comes from, and checks each that will be needed. Nothing is written.
    ///
    /// # Errors
    /// The source ends early, cannot be read, or has a block that is not the signed one.
    pub fn plan(&self, progress: &Progress) -> Result<Plan, Failure> {
        let plan = Mutex::new(vec![Origin::Source; self.tree.parameters().data_blocks as usize]);
        in_parallel(self.pieces(), self.threads, Vec::new, |buffer, number| {
            let range = self.piece(number);
            let bytes = (range.end - range.start) * self.block_size();
            buffer.resize(bytes as usize, 0);
            // A slot that cannot be read here and there may well be written.
            let readable = self.slot.read(buffer, range.start * self.block_size()).is_ok();
            let blocks = range.clone().zip(buffer.chunks_exact_mut(self.block_size() as usize));
            let origins = blocks.map(|(block, content)| self.origin(block, content, readable));
            let origins = origins.collect::<Result<Vec<_>, Failure>>()?;
            let mut plan = plan.lock().unwrap_or_else(PoisonError::into_inner);
            plan[range.start as usize..range.end as usize].copy_from_slice(&origins);
            progress.advance(bytes);
            Ok::<_, Failure>(true)
        })?;
        Ok(Plan(plan.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    /// `content` is what is in the block's place; afterwards it is whatever was looked at last.
    fn origin(&self, block: u64, content: &mut [u8], readable: bool) -> Result<Origin, Failure> {
        if readable && self.tree.holds(block, content) {
            return Ok(Origin::InPlace);
        }
        if let Some(at) = self.known.get(self.tree.leaf(block)).copied().filter(|at| self.copy(block, *at, content)) {
            return Ok(Origin::Running(at));
        }
        self.fetch(block, content)?;
        Ok(Origin::Source)
    }

    /// Reads a block of the running slot: false where it is not the wanted one.
    fn copy(&self, block: u64, at: u64, content: &mut [u8]) -> bool {
        let Some(Running { slot, .. }) = self.running else { return false };
        slot.read(content, at * self.block_size()).is_ok() && self.tree.holds(block, content)
    }

    /// Reads a block of the source.
    fn fetch(&self, block: u64, content: &mut [u8]) -> Result<(), Failure> {
        let offset = block * self.block_size();
        self.image.read(content, offset)?;
        if self.tree.holds(block, content) {
            return Ok(());
        }
        let expected = iofs_policy::hex::encode(self.tree.leaf(block));
        let name = self.image.name();
        let fact = format!(
            "{name}: data block {block} at byte {offset}: expected the signed digest {expected}, found another"
        );
        Err(Failure::new(ExitStatus::NotVerified, fact).next("fetch the release again: it was damaged or changed"))
    }

    /// Writes the blocks that are not in their places, and returns how many bytes that were, and where they came from in
    /// the end: a block that the running slot has lost meanwhile comes from the source.
    ///
    /// # Errors
    /// The source fails, or the slot.
    pub fn write(&self, plan: &Plan, storage: &dyn Storage, progress: &Progress) -> Result<(u64, Tally), Failure> {
        let (written, lost) = (AtomicU64::new(0), AtomicU64::new(0));
        in_parallel(self.pieces(), self.threads, Vec::new, |buffer, number| {
            let range = self.piece(number);
            let origins = &plan.0[range.start as usize..range.end as usize];
            let missing: Vec<bool> = origins.iter().map(|origin| *origin != Origin::InPlace).collect();
            for run in runs(&missing) {
                let first = range.start + run.start as u64;
                buffer.resize(run.len() * self.block_size() as usize, 0);
                lost.fetch_add(self.gather(first, &origins[run], buffer)?, Ordering::Relaxed);
                storage.write(self.slot.file(), buffer, first * self.block_size()).map_err(|error| {
                    Failure::io(format_args!("write the slot {}", self.slot.path().display()), &error)
                })?;
                written.fetch_add(buffer.len() as u64, Ordering::Relaxed);
                progress.advance(buffer.len() as u64);
            }
            Ok::<_, Failure>(true)
        })?;
        let (planned, lost) = (plan.tally(), lost.into_inner());
        let tally = Tally { reused: planned.reused - lost, read: planned.read + lost, ..planned };
        Ok((written.into_inner(), tally))
    }

    /// Reads a run of blocks, each checked as it is read, and returns how many the running slot had lost.
    fn gather(&self, first: u64, origins: &[Origin], buffer: &mut [u8]) -> Result<u64, Failure> {
        let mut lost = 0;
        let contents = buffer.chunks_exact_mut(self.block_size() as usize);
        for ((block, origin), content) in (first..).zip(origins).zip(contents) {
            match *origin {
                Origin::Running(at) if self.copy(block, at, content) => {}
                origin => {
                    self.fetch(block, content)?;
                    lost += u64::from(origin != Origin::Source);
                }
            }
        }
        Ok(lost)
    }
}
