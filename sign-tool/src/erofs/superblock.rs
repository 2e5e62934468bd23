//! The erofs superblock: 128 bytes, little endian, at offset 1024. Source: Linux `fs/erofs/erofs_fs.h`.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use erofs_image::format::superblock::{
    self as format, COMPAT_CHECKSUM, INCOMPAT_CONFIGURATIONS, RawSuperblock, checksum,
};
use serde::Serialize;
use uuid::Uuid;
use zerocopy::FromBytes;

use super::{
    ImageError,
    kernel::{Algorithm, KernelRelease},
};

pub use erofs_image::format::superblock::MAGIC;

/// Where it starts.
pub const OFFSET: u64 = format::OFFSET as u64;
/// The kernel accepts blocks from 512 bytes up to its pages, which are 64 KiB at most.
const BLOCK_BITS: std::ops::RangeInclusive<u8> = 9..=16;

/// Features that a kernel must know, the kernel that learned them, and names. Some bits stand for two features that
/// came in different releases; the older counts.
const INCOMPAT: [(u32, KernelRelease, &str); 9] = [
    (0x01, KernelRelease::new(5, 4), "zero padding"),
    (0x02, KernelRelease::new(5, 13), "big clusters"),
    (0x04, KernelRelease::new(5, 15), "chunked files"),
    (0x08, KernelRelease::new(5, 16), "several devices or algorithms"),
    (0x10, KernelRelease::new(5, 17), "tail packing"),
    (0x20, KernelRelease::new(6, 1), "fragments or deduplication"),
    (0x40, KernelRelease::new(6, 4), "long xattr prefixes"),
    (0x80, KernelRelease::new(6, 15), "48-bit layout"),
    (0x100, KernelRelease::new(6, 17), "a metadata box"),
];

/// What an image says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Superblock {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks of the image.
    pub blocks: u64,
    /// Inodes.
    pub inodes: u64,
    /// Seconds since 1970, the time of all inodes without one of their own.
    pub build_time: u64,
    /// The file system's id.
    pub uuid: Uuid,
    /// Optional features.
    pub feature_compat: u32,
    /// Features that a reader must know.
    pub feature_incompat: u32,
    /// Bits of algorithms, if the image lists them.
    pub available_algorithms: Option<u16>,
    /// Whether the checksum holds; `None` if there is none.
    pub checksum_holds: Option<bool>,
    /// The number of the root directory.
    pub root_nid: u64,
    /// The block at which the numbering of inodes starts.
    pub meta_block: u32,
}

/// A field that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field's name in `erofs_fs.h`.
    pub field: &'static str,
    /// What it must be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

impl Superblock {
    /// Decodes the bytes from [`OFFSET`] on; the checksum needs those up to the end of the first block.
    ///
    /// # Errors
    /// Too few bytes, another magic, or an impossible block size.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let error = |field, expected: &str, found: String| FieldError { field, expected: expected.into(), found };
        let Ok((raw, _)) = RawSuperblock::read_from_prefix(bytes) else {
            return Err(error("superblock", "128 bytes", format!("{} bytes", bytes.len())));
        };
        if raw.magic != MAGIC {
            return Err(error("magic", "0xe0f5e1e2", format!("{:#010x}", raw.magic)));
        }
        if !BLOCK_BITS.contains(&raw.block_bits) {
            return Err(error("blkszbits", "9 to 16", raw.block_bits.to_string()));
        }
        let feature_incompat = raw.feature_incompat.get();
        Ok(Self {
            block_size: 1 << raw.block_bits,
            blocks: raw.blocks.get().into(),
            inodes: raw.inodes.get(),
            build_time: raw.epoch.get(),
            uuid: Uuid::from_bytes(raw.uuid),
            feature_compat: raw.feature_compat.get(),
            feature_incompat,
            available_algorithms: (feature_incompat & INCOMPAT_CONFIGURATIONS != 0).then(|| raw.algorithms.get()),
            checksum_holds: checksum_holds(bytes, &raw),
            root_nid: raw.root_nid.get().into(),
            meta_block: raw.meta_block.get(),
        })
    }

    /// The algorithms that the image lists. An image without a list holds LZ4 or nothing compressed.
    pub fn algorithms(&self) -> Vec<Algorithm> {
        match self.available_algorithms {
            Some(bits) => Algorithm::ALL
                .into_iter()
                .enumerate()
                .filter(|(bit, _)| bits >> bit & 1 != 0)
                .map(|(_, name)| name)
                .collect(),
            None if self.feature_incompat & 1 != 0 => vec![Algorithm::Lz4],
            None => Vec::new(),
        }
    }

    /// The oldest kernel that reads the image, and the feature that makes it so.
    pub fn least_kernel(&self) -> (KernelRelease, &'static str) {
        let features = INCOMPAT.iter().filter(|(bit, ..)| self.feature_incompat & bit != 0);
        let features = features.map(|(_, release, name)| (*release, *name));
        let algorithms = self.algorithms().into_iter().map(|name| (name.least_kernel(), name.name()));
        let small = (self.block_size < 4096).then_some((KernelRelease::new(6, 4), "blocks below 4096 bytes"));
        let least = (KernelRelease::new(5, 4), "the on-disk format");
        features.chain(algorithms).chain(small).fold(least, |least, next| if next.0 > least.0 { next } else { least })
    }

    /// The names of the features that a reader must know; unknown ones as a number.
    pub fn incompatible_features(&self) -> Vec<String> {
        let known = INCOMPAT.iter().fold(0, |bits, (bit, ..)| bits | bit);
        let names = INCOMPAT.iter().filter(|(bit, ..)| self.feature_incompat & bit != 0);
        let mut names: Vec<String> = names.map(|(_, _, name)| (*name).to_owned()).collect();
        if self.feature_incompat & !known != 0 {
            names.push(format!("unknown {:#x}", self.feature_incompat & !known));
        }
        names
    }
}

