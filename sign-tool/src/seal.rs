//! `seal`: root tree → erofs image → hash tree → manifest → mini-initramfs → signatures → release statement.

use std::{
    fs::{self, File, OpenOptions},
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use iofs_policy::{
    digest::Sha256Digest,
    dsse::{Envelope, PayloadType},
    manifest::{Architecture, ImageIdentity, Manifest, Overlay, Place, SealedVerity},
    trust::{KeyId, TrustPolicy, TrustedKey, TrustedKeys},
    verity::{HashFormat, RootHash, Salt, VerityParameters},
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    atomic::AtomicDirectory,
    erofs::{self, ImageOptions, ImageWriter, TimeClamp},
    initramfs::{self, Format, elf::Machine, kernel::KernelImage, modules::ModuleSet},
    keys::{self, PrivateKey},
    report::{ExitStatus, Failure, Output},
    sealed::{self, SealedDirectory, digest_file},
    tree::{namespace, source::Source},
    verity::{self, FormatJob},
};

pub mod config;
pub mod finish;
pub mod os_release;

use config::Config;
use finish::Pending;
use os_release::OsRelease;

/// What to seal, and how.
#[derive(Debug)]
pub struct SealRequest {
    /// The root tree: a directory, a tar, a cpio initramfs, or an erofs image.
    pub root: PathBuf,
    /// The kernel and what goes with it; none seals the image alone.
    pub kernel: Option<KernelRequest>,
    /// The keys that sign. None leaves the directory waiting for signatures.
    pub keys: Vec<PrivateKey>,
    /// Public keys that the device trusts besides the signing ones.
    pub trusted: Vec<TrustedKey>,
    /// Everything else.
    pub config: Config,
    /// The directory to write.
    pub out: PathBuf,
    /// Whether an earlier output may be replaced.
    pub replace: bool,
    /// The most threads to use.
    pub threads: NonZeroUsize,
}

/// A kernel to boot the image with.
#[derive(Debug)]
pub struct KernelRequest {
    /// The kernel image.
    pub image: PathBuf,
    /// Its modules: `lib/modules/VERSION`, or a tree that holds such.
    pub modules: PathBuf,
    /// The static `verify-init`.
    pub init: PathBuf,
}

/// What `seal` made.
#[derive(Debug, serde::Serialize)]
pub struct Sealed {
    /// Where.
    pub out: PathBuf,
    /// Which image.
    pub image: ImageIdentity,
    /// Its root hash.
    pub root_hash: RootHash,
    /// SHA-256 of the manifest.
    pub manifest_digest: Sha256Digest,
    /// Size of the erofs image in bytes.
    pub image_size: u64,
    /// Size of the mini-initramfs in bytes, if there is one.
    pub initramfs_size: Option<u64>,
    /// What it waits for.
    #[serde(flatten)]
    pub pending: Pending,
}

/// Seals a root tree. The output directory appears whole or not at all, and the same input gives the same bytes.
///
/// # Errors
/// A [`Failure`] that names the input and what is wrong with it.
pub fn seal(request: &SealRequest, output: Output) -> Result<Sealed, Failure> {
    let trust_keys = trusted_keys(request)?;
    let kernel = read_kernel(request)?;
    let directory = AtomicDirectory::create(&request.out, request.replace, is_sealed)?;

    let (content, os_release) = write_image(request, kernel.as_ref(), &directory, output)?;
    let identity = identity(&request.config, &os_release, kernel.as_ref());
    let tree = write_tree(request, &directory, &content, output)?;
    let manifest = manifest(&request.config, identity, tree, kernel.as_ref());
    manifest.check().map_err(|error| Failure::new(ExitStatus::Usage, error.to_string()))?;
    let trust = trust_policy(&request.config, &manifest, trust_keys);

    write_documents(&directory, &manifest, &trust)?;
    if let (Some(paths), Some(kernel)) = (&request.kernel, &kernel) {
        write_kernel(request, paths, kernel, &directory, output)?;
    }
    let inside = SealedDirectory::new(directory.path());
    let pending = finish::sign_locked(&inside, &request.keys)?;
    directory.commit()?;
    describe(request, &manifest, pending)
}

fn is_sealed(path: &Path) -> bool {
    path.join(sealed::MANIFEST).exists()
}

/// What `seal` would do, for `--dry-run`.
#[derive(Debug, serde::Serialize)]
pub struct Plan {
    /// What the root tree is.
    pub root: String,
    /// The kernel's release, if there is a kernel.
    pub kernel_release: Option<String>,
    /// The modules for the mini-initramfs.
    pub modules: Vec<String>,
    /// The keys that the device will trust.
    pub trusted_keys: Vec<KeyId>,
    /// How many of them must sign.
    pub threshold: u8,
    /// The directory to write.
    pub out: PathBuf,
}

impl Plan {
    /// The plan as people read it.
    pub fn to_text(&self) -> String {
        let kernel = self.kernel_release.as_deref().unwrap_or("none: the image alone");
        let keys: Vec<String> = self.trusted_keys.iter().map(KeyId::to_string).collect();
        format!(
            "root tree: {}\nkernel:    {kernel}\nmodules:   {}\ntrusted:   {} ({} must sign)\nwould write {}",
            self.root,
            self.modules.join(" "),
            keys.join(", "),
            self.threshold,
            self.out.display()
        )
    }
}

/// Checks all inputs that can be checked before anything is written.
///
/// # Errors
/// As [`seal`].
pub fn plan(request: &SealRequest) -> Result<Plan, Failure> {
    AtomicDirectory::check(&request.out, request.replace, is_sealed)?;
    let keys = trusted_keys(request)?;
    let kernel = read_kernel(request)?;
    image_options(&request.config, kernel.as_ref())?.check()?;
    let modules = match (&request.kernel, &kernel) {
        (Some(paths), Some(kernel)) => {
            let set = ModuleSet::collect(kernel, &paths.modules, &request.config.modules.requests())?;
            set.index.modules().iter().map(|module| module.name.clone()).collect()
        }
        _ => Vec::new(),
    };
    Ok(Plan {
        root: describe_source(&Source::open(&request.root)?),
        kernel_release: kernel.map(|kernel| kernel.release.to_string()),
        modules,
        trusted_keys: keys.keys().iter().map(TrustedKey::id).collect(),
        threshold: keys.threshold(),
        out: request.out.clone(),
    })
}

fn describe_source(source: &Source) -> String {
    match source {
        Source::Directory(path) => format!("directory {}", path.display()),
        Source::Tar(path, compression) => format!("tar {} ({})", path.display(), compression.name()),
        Source::Initramfs(path) => format!("cpio initramfs {}", path.display()),
        Source::Erofs(path) => format!("erofs image {}", path.display()),
    }
}

/// Becomes root of a user namespace where the root tree is an archive and this process is not root: owners and modes
/// can be kept in no other way. Call it before anything else is done.
///
/// # Errors
/// The system does not let its users have namespaces.
pub fn enter_namespace_if_needed(request: &SealRequest) -> Result<(), Failure> {
    match Source::open(&request.root)? {
        Source::Directory(_) | Source::Erofs(_) => Ok(()),
        Source::Tar(..) | Source::Initramfs(_) => Ok(namespace::ensure_root()?),
    }
}

/// The kernel, which must be for the image's processor.
fn read_kernel(request: &SealRequest) -> Result<Option<KernelImage>, Failure> {
    let Some(paths) = &request.kernel else { return Ok(None) };
    let kernel = KernelImage::read(&paths.image)?;
    match request.config.image.architecture {
        Some(wanted) if wanted != architecture(&kernel) => {
            let (image, found) = (paths.image.display(), kernel.machine.name());
            let fact = format!("kernel {image}: expected one for {wanted}, found one for {found}");
            Err(Failure::new(ExitStatus::Usage, fact).next("correct image.architecture, or leave it out"))
        }
        _ => Ok(Some(kernel)),
    }
}

fn architecture(kernel: &KernelImage) -> Architecture {
    match kernel.machine {
        Machine::X86_64 => Architecture::X86_64,
        Machine::Arm64 => Architecture::Arm64,
    }
}

/// The keys that the device will trust. All that sign are among them.
fn trusted_keys(request: &SealRequest) -> Result<TrustedKeys, Failure> {
    let mut all: Vec<TrustedKey> = request.keys.iter().map(PrivateKey::public).collect();
    let configured = request.config.trust.keys.iter().map(|path| keys::read_public(path).map_err(Failure::from));
    let others = request.trusted.iter().cloned().map(Ok).chain(configured).collect::<Result<Vec<_>, _>>()?;
    for key in others {
        if !all.contains(&key) {
            all.push(key);
        }
    }
    if all.is_empty() {
        return Err(Failure::new(ExitStatus::Usage, "no key: nobody could sign what boots")
            .next("give --key PRIVATE, or --unsigned with --trust PUBLIC for a key that is elsewhere"));
    }
    TrustedKeys::new(all, request.config.trust.threshold)
        .map_err(|error| Failure::new(ExitStatus::Usage, format!("trusted keys: {error}")))
}

fn image_options(config: &Config, kernel: Option<&KernelImage>) -> Result<ImageOptions, Failure> {
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
    })
}

