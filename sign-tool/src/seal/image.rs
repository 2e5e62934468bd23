//! The erofs image and its hash tree, in one pass.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::SystemTime,
};

use erofs_image::{BlockSink, format::units::Block, source::archive::Unpacked};
use iofs_policy::{
    manifest::{ImageId, ImageIdentity, SealedVerity},
    verity::{HashFormat, RootHash, Salt, VerityParameters},
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    SealRequest, compose, config::Config, documents::identity, os_release::OsRelease, together, unchanged::Listing,
};
use crate::{
    atomic::AtomicDirectory,
    epoch::source_date_epoch,
    erofs::{self, BLOCK_SIZE, ImageOptions, TimeClamp},
    initramfs::kernel::KernelImage,
    report::{ExitStatus, Failure, Output, Progress},
    sealed::{self, Follower, Measuring},
    tree::source::Source,
    verity::Leaves,
};

/// What was written, and what its tree says of itself.
pub(super) struct Image {
    pub(super) identity: ImageIdentity,
    pub(super) os_release: OsRelease,
    pub(super) verity: SealedVerity,
    /// What the release statement will say of it.
    pub(super) measuring: Measuring,
    /// Its files, where they are to be recorded.
    pub(super) listing: Option<Listing>,
}

/// Writes the image and its hash tree, and begins to measure the image for the release statement.
pub(super) fn write(
    request: &SealRequest,
    kernel: Option<&KernelImage>,
    directory: &AtomicDirectory,
    output: Output,
) -> Result<Image, Failure> {
    let config = &request.config;
    let options = ImageOptions { threads: request.threads.get(), ..image_options(config, kernel)? };
    options.check()?;
    let progress = output.spinner("reading the root tree");
    let began = SystemTime::now();
    let load = || compose::load(&Source::open(&request.root)?, request, kernel, &options.keep());
    let earlier = || Ok(request.unchanged.as_ref().and_then(|lists| lists.earlier(&request.root, &options)));
    let (found, earlier) = together(request.threads, load, earlier)?;
    progress.finish();
    found.iter().flat_map(|found| &found.remarks).for_each(|remark| output.warn(remark));
    let os_release = found.as_ref().map_or_else(OsRelease::default, |found| OsRelease::read(&found.tree));
    let identity = identity(config, &os_release, kernel);

    let path = directory.file(sealed::IMAGE);
    let image = open(&path)?;
    let progress = output.spinner("writing the erofs image");
    let leaves = Leaves::new(parameters(config, &identity.id));
    let failed = |error| Failure::io(format_args!("read {}", path.display()), &error);
    let follower = Follower::new(image, leaves, Leaves::hash, request.threads.get() > 1).map_err(failed)?;
    let mut sink = Hashed { end: 0, begun: false, follower, progress: &progress };
    let mut listing = None;
    match (found, &request.unchanged) {
        (None, _) => copy(&request.root, &mut sink, config, &options)?,
        (Some(Unpacked { tree, .. }), None) => drop(erofs::write(tree, &mut sink, &options)?),
        (Some(Unpacked { tree, .. }), Some(_)) => {
            let (written, record) = erofs::write_recorded(tree, &mut sink, &options, earlier)?;
            listing = Some(Listing { began, record, unchanged: written.unchanged });
        }
    }
    let (leaves, measuring) = sink.follower.finish().map_err(failed)?;
    progress.finish();
    let verity = write_tree(request, directory, leaves)?;
    Ok(Image { identity, os_release, verity, measuring, listing })
}

fn write_tree(request: &SealRequest, directory: &AtomicDirectory, leaves: Leaves) -> Result<SealedVerity, Failure> {
    let section = &request.config.verity;
    let hash = open(&directory.file(sealed::TREE))?;
    let superblock: Option<fn(&RootHash) -> Uuid> = section.superblock.then_some(superblock_uuid);
    let (parameters, root_hash) = leaves.finish(&hash, superblock, request.threads)?;
    let superblock_uuid = superblock.map(|uuid| uuid(&root_hash));
    let (on_corruption, root_hash_signature) = (request.config.boot.on_corruption, section.root_hash_signature);
    Ok(SealedVerity { parameters, root_hash, hash_offset: 0, superblock_uuid, on_corruption, root_hash_signature })
}

fn open(path: &Path) -> Result<File, Failure> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    file.map_err(|error| Failure::io(format_args!("create {}", path.display()), &error))
}

/// All but the number of blocks.
fn parameters(config: &Config, id: &ImageId) -> VerityParameters {
    let section = &config.verity;
    VerityParameters {
        format: HashFormat::Normal,
        algorithm: section.algorithm,
        data_block_size: section.data_block_size,
        hash_block_size: section.hash_block_size,
        data_blocks: 0,
        salt: section.salt.clone().unwrap_or_else(|| salt(id)),
    }
}

