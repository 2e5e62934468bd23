//! `seal`: root tree → erofs image → hash tree → manifest → mini-initramfs → signatures → release statement.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use iofs_policy::{
    digest::Sha256Digest,
    manifest::{ImageIdentity, Manifest},
    slots::Chooser,
    trust::{TrustedKey, TrustedKeys},
    verity::RootHash,
};

use crate::{
    atomic::{self, AtomicDirectory},
    erofs,
    initramfs::{self, cache::SegmentCache, init, kernel::KernelImage, modules::ModuleSet},
    keys::{self, PrivateKey},
    report::{ExitStatus, Failure, Output},
    sealed::{self, SealedDirectory},
    uki::{self, Part},
    x509::SigningCertificate,
};

mod compose;
pub mod config;
mod documents;
pub mod finish;
mod firmware;
mod image;
pub mod os_release;
mod plan;
mod signers;
pub mod succession;
mod unchanged;

use config::Config;
use documents::{manifest, trust_policy, write_documents};
use finish::{Pending, SigningKeys};
use image::Image;
pub use plan::{Plan, plan};
use succession::{SealedKeys, Succession};
pub use unchanged::FileLists;

/// What to seal, and how.
#[derive(Debug)]
pub struct SealRequest {
    /// The root tree: a directory, a tar, a cpio initramfs, or an erofs image.
    pub root: PathBuf,
    /// The kernel and what goes with it; none seals the image alone.
    pub kernel: Option<KernelRequest>,
    /// The keys that sign. Without one that is needed, the directory waits for its signature.
    pub keys: SigningKeys,
    /// The unified kernel image to make.
    pub uki: Option<UkiRequest>,
    /// Who signs for Secure Boot, and who signs the root hash.
    pub certificates: Certificates,
    /// Public keys that the device trusts besides the signing ones.
    pub trusted: Vec<TrustedKey>,
    /// The release that this one follows. Its keys are trusted then, or those that this one moves to.
    pub succession: Option<Succession>,
    /// Everything else.
    pub config: Config,
    /// The directory to write.
    pub out: PathBuf,
    /// Whether an earlier output may be replaced.
    pub replace: bool,
    /// The most threads to use.
    pub threads: NonZeroUsize,
    /// Where files are recorded, and by what the image before is used for those that look unchanged; none reads all of them.
    pub unchanged: Option<FileLists>,
}

/// A kernel to boot the image with.
#[derive(Debug)]
pub struct KernelRequest {
    /// The kernel image.
    pub image: PathBuf,
    /// Its modules: `lib/modules/VERSION`, or a tree that holds such.
    pub modules: PathBuf,
    /// The static `verify-init`, or a folder that holds it and verify-init-full; none looks in the usual places.
    pub init: Option<PathBuf>,
    /// Where the mini-initramfs may be found compressed.
    pub cache: SegmentCache,
}

/// A unified kernel image to make.
#[derive(Debug)]
pub struct UkiRequest {
    /// systemd's stub; none takes the installed one for the kernel's processor.
    pub stub: Option<PathBuf>,
    /// The public key of signatures for register 11 (PEM), where those are wanted.
    pub pcr_public_key: Option<String>,
}

/// The certificates whose signatures are wanted.
#[derive(Debug, Default)]
pub struct Certificates {
    /// On the unified kernel image.
    pub secure_boot: Option<SigningCertificate>,
    /// On the root hash.
    pub root_hash: Option<SigningCertificate>,
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
    /// How many files were not read but taken from the image before, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unchanged_files: Option<u64>,
    /// Size of the mini-initramfs in bytes, if there is one.
    pub initramfs_size: Option<u64>,
    /// Size of the unified kernel image in bytes, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uki_size: Option<u64>,
    /// What it waits for.
    #[serde(flatten)]
    pub pending: Pending,
}

