//! Images by the `erofs-image` crate.

use std::fs::File;

use erofs_image::{
    BlockSink, ImageWriter, Time, Tree, Written,
    write::{Earlier, Record},
};

use super::{ImageError, ImageOptions, TimeClamp};

/// Writes a tree to wherever its blocks go. The same tree gives the same bytes, wherever it comes from and with however many
/// threads. Returns the time to which later modification times were set back: seconds since 1970.
///
/// # Errors
/// What the target kernel or the format lacks, or what failed.
pub fn write(mut tree: Tree, sink: impl BlockSink, options: &ImageOptions) -> Result<u64, ImageError> {
    let (writer, time) = begin(&mut tree, sink, options)?;
    writer.finish(tree)?;
    Ok(time)
}

/// The same bytes; and records the files for the next image, as `earlier` was recorded for this one.
///
/// # Errors
/// As [`write`].
pub fn write_recorded(
    mut tree: Tree,
    sink: impl BlockSink,
    options: &ImageOptions,
    earlier: Option<Earlier>,
) -> Result<(Written, Record), ImageError> {
    let (writer, _) = begin(&mut tree, sink, options)?;
    Ok(writer.finish_recorded(tree, earlier)?)
}

/// The files of an image that was written before. `None` where it is not the one that was recorded, or was written otherwise.
pub fn earlier(record: Record, image: File, options: &ImageOptions) -> Option<Earlier> {
    Earlier::new(record, image, &options.of_writer(0))
}

/// A writer for the tree, whose times it limits; with the limit.
fn begin<S: BlockSink>(tree: &mut Tree, sink: S, options: &ImageOptions) -> Result<(ImageWriter<S>, u64), ImageError> {
    options.check()?;
    let time = limit_times(tree, options.clamp);
    Ok((ImageWriter::new(options.of_writer(time), sink)?, time))
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
