//! `iofs-sign seal`.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use super::secure_boot::{SecureBootKey, VerityKey};
use clap::ValueEnum;
use iofs_policy::{
    manifest::{ImageId, ImageVersion, Place, Role, RollbackIndex},
    trust::KeyId,
};
use iofs_sign::{
    erofs::ImageCompression,
    initramfs::cache::SegmentCache,
    keys::{self, PrivateKey},
    pcr_policy::PolicySigner,
    report::{ExitStatus, Failure, Output},
    seal::{
        self, Certificates, FileLists, KernelRequest, SealRequest, Sealed, UkiRequest,
        config::{
            Config, PlaceSection, PlaceText,
            tree::{Added, Excluded, Moded, Owned, TreeSection},
        },
        finish::SigningKeys,
        succession::Succession,
    },
    sealed::bad_input,
};

/// Seal a root tree: image, hash tree, signed manifest, mini-initramfs, release statement
///
/// The output directory appears whole or not at all, and the same input gives the same bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign seal --root rootfs.tar.zst --key release.pem \\
      --kernel /boot/vmlinuz-6.12.0 --modules /lib/modules/6.12.0 --out sealed
  iofs-sign seal --root rootfs/ --unsigned --trust release.pub.pem --kernel … --modules … --out sealed
      then sign sealed/to-sign.bin elsewhere, and: iofs-sign attach sealed --key release.pub.pem --signature FILE
  iofs-sign seal --role initoverlay --root /boot/initrd.img-6.12.0 --place ext4:UUID=…:/iofs/image --key … --kernel … \\
      --modules … --out sealed
      seals a distribution's own initramfs, which goes on to its root as ever

  iofs-sign seal --root oci-layout/ --overlay site/ --exclude 'usr/share/doc/**' --add motd:etc/motd --owner 'srv/**=33:33' …