/// Seals a root tree. The output directory appears whole or not at all, and the same input gives the same bytes.
///
/// # Errors
/// A [`Failure`] that names the input and what is wrong with it.
pub fn seal(request: &SealRequest, output: Output) -> Result<Sealed, Failure> {
    check(request)?;
    let keys = SealedKeys::new(request)?;
    let kernel = read_kernel(request)?;
    let init = read_init(request)?;
    let stub = read_stub(request, kernel.as_ref())?;
    let directory = AtomicDirectory::create(&request.out, request.replace, is_sealed)?;

    let image = || image::write(request, kernel.as_ref(), &directory, output);
    let pack = || {
        let (Some(paths), Some(kernel)) = (&request.kernel, &kernel) else { return Ok(None) };
        copy(&paths.image, &directory.file(sealed::KERNEL))?;
        pack_initramfs(&request.config, paths, kernel, &init).map(Some)
    };
    let (image, initramfs) = together(request.threads, image, pack)?;
    let Image { identity, os_release, verity, measuring, listing } = image;
    let manifest =
        Manifest { keys: keys.change.clone(), ..manifest(&request.config, identity, verity, kernel.as_ref())? };
    manifest.check().map_err(|error| Failure::new(ExitStatus::Usage, error.to_string()))?;
    let trust = trust_policy(&request.config, &manifest, &keys);

    write_documents(&directory, &manifest, &trust)?;
    keys.write(&directory)?;
    if let (Some(kernel), Some(initramfs)) = (&kernel, initramfs) {
        directory.write(sealed::INITRAMFS_BASE, &initramfs)?;
        if let Some(stub) = &stub {
            write_uki_base(request, stub, kernel, os_release.sealed(&manifest.image), &directory)?;
        }
    }
    write_certificates(&request.certificates, &directory)?;
    let inside = SealedDirectory::new(directory.path()).with_measuring(measuring);
    let progress = output.spinner("measuring the image and signing");
    let pending = finish::sign_locked(&inside, &request.keys)?;
    progress.finish();
    directory.commit()?;
    let unchanged_files = listing.as_ref().map(|listing| listing.unchanged);
    if let (Some(lists), Some(listing)) = (&request.unchanged, listing) {
        lists.keep(&request.root, &request.out, listing, output);
    }
    Ok(Sealed { unchanged_files, ..describe(request, &manifest, pending)? })
}

/// Refuses what contradicts itself, before anything is read.
fn check(request: &SealRequest) -> Result<(), Failure> {
    check_root_hash_signature(request)?;
    image::check_block_size(&request.config, erofs::BLOCK_SIZE)?;
    check_loader_has_an_image(request)
}

/// A signature that the boot asks for needs somebody who signs, and the initramfs of no other release.
fn check_root_hash_signature(request: &SealRequest) -> Result<(), Failure> {
    if request.config.slots.is_some() && !request.config.verity.root_hash_signature.is_off() {
        let fact = "verity.root_hash_signature: expected \"off\" beside slots: the signature travels in the initramfs";
        return Err(Failure::new(ExitStatus::Usage, fact).next("omit verity.root_hash_signature"));
    }
    if request.config.verity.root_hash_signature.is_off() || request.certificates.root_hash.is_some() {
        return Ok(());
    }
    Err(Failure::new(ExitStatus::Usage, "verity.root_hash_signature: nobody is named who signs the root hash")
        .next("give --verity-key and --verity-certificate, or those for Secure Boot"))
}

/// What counts tries in the names of unified kernel images needs one of each release.
fn check_loader_has_an_image(request: &SealRequest) -> Result<(), Failure> {
    let chooses = request.config.slots.as_ref().is_some_and(|slots| slots.chooser == Chooser::BootLoader);
    if !chooses || request.uki.is_some() {
        return Ok(());
    }
    Err(Failure::new(ExitStatus::Usage, "slots.chooser: \"boot-loader\" takes a unified kernel image of each release")
        .next("add --uki, or have verify-init choose"))
}

fn is_sealed(path: &Path) -> bool {
    path.join(sealed::MANIFEST).exists()
}

/// The kernel, which must be for the image's processor, and unpack what is asked for.
fn read_kernel(request: &SealRequest) -> Result<Option<KernelImage>, Failure> {
    let Some(paths) = &request.kernel else { return Ok(None) };
    let kernel = KernelImage::read(&paths.image)?;
    if let Some(format) = request.config.modules.compress {
        kernel.check_format(format)?;
    }
    match request.config.image.architecture {
        Some(wanted) if wanted != kernel.machine.architecture() => {
            let (image, found) = (paths.image.display(), kernel.machine.name());
            let fact = format!("kernel {image}: expected one for {wanted}, found one for {found}");
            Err(Failure::new(ExitStatus::Usage, fact).next("correct image.architecture, or leave it out"))
        }
        _ => Ok(Some(kernel)),
    }
}

/// The init for it; nothing where there is no kernel.
fn read_init(request: &SealRequest) -> Result<Vec<u8>, Failure> {
    let Some(kernel) = &request.kernel else { return Ok(Vec::new()) };
    init::read(kernel.init.as_deref(), request.config.needs_full_init())
}

/// The keys that the device will trust. All that sign are among them.
fn trusted_keys(request: &SealRequest) -> Result<TrustedKeys, Failure> {
    let mut all: Vec<TrustedKey> = request.keys.release.iter().map(PrivateKey::public).collect();
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

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::copy(from, to)
        .map(drop)
        .map_err(|error| Failure::io(format_args!("copy {} to {}", from.display(), to.display()), &error))
}

