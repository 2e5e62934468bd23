//! The installed kernels with what boots them.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{boot::BOOT_FOLDERS, sysroot::Sysroot};
use crate::{
    inspect::initramfs,
    report::{ExitStatus, Failure},
};

/// How a distribution names the initramfs of a release beside `vmlinuz-RELEASE`: Debian, Fedora, openSUSE.
const INITRAMFS: [(&str, &str); 3] = [("initrd.img-", ""), ("initramfs-", ".img"), ("initrd-", "")];

/// An installed kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// The image.
    pub image: PathBuf,
    /// The distribution's initramfs: files that the loader puts behind each other.
    pub initramfs: Vec<PathBuf>,
    /// The folder of its modules.
    pub modules: PathBuf,
}

/// The kernels, the newest last, and why others were passed over.
#[derive(Debug, Default)]
pub struct Kernels {
    /// Those to seal for.
    pub found: Vec<Kernel>,
    /// Sentences about the others.
    pub passed_over: Vec<String>,
}

/// Looks for kernels: `/boot/vmlinuz-RELEASE` as Debian and Fedora have them, and `$BOOT/ENTRY-TOKEN/RELEASE/linux` as
/// kernel-install puts them. Debian with systemd-boot has both, and the loader starts what lies in its own folder, `entries`.
pub fn find(sysroot: &Sysroot, entries: Option<&Path>) -> Kernels {
    let mut kernels = Kernels::default();
    entries.into_iter().for_each(|folder| kernels.add_installed(sysroot, folder));
    let plain = names(sysroot, Path::new("/boot"));
    for release in plain.iter().filter_map(|name| name.strip_prefix("vmlinuz-")) {
        let image = Path::new("/boot").join(format!("vmlinuz-{release}"));
        let beside = INITRAMFS.iter().map(|(before, after)| format!("/boot/{before}{release}{after}"));
        kernels.add(
            sysroot,
            release,
            image,
            beside.map(PathBuf::from).filter(|path| sysroot.has(path)).take(1).collect(),
        );
    }
    let others = BOOT_FOLDERS.iter().map(Path::new).filter(|folder| Some(*folder) != entries);
    others.for_each(|folder| kernels.add_installed(sysroot, folder));
    kernels.found.sort_by_key(|kernel| version_key(&kernel.release));
    kernels
}

impl Kernels {
    /// Adds what kernel-install put into a boot folder.
    fn add_installed(&mut self, sysroot: &Sysroot, boot: &Path) {
        for folder in entry_tokens(sysroot).iter().map(|token| boot.join(token)) {
            for release in names(sysroot, &folder) {
                let folder = folder.join(&release);
                let image = folder.join("linux");
                if sysroot.has(&image) {
                    let files = names(sysroot, &folder).into_iter().filter(|name| name.starts_with("initrd"));
                    self.add(sysroot, &release, image, files.map(|name| folder.join(name)).collect());
                }
            }
        }
    }

    fn add(&mut self, sysroot: &Sysroot, release: &str, image: PathBuf, initramfs: Vec<PathBuf>) {
        let modules = Path::new("/lib/modules").join(release);
        let image_text = image.display().to_string();
        if initramfs.is_empty() {
            self.passed_over.push(format!("{image_text}: it has no initramfs beside it"));
        } else if !sysroot.has(&modules) {
            self.passed_over.push(format!("{image_text}: there are no modules in {}", modules.display()));
        } else if self.found.iter().all(|kernel| kernel.release != release) {
            self.found.push(Kernel { release: release.to_owned(), image, initramfs, modules });
        }
    }
}