TREE is a directory, a tar (plain, gz, xz, zst, lz4), a cpio initramfs as distributions ship it, a container image in an OCI
layout (as 'skopeo copy … oci:DIR' makes), or an erofs image. All are read where they are, with all their metadata: nobody has to
be root. Overlays come first, then what is left out, added, and given owners and modes.
The time of files newer than SOURCE_DATE_EPOCH, where that is set, is set back to it.")]
pub(crate) struct Arguments {
    /// The root tree
    #[arg(long, value_name = "TREE")]
    root: PathBuf,
    /// Which image of an OCI layout: its tag
    #[arg(long, value_name = "TAG", help_heading = "The tree")]
    oci_name: Option<String>,
    /// A tree to lay over the root, as overlayfs does; several are laid in their order
    #[arg(long, value_name = "TREE", help_heading = "The tree")]
    overlay: Vec<PathBuf>,
    /// Leave out what matches, with all below: a glob over paths from the root, such as 'usr/share/doc/**'
    #[arg(long, value_name = "PATTERN", help_heading = "The tree")]
    exclude: Vec<Excluded>,
    /// Add a file or directory of this machine at a path of the image
    #[arg(long, value_name = "SRC:DST", help_heading = "The tree")]
    add: Vec<Added>,
    /// Give what matches to an owner and a group, by number
    #[arg(long, value_name = "PATTERN=UID:GID", help_heading = "The tree")]
    owner: Vec<Owned>,
    /// Give what matches a mode, in octal
    #[arg(long, value_name = "PATTERN=MODE", help_heading = "The tree")]
    mode: Vec<Moded>,
    /// A private key that signs (PKCS#8 PEM); several sign together
    #[arg(long, value_name = "PRIVATE", required_unless_present = "unsigned", conflicts_with = "unsigned")]
    key: Vec<PathBuf>,
    /// Sign nothing: prepare the bytes that are to be signed elsewhere
    #[arg(long, requires = "known")]
    unsigned: bool,
    /// A public key that the device trusts as well (SubjectPublicKeyInfo PEM)
    #[arg(long, value_name = "PUBLIC", group = "known")]
    trust: Vec<PathBuf>,
    /// How many of the trusted keys must sign
    #[arg(long, value_name = "N")]
    threshold: Option<u8>,
    /// The sealed directory of the release before: its keys are trusted, and its key history goes on with this one
    #[arg(long, value_name = "DIR", group = "known", conflicts_with = "threshold")]
    previous: Option<PathBuf>,
    /// Move the keys: a public key that signs from this release on, besides those before; name all who do from now on
    #[arg(long, value_name = "PUBLIC", requires = "previous")]
    next_key: Vec<PathBuf>,
    /// How many of them must sign from now on [default: as many as before]
    #[arg(long, value_name = "N", requires = "previous")]
    next_threshold: Option<u8>,
    /// End a key: its signatures count no more, and no later release can bring it back
    #[arg(long, value_name = "KEYID", requires = "previous")]
    revoke: Vec<KeyId>,
    /// The kernel that boots the image
    #[arg(long, value_name = "VMLINUZ", requires = "modules", required_unless_present = "image_only")]
    kernel: Option<PathBuf>,
    /// Its modules: lib/modules/VERSION, or a tree that holds it
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// The static verify-init, or a folder that holds it and verify-init-full [default: beside this program, then
    /// /usr/lib/iofs]
    #[arg(long, value_name = "PATH", env = "IOFS_VERIFY_INIT")]
    init: Option<PathBuf>,
    /// Seal the image alone, without kernel and mini-initramfs
    #[arg(long, conflicts_with = "kernel")]
    image_only: bool,
    /// Make a unified kernel image as well, uki.efi: one file that UEFI firmware starts
    #[arg(long, requires = "kernel")]
    uki: bool,
    /// systemd's stub for it [default: that of the kernel's processor in /usr/lib/systemd/boot/efi]
    #[arg(long, value_name = "FILE", requires = "uki")]
    stub: Option<PathBuf>,
    /// The kernel command line to boot with; a unified kernel image holds it [default: boot.command_lines of the
    /// configuration; with --uki, else 'ro']
    #[arg(long, value_name = "TEXT")]
    command_line: Option<String>,
    /// A key (RSA or P-256, PEM) that signs the values of register 11, so that what is bound to the key opens for this image.
    /// The image holds the public half of the first one; earlier ones behind it sign too, for volumes enrolled with them
    #[arg(long, value_name = "PRIVATE", requires = "uki")]
    pcr_key: Vec<PathBuf>,
    /// Its public half alone (PEM), where the key is elsewhere
    #[arg(long, value_name = "PUBLIC", requires = "uki", conflicts_with = "pcr_key")]
    pcr_public_key: Option<PathBuf>,
    #[command(flatten)]
    secure_boot: SecureBootKey,
    #[command(flatten)]
    verity: VerityKey,
    /// The directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Put the new output in the place of an earlier one
    #[arg(long)]
    replace: bool,
    /// What else to seal: docs/configuration.md describes it
    #[arg(long, value_name = "iofs.toml")]
    config: Option<PathBuf>,
    /// What the tree is: the real system's root, or an initramfs that becomes the second stage and goes on to another root
    #[arg(long, value_enum)]
    role: Option<RoleName>,
    /// Where image and tree will lie: PARTUUID=…, PARTLABEL=…, /dev/NAME, volume:NAME, memory (inside the mini-initramfs), or
    /// TYPE:UUID=…:/PATH for a file [default: partitions by their PARTUUIDs]
    #[arg(long, value_name = "PLACE")]
    place: Option<Place>,
    /// Seal for a device with two slots, which updates itself: the image fits into either, and verify-init chooses
    #[arg(long, conflicts_with = "place")]
    slots: bool,
    /// The image's id [default: from the tree's os-release]
    #[arg(long)]
    id: Option<ImageId>,
    /// The image's version [default: from the tree's os-release]
    #[arg(long, value_name = "VERSION")]
    image_version: Option<ImageVersion>,
    /// The rollback index: raise it with every release that closes a hole
    #[arg(long, value_name = "N")]
    rollback_index: Option<u64>,
    /// none, lz4, lz4hc[,LEVEL] or zstd[,LEVEL]
    #[arg(long, value_name = "ALGORITHM")]
    compression: Option<ImageCompression>,
    /// The most threads to use [default: one per processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    cache: super::CacheArguments,
    /// Do not read files that look unchanged since the tree was last sealed with this option, by inode, size, mtime and ctime:
    /// they are taken from that image, if it is still there and sound. The list of them is kept in the cache's folder
    #[arg(long, conflicts_with = "no_cache")]
    trust_times: bool,
    /// Show what would be sealed, and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// A role as options spell it.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleName {
    Root,
    Initoverlay,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Root => Self::Root,
            RoleName::Initoverlay => Self::InitOverlay,
        }
    }
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let request = request(arguments, output)?;
    for key in request.keys.release.iter().map(PrivateKey::public).chain(request.trusted.iter().cloned()) {
        super::warn_example(key.id(), output);
    }
    for path in arguments.key.iter().filter(|path| keys::is_exposed(path) && !output.quiet) {
        output.warn(format_args!("{}: others can read this private key: chmod 600 it", path.display()));
    }
    if arguments.dry_run {
        let plan = seal::plan(&request)?;
        output.result(&plan, || plan.to_text());
        return Ok(());
    }
    let sealed = seal::seal(&request, output)?;
    output.result(&sealed, || describe(&sealed));
    Ok(())
}

