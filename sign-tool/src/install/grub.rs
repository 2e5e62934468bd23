//! GRUB: a script among those that make its menu.

use std::path::PathBuf;

use super::sysroot::Sysroot;
use crate::report::{ExitStatus, Failure};

/// The folder of the scripts.
pub(super) const FOLDER: &str = "/etc/grub.d";
/// Ours, in front of the distribution's.
pub(super) const SCRIPT: &str = "/etc/grub.d/09_iofs";
/// What is in it.
pub(super) const SCRIPT_TEXT: &str = include_str!("09_iofs");
/// The distribution's.
pub(super) const STOCK_SCRIPT: &str = "/etc/grub.d/10_linux";

/// The program that makes the menu: what Debian's update-grub calls.
///
/// # Errors
/// It is not installed.
pub(super) fn find(sysroot: &Sysroot, program: &str) -> Result<PathBuf, Failure> {
    sysroot.find_program(program).ok_or_else(|| {
        let package =
            if program.starts_with("grub2") { "dnf install grub2-tools" } else { "apt-get install grub2-common" };
        Failure::new(ExitStatus::Missing, format!("{program}, which makes GRUB's menu (update-grub), is not installed"))
            .next(format!("{package}; or name the loader that starts this system: --loader"))
    })
}