/// The names of a folder's files, sorted.
fn names(sysroot: &Sysroot, folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(sysroot.path(folder)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// What kernel-install may have named this system's folders by.
fn entry_tokens(sysroot: &Sysroot) -> Vec<String> {
    let files = ["/etc/kernel/entry-token", "/etc/machine-id"].map(|path| fs::read_to_string(sysroot.path(path)));
    let texts = files.into_iter().flatten().map(|text| text.trim().to_owned());
    let mut tokens: Vec<String> = texts.filter(|text| !text.is_empty() && !text.contains('/')).collect();
    tokens.dedup();
    tokens
}

/// Orders releases as people read them: numbers by their value.
pub(super) fn version_key(release: &str) -> Vec<(u64, String)> {
    let mut key = Vec::new();
    let mut rest = release;
    while !rest.is_empty() {
        let text_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, after) = rest.split_at(text_end);
        let digits_end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (digits, left) = after.split_at(digits_end);
        key.push((digits.parse().unwrap_or(0), text.to_owned()));
        rest = left;
    }
    key
}

/// No two kernels may share an initramfs: it holds the modules of one of them at most.
///
/// # Errors
/// Two do.
pub fn check_distinct(sysroot: &Sysroot, kernels: &[Kernel]) -> Result<(), Failure> {
    let mut owners: BTreeMap<(u64, u64), &Kernel> = BTreeMap::new();
    for kernel in kernels {
        for file in &kernel.initramfs {
            let path = resolved(sysroot, file)?;
            let metadata =
                fs::metadata(&path).map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
            let Some(other) = owners.insert((metadata.dev(), metadata.ino()), kernel) else { continue };
            if other.release != kernel.release {
                let fact = format!("{}: kernels {} and {} share it", file.display(), other.release, kernel.release);
                return Err(Failure::new(ExitStatus::BadInput, fact).next(
                    "make an initramfs for each: update-initramfs -u -k all, or dracut --regenerate-all --force",
                ));
            }
        }
    }
    Ok(())
}

/// Where a file of the system really lies.
///
/// # Errors
/// It is missing.
pub(super) fn resolved(sysroot: &Sysroot, file: &Path) -> Result<PathBuf, Failure> {
    let found = sysroot.resolve(file).map(|path| sysroot.path(path));
    found.map_err(|error: io::Error| Failure::io(format_args!("find {}", file.display()), &error))
}

/// An initramfs that holds modules must hold those of its kernel, and of no other.
///
/// # Errors
/// It is that of another kernel, or no initramfs.
pub fn check_initramfs(sysroot: &Sysroot, kernel: &Kernel) -> Result<(), Failure> {
    for file in &kernel.initramfs {
        let found = releases_in(&resolved(sysroot, file)?)?;
        if !found.is_empty() && !found.contains(&kernel.release) {
            let found = found.join(", ");
            let fact = format!("{}: expected modules of {}, found those of {found}", file.display(), kernel.release);
            return Err(Failure::new(ExitStatus::BadInput, fact).next(format!(
                "make it anew: update-initramfs -u -k {0}, or dracut --force --kver {0}",
                kernel.release
            )));
        }
    }
    Ok(())
}

/// The releases whose modules an initramfs holds.
fn releases_in(file: &Path) -> Result<Vec<String>, Failure> {
    let listed = initramfs::inspect(file)?;
    let release = |name: &str| {
        let name = name.trim_start_matches("./").trim_start_matches('/');
        let below = name.strip_prefix("usr/").unwrap_or(name).strip_prefix("lib/modules/")?;
        Some(below.split('/').next()?.to_owned())
    };
    let mut found: Vec<String> = listed.entries.iter().filter_map(|entry| release(&entry.name)).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_the_numbers_in_them() {
        let mut releases =
            ["6.12.9-amd64", "6.1.0-10-amd64", "6.1.0-9-amd64", "6.12.41+deb13-amd64", "6.12.9+deb13-amd64"];
        releases.sort_by_key(|release| version_key(release));
        assert_eq!(releases[..2], ["6.1.0-9-amd64", "6.1.0-10-amd64"]);
        assert_eq!(releases[4], "6.12.41+deb13-amd64");
    }
}
