//! What is there: kernels, boot loader, boot file system. Nothing is changed.

use std::path::Path;

use super::{
    boot::{BootFileSystem, Loader},
    kernels::{self, Kernel},
    mounts::{self, Mount},
    sysroot::Sysroot,
};
use crate::report::{ExitStatus, Failure};

/// What a look at a system gives.
#[derive(Debug)]
pub struct Survey {
    /// The kernels to seal for, the newest last.
    pub kernels: Vec<Kernel>,
    /// Every release that is there.
    pub all_releases: Vec<String>,
    /// Why others were passed over.
    pub passed_over: Vec<String>,
    /// The boot loader.
    pub loader: Loader,
    /// The file system that it reads.
    pub boot: BootFileSystem,
    /// All mounts.
    pub mounts: Vec<Mount>,
}

/// Looks at a system, for these releases or for all.
///
/// # Errors
/// Something that is needed is not there, or not as it must be.
pub fn survey(sysroot: &Sysroot, loader: Loader, wanted: &[String]) -> Result<Survey, Failure> {
    let mounts = mounts::read(sysroot)?;
    let boot = BootFileSystem::of(sysroot, &mounts, loader.folder())?;
    let entries = matches!(loader, Loader::SystemdBoot(_)).then(|| loader.folder());
    let found = kernels::find(sysroot, entries);
    kernels::check_distinct(sysroot, &found.found)?;
    let all_releases: Vec<String> = found.found.iter().map(|kernel| kernel.release.clone()).collect();
    if let Some(absent) = wanted.iter().find(|release| !all_releases.contains(release)) {
        let fact = format!("no kernel {absent} with an initramfs and modules; there are: {}", all_releases.join(", "));
        return Err(Failure::new(ExitStatus::Usage, said(fact, &found.passed_over)));
    }
    let mut kernels = found.found;
    kernels.retain(|kernel| wanted.is_empty() || wanted.contains(&kernel.release));
    if kernels.is_empty() {
        let looked = "/boot/vmlinuz-RELEASE with initrd.img-RELEASE or initramfs-RELEASE.img, and ENTRY-TOKEN/RELEASE/linux in \
                      /boot, /efi, /boot/efi";
        let fact = said(format!("no kernel was found: looked for {looked}"), &found.passed_over);
        return Err(Failure::new(ExitStatus::Usage, fact).next("install a kernel package, and mount /boot"));
    }
    for kernel in &kernels {
        kernels::check_initramfs(sysroot, kernel)?;
    }
    Ok(Survey { kernels, all_releases, passed_over: found.passed_over, loader, boot, mounts })
}

fn said(fact: String, passed_over: &[String]) -> String {
    if passed_over.is_empty() { fact } else { format!("{fact} ({})", passed_over.join("; ")) }
}

impl Survey {
    /// Our own folder below that of the loader.
    pub fn folder(&self) -> std::path::PathBuf {
        self.boot.folder.join("iofs")
    }

    /// Private keys must not lie where the loader's files are: nothing there is secret.
    ///
    /// # Errors
    /// One does.
    pub fn check_keys<'a>(&self, sysroot: &Sysroot, keys: impl Iterator<Item = &'a Path>) -> Result<(), Failure> {
        for key in keys {
            let resolved = sysroot.resolve(key).map_err(|error| {
                Failure::io(format_args!("private key {}", key.display()), &error)
                    .next("make one: iofs-sign keygen NAME; or let a command sign: --agent COMMAND --agent-key PUBLIC")
            })?;
            let boot = BootFileSystem::of(sysroot, &self.mounts, Path::new("/boot"));
            let on_boot =
                [Ok(&self.boot), boot.as_ref()].into_iter().flatten().any(|boot| boot.holds(&self.mounts, &resolved));
            if on_boot {
                let fact =
                    format!("private key {}: it is on the boot file system, which everybody reads", key.display());
                return Err(Failure::new(ExitStatus::Usage, fact)
                    .next("move it, to /etc/iofs of an encrypted root for one; or sign elsewhere: --agent COMMAND"));
            }
        }
        Ok(())
    }
}
