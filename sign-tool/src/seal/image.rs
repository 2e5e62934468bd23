//! The erofs image and its hash tree.

use std::{
    fs::{File, OpenOptions},
    path::Path,
};

use erofs_image::source::archive::Unpacked;
use iofs_policy::{
    digest::Sha256Digest,
    manifest::{ImageIdentity, SealedVerity},
    verity::{HashFormat, Salt, VerityParameters},
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{SealRequest, config::Config, copy, os_release::OsRelease};
use crate::{
    atomic::AtomicDirectory,
    epoch::source_date_epoch,
    erofs::{self, ImageOptions, TimeClamp},
    initramfs::kernel::KernelImage,
    report::{Failure, Output},
    sealed::{self, digest_file},
    tree::source::Source,
    verity::{self, FormatJob},
};

/// The digest of the image, from which everything that could be random is derived.
pub(super) struct Content(Sha256Digest, u64);

impl Content {
    fn derive(&self, purpose: &str) -> [u8; 32] {
        Sha256::new().chain_update(purpose).chain_update([0]).chain_update(self.0.as_bytes()).finalize().into()
    }

    fn superblock_uuid(&self) -> Uuid {
        let digest = self.derive("iofs verity superblock uuid");
        uuid::Builder::from_custom_bytes(digest[..16].try_into().expect("16 of 32 bytes")).into_uuid()
    }
}

/// Writes the erofs image, and reads what the tree says of itself.
pub(super) fn write_image(
    request: &SealRequest,
    kernel: Option<&KernelImage>,
    directory: &AtomicDirectory,
    output: Output,
) -> Result<(Content, OsRelease), Failure> {
    let image = directory.file(sealed::IMAGE);
    let options = ImageOptions { threads: request.threads.get(), ..image_options(&request.config, kernel)? };
    let source = Source::open(&request.root)?;
    let progress = output.spinner("reading the root tree");
    let found = source.load()?;
    progress.finish();
    let os_release = match found {
        Some(Unpacked { tree, remarks }) => {
            remarks.iter().for_each(|remark| output.warn(remark));
            let os_release = OsRelease::read(&tree);
            let progress = output.spinner("writing the erofs image");
            erofs::write(tree, &image, &options, &progress)?;
            progress.finish();
            os_release
        }
        None => {
            erofs::check_image(&request.root, options.kernel)?;
            copy(&request.root, &image)?;
            OsRelease::default()
        }
    };
    let digest = |path: &Path| digest_file(&mut File::open(path)?);
    let (size, sha256) =
        digest(&image).map_err(|error| Failure::io(format_args!("read {}", image.display()), &error))?;
    Ok((Content(sha256, size), os_release))
}

/// Writes the hash tree of the image.
pub(super) fn write_tree(
    request: &SealRequest,
    directory: &AtomicDirectory,
    content: &Content,
    identity: &ImageIdentity,
    output: Output,
) -> Result<SealedVerity, Failure> {
    let section = &request.config.verity;
    let open = |name: &str, write: bool| {
        let path = directory.file(name);
        OpenOptions::new()
            .read(true)
            .write(write)
            .create(write)
            .open(&path)
            .map_err(|error| Failure::io(format_args!("open {}", path.display()), &error))
    };
    let (data, hash) = (open(sealed::IMAGE, false)?, open(sealed::TREE, true)?);
    let parameters = VerityParameters {
        format: HashFormat::Normal,
        algorithm: section.algorithm,
        data_block_size: section.data_block_size,
        hash_block_size: section.hash_block_size,
        data_blocks: verity::count_blocks(&data, section.data_block_size)?,
        salt: section.salt.clone().unwrap_or_else(|| salt(&request.config, content, identity)),
    };
    let superblock_uuid = section.superblock.then(|| content.superblock_uuid());
    let (hash_offset, threads) = (0, request.threads);
    let job = FormatJob {
        data: &data,
        hash: &hash,
        hash_offset,
        superblock: superblock_uuid,
        parameters: &parameters,
        threads,
    };
    let progress = output.progress("hashing every block", content.1);
    let root_hash = verity::format(&job, &progress)?;
    progress.finish();
    let (on_corruption, root_hash_signature) = (request.config.boot.on_corruption, section.root_hash_signature);
    Ok(SealedVerity { parameters, root_hash, hash_offset, superblock_uuid, on_corruption, root_hash_signature })
}

/// The salt: another one for each image; the same one for all releases that share slots, so that an update can tell by the
/// hashes which blocks are already there.
fn salt(config: &Config, content: &Content, identity: &ImageIdentity) -> Salt {
    let bytes = match config.slots {
        Some(_) => *Sha256Digest::of(format!("iofs slot salt\0{}", identity.id).as_bytes()).as_bytes(),
        None => content.derive("iofs verity salt"),
    };
    Salt::new(bytes.to_vec()).expect("32 bytes are a salt")
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
