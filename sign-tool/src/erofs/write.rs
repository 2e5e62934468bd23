//! Images by the `erofs-image` crate.

use std::{fs::File, io, path::Path};

use erofs_image::{
    BlockSink, Compression, ImageWriter, Options, Time, Tree,
    format::units::Block,
    write::{FileSink, KernelRelease as Kernel},
};

use super::{ImageCompression, ImageError, ImageInfo, ImageOptions, TimeClamp, kernel::KernelRelease, superblock};
use crate::report::Progress;

/// The levels of those who name none.
const LZ4HC_LEVEL: u32 = 9;
const ZSTD_LEVEL: u32 = 3;
/// Whatever compression it has, such a kernel reads it.
const LEAST_KERNEL: KernelRelease = KernelRelease::new(6, 1);

/// Writes a tree to the file `image`, which is overwritten; the caller cares for atomicity. The same tree gives the same
/// bytes, wherever it comes from and with however many threads. `progress` advances by the image's bytes.
///
/// # Errors
/// What the target kernel or the format lacks, or what failed. `image` may then hold anything.
pub fn write(
    mut tree: Tree,
    image: &Path,
    options: &ImageOptions,
    progress: &Progress,
) -> Result<ImageInfo, ImageError> {
    options.check()?;
    let time = limit_times(&mut tree, options.clamp);
    let file = File::options().read(true).write(true).create(true).truncate(true).open(image);
    let file = file.map_err(ImageError::io("create", image))?;
    let sink = Watched { sink: FileSink(file), progress };
    ImageWriter::new(writer_options(options, time), sink)?.finish(tree)?;
    let found = superblock::read(image)?;
    Ok(ImageInfo {
        size: found.blocks * u64::from(found.block_size),
        uuid: found.uuid,
        algorithms: found.algorithms(),
        least_kernel: found.least_kernel().0,
        time_limit: time,
    })
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

/// Tells how far it is.
struct Watched<'a> {
    sink: FileSink,
    progress: &'a Progress,
}

impl BlockSink for Watched<'_> {
    fn write(&mut self, first: Block, bytes: &[u8]) -> io::Result<()> {
        self.sink.write(first, bytes)?;
        self.progress.advance(bytes.len() as u64);
        Ok(())
    }
}