/// Refuses blocks that dm-verity would check as one and the file system would ask for one by one: a device's logical blocks
/// are as large as verity's, and erofs cannot be mounted from larger ones than its own (Linux `sb_set_blocksize`).
pub(super) fn check_block_size(config: &Config, block_size: u64) -> Result<(), Failure> {
    let found = config.verity.data_block_size.bytes();
    if u64::from(found) <= block_size {
        return Ok(());
    }
    let fact = format!("verity.data_block_size: expected at most {block_size}, the image's blocks, found {found}");
    Err(Failure::new(ExitStatus::Usage, fact).next("omit verity.data_block_size"))
}

/// The image's blocks on their way into the file, from which they are read once for all that is made of them.
struct Hashed<'a> {
    /// The end of all that came.
    end: u64,
    /// Block 0 came, so that all before `end` is there.
    begun: bool,
    follower: Follower<Leaves>,
    progress: &'a Progress,
}

impl BlockSink for Hashed<'_> {
    fn write(&mut self, first: Block, bytes: &[u8]) -> io::Result<()> {
        let offset = u64::from(first.0) * BLOCK_SIZE;
        self.follower.file.write_all_at(bytes, offset)?;
        self.progress.advance(bytes.len() as u64);
        self.end = self.end.max(offset + bytes.len() as u64);
        self.begun |= first == Block(0);
        if self.begun { self.follower.follow(self.end) } else { Ok(()) }
    }
}

/// So many blocks of a ready image are copied at once.
const COPY_BLOCKS: u32 = 64;

/// A ready image, as it is. What its file has behind its last block is left out.
fn copy(from: &Path, sink: &mut Hashed<'_>, config: &Config, options: &ImageOptions) -> Result<(), Failure> {
    let found = erofs::check_image(from, options.kernel)?;
    check_block_size(config, found.block_size.into())?;
    let size = found.blocks * u64::from(found.block_size);
    let blocks = u32::try_from(size / BLOCK_SIZE).ok().filter(|blocks| u64::from(*blocks) * BLOCK_SIZE == size);
    let blocks = blocks.ok_or_else(|| {
        let fact = format!("{}: expected a multiple of {BLOCK_SIZE} bytes, found {size}", from.display());
        Failure::new(ExitStatus::BadInput, fact)
            .next("make the image with blocks of 4096 bytes, or pass the tree itself")
    })?;
    let failed = |error| Failure::io(format_args!("copy {}", from.display()), &error);
    let file = File::open(from).map_err(failed)?;
    let mut buffer = vec![0; COPY_BLOCKS as usize * BLOCK_SIZE as usize];
    for first in (0..blocks).step_by(COPY_BLOCKS as usize) {
        let bytes = &mut buffer[..COPY_BLOCKS.min(blocks - first) as usize * BLOCK_SIZE as usize];
        file.read_exact_at(bytes, u64::from(first) * BLOCK_SIZE).map_err(failed)?;
        sink.write(Block(first), bytes).map_err(failed)?;
    }
    Ok(())
}

fn derive(purpose: &str, from: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(purpose).chain_update([0]).chain_update(from).finalize().into()
}

fn superblock_uuid(root_hash: &RootHash) -> Uuid {
    let digest = derive("iofs verity superblock uuid", root_hash.as_bytes());
    uuid::Builder::from_custom_bytes(digest[..16].try_into().expect("16 of 32 bytes")).into_uuid()
}

/// The salt, which must be known before the first block is hashed: one for all releases of an image, so that an update can tell
/// by the hashes which blocks are already there.
fn salt(id: &ImageId) -> Salt {
    Salt::new(derive("iofs verity salt", id.as_str().as_bytes()).to_vec()).expect("32 bytes are a salt")
}

/// What the image's writer is told.
pub(super) fn image_options(config: &Config, kernel: Option<&KernelImage>) -> Result<ImageOptions, Failure> {
    let defaults = ImageOptions::default();
    let filesystem = &config.filesystem;
    Ok(ImageOptions {
        compression: filesystem.compression.unwrap_or(defaults.compression),
        cluster_size: filesystem.cluster_size.unwrap_or(defaults.cluster_size),
        clamp: source_date_epoch()?.map_or(TimeClamp::Newest, TimeClamp::Epoch),
        kernel: kernel.map(|kernel| {
            let (major, minor) = kernel.release.version();
            erofs::KernelRelease::new(major.into(), minor.into())
        }),
        threads: 0,
    })
}
