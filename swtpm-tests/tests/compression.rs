//! Each compression of the root, read by the kernels that can, and refused for those that cannot.
//!
//! Debian 12's `mkfs.erofs` 1.5 has no zstd, Debian 13's 1.8 has: each test of zstd asserts what is true for the program
//! that is installed.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use iofs_sign::{
    erofs::{Algorithm, ImageCompression, check_image, mkfs::MkfsErofs},
    report::{ExitStatus, Failure},
    sealed,
};
use sha2::{Digest, Sha256};
use swtpm_tests::{
    Ending, Line,
    chain::{Chain, ROOT_REACHED, tiny_root},
};

const PATIENCE: Duration = Duration::from_secs(90);
/// What `mkfs.erofs` is asked for, so that a test of zstd does not pass with its default level only.
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

fn has_zstd() -> Result<bool> {
    Ok(MkfsErofs::find()?.compressors().iter().any(|name| name == Algorithm::Zstd.name()))
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
fn a_root_with_zstd_is_read_by_6_12_or_the_program_that_cannot_write_it_is_named() -> Result<()> {
    if has_zstd()? {
        return reads_all_of_it("compression_zstd_6_12", "trixie", ZSTD);
    }
    let root = tempfile::tempdir()?;
    let failure = refusal(seal("trixie", root.path(), ZSTD))?;
    ensure!(failure.status == ExitStatus::Missing, "{failure}");
    let generator = MkfsErofs::find()?.generator();
    ensure!(failure.fact == format!("{generator}: compressor zstd is not built in, only lz4, lz4hc"), "{failure}");
    ensure!(failure.next_step.context("no way out")?.contains("Debian 13 has zstd"));
    Ok(())
}

/// Whether or not the program could write it: what counts is the kernel that will have to read.
#[test]
fn zstd_is_refused_for_6_1() -> Result<()> {
    let root = tempfile::tempdir()?;
    let failure = refusal(seal("bookworm", root.path(), ZSTD))?;
    ensure!(failure.status == ExitStatus::Usage, "{failure}");
    ensure!(failure.fact == "target kernel 6.1: erofs with zstd needs Linux 6.10 or later", "{failure}");
    ensure!(failure.next_step.context("no way out")?.contains("lz4"));
    Ok(())
}

/// A ready image, made elsewhere.
#[test]
fn a_ready_image_with_zstd_is_refused_for_6_1() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("root.erofs");
    if has_zstd()? {
        let root = folder.path().join("root");
        fs::create_dir(&root)?;
        fs::write(root.join("text"), text())?;
        fs::copy(seal("trixie", &root, ZSTD)?.directory().file(sealed::IMAGE), &image)?;
    } else {
        claim_zstd(&image)?;
    }
    let failure = refusal(Chain::seal("bookworm", &image, |_| ()))?;
    ensure!(failure.status == ExitStatus::Usage, "{failure}");
    ensure!(failure.fact.contains("target kernel 6.1: erofs with zstd needs Linux 6.10 or later"), "{failure}");
    Ok(())
}

/// An image whose superblock lists zstd, where nothing can write one: Linux `fs/erofs/erofs_fs.h`.
fn claim_zstd(image: &Path) -> Result<()> {
    let root = tempfile::tempdir()?;
    let mut bytes = fs::read(seal("trixie", root.path(), ImageCompression::None)?.directory().file(sealed::IMAGE))?;
    let superblock = &mut bytes[1024..];
    superblock[8] &= !1; // feature_compat: no checksum
    superblock[80] |= 2; // feature_incompat: a list of algorithms
    superblock[84..86].copy_from_slice(&8_u16.to_le_bytes()); // available_compr_algs: bit 3
    fs::write(image, bytes)?;
    Ok(())
}
