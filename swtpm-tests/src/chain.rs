//! A sealed chain to boot and to attack: what `iofs-sign seal` and `iofs-sign disk` give, with the means to change it.

use std::{
    fs,
    num::NonZeroUsize,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};
use iofs_policy::{
    dsse::{Envelope, PayloadType},
    manifest::Manifest,
    paths,
    release::Release,
};
use iofs_sign::{
    disk::{self, Additions, DiskReport},
    erofs::ImageCompression,
    initramfs::{EmbeddedFile, Format, cache::SegmentCache, image_segment, in_archive},
    inspect::initramfs::inspect,
    keys::PrivateKey,
    pe::Headers,
    report::Output,
    seal::{Certificates, KernelRequest, SealRequest, config::Config, finish::SigningKeys, seal},
    sealed::{self, SealedDirectory},
    uki::{self, Part},
};
use tempfile::TempDir;

use crate::{Disk, Machine, ScratchDisk, cache, command_line, tools};

/// What the tiny root's init says first. A refused image must never get that far.
pub const ROOT_REACHED: &str = "ROOT REACHED";

const OUTPUT: Output = Output { json: false, quiet: true };

/// One of the published example keys.
///
/// # Errors
///
/// Where the file is missing.
pub fn example_key(number: u8) -> Result<PrivateKey> {
    let name = format!("keys-example/DO-NOT-SHIP-example-{number}.pem");
    Ok(PrivateKey::read(&cache::workspace().join(name))?)
}

