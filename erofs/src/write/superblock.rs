//! The first block.

use zerocopy::IntoBytes;

use super::options::{Compression, Options};
use crate::{
    format::{
        superblock::*,
        units::{BLOCK_BITS, BLOCK_SIZE, Block},
    },
    tree::Time,
};

/// `Z_EROFS_COMPRESSION_LZ4`
const ALGORITHM_LZ4: u8 = 0;
/// `Z_EROFS_COMPRESSION_ZSTD`
const ALGORITHM_ZSTD: u8 = 3;
/// The largest distance that LZ4 has bits for.
const LZ4_DISTANCE: u16 = u16::MAX;

/// What the superblock tells.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) blocks: Block,
    pub(super) inodes: u64,
    pub(super) root_nid: u16,
    pub(super) meta: Block,
    pub(super) xattrs: Block,
    pub(super) build_time: Time,
    pub(super) uuid: [u8; 16],
    /// Files of which some part is compressed.
    pub(super) compressed: u64,
    pub(super) chunked: bool,
}

/// The number of the algorithm in an index.
pub(super) fn algorithm(compression: Compression) -> u8 {
    if matches!(compression, Compression::Zstd { .. }) { ALGORITHM_ZSTD } else { ALGORITHM_LZ4 }
}

/// The block. A feature bit is set only where it is used.
pub(super) fn render(facts: &Facts, options: &Options) -> Vec<u8> {
    let mut features = if facts.chunked { INCOMPAT_CHUNKED } else { 0 };
    if facts.compressed > 0 {
        features |= INCOMPAT_ZERO_PADDING | INCOMPAT_CONFIGURATIONS;
    }
    let raw = RawSuperblock {
        magic: MAGIC.into(),
        feature_compat: (COMPAT_CHECKSUM | COMPAT_MTIME).into(),
        block_bits: BLOCK_BITS,
        root_nid: facts.root_nid.into(),
        inodes: facts.inodes.into(),
        epoch: (facts.build_time.seconds as u64).into(),
        fixed_nanoseconds: facts.build_time.nanoseconds.into(),
        blocks: facts.blocks.0.into(),
        meta_block: facts.meta.0.into(),
        xattr_block: facts.xattrs.0.into(),
        uuid: facts.uuid,
        volume_name: options.volume_name,
        feature_incompat: features.into(),
        algorithms: if facts.compressed > 0 { 1 << algorithm(options.compression) } else { 0 }.into(),
        ..RawSuperblock::default()
    };
    let mut block = vec![0; OFFSET];
    block.extend_from_slice(raw.as_bytes());
    if facts.compressed > 0 {
        block.extend_from_slice(&configuration(options));
    }
    block.resize(BLOCK_SIZE, 0);
    let sum = checksum(&block[OFFSET..]);
    block[OFFSET + 4..OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
    block
}

fn configuration(options: &Options) -> Vec<u8> {
    match options.compression {
        Compression::Zstd { .. } => {
            let window = options.cluster_size * super::encoder::ZSTD_WINDOW_FACTOR;
            let log = (window.next_power_of_two().trailing_zeros() as u8).clamp(ZSTD_WINDOW_LOG_BASE, 20);
            let window_log = log - ZSTD_WINDOW_LOG_BASE;
            ZstdConfiguration { size: 6.into(), format: 0, window_log, reserved: [0; 4] }.as_bytes().to_vec()
        }
        _ => {
            let max_cluster_blocks = ((options.cluster_size / BLOCK_SIZE) as u16).into();
            let max_distance = LZ4_DISTANCE.into();
            Lz4Configuration { size: 14.into(), max_distance, max_cluster_blocks, reserved: [0; 10] }
                .as_bytes()
                .to_vec()
        }
    }
}
