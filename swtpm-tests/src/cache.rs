//! Roots, kernels, stubs and tools that `make cache` put into `cache/`, and where tests leave what they make.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The release, as `uname -r` prints it.
    pub version: String,
    /// The bootable image.
    pub vmlinuz: PathBuf,
    /// The kernel's build configuration.
    pub config: PathBuf,
    /// The folder that holds `modules.dep`.
    pub modules: PathBuf,
}

/// The kernel of a Debian suite: `bookworm` (6.1) or `trixie` (6.12).
///
/// # Errors
///
/// Where it is not in the cache; the message names the command that puts it there.
pub fn kernel(suite: &str) -> Result<Kernel> {
    let folder = cached(&format!("kernels/{suite}"))?;
    let version = fs::read_to_string(folder.join("version"))
        .with_context(|| format!("{} is incomplete; delete it, then run: make cache", folder.display()))?;
    Ok(Kernel {
        version: version.trim().to_owned(),
        vmlinuz: folder.join("vmlinuz"),
        config: folder.join("config"),
        modules: folder.join("modules"),
    })
}

/// The root tree of a Debian suite, as an uncompressed tar archive.
///
/// # Errors
///
/// Where it is not in the cache; the message names the command that puts it there.
pub fn root(suite: &str) -> Result<PathBuf> {
    cached(&format!("roots/{suite}.tar"))
}

/// The UEFI stub of a Debian suite's systemd: `bookworm` (252) or `trixie` (257).
///
/// # Errors
///
/// Where it is not in the cache; the message names the command that puts it there.
pub fn stub(suite: &str) -> Result<PathBuf> {
    cached(&format!("stubs/{suite}/linuxx64.efi.stub"))
}

/// The boot loader of a Debian suite's systemd.
///
/// # Errors
///
/// As [`stub`].
pub fn boot_loader(suite: &str) -> Result<PathBuf> {
    cached(&format!("stubs/{suite}/systemd-bootx64.efi"))
}

/// The folder of an installed machine, as `scripts/make-machine` calls it.
///
/// # Errors
///
/// Where it is not in the cache; the message names the command that puts it there.
pub fn machine(name: &str) -> Result<PathBuf> {
    let path = workspace().join("cache/machines").join(name);
    ensure!(path.exists(), "{} is missing\n  run: scripts/make-machine {name}", path.display());
    Ok(path)
}

/// The Python interpreter that has the package `virt-firmware`.
///
/// # Errors
///
/// Where it is not there; the message names the command that installs it.
pub fn virt_firmware_python() -> Result<PathBuf> {
    let path = workspace().join("cache/tools/virt-firmware/bin/python");
    ensure!(path.exists(), "virt-firmware is not installed\n  run: scripts/get-virt-firmware");
    Ok(path)
}

/// The folder of the workspace.
pub fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("the package's folder lies in the workspace")
}

/// A folder below the build's target folder, made where it is missing: for logs and scratch disks.
///
/// # Errors
///
/// Where it cannot be made.
pub fn target_folder(name: &str) -> Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    // QEMU is given these paths, and need not share the working folder that a relative one is meant from.
    let folder = std::path::absolute(target)?.join(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

fn cached(name: &str) -> Result<PathBuf> {
    let path = workspace().join("cache").join(name);
    ensure!(path.exists(), "{} is missing\n  run: make cache", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_entry_names_the_command_that_makes_it() {
        let error = root("no-such-suite").unwrap_err().to_string();
        assert!(error.contains("roots/no-such-suite.tar"), "{error}");
        assert!(error.contains("make cache"), "{error}");
    }

    #[test]
    fn target_folders_are_made_and_absolute() {
        let folder = target_folder("vm-scratch").unwrap();
        assert!(folder.is_absolute() && folder.is_dir());
    }
}