/// Tells whether a file has the magic; short files have not.
///
/// # Errors
/// What the system says.
pub fn has_magic(file: &mut File) -> io::Result<bool> {
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, OFFSET) {
        Ok(()) => Ok(u32::from_le_bytes(magic) == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads an image's superblock and checks what can be checked without reading the image: the checksum, the size, that
/// no unknown feature is needed, that it lies on one device.
///
/// # Errors
/// A file that cannot be read, or is not a whole, known erofs image.
pub fn read(image: &Path) -> Result<Superblock, ImageError> {
    let file = File::open(image).map_err(ImageError::io("open", image))?;
    let size = file.metadata().map_err(ImageError::io("stat", image))?.len();
    let mut bytes = Vec::new();
    let largest = (1 << BLOCK_BITS.end()) as u64;
    file.take(largest).read_to_end(&mut bytes).map_err(ImageError::io("read", image))?;
    let found = Superblock::decode(bytes.get(OFFSET as usize..).unwrap_or_default());
    let bad = |error: FieldError| ImageError::Format {
        path: image.to_owned(),
        field: error.field,
        expected: error.expected,
        found: error.found,
    };
    let found = found.map_err(bad)?;
    check(&found, size).map_err(bad)?;
    Ok(found)
}

fn check(found: &Superblock, size: u64) -> Result<(), FieldError> {
    let error = |field, expected: String, found: String| Err(FieldError { field, expected, found });
    let unknown = found.feature_incompat & !INCOMPAT.iter().fold(0, |bits, (bit, ..)| bits | bit);
    if unknown != 0 {
        return error("feature_incompat", "known features only".into(), format!("{unknown:#x}"));
    }
    let needed = found.blocks.saturating_mul(found.block_size.into());
    if found.blocks == 0 || size < needed {
        return error("blocks", format!("1 to {}", size / u64::from(found.block_size)), found.blocks.to_string());
    }
    if found.checksum_holds == Some(false) {
        return error("checksum", "the CRC32C of the first block".into(), "another value".into());
    }
    Ok(())
}

fn checksum_holds(bytes: &[u8], raw: &RawSuperblock) -> Option<bool> {
    if raw.feature_compat.get() & COMPAT_CHECKSUM == 0 {
        return None;
    }
    let (block_size, offset) = (1_usize << raw.block_bits, OFFSET as usize);
    let length = if block_size > offset { block_size - offset } else { block_size };
    Some(bytes.get(..length).is_some_and(|covered| checksum(covered) == raw.checksum.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 3072];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8] = 1;
        bytes[12] = 12;
        bytes[36] = 7;
        bytes[80] = 3;
        bytes[84] = 0b1001;
        bytes[48..64].fill(7);
        let sum = checksum(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    #[test]
    fn algorithms_and_the_kernel_that_they_need_are_named() {
        let found = Superblock::decode(&sample()).unwrap();
        assert_eq!(found.algorithms(), [Algorithm::Lz4, Algorithm::Zstd]);
        assert_eq!(found.least_kernel(), (KernelRelease::new(6, 10), "zstd"));
        assert_eq!(found.incompatible_features(), ["zero padding", "big clusters"]);
        assert_eq!((found.blocks, found.checksum_holds), (7, Some(true)));
    }

    #[test]
    fn a_changed_byte_breaks_the_checksum() {
        for at in [5, 60, 3000] {
            let mut bytes = sample();
            bytes[at] ^= 1;
            assert_eq!(Superblock::decode(&bytes).unwrap().checksum_holds, Some(false), "byte {at}");
        }
    }

    #[test]
    fn short_or_foreign_bytes_are_refused_by_field() {
        assert_eq!(Superblock::decode(&sample()[..127]).unwrap_err().field, "superblock");
        assert_eq!(Superblock::decode(&[0; 128]).unwrap_err().field, "magic");
        let mut bytes = sample();
        bytes[12] = 60;
        assert_eq!(Superblock::decode(&bytes).unwrap_err().field, "blkszbits");
    }
}
