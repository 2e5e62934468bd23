//! The content of inodes.

use std::io::Write;

use zerocopy::little_endian::U32;

use super::{
    Image, Inode, Place, ReadAt, ReadError,
    compressed::{Algorithms, decode},
    index::{self, Cluster},
};
use crate::format::inode::{CHUNK_BITS_MASK, CHUNK_INDEXES, ChunkIndex, Layout, NO_BLOCK};

/// Content that is being read.
#[derive(Debug)]
pub struct File<'a, R> {
    image: &'a Image<R>,
    inode: &'a Inode,
    map: Map,
}

#[derive(Debug)]
enum Map {
    Flat,
    /// The exponent of a chunk's bytes, and whether its entries have 8 bytes.
    Chunks {
        bits: u32,
        indexes: bool,
    },
    Compressed {
        clusters: Vec<Cluster>,
        algorithms: Algorithms,
        last: Option<(usize, Vec<u8>)>,
    },
}

/// Bytes that [`File::copy_to`] moves at once.
const COPY_SIZE: u64 = 1 << 20;

impl<R: ReadAt> Image<R> {
    /// Opens the content of a file, directory or link.
    ///
    /// # Errors
    /// When it has none, or its index is damaged.
    pub fn file<'a>(&'a self, inode: &'a Inode) -> Result<File<'a, R>, ReadError> {
        if !inode.has_data() {
            return Err(ReadError::inode(inode.nid, "i_mode", "something with content", format!("{:#o}", inode.mode)));
        }
        let map = match inode.layout {
            Layout::FlatPlain => Map::Flat,
            Layout::FlatInline => {
                check_tail(self, inode)?;
                Map::Flat
            }
            Layout::ChunkBased => chunks(self, inode)?,
            Layout::CompressedFull | Layout::CompressedCompact => {
                let (clusters, algorithms) = index::read(self, inode)?;
                Map::Compressed { clusters, algorithms, last: None }
            }
        };
        Ok(File { image: self, inode, map })
    }
}

/// The kernel refuses tails that cross a block.
fn check_tail<R: ReadAt>(image: &Image<R>, inode: &Inode) -> Result<(), ReadError> {
    let block = image.block_size();
    let (start, tail) = (inode.after() % block, inode.size % block);
    if start + tail > block {
        let found = format!("{tail} bytes from byte {start} of a block");
        return Err(ReadError::inode(inode.nid, "inline data", "within a block", found));
    }
    Ok(())
}

fn chunks<R: ReadAt>(image: &Image<R>, inode: &Inode) -> Result<Map, ReadError> {
    let format = inode.data as u16;
    if format & !(CHUNK_BITS_MASK | CHUNK_INDEXES) != 0 {
        let feature = format!("chunk format {format:#x}");
        return Err(ReadError::Unsupported { place: Place::Inode(inode.nid), feature });
    }
    let bits = u32::from(format & CHUNK_BITS_MASK) + u32::from(image.superblock.block_bits);
    Ok(Map::Chunks { bits, indexes: format & CHUNK_INDEXES != 0 })
}

impl<R: ReadAt> File<'_, R> {
    /// Fills `target` from `offset` on.
    ///
    /// # Errors
    /// When the content is damaged, or ends before.
    pub fn read_exact_at(&mut self, target: &mut [u8], offset: u64) -> Result<(), ReadError> {
        let end = offset.checked_add(target.len() as u64).filter(|end| *end <= self.inode.size);
        if end.is_none() {
            let found = format!("{} bytes from byte {offset}", target.len());
            let expected = format!("a part of its {} bytes", self.inode.size);
            return Err(ReadError::inode(self.inode.nid, "content", expected, found));
        }
        let mut done = 0;
        while done < target.len() {
            let at = offset + done as u64;
            let rest = &mut target[done..];
            done += match &mut self.map {
                Map::Flat => flat(self.image, self.inode, rest, at)?,
                Map::Chunks { bits, indexes } => chunk(self.image, self.inode, rest, at, *bits, *indexes)?,
                Map::Compressed { clusters, algorithms, last } => {
                    compressed(self.image, self.inode, rest, at, clusters, algorithms, last)?
                }
            };
        }
        Ok(())
    }

    /// Reads all of it but the holes, which may be of any size.
    pub(super) fn check(&mut self) -> Result<(), ReadError> {
        let mut at = 0;
        let mut buffer = vec![0; self.inode.size.min(COPY_SIZE) as usize];
        while at < self.inode.size {
            if let Map::Chunks { bits, indexes } = self.map
                && block_of_chunk(self.image, self.inode, at >> bits, indexes)? == NO_BLOCK
            {
                at = ((at >> bits) + 1) << bits;
                continue;
            }
            let length = (self.inode.size - at).min(COPY_SIZE) as usize;
            self.read_exact_at(&mut buffer[..length], at)?;
            at += length as u64;
        }
        Ok(())
    }

    /// Writes all of it to `target`; holes are zeros.
    ///
    /// # Errors
    /// When the content is damaged; with the other kind of error when `target` fails.
    pub fn copy_to(&mut self, target: &mut dyn Write) -> Result<Result<(), std::io::Error>, ReadError> {
        let mut at = 0;
        let mut buffer = vec![0; self.inode.size.min(COPY_SIZE) as usize];
        while at < self.inode.size {
            let length = (self.inode.size - at).min(COPY_SIZE) as usize;
            self.read_exact_at(&mut buffer[..length], at)?;
            if let Err(error) = target.write_all(&buffer[..length]) {
                return Ok(Err(error));
            }
            at += length as u64;
        }
        Ok(Ok(()))
    }
}

