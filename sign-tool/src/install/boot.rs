//! The boot loader, and the file system that it and verify-init read.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use iofs_policy::manifest::MediumKind;
use serde::{Deserialize, Serialize};

use super::{
    mounts::{self, Mount},
    sysroot::Sysroot,
};
use crate::report::{ExitStatus, Failure};

/// Where distributions mount what the loader reads.
pub const BOOT_FOLDERS: [&str; 3] = ["/boot", "/efi", "/boot/efi"];
/// GRUB's configuration, as Debian and as Fedora name its folder, with the program that writes it.
const GRUB: [(&str, &str); 2] = [("/boot/grub/grub.cfg", "grub-mkconfig"), ("/boot/grub2/grub.cfg", "grub2-mkconfig")];
/// In which systemd-boot says that it has started this system: text in UTF-16 behind four bytes.
const LOADER_INFO: &str = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// Which loader is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LoaderKind {
    /// GRUB, by a script in /etc/grub.d
    Grub,
    /// systemd-boot, or another that reads loader/entries
    SystemdBoot,
    /// Unified kernel images in EFI/Linux, which firmware or systemd-boot starts
    Uki,
}

impl fmt::Display for LoaderKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Grub => "grub",
            Self::SystemdBoot => "systemd-boot",
            Self::Uki => "uki",
        })
    }
}

/// The loader of this system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loader {
    /// GRUB.
    Grub {
        /// Its configuration.
        configuration: PathBuf,
        /// The program that writes it.
        program: &'static str,
    },
    /// systemd-boot; the folder has `loader/entries`.
    SystemdBoot(PathBuf),
    /// Unified kernel images; the folder has `EFI/Linux`.
    Uki(PathBuf),
}

impl Loader {
    /// Finds the loader: of the kind that is asked for, else the one there is.
    ///
    /// # Errors
    /// There is none, or more than one and nothing tells which starts the system.
    pub fn find(sysroot: &Sysroot, asked: Option<LoaderKind>) -> Result<Self, Failure> {
        let all = Self::all(sysroot);
        let found = all.iter().map(|loader| loader.kind().to_string()).collect::<Vec<_>>().join(", ");
        let started = asked.or_else(|| started_by_systemd_boot(sysroot).then_some(LoaderKind::SystemdBoot));
        let mut matching = all.into_iter().filter(|loader| started.is_none_or(|kind| loader.kind() == kind));
        match (matching.next(), matching.next()) {
            (Some(loader), None) => Ok(loader),
            (Some(_), Some(_)) => {
                let fact = format!("more than one boot loader is there: {found}");
                Err(Failure::new(ExitStatus::Usage, fact).next("say which one starts this system: --loader"))
            }
            (None, _) => {
                let looked = "/boot/grub/grub.cfg, /boot/grub2/grub.cfg, and loader/entries and EFI/Linux in /boot, /efi, \
                              /boot/efi";
                let asked = asked.map_or_else(String::new, |kind| format!(" of kind {kind}"));
                Err(Failure::new(ExitStatus::Usage, format!("no boot loader{asked} was found: looked for {looked}"))
                    .next("seal with 'iofs-sign seal', and tell your loader yourself"))
            }
        }
    }

    fn all(sysroot: &Sysroot) -> Vec<Self> {
        let mut all = Vec::new();
        let grub = GRUB.into_iter().find(|(path, _)| sysroot.has(path));
        all.extend(grub.map(|(path, program)| Self::Grub { configuration: path.into(), program }));
        let folder = |below: &str| BOOT_FOLDERS.into_iter().find(|folder| sysroot.has(Path::new(folder).join(below)));
        // Fedora's GRUB reads loader/entries as well.
        let entries = folder("loader/entries").filter(|_| grub.is_none() || folder("EFI/systemd").is_some());
        // bootctl makes the folder, also where unified kernel images are what it starts.
        let entries = entries.filter(|folder| holds(sysroot, &Path::new(folder).join("loader/entries"), ".conf", ""));
        all.extend(entries.map(|folder| Self::SystemdBoot(folder.into())));
        let images = folder("EFI/Linux");
        let others = |folder: &&str| holds(sysroot, &Path::new(folder).join("EFI/Linux"), ".efi", "iofs-");
        all.extend(images.filter(|folder| all.is_empty() || others(folder)).map(|folder| Self::Uki(folder.into())));
        all
    }