/// The timestamp that reproducible builds agree on (reproducible-builds.org): seconds since 1970.
fn source_date_epoch() -> Result<Option<u64>, Failure> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    seconds.map(Some).ok_or_else(|| {
        Failure::new(
            ExitStatus::Usage,
            format!("SOURCE_DATE_EPOCH: expected seconds since 1970, found {}", text.display()),
        )
        .next("set it to such a number, or unset it")
    })
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::copy(from, to)
        .map(drop)
        .map_err(|error| Failure::io(format_args!("copy {} to {}", from.display(), to.display()), &error))
}

/// The digest of the image, from which everything that could be random is derived.
struct Content(Sha256Digest, u64);

impl Content {
    fn derive(&self, purpose: &str) -> [u8; 32] {
        Sha256::new().chain_update(purpose).chain_update([0]).chain_update(self.0.as_bytes()).finalize().into()
    }

    fn salt(&self) -> Salt {
        Salt::new(self.derive("iofs verity salt").to_vec()).expect("32 bytes are a salt")
    }

    fn superblock_uuid(&self) -> Uuid {
        let digest = self.derive("iofs verity superblock uuid");
        uuid::Builder::from_custom_bytes(digest[..16].try_into().expect("16 of 32 bytes")).into_uuid()
    }
}

