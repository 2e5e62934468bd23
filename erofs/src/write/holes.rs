//! Files with holes: where these are, and whether they are worth storing as such.

use super::{contents::pieces, pool::read};
use crate::{
    format::units::BLOCK_SIZE,
    tree::{Content, ContentReader, Extent},
};

/// Parts of a file that hold data, in order and apart.
pub(super) type Parts = Vec<Extent>;

/// So many blocks of a file are looked at first; each piece has more.
const SAMPLES: u64 = 16;

/// Where there is data in a file of several pieces: all blocks that are not zeros, or simply all of the file where it is worth no
/// closer look. This follows from the content alone, since archives and file systems keep holes as they like. What they call a
/// hole is not read.
pub(super) fn data(content: &dyn Content, compress: bool) -> std::io::Result<Parts> {
    let size = content.size();
    let told = merge(size, &content.data()?, BLOCK_SIZE as u64);
    if !is_worth_a_look(content, &told, compress)? {
        return Ok(vec![Extent { start: 0, length: size }]);
    }
    let mut found = Parts::new();
    for extent in told.into_iter().flat_map(pieces) {
        add_data(&read(content, extent)?, extent.start, &mut found);
    }
    Ok(merge(size, &found, BLOCK_SIZE as u64))
}

/// As [`sparse`], for a file that was read whole. A single block is never a hole: as a tail it takes less.
pub(super) fn sparse_piece(bytes: &[u8], compress: bool) -> Option<(u8, Parts)> {
    if bytes.len() <= BLOCK_SIZE {
        return None;
    }
    let mut found = Parts::new();
    add_data(bytes, 0, &mut found);
    sparse(bytes.len() as u64, &found, compress)
}

/// Adds the blocks of `bytes`, which start at `start`, that are not zeros.
fn add_data(bytes: &[u8], start: u64, found: &mut Parts) {
    for (number, block) in bytes.chunks(BLOCK_SIZE).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            found.push(Extent { start: start + (number * BLOCK_SIZE) as u64, length: block.len() as u64 });
        }
    }
}

/// Whether as many of some blocks are zeros as holes are worth.
fn is_worth_a_look(content: &dyn Content, told: &[Extent], compress: bool) -> std::io::Result<bool> {
    let blocks = content.size().div_ceil(BLOCK_SIZE as u64);
    let reader = content.open()?;
    let mut zeros = 0;
    for number in 0..SAMPLES {
        let block = (u128::from(number) * u128::from(blocks) / u128::from(SAMPLES)) as u64;
        zeros += u64::from(is_zeros(&*reader, told, block, content.size())?);
    }
    Ok(zeros >= if compress { SAMPLES / 2 } else { 1 })
}

