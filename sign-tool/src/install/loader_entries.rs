//! systemd-boot's entries (Boot Loader Specification, type 1) and unified kernel images (type 2).

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{kernels::Kernel, sealing, sysroot::Sysroot};
use crate::report::{ExitStatus, Failure};

/// What matches our entries and images alike.
const DEFAULT: &str = "default iofs-*";

/// The distribution's entry of a kernel.
#[derive(Debug)]
pub(super) struct StockEntry {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// Where our entry of a kernel lies.
pub(super) fn path(folder: &Path, release: &str) -> PathBuf {
    folder.join(format!("loader/entries/iofs-{release}.conf"))
}

/// Where our unified kernel image lies.
pub(super) fn image(folder: &Path, release: &str) -> PathBuf {
    folder.join(format!("EFI/Linux/iofs-{release}.efi"))
}

/// The values of a key, in their order.
fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| Some(line.trim().strip_prefix(key)?.strip_prefix([' ', '\t'])?.trim()))
}

/// Finds the distribution's entry of a kernel: the one that loads the same file. Without a fallback it may have gone, and ours
/// is there already.
///
/// # Errors
/// There is neither.
pub(super) fn stock_entry(sysroot: &Sysroot, folder: &Path, kernel: &Kernel) -> Result<Option<StockEntry>, Failure> {
    let entries = folder.join("loader/entries");
    let listed = fs::read_dir(sysroot.path(&entries)).into_iter().flatten().flatten();
    let mut names: Vec<String> = listed.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.ends_with(".conf") && !name.starts_with("iofs-"));
    names.sort();
    let loaded = kernel.image.strip_prefix(folder).unwrap_or(&kernel.image);
    for path in names.iter().map(|name| entries.join(name)) {
        let text = fs::read_to_string(sysroot.path(&path)).unwrap_or_default();
        if values(&text, "linux").any(|linux| Path::new(linux.trim_start_matches('/')) == loaded) {
            return Ok(Some(StockEntry { path, text }));
        }
    }
    if sysroot.has(path(folder, &kernel.release)) {
        return Ok(None);
    }
    let fact = format!("{}: no entry in it loads {}", entries.display(), kernel.image.display());
    Err(Failure::new(ExitStatus::BadInput, fact).next(format!("make one: kernel-install add {} …", kernel.release)))
}

/// Whether what an entry loads is still there.
pub(super) fn loads_something(sysroot: &Sysroot, folder: &Path, text: &str) -> bool {
    values(text, "linux").any(|linux| sysroot.has(folder.join(linux.trim_start_matches('/'))))
}

/// The entry with our initramfs in the place of the distribution's, sorted in front of it.
pub(super) fn verified(stock: &str, release: &str, has_early: bool) -> String {
    let kept = stock.lines().filter(|line| {
        let key = line.split_whitespace().next().unwrap_or_default();
        !["title", "initrd", "sort-key", "efi", "uki"].contains(&key)
    });
    let title = values(stock, "title").next().unwrap_or("Linux");
    let mut text = format!("title {title}, verified\nsort-key 0-iofs\n");
    text.extend(kept.map(|line| format!("{line}\n")));
    let early = has_early.then_some(sealing::EARLY);
    text.extend(early.into_iter().chain([sealing::INITRAMFS]).map(|name| format!("initrd /iofs/{release}/{name}\n")));
    text
}

/// `loader.conf` with our entries as default.
pub(super) fn with_default(text: &str) -> String {
    let kept = text.lines().filter(|line| line.split_whitespace().next() != Some("default"));
    kept.chain([DEFAULT]).map(|line| format!("{line}\n")).collect()
}

/// The command line for a unified kernel image, as kernel-install takes it: configured, else the running system's.
///
/// # Errors
/// There is none.
pub(super) fn command_line(sysroot: &Sysroot) -> Result<String, Failure> {
    let text = ["/etc/kernel/cmdline", "/usr/lib/kernel/cmdline", "/proc/cmdline"]
        .iter()
        .find_map(|path| fs::read_to_string(sysroot.path(path)).ok().filter(|text| !text.trim().is_empty()));
    let text = text.ok_or_else(|| {
        Failure::new(ExitStatus::BadInput, "no kernel command line: /etc/kernel/cmdline and /proc/cmdline are empty")
            .next("write it into /etc/kernel/cmdline: root=UUID=… ro")
    })?;
    let words = text
        .split_whitespace()
        .filter(|word| !["BOOT_IMAGE=", "initrd="].iter().any(|of_loader| word.starts_with(of_loader)));
    Ok(words.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: &str = "\
# Boot Loader Specification type#1 entry
title      Debian GNU/Linux 13 (trixie)
version    6.12.0
machine-id 0123456789abcdef0123456789abcdef
sort-key   debian
options    root=UUID=1 ro quiet
linux      /0123456789abcdef0123456789abcdef/6.12.0/linux
initrd     /0123456789abcdef0123456789abcdef/6.12.0/initrd.img-6.12.0
";

    #[test]
    fn a_verified_entry_differs_in_title_order_and_initramfs_alone() {
        let ours = verified(STOCK, "6.12.0", true);
        assert!(ours.starts_with("title Debian GNU/Linux 13 (trixie), verified\nsort-key 0-iofs\n"), "{ours}");
        let initrds: Vec<&str> = values(&ours, "initrd").collect();
        assert_eq!(initrds, ["/iofs/6.12.0/early.img", "/iofs/6.12.0/initramfs.img"]);
        for key in ["version", "machine-id", "options", "linux"] {
            assert_eq!(values(&ours, key).collect::<Vec<_>>(), values(STOCK, key).collect::<Vec<_>>(), "{key}");
        }
        assert_eq!(values(&ours, "sort-key").collect::<Vec<_>>(), ["0-iofs"]);
    }

    #[test]
    fn the_default_is_replaced_and_the_rest_stays() {
        assert_eq!(with_default("timeout 3\ndefault debian-*\n"), "timeout 3\ndefault iofs-*\n");
        assert_eq!(with_default(&with_default("")), "default iofs-*\n");
    }
}