/// The mini-initramfs as far as it is known before anything is signed.
fn pack_initramfs(
    config: &Config,
    paths: &KernelRequest,
    kernel: &KernelImage,
    init: &[u8],
) -> Result<Vec<u8>, Failure> {
    let modules = ModuleSet::collect(kernel, &paths.modules, &config.module_requests())?;
    let format = config.modules.compress.unwrap_or_else(|| kernel.default_format());
    let (base, _) = initramfs::base_segment(&modules, init, format, 0, &paths.cache)?;
    Ok(base)
}

/// Does two things at once where there are threads for it.
fn together<A, B: Send>(
    threads: NonZeroUsize,
    here: impl FnOnce() -> Result<A, Failure>,
    beside: impl FnOnce() -> Result<B, Failure> + Send,
) -> Result<(A, B), Failure> {
    if threads.get() == 1 {
        return Ok((here()?, beside()?));
    }
    std::thread::scope(|scope| {
        let other = scope.spawn(beside);
        let found = here();
        let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((found?, other?))
    })
}

/// systemd's stub, where a unified kernel image is to be made.
fn read_stub(request: &SealRequest, kernel: Option<&KernelImage>) -> Result<Option<Vec<u8>>, Failure> {
    match (&request.uki, kernel) {
        (Some(uki), Some(kernel)) => Ok(Some(uki::read_stub(uki.stub.as_deref(), kernel.machine)?)),
        (Some(_), None) => Err(Failure::new(ExitStatus::Usage, "a unified kernel image needs a kernel")
            .next("give --kernel and --modules")),
        (None, _) => Ok(None),
    }
}

/// The unified kernel image as far as it is known before anything is signed.
fn write_uki_base(
    request: &SealRequest,
    stub: &[u8],
    kernel: &KernelImage,
    os_release: String,
    directory: &AtomicDirectory,
) -> Result<(), Failure> {
    let section = &request.config.uki;
    let line = uki_command_line(&request.config)?;
    let mut parts: Vec<(Part, Vec<u8>)> = vec![
        (Part::CommandLine, line.into_bytes()),
        (Part::Uname, kernel.release.to_string().into_bytes()),
        (Part::OsRelease, os_release.into_bytes()),
    ];
    let pcr_key = request.uki.as_ref().and_then(|uki| uki.pcr_public_key.as_ref());
    parts.extend(pcr_key.map(|pem| (Part::PcrPublicKey, pem.clone().into_bytes())));
    for (part, file) in [
        (Part::Microcode, &section.microcode),
        (Part::Splash, &section.splash),
        (Part::Devicetree, &section.devicetree),
    ] {
        if let Some(path) = file {
            let bytes = atomic::read(path)?;
            parts.push((part, bytes));
        }
    }
    let parts: Vec<(Part, &[u8])> = parts.iter().map(|(part, bytes)| (*part, &bytes[..])).collect();
    directory.write(sealed::UKI_BASE, &uki::base(stub, &parts)?)
}

/// A unified kernel image has one command line: the one that is sealed.
fn uki_command_line(config: &Config) -> Result<String, Failure> {
    match &config.boot.command_lines[..] {
        [line] => Ok(line.clone()),
        lines => {
            let fact = format!("boot.command_lines: a unified kernel image has one, found {}", lines.len());
            Err(Failure::new(ExitStatus::Usage, fact).next("give the one to boot with: --command-line TEXT"))
        }
    }
}

fn write_certificates(certificates: &Certificates, directory: &AtomicDirectory) -> Result<(), Failure> {
    let wanted = [
        (sealed::SECURE_BOOT_CERTIFICATE, &certificates.secure_boot),
        (sealed::ROOT_HASH_CERTIFICATE, &certificates.root_hash),
    ];
    for (name, certificate) in wanted {
        if let Some(certificate) = certificate {
            directory.write(name, &certificate.to_der())?;
        }
    }
    Ok(())
}

fn describe(request: &SealRequest, manifest: &Manifest, pending: Pending) -> Result<Sealed, Failure> {
    let size = |name: &str| fs::metadata(request.out.join(name)).map(|metadata| metadata.len());
    Ok(Sealed {
        out: request.out.clone(),
        image: manifest.image.clone(),
        root_hash: manifest.verity.root_hash.clone(),
        manifest_digest: Sha256Digest::of(&manifest.to_json()),
        image_size: size(sealed::IMAGE).map_err(|error| Failure::io("read the image's size", &error))?,
        unchanged_files: None,
        initramfs_size: size(sealed::INITRAMFS).ok(),
        uki_size: size(sealed::UKI).ok(),
        pending,
    })
}
