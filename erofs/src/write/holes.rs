//! Files with holes: where these are, and whether they are worth storing as such.

use super::{contents::pieces, pool::read};
use crate::{
    format::units::BLOCK_SIZE,
    tree::{Content, Extent},
};

/// Parts of a file that hold data, in order and apart.
type Parts = Vec<Extent>;

/// Where there is data. A file system tells more than that, by units of its own: blocks of zeros are taken out, so that
/// what is stored does not depend on where a file with holes lies.
pub(super) fn data(content: &dyn Content) -> std::io::Result<Parts> {
    let (size, told) = (content.size(), content.data()?);
    if told == [Extent { start: 0, length: size }] {
        return Ok(told);
    }
    let mut found = Parts::new();
    for extent in merge(size, &told, BLOCK_SIZE as u64).into_iter().flat_map(pieces) {
        let bytes = read(content, extent)?;
        for (number, block) in bytes.chunks(BLOCK_SIZE).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                let start = extent.start + (number * BLOCK_SIZE) as u64;
                found.push(Extent { start, length: block.len() as u64 });
            }
        }
    }
    Ok(merge(size, &found, BLOCK_SIZE as u64))
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
}
