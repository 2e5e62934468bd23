//! The static `verify-init` that goes into an initramfs. There are two: that in full opens encrypted volumes
//! and pins a TPM as well, and is larger.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    InitramfsError,
    elf::{Elf, Machine},
};
use crate::report::{ExitStatus, Failure};

/// Where packages put them.
const INSTALLED: &str = "/usr/lib/iofs";
/// The section in which verify-init says, in words, what it was built with.
const ABILITIES: &str = ".iofs.abilities";
const FULL: &str = "full";

/// The file's name: in full, or without what opens volumes and pins a TPM.
pub fn file_name(full: bool) -> &'static str {
    if full { "verify-init-full" } else { "verify-init" }
}

fn find(asked: Option<&Path>, full: bool) -> Result<PathBuf, Failure> {
    let folders = match asked {
        Some(asked) if !asked.is_dir() => return Ok(asked.to_owned()),
        Some(folder) => vec![folder.to_owned()],
        None => {
            let beside = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.to_owned()));
            beside.into_iter().chain([PathBuf::from(INSTALLED)]).collect()
        }
    };
    let found = folders.iter().map(|folder| folder.join(file_name(full))).find(|path| path.is_file());
    found.ok_or_else(|| {
        let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        Failure::new(ExitStatus::Missing, format!("no {} in {}", file_name(full), folders.join(" or ")))
            .next("name it, or its folder, with --init or IOFS_VERIFY_INIT; scripts/build-boot builds it")
    })
}

/// Reads the smallest one that can do what is needed: of the folder that is asked for, else of that of this program, else
/// of where packages put it. A file that is asked for is taken as it is, if it can.
///
/// # Errors
/// If there is none, it cannot be read, or it was built without what is needed.
pub fn read(asked: Option<&Path>, full: bool) -> Result<Vec<u8>, Failure> {
    let path = find(asked, full)?;
    let bytes = fs::read(&path).map_err(|error| {
        Failure::io(format_args!("read {}", path.display()), &error)
            .next("build it with scripts/build-boot, or name it with --init")
    })?;
    if full && !is_full(&bytes) {
        let fact = format!(
            "{} was built without what opens encrypted volumes and files, pins a TPM and starts second stages",
            path.display()
        );
        let next = format!("give {} with --init, or the folder that holds both", file_name(true));
        return Err(Failure::new(ExitStatus::Missing, fact).next(next));
    }
    Ok(bytes)
}

fn is_full(init: &[u8]) -> bool {
    let abilities = Elf::parse(init).and_then(|elf| elf.section(ABILITIES)).unwrap_or_default();
    String::from_utf8_lossy(abilities).split_whitespace().any(|word| word == FULL)
}

/// Whether the kernel can start it, alone.
pub(super) fn check(init: &[u8], machine: Machine) -> Result<(), InitramfsError> {
    let refuse = |reason: String| Err(InitramfsError::Init(reason));
    let Some(elf) = Elf::parse(init) else {
        return refuse("not a 64-bit ELF file for x86-64 or arm64".to_owned());
    };
    if elf.machine != machine {
        return refuse(format!("built for {}, the kernel is for {}", elf.machine.name(), machine.name()));
    }
    match elf.is_static_executable() {
        Some(true) => Ok(()),
        _ => refuse("not a static executable, and there is no dynamic linker in the initramfs".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::elf::tests::executable_with, *};

    #[test]
    fn of_a_folder_the_one_that_is_needed_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = |full| folder.path().join(file_name(full));
        fs::write(path(false), "").unwrap();
        assert_eq!(find(Some(folder.path()), false).unwrap(), path(false));
        let failure = find(Some(folder.path()), true).unwrap_err();
        assert!(failure.fact.contains("no verify-init-full in"), "{}", failure.fact);
        fs::write(path(true), "").unwrap();
        assert_eq!(find(Some(folder.path()), true).unwrap(), path(true));
        let named = folder.path().join("other");
        assert_eq!(find(Some(&named), true).unwrap(), named);
    }

    #[test]
    fn one_that_opens_no_volumes_is_refused_where_there_are_some() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("init");
        fs::write(&path, executable_with(1, 62)).unwrap();
        assert!(read(Some(&path), false).is_ok());
        let failure = read(Some(&path), true).unwrap_err();
        assert!(failure.fact.contains("without what opens encrypted volumes"), "{}", failure.fact);
    }
}
