//! Sparse files in GNU's four forms: the type `S`, and pax versions 0.0, 0.1 and 1.0.

use std::io::Read;

use super::{
    FILE_LIMIT, TarReader,
    header::{BLOCK, Header, number},
    pax::{Overrides, Sparse, decimal},
};
use crate::archive::{
    entry::{Entry, Extent, printable},
    error::ArchiveError,
};

/// More stretches than any file system makes of a file below the size limit are an attack on memory.
const EXTENT_LIMIT: usize = 1 << 20;
/// The old form's fields: 4 extents at 386 in the header, 21 in each block that follows, 12 digits a number.
const OLD_MAP: usize = 386;
const OLD_EXTENTS: usize = 4;
const OLD_EXTENDED: usize = 482;
const OLD_REAL_SIZE: std::ops::Range<usize> = 483..495;
const NEXT_EXTENTS: usize = 21;
const NEXT_EXTENDED: usize = 504;

impl<R: Read> TarReader<R> {
    /// Completes an entry whose file is sparse.
    pub(super) fn sparse(
        &mut self,
        header: &Header,
        overrides: Overrides,
        entry: &mut Entry,
    ) -> Result<(), ArchiveError> {
        let (extents, size) = if header.typeflag() == b'S' {
            (self.old_map(header)?, header.number("realsize", OLD_REAL_SIZE, 0, i128::from(i64::MAX))? as u64)
        } else {
            match overrides.sparse {
                Sparse { major: Some(1), minor: None | Some(0), real_size: Some(size), .. } => {
                    (self.map_in_content(header)?, size)
                }
                Sparse { major: None | Some(0), map: Some(map), real_size: Some(size), .. } => (map, size),
                Sparse { major: None | Some(0), extents, real_size: Some(size), .. } => (extents, size),
                Sparse { major: None, minor: None, real_size: None, map: None, extents, .. } if extents.is_empty() => {
                    return Ok(());
                }
                _ => return Err(header.unsupported("this version of GNU's sparse files")),
            }
        };
        check(&extents, size, self.remaining, header)?;
        entry.size = size;
        entry.extents = Some(extents.into_iter().filter(|extent| extent.length > 0).collect());
        Ok(())
    }

    fn old_map(&mut self, header: &Header) -> Result<Vec<Extent>, ArchiveError> {
        let mut extents = Vec::new();
        let mut block = *header.bytes();
        add_old(&mut extents, &block[OLD_MAP..], OLD_EXTENTS, header)?;
        let mut more = block[OLD_EXTENDED] != 0;
        while more {
            self.input.read_whole(&mut block, "a sparse file's map", self.name.as_deref())?;
            add_old(&mut extents, &block, NEXT_EXTENTS, header)?;
            more = block[NEXT_EXTENDED] != 0;
        }
        Ok(extents)
    }

    /// Version 1.0: decimal lines in front of the data, padded to a block: their number, then offset and size of each.
    fn map_in_content(&mut self, header: &Header) -> Result<Vec<Extent>, ArchiveError> {
        let start = self.remaining;
        let count = self.map_line(header)?;
        if count > EXTENT_LIMIT as u64 {
            return Err(header.error("sparse map", format!("at most {EXTENT_LIMIT} extents"), count.to_string()));
        }
        let mut extents = Vec::new();
        for _ in 0..count {
            extents.push(Extent { offset: self.map_line(header)?, length: self.map_line(header)? });
        }
        let used = start - self.remaining;
        let padding = used.next_multiple_of(BLOCK as u64) - used;
        self.remaining = self.remaining.checked_sub(padding).ok_or_else(|| {
            header.error("size", format!("at least the sparse map's {}", used + padding), start.to_string())
        })?;
        self.input.skip(padding, "a sparse file's map", self.name.as_deref())?;
        Ok(extents)
    }

    fn map_line(&mut self, header: &Header) -> Result<u64, ArchiveError> {
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            if self.remaining == 0 || line.len() > 20 {
                break;
            }
            self.input.read_whole(&mut byte, "a sparse file's map", self.name.as_deref())?;
            self.remaining -= 1;
            if byte[0] == b'\n' {
                break;
            }
            line.push(byte[0]);
        }
        decimal(&line).ok_or_else(|| header.error("sparse map", "a line with a number".into(), printable(&line)))
    }
}

fn add_old(extents: &mut Vec<Extent>, map: &[u8], count: usize, header: &Header) -> Result<(), ArchiveError> {
    for pair in map.chunks_exact(24).take(count) {
        if pair[0] == 0 {
            break;
        }
        let field = |raw: &[u8]| {
            number(raw)
                .and_then(|value| u64::try_from(value).ok())
                .ok_or_else(|| header.error("sparse map", "an offset or a size".into(), printable(raw)))
        };
        extents.push(Extent { offset: field(&pair[..12])?, length: field(&pair[12..])? });
    }
    if extents.len() > EXTENT_LIMIT {
        return Err(header.error("sparse map", format!("at most {EXTENT_LIMIT} extents"), "more".into()));
    }
    Ok(())
}

/// Stretches come in order, without overlap, inside the file, and are all the archive holds of it.
fn check(extents: &[Extent], size: u64, stored: u64, header: &Header) -> Result<(), ArchiveError> {
    if size > FILE_LIMIT {
        return Err(header.error("sparse file's size", format!("at most {FILE_LIMIT}"), size.to_string()));
    }
    let (mut end, mut sum) = (0_u64, 0_u64);
    for extent in extents {
        let next = extent.offset.checked_add(extent.length).filter(|next| extent.offset >= end && *next <= size);
        end = next.ok_or_else(|| {
            let found = format!("{} bytes at {}", extent.length, extent.offset);
            header.error("sparse map", format!("extents in order from {end} to {size}"), found)
        })?;
        // The sum stays below the file's size.
        sum += extent.length;
    }
    if sum == stored {
        return Ok(());
    }
    Err(header.error("sparse map", format!("extents of {stored} bytes in all, as stored"), format!("{sum} bytes")))
}
