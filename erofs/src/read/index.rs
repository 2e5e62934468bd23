//! The index of a compressed file, in its two forms.

use super::{Image, Inode, Place, ReadAt, ReadError, compressed::Algorithms};
use crate::format::{compressed::*, inode::Layout, superblock::INCOMPAT_CONFIGURATIONS};

/// A physical cluster and what of the file it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cluster {
    /// The first byte of the file that it holds.
    pub(super) start: u64,
    /// The byte after the last.
    pub(super) end: u64,
    /// Where it lies: bytes from the image's start.
    pub(super) place: u64,
    /// Its bytes.
    pub(super) size: u64,
    pub(super) kind: Kind,
}

/// An entry as it is stored.
#[derive(Debug, Clone, Copy)]
struct RawEntry {
    kind: Kind,
    /// The offset of a head, or a distance.
    low: u16,
    /// The block of a head, in full indexes.
    block: u32,
}

/// A head whose end is not known.
#[derive(Debug, Clone, Copy)]
struct Head {
    number: u64,
    start: u64,
    block: u32,
    kind: Kind,
    /// Blocks, once an entry has told them.
    count: Option<u16>,
}

/// All clusters of a file.
pub(super) fn read<R: ReadAt>(image: &Image<R>, inode: &Inode) -> Result<(Vec<Cluster>, Algorithms), ReadError> {
    let nid = inode.nid;
    let place = inode.after().next_multiple_of(8);
    let header: MapHeader = image.structure(nid, place)?;
    let unsupported = |feature: &str| ReadError::Unsupported { place: Place::Inode(nid), feature: feature.into() };
    if header.cluster_bits & 0x80 != 0 || header.advise.get() & ADVISE_FRAGMENT != 0 {
        return Err(unsupported("a fragment"));
    }
    if header.cluster_bits & 0x7f != 0 || image.superblock.block_bits > 12 {
        return Err(unsupported("a logical cluster of several blocks or more than 4096 bytes"));
    }
    let full = inode.layout == Layout::CompressedFull;
    if full && header.advise.get() & ADVISE_COMPACTED_2B != 0 {
        return Err(unsupported("a list of extents"));
    }
    let big = header.advise.get() & (ADVISE_BIG_1 | ADVISE_BIG_2) != 0;
    if big && image.superblock.incompatible & INCOMPAT_CONFIGURATIONS == 0 {
        return Err(ReadError::inode(nid, "h_advise", "big clusters only with their feature", header.advise.get()));
    }
    let entries = inode.size.div_ceil(image.block_size());
    let index = place + size_of::<MapHeader>() as u64;
    let mut scan = Scan { image, inode, big, clusters: Vec::new(), head: None, base: 0, ahead: 0, pack_first: 0 };
    let end = if full { scan.full(index, entries)? } else { scan.compact(index, entries, header.advise.get())? };
    scan.close(inode.size)?;
    let mut clusters = scan.clusters;
    if header.advise.get() & ADVISE_INLINE != 0
        && let Some(last) = clusters.last_mut()
    {
        (last.place, last.size) = (end, header.inline_size.get().into());
    }
    Ok((clusters, Algorithms { nibbles: header.algorithms, interlaced: header.advise.get() & ADVISE_INTERLACED != 0 }))
}

struct Scan<'a, R> {
    image: &'a Image<R>,
    inode: &'a Inode,
    big: bool,
    clusters: Vec<Cluster>,
    head: Option<Head>,
    /// The block of the pack, from which its heads count.
    base: u32,
    /// Blocks that count since the pack's start.
    ahead: u32,
    /// The number of the pack's first entry.
    pack_first: u64,
}