/// Reads some bytes, at least one, and returns how many.
fn flat<R: ReadAt>(image: &Image<R>, inode: &Inode, target: &mut [u8], at: u64) -> Result<usize, ReadError> {
    let block = image.block_size();
    let inline = if inode.layout == Layout::FlatInline { inode.size / block * block } else { inode.size };
    if at >= inline {
        let place = inode.after() + (at - inline);
        image.bytes(inode.nid, place, target)?;
        return Ok(target.len());
    }
    let length = usize::try_from(inline - at).map_or(target.len(), |rest| rest.min(target.len()));
    let start = (u64::from(inode.data) << image.superblock.block_bits).saturating_add(at);
    image.bytes(inode.nid, start, &mut target[..length])?;
    Ok(length)
}

fn chunk<R: ReadAt>(
    image: &Image<R>,
    inode: &Inode,
    target: &mut [u8],
    at: u64,
    bits: u32,
    indexes: bool,
) -> Result<usize, ReadError> {
    let number = at >> bits;
    let inside = at - (number << bits);
    let rest = (1_u64 << bits) - inside;
    let length = usize::try_from(rest).map_or(target.len(), |rest| rest.min(target.len()));
    let target = &mut target[..length];
    let block = block_of_chunk(image, inode, number, indexes)?;
    if block == NO_BLOCK {
        target.fill(0);
    } else {
        image.bytes(inode.nid, (u64::from(block) << image.superblock.block_bits) + inside, target)?;
    }
    Ok(length)
}

/// The first block of a chunk, or [`NO_BLOCK`].
fn block_of_chunk<R: ReadAt>(image: &Image<R>, inode: &Inode, number: u64, indexes: bool) -> Result<u32, ReadError> {
    if !indexes {
        let place = inode.after().next_multiple_of(4) + number * 4;
        return Ok(image.structure::<U32>(inode.nid, place)?.get());
    }
    let entry: ChunkIndex = image.structure(inode.nid, inode.after().next_multiple_of(8) + number * 8)?;
    if entry.device != 0 {
        let feature = "a chunk on another device".into();
        return Err(ReadError::Unsupported { place: Place::Inode(inode.nid), feature });
    }
    Ok(entry.block.get())
}

fn compressed<R: ReadAt>(
    image: &Image<R>,
    inode: &Inode,
    target: &mut [u8],
    at: u64,
    clusters: &[Cluster],
    algorithms: &Algorithms,
    last: &mut Option<(usize, Vec<u8>)>,
) -> Result<usize, ReadError> {
    let number = clusters.partition_point(|cluster| cluster.start <= at).saturating_sub(1);
    let Some(cluster) = clusters.get(number) else {
        return Err(ReadError::inode(inode.nid, "index", "a cluster for each byte", at));
    };
    let bytes = match last {
        Some((kept, bytes)) if *kept == number => bytes,
        _ => &mut last.insert((number, decode(image, inode, cluster, algorithms)?)).1,
    };
    let inside = usize::try_from(at - cluster.start).ok().and_then(|start| bytes.get(start..));
    let Some(inside) = inside.filter(|bytes| !bytes.is_empty()) else {
        return Err(ReadError::inode(inode.nid, "index", "a cluster for each byte", at));
    };
    let length = inside.len().min(target.len());
    target[..length].copy_from_slice(&inside[..length]);
    Ok(length)
}