    /// Its kind.
    pub fn kind(&self) -> LoaderKind {
        match self {
            Self::Grub { .. } => LoaderKind::Grub,
            Self::SystemdBoot(_) => LoaderKind::SystemdBoot,
            Self::Uki(_) => LoaderKind::Uki,
        }
    }

    /// The folder in which what it reads lies.
    pub fn folder(&self) -> &Path {
        match self {
            Self::Grub { .. } => Path::new("/boot"),
            Self::SystemdBoot(folder) | Self::Uki(folder) => folder,
        }
    }
}

/// Whether a folder has files with this ending, those aside that begin like ours.
fn holds(sysroot: &Sysroot, folder: &Path, ending: &str, ours: &str) -> bool {
    let entries = fs::read_dir(sysroot.path(folder)).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.any(|name| name.ends_with(ending) && (ours.is_empty() || !name.starts_with(ours)))
}

fn started_by_systemd_boot(sysroot: &Sysroot) -> bool {
    let variable = fs::read(sysroot.path(LOADER_INFO)).unwrap_or_default();
    let text: String = variable.chunks(2).skip(2).map(|pair| char::from(pair[0])).collect();
    text.starts_with("systemd-boot")
}

/// The file system that the loader reads.
#[derive(Debug, Clone)]
pub struct BootFileSystem {
    /// The folder below which our files are to lie.
    pub folder: PathBuf,
    /// Its mount.
    pub mount: Mount,
    /// How verify-init finds a file on it, or why it cannot.
    pub place: Result<BootPlace, String>,
}

/// How verify-init finds files of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPlace {
    kind: String,
    id: String,
    prefix: PathBuf,
}

impl BootPlace {
    /// The place of a file below the boot folder, as `iofs.toml` has it.
    pub fn of(&self, file: &Path) -> String {
        format!("{}:{}:{}", self.kind, self.id, self.prefix.join(file).display())
    }
}

impl BootFileSystem {
    /// Looks at the file system of a folder.
    ///
    /// # Errors
    /// The mounts cannot be read.
    pub fn of(sysroot: &Sysroot, mounts: &[Mount], folder: &Path) -> Result<Self, Failure> {
        let resolved = sysroot
            .resolve(folder)
            .map_err(|error| Failure::io(format_args!("look for {}", folder.display()), &error))?;
        let mount = mounts::covering(mounts, &resolved).cloned().ok_or_else(|| {
            Failure::new(ExitStatus::System, format!("{}: on no mounted file system", folder.display()))
        })?;
        let place = file_place(sysroot, &mount, &resolved);
        Ok(Self { folder: resolved, mount, place })
    }

    /// Whether a path lies where the loader's files do: on the same file system, or below its folder where that is the root's.
    pub fn holds(&self, mounts: &[Mount], path: &Path) -> bool {
        let own = self.mount.point != Path::new("/");
        path.starts_with(&self.folder) || own && mounts::covering(mounts, path) == Some(&self.mount)
    }
}

fn file_place(sysroot: &Sysroot, mount: &Mount, folder: &Path) -> Result<BootPlace, String> {
    let what = format!("{} is on {} ({})", folder.display(), mount.source, mount.kind);
    if let Some(layer) = mounts::layer(sysroot, mount) {
        return Err(format!("{what}, which is {layer}: expected a partition"));
    }
    let known = MediumKind::ALL.map(MediumKind::name);
    if !known.contains(&mount.kind.as_str()) {
        return Err(format!("{what}: expected one of {}", known.join(", ")));
    }
    let uuid = mounts::disk_name(sysroot, mount, "uuid").map(|name| format!("UUID={name}"));
    let id = uuid.or_else(|| mounts::disk_name(sysroot, mount, "partuuid").map(|name| format!("PARTUUID={name}")));
    let id = id.ok_or_else(|| format!("{what}, which has no name in /dev/disk/by-uuid or by-partuuid"))?;
    let below = folder.strip_prefix(&mount.point).unwrap_or(Path::new(""));
    Ok(BootPlace { kind: mount.kind.clone(), id, prefix: mount.root.join(below) })
}
