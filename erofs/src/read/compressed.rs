//! Decompresses clusters.

use std::io::Read;

use super::{Image, Inode, Place, ReadAt, ReadError, index::Cluster};
use crate::format::{compressed::Kind, superblock::INCOMPAT_ZERO_PADDING};

/// How a file is compressed: parts of its index' header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Algorithms {
    /// `h_algorithmtype`
    pub(super) nibbles: u8,
    /// Plain blocks are rotated.
    pub(super) interlaced: bool,
}

/// `Z_EROFS_PCLUSTER_MAX_DSIZE`: the most that a cluster may hold.
const DECODED_LIMIT: u64 = 12 << 20;
/// `Z_EROFS_PCLUSTER_MAX_SIZE`.
const CLUSTER_LIMIT: u64 = 1 << 20;
/// LZ4 has no more than 255 times its size of output; older tools did not keep to [`DECODED_LIMIT`].
const LZ4_RATIO: u64 = 255;

/// The bytes that a cluster holds.
pub(super) fn decode<R: ReadAt>(
    image: &Image<R>,
    inode: &Inode,
    cluster: &Cluster,
    algorithms: &Algorithms,
) -> Result<Vec<u8>, ReadError> {
    let length = cluster.end - cluster.start;
    let most = DECODED_LIMIT.max(cluster.size.saturating_mul(LZ4_RATIO));
    if cluster.size > CLUSTER_LIMIT || length > most {
        let expected = format!("at most {CLUSTER_LIMIT} bytes that hold at most {most}");
        return Err(ReadError::inode(inode.nid, "cluster", expected, format!("{} that hold {length}", cluster.size)));
    }
    let mut bytes = vec![0; cluster.size as usize];
    image.bytes(inode.nid, cluster.place, &mut bytes)?;
    let mut output = vec![0; length as usize];
    let nibble = match cluster.kind {
        Kind::Plain => {
            plain(inode, cluster, &bytes, algorithms.interlaced.then_some(image.block_size()), &mut output)?;
            return Ok(output);
        }
        Kind::Head2 => algorithms.nibbles >> 4,
        _ => algorithms.nibbles & 15,
    };
    let padded = image.superblock.incompatible & INCOMPAT_ZERO_PADDING != 0;
    let start = if padded { bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len()) } else { 0 };
    decompress(inode, nibble, &bytes[start..], &mut output)?;
    Ok(output)
}

fn decompress(inode: &Inode, algorithm: u8, bytes: &[u8], output: &mut [u8]) -> Result<(), ReadError> {
    let length = output.len();
    let fact = match algorithm {
        0 => match decompress_lz4(bytes, output) {
            Ok(()) => return Ok(()),
            Err(fact) => fact,
        },
        3 => match decompress_zstd(bytes, output) {
            Ok(()) => return Ok(()),
            Err(error) => error.to_string(),
        },
        other => {
            let feature = format!("compression algorithm {other}");
            return Err(ReadError::Unsupported { place: Place::Inode(inode.nid), feature });
        }
    };
    Err(ReadError::inode(inode.nid, "compressed data", format!("{length} bytes of output"), fact))
}

/// Fills `output`. What follows in `bytes` is padding, or what another file uses.
pub(crate) fn decompress_lz4(bytes: &[u8], output: &mut [u8]) -> Result<(), String> {
    let length = output.len();
    match lzzzz::lz4::decompress_partial(bytes, output, length) {
        Ok(found) if found == length => Ok(()),
        Ok(found) => Err(found.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Fills `output` from the first frame.
pub(crate) fn decompress_zstd(bytes: &[u8], output: &mut [u8]) -> std::io::Result<()> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes)?.single_frame();
    // `Z_EROFS_ZSTD_MAX_DICT_SIZE` is 1 MiB.
    decoder.window_log_max(20)?;
    decoder.read_exact(output)
}

/// A block that is not compressed. With `interlaced`, the block size, each byte lies at the offset within the block that
/// it has in the file, so that the block may wrap around.
fn plain(
    inode: &Inode,
    cluster: &Cluster,
    bytes: &[u8],
    interlaced: Option<u64>,
    output: &mut [u8],
) -> Result<(), ReadError> {
    if output.len() > bytes.len() {
        let expected = format!("at most {} plain bytes", bytes.len());
        return Err(ReadError::inode(inode.nid, "clusterofs", expected, output.len()));
    }
    let skip = interlaced.map_or(0, |block| (cluster.start % block) as usize).min(bytes.len());
    let (before, after) = bytes.split_at(skip);
    let first = after.len().min(output.len());
    output[..first].copy_from_slice(&after[..first]);
    let rest = output.len() - first;
    output[first..].copy_from_slice(&before[..rest]);
    Ok(())
}
