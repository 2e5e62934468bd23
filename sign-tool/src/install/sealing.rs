//! One kernel's initramfs, sealed into the files that lie beside the kernel.

use std::{
    fs::{self, File},
    io::{self, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use iofs_policy::{
    digest::Sha256Digest,
    manifest::{Place, Role},
    trust::TrustedKey,
};

use super::{
    kernels::{Kernel, resolved},
    settings::{Agent, Settings},
    state::Sizes,
    sysroot::Sysroot,
};
use crate::{
    initramfs::{cache::SegmentCache, profile::Profile},
    inspect::initramfs::{self, InspectedInitramfs},
    keys::{self, PrivateKey},
    report::{ExitStatus, Failure, Output},
    seal::{
        self, Certificates, KernelRequest, SealRequest, UkiRequest,
        config::{Config, PlaceSection, PlaceText},
        finish::{self, Pending, SigningKeys},
        os_release::OsRelease,
    },
    sealed::{self, SealedDirectory},
    x509::{SigningCertificate, X509Signer},
};

/// The mini-initramfs beside a kernel.
pub(super) const INITRAMFS: &str = "initramfs.img";
/// The sealed image, the tree behind its data.
pub(super) const IMAGE: &str = "image";
/// What the distribution puts in front of its initramfs for the kernel itself: microcode, ACPI tables.
pub(super) const EARLY: &str = "early.img";

/// What is the same for all kernels.
#[derive(Debug)]
pub(super) struct Sealer<'a> {
    pub(super) sysroot: &'a Sysroot,
    pub(super) settings: &'a Settings,
    pub(super) init: Option<PathBuf>,
    pub(super) threads: NonZeroUsize,
    pub(super) output: Output,
}

/// What was made of one.
#[derive(Debug)]
pub(super) struct SealedKernel {
    /// The folder with the files that are to lie beside the kernel.
    pub(super) files: PathBuf,
    /// The unified kernel image, where one was asked for.
    pub(super) uki: Option<PathBuf>,
    pub(super) sizes: Sizes,
}

impl Sealer<'_> {
    /// SHA-256 over all that is sealed, and how.
    pub(super) fn inputs(&self, kernel: &Kernel, place: &Place, line: Option<&str>) -> Result<Sha256Digest, Failure> {
        let settings = self.settings;
        let files = kernel.initramfs.iter().chain([&kernel.image]).chain(&settings.keys).chain(&settings.config);
        let files =
            files.chain(&settings.secure_boot_certificate).chain(settings.agent.as_ref().map(|agent| &agent.key));
        let mut text = format!("{} {place} {line:?} {settings:?}", env!("CARGO_PKG_VERSION"));
        for file in files {
            let path = resolved(self.sysroot, file)?;
            let digest = File::open(&path).and_then(|mut file| sealed::digest_file(&mut file));
            let (_, digest) = digest.map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
            text += &format!(" {digest}");
        }
        Ok(Sha256Digest::of(text.as_bytes()))
    }

    /// Seals one kernel's initramfs below `staging`.
    pub(super) fn seal(
        &self,
        kernel: &Kernel,
        place: &Place,
        line: Option<&str>,
        staging: &Path,
    ) -> Result<SealedKernel, Failure> {
        let root = staging.join(format!("{}.stock", kernel.release));
        let early = self.join_initramfs(kernel, &root)?;
        let mut request = self.request(kernel, place, line, root, staging.join(&kernel.release))?;
        if line.is_some() && !early.is_empty() && request.config.uki.microcode.is_none() {
            let file = staging.join(format!("{}.early", kernel.release));
            crate::atomic::write(&file, 0o600, &early)?;
            request.config.uki.microcode = Some(file);
        }
        let made = seal::seal(&request, self.output)?;
        let directory = SealedDirectory::new(&request.out);
        self.sign_by_agent(&directory, made.pending)?;
        let files = staging.join(format!("{}.files", kernel.release));
        let sizes = Sizes {
            stock_initramfs: size(&request.root)?,
            image: write_files(&directory, &early, &files, line.is_some())?,
            initramfs: size(&directory.file(sealed::INITRAMFS))?,
        };
        Ok(SealedKernel { files, uki: line.map(|_| directory.file(sealed::UKI)), sizes })
    }

    /// Puts the parts of an initramfs behind each other, as the loader does, and gives what in front is for the kernel itself.
    fn join_initramfs(&self, kernel: &Kernel, joined: &Path) -> Result<Vec<u8>, Failure> {
        let join = || {
            let mut out = File::create(joined)?;
            for file in &kernel.initramfs {
                let copied = io::copy(&mut File::open(self.sysroot.path(self.sysroot.resolve(file)?))?, &mut out)?;
                // An archive begins at a multiple of 4.
                out.write_all(&[0; 4][..(copied.next_multiple_of(4) - copied) as usize])?;
            }
            Ok(())
        };
        join().map_err(|error: io::Error| {
            Failure::io(format_args!("copy the initramfs of {}", kernel.release), &error)
        })?;
        let listed = initramfs::inspect(joined)?;
        let end = early_end(&listed);
        let mut bytes = crate::atomic::read(joined)?;
        bytes.truncate(usize::try_from(end).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    fn request(
        &self,
        kernel: &Kernel,
        place: &Place,
        line: Option<&str>,
        root: PathBuf,
        out: PathBuf,
    ) -> Result<SealRequest, Failure> {
        let settings = self.settings;
        let file = |path: &Path| resolved(self.sysroot, path);
        let keys = settings
            .keys
            .iter()
            .map(|path| Ok(PrivateKey::read(&file(path)?)?))
            .collect::<Result<Vec<_>, Failure>>()?;
        let agent = settings.agent.as_ref().map(|agent| self.agent_key(agent)).transpose()?;
        let certificate = settings.secure_boot_certificate.as_deref().map(file).transpose()?;
        let signer = match (&settings.secure_boot_key, &certificate) {
            (Some(key), Some(certificate)) => Some(X509Signer::read(&file(key)?, certificate)?),
            _ => None,
        };
        let secure_boot = certificate.as_deref().map(SigningCertificate::read).transpose()?;
        Ok(SealRequest {
            root,
            kernel: Some(KernelRequest {
                image: file(&kernel.image)?,
                modules: file(&kernel.modules)?,
                init: self.init.clone(),
                // One kernel is sealed once.
                cache: SegmentCache::none(),
            }),
            keys: SigningKeys { release: keys, x509: signer.into_iter().collect(), pcr: Vec::new() },
            uki: line.map(|_| UkiRequest { stub: None, pcr_public_key: None }),
            certificates: Certificates { root_hash: None, secure_boot: secure_boot.filter(|_| line.is_some()) },
            trusted: agent.into_iter().collect(),
            succession: None,
            config: self.config(kernel, place, line)?,
            out,
            replace: false,
            threads: self.threads,
            unchanged: None,
        })
    }

    fn config(&self, kernel: &Kernel, place: &Place, line: Option<&str>) -> Result<Config, Failure> {
        let file = self.settings.config.as_deref().map(|path| resolved(self.sysroot, path)).transpose()?;
        let mut config = match file.as_deref() {
            Some(file) => Config::read(file)?,
            None => usual_config(place),
        };
        let image = &mut config.image;
        image.role = Role::InitOverlay;
        // The initramfs tells little of the system that it belongs to.
        let system = OsRelease::parse(&fs::read_to_string(self.sysroot.path("/etc/os-release")).unwrap_or_default());
        image.id = image.id.take().or_else(|| Some(system.image_id()));
        image.version = image.version.take().or_else(|| kernel.release.parse().ok());
        let place = || Some(PlaceText(place.clone()));
        config.place = PlaceSection { data: place(), tree: place() };
        config.boot.command_lines.extend(line.map(str::to_owned));
        Ok(config)
    }

    fn agent_key(&self, agent: &Agent) -> Result<TrustedKey, Failure> {
        Ok(keys::read_public(&resolved(self.sysroot, &agent.key)?)?)
    }

    fn sign_by_agent(&self, directory: &SealedDirectory, mut pending: Pending) -> Result<(), Failure> {
        while let Pending::Signature { document, .. } = pending {
            let Some(agent) = &self.settings.agent else { break };
            let bytes = directory.read(sealed::TO_SIGN, sealed::MAX_IMAGE)?;
            let signature = run_agent(&agent.command, &bytes, document)?;
            pending = finish::attach(directory, Some(&self.agent_key(agent)?), &signature)?;
        }
        if pending == Pending::Nothing {
            return Ok(());
        }
        let waits = serde_json::to_string(&pending).expect("plain values");
        Err(Failure::new(
            ExitStatus::Usage,
            format!("{}: more signatures are needed: {waits}", directory.path().display()),
        )
        .next("give all keys with --key, or lower trust.threshold in the configuration"))
    }
}

/// What is sealed where nobody says more. Which disk controller the machine has, the initramfs may not know; in memory it needs
/// none.
fn usual_config(place: &Place) -> Config {
    let mut config = Config::default();
    if *place != Place::Memory {
        config.modules.profile = Profile::Host;
    }
    config
}

/// Where the archives that the kernel itself reads end: they come first, and hold nothing but a folder `kernel`.
pub(super) fn early_end(listed: &InspectedInitramfs) -> u64 {
    let is_early = |index: usize| {
        let mut names =
            listed.entries.iter().filter(|entry| entry.segment == Some(index)).map(|entry| entry.name.as_str());
        names.all(|name| name == "." || name == "early_cpio" || name.trim_start_matches("./").starts_with("kernel"))
    };
    let last = listed.segments.iter().take_while(|segment| is_early(segment.index)).last();
    last.map_or(0, |segment| segment.offset + segment.size)
}

/// Has a command sign: bytes on its standard input, the signature on its standard output.
fn run_agent(command: &str, bytes: &[u8], document: &str) -> Result<Vec<u8>, Failure> {
    let failed = |why: String| {
        Failure::new(ExitStatus::System, format!("signing agent '{command}' for {document}: {why}"))
            .next("it gets the bytes to sign on standard input, and has to print an ed25519 signature of 64 bytes")
    };
    let run = || {
        let mut agent = Command::new("sh");
        let mut agent = agent.args(["-c", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        // What ends without reading everything says so by its status.
        let _ = agent.stdin.take().expect("it is piped").write_all(bytes);
        agent.wait_with_output()
    };
    let output = run().map_err(|error| failed(error.to_string()))?;
    match output.stdout.len() {
        _ if !output.status.success() => Err(failed(output.status.to_string())),
        64 => Ok(output.stdout),
        found => Err(failed(format!("expected 64 bytes, found {found}"))),
    }
}

/// Writes what is to lie beside the kernel, and gives the size of the image, which in memory is a part of the initramfs.
fn write_files(directory: &SealedDirectory, early: &[u8], files: &Path, in_uki: bool) -> Result<u64, Failure> {
    let manifest = directory.manifest()?;
    let failed = |error: io::Error| Failure::io(format_args!("write {}", files.display()), &error);
    fs::create_dir(files).map_err(failed)?;
    if !in_uki {
        fs::copy(directory.file(sealed::INITRAMFS), files.join(INITRAMFS)).map_err(failed)?;
    }
    if !in_uki && !early.is_empty() {
        fs::write(files.join(EARLY), early).map_err(failed)?;
    }
    if manifest.data == Place::Memory {
        return directory.write_one_piece(&manifest, &mut io::sink());
    }
    directory.write_one_piece(&manifest, &mut File::create(files.join(IMAGE)).map_err(failed)?)
}

fn size(path: &Path) -> Result<u64, Failure> {
    let metadata = fs::metadata(path).map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
    Ok(metadata.len())
}