fn is_zeros(reader: &dyn ContentReader, told: &[Extent], block: u64, size: u64) -> std::io::Result<bool> {
    let start = block * BLOCK_SIZE as u64;
    let after = told.partition_point(|part| part.start <= start);
    if told[..after].last().is_none_or(|part| part.start + part.length <= start) {
        return Ok(true);
    }
    let mut bytes = [0; BLOCK_SIZE];
    let bytes = &mut bytes[..(size - start).min(BLOCK_SIZE as u64) as usize];
    reader.read_exact_at(bytes, start)?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

/// No chunk is larger than 1 GiB.
const CHUNK_BITS_LIMIT: u8 = 18;
/// A file with holes has at most so many chunks, each of which takes 4 bytes of metadata.
const CHUNK_COUNT_LIMIT: u64 = 1 << 20;

/// Whether a file should be stored as chunks with holes, of which size, and what then is data. With compression, holes
/// cost little; only a file that is mostly holes is not worth compressing.
pub(super) fn sparse(size: u64, data: &[Extent], compress: bool) -> Option<(u8, Parts)> {
    let block = BLOCK_SIZE as u64;
    let covered: u64 = merge(size, data, block).iter().map(|part| part.length).sum();
    let holes = size.saturating_sub(covered);
    if holes < block || compress && holes < size / 2 {
        return None;
    }
    let bits = chunk_bits(size, data);
    Some((bits, merge(size, data, block << bits)))
}

/// The size of chunks with which index and data are smallest: large ones need a small index, and more zeros as data.
fn chunk_bits(size: u64, data: &[Extent]) -> u8 {
    let cost = |bits: u8| {
        let chunk = (BLOCK_SIZE as u64) << bits;
        let covered: u64 = merge(size, data, chunk).iter().map(|part| part.length).sum();
        covered + 4 * size.div_ceil(chunk)
    };
    let possible =
        (0..=CHUNK_BITS_LIMIT).filter(|bits| size.div_ceil((BLOCK_SIZE as u64) << bits) <= CHUNK_COUNT_LIMIT);
    possible.min_by_key(|bits| (cost(*bits), *bits)).unwrap_or(CHUNK_BITS_LIMIT)
}

/// Data in whole units, the last one up to the end of the file.
fn merge(size: u64, data: &[Extent], unit: u64) -> Parts {
    let mut parts: Parts = Vec::new();
    for extent in data.iter().filter(|extent| extent.length > 0 && extent.start < size) {
        let start = extent.start / unit * unit;
        let end = extent.start.saturating_add(extent.length).div_ceil(unit).saturating_mul(unit).min(size);
        match parts.last_mut() {
            Some(last) if last.start + last.length >= start => last.length = last.length.max(end - last.start),
            _ => parts.push(Extent { start, length: end - start }),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, length: u64) -> Extent {
        Extent { start, length }
    }

    #[test]
    fn chunks_are_of_the_size_that_takes_the_least() {
        // 768 chunks of two blocks would save 3 KiB of index, and bring 4 KiB of zeros.
        let data = [extent(1 << 20, 5000), extent(5 << 20, 4096)];
        assert_eq!(sparse(6 << 20, &data, false), Some((0, vec![extent(1 << 20, 8192), extent(5 << 20, 4096)])));
        assert_eq!(sparse(8 << 30, &[extent(4 << 30, 1 << 20)], false), Some((8, vec![extent(4 << 30, 1 << 20)])));
        assert_eq!(sparse(3 << 20, &[], false), Some((10, vec![])));
        let (bits, _) = sparse(1 << 40, &[extent(4096, 4096)], true).unwrap();
        assert!(size_of::<u32>() << (40 - 12 - bits) <= 2 << 20, "{bits}");
    }

    #[test]
    fn few_holes_are_left_to_compression() {
        assert_eq!(sparse(1 << 20, &[extent(0, 1 << 19)], true).map(|(bits, _)| bits), Some(7));
        assert_eq!(sparse(1 << 20, &[extent(0, (1 << 19) + 1)], true), None);
        assert_eq!(sparse(8193, &[extent(0, 100)], false), Some((0, vec![extent(0, 4096)])));
        assert_eq!(sparse(5000, &[extent(0, 100)], false), None);
        assert_eq!(sparse(5000, &[extent(0, 5000)], false), None);
    }

    /// One block of data, told as a file system without holes would.
    #[test]
    fn holes_are_told_by_content_and_not_by_what_is_told() {
        let mut bytes = vec![0; 2 << 20];
        bytes[70_000] = 1;
        for compress in [false, true] {
            assert_eq!(data(&bytes, compress).unwrap(), [extent(69_632, 4096)]);
        }
        assert_eq!(data(&vec![1; 2 << 20], false).unwrap(), [extent(0, 2 << 20)]);
        // A last block that is not whole.
        let mut bytes = vec![0; 40_000];
        bytes[39_999] = 1;
        assert_eq!(sparse_piece(&bytes, true), Some((0, vec![extent(36_864, 3136)])));
        assert_eq!(sparse_piece(&[0; 4096], false), None);
        assert_eq!(sparse_piece(&[1; 40_000], false), None);
    }
}
