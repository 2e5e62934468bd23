//! What images are made of, and the same as files by the tools of others.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use iofs_sign::inspect::initramfs;
use swtpm_tests::{cache, tools};

/// A Debian root as an archive, and its files by GNU tar.
pub(crate) fn debian(suite: &str, work: &Path) -> Result<(PathBuf, PathBuf)> {
    let (archive, tree) = (cache::root(suite)?, work.join("tree"));
    fs::create_dir(&tree)?;
    let options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"].map(Path::new);
    tool("tar", "tar", &[&options[..], &[&archive, Path::new("-C"), &tree]].concat())?;
    Ok((archive, tree))
}

/// The same as a container image of one layer.
pub(crate) fn container(suite: &str, work: &Path) -> Result<(PathBuf, PathBuf)> {
    let (archive, tree) = debian(suite, work)?;
    // umoci takes a layer as it is, and writes the documents around it.
    let script = "cd \"$1\"; umoci init --layout layout; umoci new --image layout:root
        umoci raw add-layer --image layout:root \"$2\" >&2";
    tool("sh", "umoci", &[Path::new("-ec"), Path::new(script), Path::new("sh"), work, &archive])?;
    Ok((work.join("layout"), tree))
}

/// The initramfs that a distribution's root has made for itself, and its files by bsdtar, archive by archive.
pub(crate) fn stock_initramfs(package_root: &str, work: &Path) -> Result<(PathBuf, PathBuf)> {
    let script =
        "cd \"$1\"; tar --wildcards -xf \"$2\" './boot/initrd.img-*'; mv boot/initrd.img-* initrd.img; mkdir tree";
    let archive = cache::root(package_root)?;
    tool("sh", "tar", &[Path::new("-ec"), Path::new(script), Path::new("sh"), work, &archive])?;
    let (image, tree) = (work.join("initrd.img"), work.join("tree"));
    let bytes = fs::read(&image)?;
    let starts = initramfs::inspect(&image)?.segments.into_iter().map(|segment| segment.offset as usize);
    let starts: Vec<usize> = starts.collect();
    for (number, start) in starts.iter().enumerate() {
        let end = starts.get(number + 1).copied().unwrap_or(bytes.len());
        let (part, files) = (work.join(format!("part-{number}")), work.join(format!("files-{number}")));
        fs::write(&part, &bytes[*start..end])?;
        fs::create_dir(&files)?;
        let options = ["--numeric-owner", "-xpf"].map(Path::new);
        tool("bsdtar", "libarchive-tools", &[&options[..], &[&part, Path::new("-C"), &files]].concat())?;
        // It leaves directories that are there as they are; cp gives them what the later archive says.
        tool("cp", "coreutils", &[Path::new("-a"), &files.join("."), &tree])?;
    }
    ensure!(!starts.is_empty(), "an initramfs without archives");
    Ok((image, tree))
}

fn tool(name: &str, package: &str, arguments: &[&Path]) -> Result<()> {
    let program = tools::require(name, &format!("apt-get install {package}"))?;
    let output = std::process::Command::new(program).args(arguments).output().context(name.to_owned())?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