fn request(arguments: &Arguments, output: Output) -> Result<SealRequest, Failure> {
    let mut config = arguments.config.as_deref().map_or_else(|| Ok(Config::default()), Config::read)?;
    let image = &mut config.image;
    image.id = arguments.id.clone().or(image.id.take());
    image.version = arguments.image_version.clone().or(image.version.take());
    image.rollback_index = arguments.rollback_index.map_or(image.rollback_index, RollbackIndex);
    image.role = arguments.role.map_or(image.role, Role::from);
    if let Some(place) = &arguments.place {
        let place = || Some(PlaceText(place.clone()));
        config.place = PlaceSection { data: place(), tree: place() };
    }
    if arguments.slots {
        config.slots.get_or_insert_default();
    }
    config.trust.threshold = arguments.threshold.unwrap_or(config.trust.threshold);
    config.tree.extend(TreeSection {
        oci_name: arguments.oci_name.clone(),
        overlay: arguments.overlay.clone(),
        exclude: arguments.exclude.clone(),
        add: arguments.add.clone(),
        owner: arguments.owner.clone(),
        mode: arguments.mode.clone(),
    });
    config.filesystem.compression = arguments.compression.or(config.filesystem.compression);
    let lines = &mut config.boot.command_lines;
    match &arguments.command_line {
        Some(line) => *lines = vec![line.clone()],
        None if arguments.uki && lines.is_empty() => lines.push("ro".to_owned()),
        None => {}
    }
    let (secure_boot, for_firmware) = arguments.secure_boot.read(output)?;
    let (root_hash, for_kernel) = arguments.verity.read(output)?;
    let certificates = Certificates { root_hash: root_hash.or_else(|| secure_boot.clone()), secure_boot };
    let pcr = arguments.pcr_key.iter().map(|path| PolicySigner::read(path)).collect::<Result<Vec<_>, _>>()?;
    let pcr_public_key = match (pcr.first(), &arguments.pcr_public_key) {
        (Some(key), _) => Some(key.public_pem().to_owned()),
        (None, Some(path)) => Some(read_pcr_public_key(path)?),
        (None, None) => None,
    };
    let unchanged = arguments.trust_times.then(|| file_lists(&arguments.cache.to_cache())).transpose()?;
    let release = arguments.key.iter().map(|path| PrivateKey::read(path)).collect::<Result<_, _>>()?;
    Ok(SealRequest {
        root: arguments.root.clone(),
        kernel: kernel(arguments),
        keys: SigningKeys { release, x509: for_firmware.into_iter().chain(for_kernel).collect(), pcr },
        uki: arguments.uki.then(|| UkiRequest { stub: arguments.stub.clone(), pcr_public_key }),
        certificates,
        trusted: arguments.trust.iter().map(|path| keys::read_public(path)).collect::<Result<_, _>>()?,
        succession: succession(arguments)?,
        config,
        out: arguments.out.clone(),
        replace: arguments.replace,
        threads: super::threads(arguments.threads),
        unchanged,
    })
}

fn file_lists(cache: &SegmentCache) -> Result<FileLists, Failure> {
    let none =
        || Failure::new(ExitStatus::Usage, "--trust-times: no folder to keep the list of files in: there is no home");
    cache.folder().map(FileLists::at).ok_or_else(|| none().next("give --cache DIR"))
}

fn succession(arguments: &Arguments) -> Result<Option<Succession>, Failure> {
    let Some(previous) = arguments.previous.clone() else { return Ok(None) };
    let next_keys = arguments.next_key.iter().map(|path| keys::read_public(path)).collect::<Result<_, _>>()?;
    let (next_threshold, revoke) = (arguments.next_threshold, arguments.revoke.clone());
    Ok(Some(Succession { previous, next_keys, next_threshold, revoke }))
}

/// The PEM text of a key that a TPM takes.
fn read_pcr_public_key(path: &Path) -> Result<String, Failure> {
    let (pem, _) = super::read_policy_key(path)?;
    String::from_utf8(pem).map_err(|error| bad_input(path, &error))
}

fn kernel(arguments: &Arguments) -> Option<KernelRequest> {
    let (image, modules) = (arguments.kernel.clone()?, arguments.modules.clone()?);
    Some(KernelRequest { image, modules, init: arguments.init.clone(), cache: arguments.cache.to_cache() })
}

fn describe(sealed: &Sealed) -> String {
    let out = sealed.out.display();
    let mut text = format!(
        "sealed:    {} {} (rollback index {}, {})\nroot hash: {}\nmanifest:  sha256:{}\nimage:     {} bytes\n",
        sealed.image.id,
        sealed.image.version,
        sealed.image.rollback_index,
        sealed.image.role,
        sealed.root_hash,
        sealed.manifest_digest,
        sealed.image_size
    );
    if let Some(count) = sealed.unchanged_files {
        text += &format!("unchanged: {count} files by inode, size and times, which were not read\n");
    }
    if let Some(size) = sealed.initramfs_size {
        text += &format!("initramfs: {size} bytes\n");
    }
    if let Some(size) = sealed.uki_size {
        text += &format!("uki:       {size} bytes\n");
    }
    text + &super::sign::describe(&sealed.pending, &out.to_string())
}