fn write_image(
    request: &SealRequest,
    kernel: Option<&KernelImage>,
    directory: &AtomicDirectory,
    output: Output,
) -> Result<(Content, OsRelease), Failure> {
    let image = directory.file(sealed::IMAGE);
    let options = image_options(&request.config, kernel)?;
    let source = Source::open(&request.root)?;
    let progress = output.progress("unpacking the root tree", source.size());
    let tree = source.stage(Some(directory.path()), &progress)?;
    progress.finish();
    let os_release = match tree {
        Some(tree) => {
            tree.remarks().iter().for_each(|remark| output.warn(remark));
            let progress = output.spinner("writing the erofs image");
            erofs::mkfs::MkfsErofs::find()?.write(&tree.path(), &image, &options, &progress)?;
            progress.finish();
            OsRelease::read(&tree.path())
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

fn write_tree(
    request: &SealRequest,
    directory: &AtomicDirectory,
    content: &Content,
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
        salt: section.salt.clone().unwrap_or_else(|| content.salt()),
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
    let on_corruption = request.config.boot.on_corruption;
    Ok(SealedVerity { parameters, root_hash, hash_offset, superblock_uuid, on_corruption })
}

fn identity(config: &Config, os_release: &OsRelease, kernel: Option<&KernelImage>) -> ImageIdentity {
    let image = &config.image;
    ImageIdentity {
        id: image.id.clone().unwrap_or_else(|| os_release.image_id()),
        version: image.version.clone().unwrap_or_else(|| os_release.image_version()),
        rollback_index: image.rollback_index,
        role: image.role,
        architecture: image.architecture.or(kernel.map(architecture)).unwrap_or(Architecture::CURRENT),
        debug: image.debug,
    }
}

/// PARTUUIDs follow from the root hash, as the Discoverable Partitions Specification has it.
fn default_places(root_hash: &RootHash) -> (Place, Place) {
    let bytes = root_hash.as_bytes();
    let half = |bytes: &[u8]| Place::PartUuid(Uuid::from_slice(bytes).expect("16 bytes are a UUID"));
    (half(&bytes[..16]), half(&bytes[bytes.len() - 16..]))
}

fn manifest(config: &Config, image: ImageIdentity, verity: SealedVerity, kernel: Option<&KernelImage>) -> Manifest {
    let (data, tree) = default_places(&verity.root_hash);
    Manifest {
        image,
        verity,
        data: config.place.data.as_ref().map_or(data, |place| place.0.clone()),
        tree: config.place.tree.as_ref().map_or(tree, |place| place.0.clone()),
        mount_options: config.filesystem.mount_options.clone(),
        overlay: config.overlay.enabled.then(|| Overlay { tmpfs_size: config.overlay.size.clone() }),
        init: config.boot.init.clone(),
        kernel_release: kernel.map(|kernel| kernel.release.to_string()),
        device_timeout: config.boot.device_timeout,
        on_failure: config.boot.on_failure,
        allowed_parameters: config.boot.allowed_parameters.clone(),
    }
}

fn trust_policy(config: &Config, manifest: &Manifest, keys: TrustedKeys) -> TrustPolicy {
    TrustPolicy {
        keys,
        image_id: manifest.image.id.clone(),
        role: manifest.image.role,
        minimum_rollback_index: config.trust.minimum_rollback_index.unwrap_or(manifest.image.rollback_index),
        on_failure: manifest.on_failure,
    }
}

fn write_documents(directory: &AtomicDirectory, manifest: &Manifest, trust: &TrustPolicy) -> Result<(), Failure> {
    let envelope = Envelope::unsigned(PayloadType::Manifest, manifest.to_json());
    directory.write(sealed::MANIFEST, &envelope.to_json())?;
    directory.write(sealed::TRUST, &trust.to_json())?;
    directory.write(sealed::ROOT_HASH, manifest.verity.root_hash.to_string().as_bytes())
}

fn write_kernel(
    request: &SealRequest,
    paths: &KernelRequest,
    kernel: &KernelImage,
    directory: &AtomicDirectory,
    output: Output,
) -> Result<(), Failure> {
    copy(&paths.image, &directory.file(sealed::KERNEL))?;
    let init = fs::read(&paths.init).map_err(|error| {
        Failure::io(format_args!("read {}", paths.init.display()), &error)
            .next("build it with scripts/build-boot, or name it with --init")
    })?;
    let progress = output.spinner("packing the mini-initramfs");
    let modules = ModuleSet::collect(kernel, &paths.modules, &request.config.modules.requests())?;
    let format = if kernel.unpacks(Format::Zstd) == Some(false) { Format::Gzip } else { Format::Zstd };
    let (base, _) = initramfs::base_segment(&modules, &init, format, 0)?;
    progress.finish();
    directory.write(sealed::INITRAMFS_BASE, &base)
}

fn describe(request: &SealRequest, manifest: &Manifest, pending: Pending) -> Result<Sealed, Failure> {
    let size = |name: &str| fs::metadata(request.out.join(name)).map(|metadata| metadata.len());
    Ok(Sealed {
        out: request.out.clone(),
        image: manifest.image.clone(),
        root_hash: manifest.verity.root_hash.clone(),
        manifest_digest: Sha256Digest::of(&manifest.to_json()),
        image_size: size(sealed::IMAGE).map_err(|error| Failure::io("read the image's size", &error))?,
        initramfs_size: size(sealed::INITRAMFS).ok(),
        pending,
    })
}
