//! A Debian root whose device can be asked to attest: `iofs-sign`, the TPM libraries that it loads, and a shell for tests.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};
use iofs_policy::manifest::{RollbackIndex, TpmUse};
use iofs_sign::{seal::SealRequest, sealed};
use tempfile::TempPath;

use crate::{
    BASE_COMMAND_LINE,
    cache::{self, target_folder},
    chain::Chain,
    tools,
};

/// The shell, where a sealed init finds it.
pub const SHELL_INIT: &str = "/usr/sbin/device-shell";
/// Libraries that are loaded at run time, by `iofs-sign` and by systemd, where Debian keeps them on x86-64. The dynamic
/// linker names the others.
const LOADED: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/libtss2-esys.so.0",
    "/usr/lib/x86_64-linux-gnu/libtss2-mu.so.0",
    "/usr/lib/x86_64-linux-gnu/libtss2-rc.so.0",
    "/usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0",
];

/// The root as a tar archive, made once per test program.
///
/// # Errors
///
/// Where the cache lacks the Debian root, or `iofs-sign` does not build.
pub fn root() -> Result<PathBuf> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    MADE.get_or_init(|| make().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

/// The same root with the files of a folder added to it, which has `etc` and `usr`: an archive of its own, gone when dropped.
///
/// # Errors
///
/// As [`root`].
pub fn root_with(added: &Path) -> Result<TempPath> {
    appended(&root()?, added)
}

fn make() -> Result<PathBuf> {
    let added = tempfile::tempdir()?;
    let place = |name: &str| added.path().join(name);
    for folder in ["usr/bin", "usr/lib/iofs-test"] {
        fs::create_dir_all(place(folder))?;
    }
    add_shell(added.path())?;
    let program = program("iofs-sign")?;
    run(Command::new("objcopy").arg("--strip-all").args([&program, &place("usr/bin/iofs-sign")]))?;
    let half = self::program("half-measure")?;
    run(Command::new("objcopy").arg("--strip-all").args([&half, &place("usr/bin/half-measure")]))?;
    for library in libraries(&program)? {
        let name = library.file_name().context("a library has a name")?;
        copy(&library, &place("usr/lib/iofs-test").join(name), 0o644)?;
    }
    extended(&cache::root("trixie")?, added.path(), "attester")
}

/// A root with the files of a folder added to it, which keeps the name that it gets.
pub(crate) fn extended(root: &Path, added: &Path, name: &str) -> Result<PathBuf> {
    // The finished archive takes the place of an earlier program's in one step.
    let finished = target_folder("vm-scratch")?.join(format!("{name}.tar"));
    appended(root, added)?.persist(&finished)?;
    Ok(finished)
}

fn appended(root: &Path, added: &Path) -> Result<TempPath> {
    let tar = tempfile::Builder::new().suffix(".tar").tempfile_in(target_folder("vm-scratch")?)?.into_temp_path();
    fs::copy(root, &tar)?;
    run(Command::new("tar")
        .args(["--append", "--owner=0", "--group=0", "--file"])
        .arg(&tar)
        .arg("--directory")
        .args([added, Path::new("etc"), Path::new("usr")]))?;
    Ok(tar)
}

/// Puts the shell that tests run commands in below `added`, with the unit that starts it in a whole system.
pub(crate) fn add_shell(added: &Path) -> Result<()> {
    for folder in ["usr/sbin", "etc/systemd/system/multi-user.target.wants"] {
        fs::create_dir_all(added.join(folder))?;
    }
    let guest = cache::workspace().join("swtpm-tests/guest");
    copy(&guest.join("device-shell"), &added.join("usr/sbin/device-shell"), 0o755)?;
    copy(&guest.join("device-shell.service"), &added.join("etc/systemd/system/device-shell.service"), 0o644)?;
    let wanted = added.join("etc/systemd/system/multi-user.target.wants/device-shell.service");
    Ok(std::os::unix::fs::symlink("../device-shell.service", wanted)?)
}

/// Waits on such a device until [`add_mark_good`]'s unit is done, which must have succeeded.
pub const MARKED_GOOD: &str = "until systemctl is-active --quiet iofs-mark-good || \
    systemctl is-failed --quiet iofs-mark-good; do sleep 1; done; systemctl is-active iofs-mark-good";

/// Puts the unit that confirms a boot once it is complete below `added`, as `packaging/` has it, with this in its environment.
///
/// # Errors
///
/// Where a file cannot be written.
pub fn add_mark_good(added: &Path, environment: &str) -> Result<()> {
    let (units, name) = (added.join("etc/systemd/system"), "iofs-mark-good.service");
    for folder in ["multi-user.target.wants", "iofs-mark-good.service.d"] {
        fs::create_dir_all(units.join(folder))?;
    }
    fs::create_dir_all(added.join("usr"))?;
    fs::copy(cache::workspace().join("packaging").join(name), units.join(name))?;
    let here = format!("[Service]\nEnvironment={environment} LD_LIBRARY_PATH=/usr/lib/iofs-test\n");
    fs::write(units.join("iofs-mark-good.service.d/here.conf"), here)?;
    Ok(std::os::unix::fs::symlink(format!("../{name}"), units.join("multi-user.target.wants").join(name))?)
}

/// A sealed device that boots right into the shell: the same image each time, and what `change` makes of its manifest.
///
/// # Errors
///
/// As [`root`], and where sealing fails.
pub fn quick(change: impl FnOnce(&mut SealRequest)) -> Result<Chain> {
    seal(&image()?, change)
}

/// The same from the root's files, which takes longer: a unified kernel image has the root's os-release then.
///
/// # Errors
///
/// As [`quick`].
pub fn whole(change: impl FnOnce(&mut SealRequest)) -> Result<Chain> {
    seal(&root()?, change)
}

fn seal(root: &Path, change: impl FnOnce(&mut SealRequest)) -> Result<Chain> {
    Chain::seal("trixie", root, |request| {
        request.config.boot.init = Some(SHELL_INIT.parse().expect("valid"));
        request.config.image.id = Some("org.example.attester".parse().expect("valid"));
        request.config.image.version = Some("7".parse().expect("valid"));
        request.config.image.rollback_index = RollbackIndex(7);
        request.config.tpm.usage = TpmUse::Required;
        request.config.boot.command_lines = command_lines();
        change(request);
    })
}

/// What `/proc/cmdline` shows: with a BIOS, and with UEFI firmware, whose loader adds a word.
pub fn command_lines() -> Vec<String> {
    let line = BASE_COMMAND_LINE.join(" ");
    vec![line.clone(), format!("{line} initrd=initrd")]
}

/// The root as an erofs image, made once per test program.
fn image() -> Result<PathBuf> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let make = || erofs("trixie", &root()?, "attester");
    MADE.get_or_init(|| make().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

/// A root as an erofs image, which keeps the name that it gets.
pub(crate) fn erofs(suite: &str, root: &Path, name: &str) -> Result<PathBuf> {
    let chain = Chain::seal(suite, root, |request| request.kernel = None)?;
    let scratch = target_folder("vm-scratch")?;
    let making = tempfile::NamedTempFile::new_in(&scratch)?.into_temp_path();
    fs::copy(chain.directory().file(sealed::IMAGE), &making)?;
    let finished = scratch.join(format!("{name}.erofs"));
    making.persist(&finished)?;
    Ok(finished)
}

pub(crate) fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}

pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// A program of this workspace. It is there already, for what is asked of cargo has the features of the tests that ask.
///
/// # Errors
///
/// Where it does not build.
pub fn program(name: &str) -> Result<PathBuf> {
    run(Command::new("cargo")
        .args(["build", "--quiet", "--locked", "--workspace", "--test", "machines", "--bin", name])
        .current_dir(cache::workspace()))?;
    Ok(target_folder("debug")?.join(name))
}

/// What a small Debian root lacks of what `iofs-sign` stands on: libtss2, and libcryptsetup with its own. What it has stays the
/// one that is used: the commands of the root want it as new as they are.
const LACKING: [&str; 5] = ["libtss2", "libcryptsetup", "libdevmapper", "libjson-c", "libargon2"];

/// The libraries that the program and what it loads need, and that a Debian root lacks.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    for library in LOADED {
        ensure!(Path::new(library).exists(), "{library} is missing\n  run: apt-get install libtss2-dev");
    }
    for object in LOADED.iter().map(Path::new).chain([program]) {
        let ldd = tools::require("ldd", "apt-get install libc-bin")?;
        let text = String::from_utf8(run(Command::new(ldd).arg(object))?)?;
        let names = text.lines().filter_map(|line| Some(PathBuf::from(line.split_once("=> ")?.1.split(' ').next()?)));
        found.extend(names.filter(|path| LACKING.iter().any(|lacking| path.to_string_lossy().contains(lacking))));
        if object != program {
            found.push(object.to_owned());
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}
