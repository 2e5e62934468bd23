//! Images by the `erofs-image` crate.

use erofs_image::{BlockSink, Compression, ImageWriter, Options, Time, Tree, write::KernelRelease as Kernel};

use super::{ImageCompression, ImageError, ImageOptions, TimeClamp, kernel::KernelRelease};

/// The levels of those who name none.
const LZ4HC_LEVEL: u32 = 9;
const ZSTD_LEVEL: u32 = 3;
/// Whatever compression it has, such a kernel reads it.
const LEAST_KERNEL: KernelRelease = KernelRelease::new(6, 1);

/// Writes a tree to wherever its blocks go. The same tree gives the same bytes, wherever it comes from and with however many
/// threads. Returns the time to which later modification times were set back: seconds since 1970.
///
/// # Errors
/// What the target kernel or the format lacks, or what failed.
pub fn write(mut tree: Tree, sink: impl BlockSink, options: &ImageOptions) -> Result<u64, ImageError> {
    options.check()?;
    let time = limit_times(&mut tree, options.clamp);
    ImageWriter::new(writer_options(options, time), sink)?.finish(tree)?;
    Ok(time)
}

fn writer_options(options: &ImageOptions, time: u64) -> Options {
    let level = |given: Option<u32>, usual| given.unwrap_or(usual) as i32;
    let compression = match options.compression {
        ImageCompression::None => Compression::None,
        ImageCompression::Lz4 => Compression::Lz4,
        ImageCompression::Lz4Hc(given) => Compression::Lz4hc { level: level(given, LZ4HC_LEVEL) },
        ImageCompression::Zstd(given) => Compression::Zstd { level: level(given, ZSTD_LEVEL) },
    };
    let algorithm = options.compression.algorithm();
    let needed = algorithm.map_or(LEAST_KERNEL, |algorithm| algorithm.least_kernel().max(LEAST_KERNEL));
    let kernel = options.kernel.unwrap_or(needed);
    Options {
        compression,
        cluster_size: options.cluster_size as usize,
        threads: options.threads,
        build_time: Some(Time { seconds: time as i64, nanoseconds: 0 }),
        kernel: Kernel::new(kernel.major as u16, kernel.minor as u16),
        ..Options::default()
    }
}

/// Sets later times back, and returns the limit in seconds.
fn limit_times(tree: &mut Tree, clamp: TimeClamp) -> u64 {
    let times = tree.ids().map(|id| tree.node(id).metadata.mtime);
    let newest = times.map(|time| time.seconds + i64::from(time.nanoseconds > 0)).max().unwrap_or_default();
    let limit = match clamp {
        TimeClamp::Newest => u64::try_from(newest).unwrap_or_default(),
        TimeClamp::Epoch(limit) => limit,
    };
    let latest = Time { seconds: i64::try_from(limit).unwrap_or(i64::MAX), nanoseconds: 0 };
    for id in tree.ids() {
        let metadata = tree.metadata_mut(id);
        metadata.mtime = metadata.mtime.min(latest);
    }
    limit
}