impl<R: ReadAt> Scan<'_, R> {
    /// Returns where the index ends.
    fn full(&mut self, index: u64, entries: u64) -> Result<u64, ReadError> {
        let start = index + FULL_INDEX_GAP;
        for number in 0..entries {
            let raw: FullEntry = self.image.structure(self.inode.nid, start + number * 8)?;
            let kind = Kind::of_bits(raw.advise.get().into());
            let low = if kind == Kind::NonHead { raw.target.get() as u16 } else { raw.offset.get() };
            self.entry(number, RawEntry { kind, low, block: raw.target.get() })?;
        }
        Ok(start + entries * 8)
    }

    fn compact(&mut self, index: u64, entries: u64, advise: u16) -> Result<u64, ReadError> {
        let parts = CompactParts::new(index, entries, advise);
        let mut number = 0;
        while number < entries {
            let pack = parts.pack(number);
            let mut bytes = [0; 32];
            let bytes = &mut bytes[..pack.size];
            self.image.bytes(self.inode.nid, index + pack.offset, bytes)?;
            let (packed, base) = bytes.split_at(pack.size - 4);
            self.base = u32::from_le_bytes([base[0], base[1], base[2], base[3]]);
            (self.ahead, self.pack_first) = (0, pack.first);
            for inside in 0..pack.entries.min((entries - number) as usize) {
                let bits = bits(packed, inside * pack.bits);
                let kind = Kind::of_bits(bits >> LOW_BITS);
                let low = (bits & ((1 << LOW_BITS) - 1)) as u16;
                self.entry(number + inside as u64, RawEntry { kind, low, block: 0 })?;
            }
            number += pack.entries as u64;
        }
        Ok(index + parts.size(entries))
    }

    fn entry(&mut self, number: u64, raw: RawEntry) -> Result<(), ReadError> {
        if raw.kind == Kind::NonHead {
            return self.non_head(number, raw.low);
        }
        let block_size = self.image.block_size();
        if u64::from(raw.low) >= block_size {
            return Err(self.damaged("clusterofs", format!("less than {block_size}"), raw.low));
        }
        let start = number * block_size + u64::from(raw.low);
        self.close(start)?;
        // Without an entry of its own, a head's one block counts where the head is.
        let uncounted = self.head.filter(|head| head.count.is_none() && head.number >= self.pack_first);
        self.ahead = self.ahead.saturating_add(uncounted.map_or(0, |_| 1));
        let block = match self.inode.layout {
            Layout::CompressedFull => raw.block,
            // Without big clusters the pack's block is that of the head before.
            _ => self.base.wrapping_add(self.ahead).wrapping_add(u32::from(!self.big)),
        };
        self.head = Some(Head { number, start, block, kind: raw.kind, count: None });
        Ok(())
    }

    fn non_head(&mut self, number: u64, low: u16) -> Result<(), ReadError> {
        let Some(head) = &mut self.head else {
            return Err(self.damaged("type", "a head for the first byte".into(), number));
        };
        let first = number == head.number + 1;
        match (self.big && low & COUNT_FLAG != 0, first) {
            (true, true) => {
                let count = low & !COUNT_FLAG;
                head.count = Some(count);
                self.ahead = self.ahead.saturating_add(count.into());
                Ok(())
            }
            (true, false) => Err(self.damaged("delta", "a count only after a head".into(), low)),
            // One block is all that a head has without an entry that counts.
            (false, _) => Ok(()),
        }
    }

    /// What is open ends at `end`.
    fn close(&mut self, end: u64) -> Result<(), ReadError> {
        let Some(head) = self.head else {
            if end == 0 {
                return Ok(());
            }
            return Err(self.damaged("clusterofs", "a head for the first byte".into(), end));
        };
        if head.start >= self.inode.size && head.start == end {
            return Ok(());
        }
        if head.start >= end {
            return Err(self.damaged("clusterofs", format!("more than {}", head.start), end));
        }
        let bits = self.image.superblock.block_bits;
        let size = u64::from(head.count.unwrap_or(1)) << bits;
        let place = u64::from(head.block) << bits;
        self.clusters.push(Cluster { start: head.start, end: end.min(self.inode.size), place, size, kind: head.kind });
        Ok(())
    }

    fn damaged(&self, field: &'static str, expected: String, found: impl std::fmt::Display) -> ReadError {
        ReadError::inode(self.inode.nid, field, expected, found)
    }
}

/// The bits of an entry, and some of the next.
fn bits(packed: &[u8], position: usize) -> u32 {
    let byte = |number: usize| u32::from(packed.get(position / 8 + number).copied().unwrap_or(0));
    (byte(0) | byte(1) << 8 | byte(2) << 16) >> (position % 8)
}