/// The folder of both static verify-inits as they are shipped, built once per test program.
///
/// # Errors
///
/// Where it does not build.
pub fn verify_inits() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn build() -> Result<PathBuf> {
    let output = Command::new("scripts/build-boot")
        .arg("verify-inits")
        .current_dir(cache::workspace())
        .output()
        .context("run scripts/build-boot")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find_map(|line| line.strip_prefix("verify_inits=")) {
        Some(path) if output.status.success() => Ok(cache::workspace().join(path)),
        _ => bail!("scripts/build-boot verify-inits: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// The fastest compression: hundreds of megabytes are compressed for these tests.
fn quick_config() -> Config {
    let mut config = Config::default();
    config.filesystem.compression = Some(ImageCompression::Lz4);
    config
}

/// Makes a root of busybox whose init says [`ROOT_REACHED`], does what `script` says, and switches the machine off.
///
/// # Errors
///
/// Where busybox is not installed or a file cannot be made.
pub fn tiny_root(folder: &Path, script: &str) -> Result<()> {
    let busybox = tools::require("busybox", "apt-get install busybox-static")?;
    for name in ["bin", "dev", "etc", "proc", "run", "sbin", "sys", "tmp"] {
        fs::create_dir_all(folder.join(name))?;
    }
    fs::copy(busybox, folder.join("bin/busybox"))?;
    for applet in ["sh", "cat", "mount", "poweroff", "dd", "find", "sleep", "dmesg", "ls", "touch", "umount", "sync"] {
        symlink("busybox", folder.join("bin").join(applet))?;
    }
    let init = folder.join("sbin/init");
    fs::write(&init, format!("#!/bin/sh\necho '{ROOT_REACHED}'\n{script}\npoweroff -f\n"))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    // Enough data for a tree of more than one level, which no boot reads by itself.
    let ballast: Vec<u8> =
        (0..1_500_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(folder.join("ballast"), ballast)?;
    Ok(())
}

/// A sealed directory with what boots it.
#[derive(Debug)]
pub struct Chain {
    folder: TempDir,
}

impl Chain {
    /// Seals a root for a Debian release's kernel with example key 1. `change` may alter the request before.
    ///
    /// # Errors
    ///
    /// Where the cache lacks the kernel, or sealing fails.
    pub fn seal(suite: &str, root: &Path, change: impl FnOnce(&mut SealRequest)) -> Result<Self> {
        let kernel = cache::kernel(suite)?;
        let folder = tempfile::tempdir()?;
        let (init, segments) =
            (Some(verify_inits()?), SegmentCache::at(&cache::target_folder("vm-scratch")?.join("segments")));
        let mut request = SealRequest {
            root: root.to_owned(),
            kernel: Some(KernelRequest { image: kernel.vmlinuz, modules: kernel.modules, init, cache: segments }),
            keys: SigningKeys { release: vec![example_key(1)?], ..SigningKeys::default() },
            uki: None,
            certificates: Certificates::default(),
            trusted: Vec::new(),
            succession: None,
            config: quick_config(),
            out: folder.path().join("sealed"),
            replace: false,
            threads: NonZeroUsize::new(2).context("two is not zero")?,
            unchanged: None,
        };
        change(&mut request);
        seal(&request, OUTPUT)?;
        Ok(Self { folder })
    }

    /// Seals a [`tiny_root`].
    ///
    /// # Errors
    ///
    /// As [`Chain::seal`].
    pub fn tiny(suite: &str, script: &str, change: impl FnOnce(&mut SealRequest)) -> Result<Self> {
        let root = tempfile::tempdir()?;
        tiny_root(root.path(), script)?;
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))?;
        Self::seal(suite, root.path(), change)
    }

    /// The sealed directory.
    pub fn directory(&self) -> SealedDirectory {
        SealedDirectory::new(&self.folder.path().join("sealed"))
    }

    /// Its manifest.
    ///
    /// # Errors
    ///
    /// Where it cannot be read.
    pub fn manifest(&self) -> Result<Manifest> {
        Ok(self.directory().manifest()?)
    }

    /// Its release statement.
    ///
    /// # Errors
    ///
    /// Where it cannot be read.
    pub fn release(&self) -> Result<Release> {
        let envelope = self.directory().envelope(sealed::RELEASE, PayloadType::Release)?;
        Ok(Release::from_json(envelope.unverified_payload())?)
    }

    /// The unified kernel image that `seal` made.
    ///
    /// # Errors
    ///
    /// Where it made none.
    pub fn firmware_image(&self) -> Result<Vec<u8>> {
        Ok(fs::read(self.directory().file(sealed::UKI))?)
    }

    /// A disk of its own with the sealed partitions, and where they lie.
    ///
    /// # Errors
    ///
    /// Where it cannot be written.
    pub fn disk(&self) -> Result<(ScratchDisk, DiskReport)> {
        self.disk_with(&Additions::default())
    }

    /// The same with an EFI system partition, from which firmware starts `uki`.
    ///
    /// # Errors
    ///
    /// Where it cannot be written.
    pub fn disk_that_starts(&self, uki: &[u8]) -> Result<(ScratchDisk, DiskReport)> {
        let file = tempfile::NamedTempFile::new_in(self.folder.path())?;
        fs::write(file.path(), uki)?;
        self.disk_with(&Additions { uki: Some(file.path().to_owned()), ..Additions::default() })
    }

    /// The same for slots among which the boot loader chooses: this one starts the image that `seal` made.
    ///
    /// # Errors
    ///
    /// Where it cannot be written.
    pub fn disk_that_loads(&self, loader: &[u8]) -> Result<(ScratchDisk, DiskReport)> {
        let file = tempfile::NamedTempFile::new_in(self.folder.path())?;
        fs::write(file.path(), loader)?;
        self.disk_with(&Additions { boot_loader: Some(file.path().to_owned()), ..Additions::default() })
    }

    fn disk_with(&self, additions: &Additions) -> Result<(ScratchDisk, DiskReport)> {
        let image = self.folder.path().join(format!("disk-{:?}.img", std::thread::current().id()));
        let report = disk::write(&self.directory(), &image, additions, OUTPUT)?;
        let scratch = ScratchDisk::copy_of(&image)?;
        fs::remove_file(&image)?;
        Ok((scratch, report))
    }

    /// An unsigned unified kernel image of the sealed kernel, by this stub, with these words behind
    /// [`BASE_COMMAND_LINE`](crate::BASE_COMMAND_LINE) and this mini-initramfs in the place of the sealed one.
    ///
    /// # Errors
    ///
    /// Where a file cannot be read, or the stub is none.
    pub fn uki(&self, stub: &Path, words: &str, initramfs: Option<&Path>) -> Result<Vec<u8>> {
        let directory = self.directory();
        let kernel = fs::read(directory.file(sealed::KERNEL))?;
        let initramfs = initramfs.map_or_else(|| directory.file(sealed::INITRAMFS), Path::to_owned);
        let initramfs = fs::read(initramfs)?;
        let command_line = command_line(words);
        let mut parts = vec![
            (Part::Linux, &kernel[..]),
            (Part::CommandLine, command_line.as_bytes()),
            (Part::Initrd, &initramfs[..]),
        ];
        // What `seal` made an image of differs in the command line alone.
        let image = if directory.has(sealed::UKI) { self.firmware_image()? } else { Vec::new() };
        let headers = Headers::parse(&image).ok();
        let os_release = headers.as_ref().and_then(|headers| headers.find(Part::OsRelease.section()));
        parts.extend(os_release.map(|section| (Part::OsRelease, section.contents(&image))));
        Ok(uki::assemble(&fs::read(stub)?, &parts)?.bytes)
    }

    /// A machine that boots the chain from a disk.
    pub fn machine(&self, name: &str, disk: &ScratchDisk) -> Machine {
        self.without_disk(name).disk(Disk::raw(disk.path()))
    }

    /// The same machine before any disk is attached.
    pub fn without_disk(&self, name: &str) -> Machine {
        let directory = self.directory();
        Machine::named(name).kernel(directory.file(sealed::KERNEL)).initrd(directory.file(sealed::INITRAMFS))
    }

    /// The manifest, changed, in an envelope that the given keys signed.
    ///
    /// # Errors
    ///
    /// Where the manifest cannot be read.
    pub fn signed_manifest(&self, keys: &[PrivateKey], change: impl FnOnce(&mut Manifest)) -> Result<Vec<u8>> {
        let mut manifest = self.manifest()?;
        change(&mut manifest);
        let mut envelope = Envelope::unsigned(PayloadType::Manifest, manifest.to_json());
        for key in keys {
            key.sign(&mut envelope)?;
        }
        Ok(envelope.to_json())
    }

    /// The mini-initramfs with another manifest, or with none: what somebody can do who writes the boot partition.
    ///
    /// # Errors
    ///
    /// Where the mini-initramfs cannot be read or written.
    pub fn initramfs_with_manifest(&self, envelope: Option<&[u8]>) -> Result<PathBuf> {
        let directory = self.directory();
        let mut files = vec![(paths::TRUST, directory.read(sealed::TRUST, 1 << 20)?)];
        files.extend(envelope.map(|envelope| (paths::MANIFEST, envelope.to_vec())));
        self.initramfs_with(&files)
    }

    /// The mini-initramfs with these files in the place of its second archive.
    ///
    /// # Errors
    ///
    /// Where the mini-initramfs cannot be read or written.
    pub fn initramfs_with(&self, files: &[(&str, Vec<u8>)]) -> Result<PathBuf> {
        let original = self.directory().file(sealed::INITRAMFS);
        let second = inspect(&original)?.segments.get(1).context("no second archive")?.offset;
        let mut bytes = fs::read(&original)?;
        bytes.truncate(usize::try_from(second)?);
        let files: Vec<EmbeddedFile> = files
            .iter()
            .map(|(path, bytes)| {
                let path = in_archive(path).to_owned();
                EmbeddedFile { path, mode: 0o644, bytes: bytes.clone() }
            })
            .collect();
        bytes.extend(image_segment(&files, Format::None, 0)?.0);
        let path = self.folder.path().join(format!("initramfs-{:?}.img", std::thread::current().id()));
        fs::write(&path, bytes)?;
        Ok(path)
    }
}
