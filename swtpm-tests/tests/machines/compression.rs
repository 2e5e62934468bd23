//! Each compression of the root and of the mini-initramfs, read by the kernels that can, and refused for those that cannot.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use iofs_sign::{
    erofs::{ImageCompression, check_image},
    initramfs::Format,
    report::{ExitStatus, Failure},
    sealed,
};
use sha2::{Digest, Sha256};
use swtpm_tests::{
    Ending, Line,
    chain::{Chain, ROOT_REACHED, tiny_root},
};

const PATIENCE: Duration = Duration::from_secs(90);
/// A level of its own, so that a test of zstd does not pass with its default level only.
const ZSTD: ImageCompression = ImageCompression::Zstd(Some(9));

/// Text of several clusters that compresses well, but not to nothing.
fn text() -> Vec<u8> {
    (0..400_000_u32)
        .flat_map(|number| format!("{:x} ", number.wrapping_mul(2_654_435_761) >> 12).into_bytes())
        .collect()
}

fn seal(suite: &str, root: &Path, compression: ImageCompression) -> Result<Chain> {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    Chain::seal(suite, root, |request| request.config.filesystem.compression = Some(compression))
}

/// Why nothing was sealed.
fn refusal(sealed: Result<Chain>) -> Result<Failure> {
    match sealed {
        Ok(_) => bail!("it was sealed"),
        Err(error) => error.downcast(),
    }
}

/// Seals a root with the text in it, and has the kernel read it from the image.
fn reads_all_of_it(name: &str, suite: &str, compression: ImageCompression) -> Result<()> {
    let root = tempfile::tempdir()?;
    tiny_root(root.path(), "busybox sha256sum /text")?;
    fs::write(root.path().join("text"), text())?;
    let chain = seal(suite, root.path(), compression)?;
    let image = chain.directory().file(sealed::IMAGE);
    let found = check_image(&image, None)?;
    ensure!(found.algorithms() == Vec::from_iter(compression.algorithm()), "{:?}", found.algorithms());

    let (disk, _) = chain.disk()?;
    let mut vm = chain.machine(name, &disk).start()?;
    vm.wait_for_line(&Line::containing(ROOT_REACHED), PATIENCE)?;
    let digest: String = Sha256::digest(text()).iter().map(|byte| format!("{byte:02x}")).collect();
    vm.wait_for_line(&Line::exactly(&format!("{digest}  /text")), PATIENCE)?;
    ensure!(vm.wait_for_end(PATIENCE)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn a_root_without_compression_is_read_by_6_1() -> Result<()> {
    reads_all_of_it("compression_none_6_1", "bookworm", ImageCompression::None)
}

#[test]
fn a_root_with_lz4hc_is_read_by_6_1() -> Result<()> {
    reads_all_of_it("compression_lz4hc_6_1", "bookworm", ImageCompression::Lz4Hc(Some(12)))
}

#[test]
fn a_root_with_lz4_is_read_by_6_12() -> Result<()> {
    reads_all_of_it("compression_lz4_6_12", "trixie", ImageCompression::Lz4)
}

#[test]
fn a_root_with_zstd_is_read_by_6_12() -> Result<()> {
    reads_all_of_it("compression_zstd_6_12", "trixie", ZSTD)
}

#[test]
fn a_mini_initramfs_of_xz_is_smaller_and_unpacked_by_both_kernels() -> Result<()> {
    for suite in ["bookworm", "trixie"] {
        let [usual, chain] = [None, Some(Format::Xz)]
            .map(|format| Chain::tiny(suite, "true", |request| request.config.modules.compress = format));
        let (usual, chain) = (usual?, chain?);
        let size = |chain: &Chain| fs::metadata(chain.directory().file(sealed::INITRAMFS)).map(|found| found.len());
        ensure!(size(&chain)? < size(&usual)?, "{suite}: {} bytes", size(&chain)?);
        let (disk, _) = chain.disk()?;
        let mut vm = chain.machine(&format!("compression_xz_{suite}"), &disk).start()?;
        vm.wait_for_line(&Line::containing(ROOT_REACHED), PATIENCE)?;
        ensure!(vm.wait_for_end(PATIENCE)? == Ending::PoweredOff);
    }
    Ok(())
}

/// What counts is the kernel that will have to read.
#[test]
fn zstd_is_refused_for_6_1() -> Result<()> {
    let root = tempfile::tempdir()?;
    let failure = refusal(seal("bookworm", root.path(), ZSTD))?;
    ensure!(failure.status == ExitStatus::Usage, "{failure}");
    let expected = "option compression: expected lz4, or a kernel from 6.10 on, found zstd for 6.1";
    ensure!(failure.fact == expected, "{failure}");
    ensure!(failure.next_step.context("no way out")?.contains("lz4"));
    Ok(())
}

/// A ready image, made elsewhere.
#[test]
fn a_ready_image_with_zstd_is_refused_for_6_1() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("root.erofs");
    let root = folder.path().join("root");
    fs::create_dir(&root)?;
    fs::write(root.join("text"), text())?;
    fs::copy(seal("trixie", &root, ZSTD)?.directory().file(sealed::IMAGE), &image)?;
    let failure = refusal(Chain::seal("bookworm", &image, |_| ()))?;
    ensure!(failure.status == ExitStatus::Usage, "{failure}");
    ensure!(failure.fact.contains("target kernel 6.1: erofs with zstd needs Linux 6.10 or later"), "{failure}");
    Ok(())
}
