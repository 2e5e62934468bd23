//! A Debian on disk that is changed into, not booted: what its package manager and its shells do with what we package.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::cache;

/// Mounts what programs expect, and a home in memory. The mounts are of a namespace of its own, and end with what runs in it.
const ENTER: &str = "
    mount --rbind /dev \"$1/dev\"
    mount -t proc proc \"$1/proc\"
    mount -t tmpfs tmpfs \"$1/root\"
    exec chroot \"$1\" /bin/sh -ec \"$2\"";

/// The same as a system whose root is a file system on a disk, which GRUB can find: the one that this folder is on. Its id is made up.
const ENTER_SYSTEM: &str = "
    mount --bind \"$1\" \"$1\"
    mount -t tmpfs tmpfs \"$1/dev\"
    mount -t tmpfs tmpfs \"$1/root\"
    mount -t proc proc \"$1/proc\"
    mount -t sysfs sysfs \"$1/sys\"
    device=$(findmnt --noheadings --output SOURCE --nofsroot --target \"$1\" | tail -n 1)
    cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom \"$device\" \"$1/dev\"
    mkdir -p \"$1/dev/disk/by-uuid\"
    ln -s \"../../${device##*/}\" \"$1/dev/disk/by-uuid/2f0e7a54-5a4b-4f0c-9c5e-0a1b2c3d4e5f\"
    exec chroot \"$1\" /bin/sh -ec \"$2\"";

/// The package, built once per test program.
///
/// # Errors
///
/// Where it does not build.
pub fn package() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_package().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn build_package() -> Result<PathBuf> {
    let output = Command::new("scripts/make-deb").current_dir(cache::workspace()).output()?;
    ensure!(output.status.success(), "scripts/make-deb: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().context("scripts/make-deb printed nothing")?;
    Ok(cache::workspace().join(line))
}

/// An unpacked root of a Debian suite, gone when dropped.
#[derive(Debug)]
pub struct Debian {
    root: TempDir,
}

impl Debian {
    /// Unpacks `cache/roots/SUITE-package.tar`.
    ///
    /// # Errors
    ///
    /// Where the cache lacks it, or this is not root, who alone can make its owners and devices.
    pub fn unpacked(suite: &str) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "a root is changed into: run this test as root");
        // Hundreds of megabytes, and /tmp may be memory.
        let root = tempfile::tempdir_in("/var/tmp")?;
        let archive = cache::root(&format!("{suite}-package"))?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--numeric-owner", "--preserve-permissions", "--xattrs", "--directory"]);
        let output = tar.arg(root.path()).arg("--file").arg(&archive).output()?;
        ensure!(output.status.success(), "{}: {}", archive.display(), String::from_utf8_lossy(&output.stderr));
        // It would leave out our manual pages and documents as it left out all others.
        fs::remove_file(root.path().join("etc/dpkg/dpkg.cfg.d/99mmdebstrap"))?;
        Ok(Self { root })
    }

    /// A path in it, as it is named from outside.
    pub fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    /// Runs a shell script in it, which must succeed, and gives what it printed.
    ///
    /// # Errors
    ///
    /// Where it fails.
    pub fn shell(&self, script: &str) -> Result<String> {
        self.enter(ENTER, script)
    }

    /// The same as a system on a disk, which has a boot loader.
    ///
    /// # Errors
    ///
    /// Where it fails.
    pub fn system(&self, script: &str) -> Result<String> {
        self.enter(ENTER_SYSTEM, script)
    }

    fn enter(&self, enter: &str, script: &str) -> Result<String> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", enter, "sh"]).arg(self.root.path()).arg(script).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8").env("HOME", "/root");
        let output = command.env("DEBIAN_FRONTEND", "noninteractive").output()?;
        let (text, errors) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{script}\n{}: {text}{errors}", output.status);
        Ok(text)
    }

    /// Installs our package with apt, which has no lists to download by: what it depends on is there.
    ///
    /// # Errors
    ///
    /// Where it does not install.
    pub fn install(&self, package: &Path) -> Result<()> {
        fs::copy(package, self.path("tmp/iofs.deb"))?;
        self.shell("apt-get --quiet --yes --no-install-recommends install /tmp/iofs.deb; rm /tmp/iofs.deb").map(drop)
    }

    /// Every file with its type, mode, owner and, of a regular file, size; but not what a package manager notes for itself.
    ///
    /// # Errors
    ///
    /// Where a folder cannot be read.
    pub fn files(&self) -> Result<BTreeMap<PathBuf, String>> {
        let notes = ["var/lib/dpkg", "var/lib/apt", "var/log", "var/cache"];
        let mut files = BTreeMap::new();
        let walk = walkdir::WalkDir::new(self.root.path()).into_iter();
        for entry in walk.filter_entry(|entry| !notes.iter().any(|name| entry.path() == self.path(name))) {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let size = if metadata.is_file() { metadata.size() } else { 0 };
            let owner = (metadata.uid(), metadata.gid());
            let below = entry.path().strip_prefix(self.root.path())?.to_owned();
            files.insert(below, format!("{:o} {owner:?} {size}", metadata.mode()));
        }
        Ok(files)
    }
}
