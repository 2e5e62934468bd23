//! Compressors that fill a physical cluster.

use super::options::{Compression, Options};

/// So many times the size of a cluster is the most that Zstandard puts into one: what a reader must keep of the output
/// while it decompresses. LZ4 needs no such limit.
pub(super) const ZSTD_WINDOW_FACTOR: usize = 8;
/// Tries at the amount of input that fills a cluster.
const ZSTD_TRIES: usize = 5;

/// A compressor with its buffers; each thread has one.
pub(super) struct Encoder {
    algorithm: Algorithm,
    cluster_size: usize,
    /// What the last call wrote.
    pub(super) output: Vec<u8>,
}

enum Algorithm {
    None,
    Lz4,
    Lz4hc(i32),
    Zstd(Box<zstd::bulk::Compressor<'static>>, Vec<u8>),
}

impl Encoder {
    pub(super) fn new(options: &Options) -> Result<Self, String> {
        let algorithm = match options.compression {
            Compression::None => Algorithm::None,
            Compression::Lz4 => Algorithm::Lz4,
            Compression::Lz4hc { level } => Algorithm::Lz4hc(level),
            Compression::Zstd { level } => {
                let compressor = zstd::bulk::Compressor::new(level).map_err(|error| error.to_string())?;
                let size = zstd::zstd_safe::compress_bound(options.cluster_size * ZSTD_WINDOW_FACTOR);
                Algorithm::Zstd(Box::new(compressor), vec![0; size])
            }
        };
        Ok(Self { algorithm, cluster_size: options.cluster_size, output: vec![0; options.cluster_size] })
    }

    /// Compresses as much of `input` as fits into a cluster. Returns the bytes that it took and the bytes that it wrote;
    /// `None` where nothing useful fits.
    pub(super) fn fill(&mut self, input: &[u8]) -> Result<Option<(usize, usize)>, String> {
        let output = &mut self.output[..self.cluster_size];
        let found = match &mut self.algorithm {
            Algorithm::None => None,
            Algorithm::Lz4 => Some(lzzzz::lz4::compress_fill(input, output).map_err(|error| error.to_string())?),
            Algorithm::Lz4hc(level) => {
                Some(lzzzz::lz4_hc::compress_fill(input, output, *level).map_err(|error| error.to_string())?)
            }
            Algorithm::Zstd(compressor, scratch) => fill_zstd(compressor, scratch, input, output)?,
        };
        Ok(found.filter(|(took, wrote)| *took > 0 && *wrote > 0))
    }
}

/// Zstandard cannot be told to stop at a size. The ratio of one try tells the input of the next.
fn fill_zstd(
    compressor: &mut zstd::bulk::Compressor<'static>,
    scratch: &mut [u8],
    input: &[u8],
    output: &mut [u8],
) -> Result<Option<(usize, usize)>, String> {
    let most = input.len().min(output.len() * ZSTD_WINDOW_FACTOR);
    let (mut too_much, mut best) = (most + 1, None);
    let mut next = most.min(output.len() * 3);
    for _ in 0..ZSTD_TRIES {
        let wrote = compressor.compress_to_buffer(&input[..next], scratch).map_err(|error| error.to_string())?;
        if wrote <= output.len() {
            output[..wrote].copy_from_slice(&scratch[..wrote]);
            best = Some((next, wrote));
            if next == most || wrote + output.len() / 64 >= output.len() {
                break;
            }
        } else {
            too_much = next;
        }
        let least = best.map_or(0, |(took, _)| took);
        // A little less than what the ratio promises, since fitting counts for more than the last bytes.
        let guess = (next as u64 * output.len() as u64 / wrote as u64) as usize / 128 * 127;
        next = guess.clamp(least + 1, too_much - 1);
        if too_much - least < output.len() / 32 || next <= output.len() {
            break;
        }
    }
    Ok(best)
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Encoder").field("cluster_size", &self.cluster_size).finish_non_exhaustive()
    }
}
