//! The superblock.

use zerocopy::{FromZeros, IntoBytes};

use super::{Place, ReadAt, ReadError};
use crate::{
    format::{
        superblock::*,
        units::{Block, Nid},
    },
    tree::Time,
};

/// The kernel takes blocks from 512 bytes up to its pages, which are 64 KiB at most.
const BLOCK_BITS: std::ops::RangeInclusive<u8> = 9..=16;
const KNOWN: u32 = INCOMPAT_ZERO_PADDING
    | INCOMPAT_CONFIGURATIONS
    | INCOMPAT_CHUNKED
    | INCOMPAT_DEVICES
    | INCOMPAT_TAIL_PACKING
    | INCOMPAT_FRAGMENTS;

/// What an image says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The exponent of the block size.
    pub block_bits: u8,
    /// Blocks of the image.
    pub blocks: u32,
    /// Inodes.
    pub inodes: u64,
    /// The time of inodes without one of their own.
    pub build_time: Time,
    /// The file system's id.
    pub uuid: [u8; 16],
    /// The volume's name, filled up with zeros.
    pub volume_name: [u8; 16],
    /// Optional features: `EROFS_FEATURE_COMPAT_*`.
    pub compatible: u32,
    /// Features that a reader must know: `EROFS_FEATURE_INCOMPAT_*`.
    pub incompatible: u32,
    pub(super) root: Nid,
    pub(super) meta: Block,
    pub(super) xattrs: Block,
}

pub(super) fn read<R: ReadAt>(source: &R, there: u64) -> Result<Superblock, ReadError> {
    let field = |field, expected: String, found: String| ReadError::field(Place::Superblock, field, expected, found);
    let mut raw = RawSuperblock::new_zeroed();
    let length = size_of::<RawSuperblock>();
    if there < (OFFSET + length) as u64 {
        return Err(field("size", format!("at least {} bytes", OFFSET + length), there.to_string()));
    }
    let read = source.read_exact_at(raw.as_mut_bytes(), OFFSET as u64);
    read.map_err(|source| ReadError::Io { offset: OFFSET as u64, length, source })?;
    if raw.magic != MAGIC {
        return Err(field("magic", format!("{MAGIC:#x}"), format!("{:#x}", raw.magic)));
    }
    if !BLOCK_BITS.contains(&raw.block_bits) {
        return Err(field("blkszbits", "9 to 16".into(), raw.block_bits.to_string()));
    }
    let needed = u64::from(raw.blocks.get()) << raw.block_bits;
    if raw.blocks == 0 || needed > there {
        return Err(field("blocks", format!("1 to {}", there >> raw.block_bits), raw.blocks.to_string()));
    }
    features(&raw)?;
    if raw.feature_compat.get() & COMPAT_CHECKSUM != 0 {
        verify(source, &raw, needed)?;
    }
    Ok(decode(&raw))
}

fn features(raw: &RawSuperblock) -> Result<(), ReadError> {
    let unsupported = |feature: String| Err(ReadError::Unsupported { place: Place::Superblock, feature });
    let unknown = raw.feature_incompat.get() & !KNOWN;
    if unknown != 0 {
        return unsupported(format!("feature_incompat {unknown:#x}"));
    }
    if raw.extra_devices != 0 {
        return unsupported("data on other devices".into());
    }
    if raw.directory_bits != 0 {
        return unsupported(format!("dirblkbits {}", raw.directory_bits));
    }
    Ok(())
}

/// The checksum reaches to the end of the block in which the superblock starts; where blocks are not larger than its
/// offset, it is of as many bytes as a block has.
fn verify<R: ReadAt>(source: &R, raw: &RawSuperblock, size: u64) -> Result<(), ReadError> {
    let block = 1_usize << raw.block_bits;
    let length = if block > OFFSET { block - OFFSET } else { block };
    let mut bytes = vec![0; length];
    let io = |source| ReadError::Io { offset: OFFSET as u64, length, source };
    if (OFFSET + length) as u64 > size {
        return Err(ReadError::field(Place::Superblock, "blocks", "the superblock's among them", raw.blocks.get()));
    }
    source.read_exact_at(&mut bytes, OFFSET as u64).map_err(io)?;
    let found = checksum(&bytes);
    if raw.checksum != found {
        let expected = format!("{found:#010x}, the CRC32C of the first block");
        return Err(ReadError::field(Place::Superblock, "checksum", expected, format!("{:#010x}", raw.checksum)));
    }
    Ok(())
}

fn decode(raw: &RawSuperblock) -> Superblock {
    Superblock {
        block_bits: raw.block_bits,
        blocks: raw.blocks.get(),
        inodes: raw.inodes.get(),
        build_time: Time { seconds: raw.epoch.get() as i64, nanoseconds: raw.fixed_nanoseconds.get() },
        uuid: raw.uuid,
        volume_name: raw.volume_name,
        compatible: raw.feature_compat.get(),
        incompatible: raw.feature_incompat.get(),
        root: Nid(raw.root_nid.get().into()),
        meta: Block(raw.meta_block.get()),
        xattrs: Block(raw.xattr_block.get()),
    }
}
