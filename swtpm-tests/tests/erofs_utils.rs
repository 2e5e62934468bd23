//! Each Debian's own erofs-utils (1.5 of Debian 12, 1.8 of Debian 13) accept and extract our images, and we read theirs.

use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
};

use anyhow::{Result, ensure};
use erofs_image::{Image, source::directory, write::FileSink};
use iofs_sign::{
    erofs::{self, ImageCompression, ImageOptions},
    tree::{
        compare::{Ignore, compare_trees},
        odd::{self, Odd},
    },
};
use swtpm_tests::debian::Debian;

/// A tree of all that is odd, in the root of a Debian.
fn with_odd_tree(suite: &str) -> Result<Debian> {
    let debian = Debian::unpacked(suite)?;
    let tree = debian.path("srv/tree");
    fs::create_dir(&tree)?;
    odd::build(&tree, Odd { many: 300, ..Odd::ALL })?;
    Ok(debian)
}

fn write(debian: &Debian, name: &str, compression: ImageCompression, cluster_size: u32) -> Result<()> {
    let file = File::options().read(true).write(true).create_new(true).open(debian.path(&format!("srv/{name}")))?;
    let options = ImageOptions { compression, cluster_size, ..ImageOptions::default() };
    erofs::write(directory::load(&debian.path("srv/tree"))?, FileSink(file), &options)?;
    Ok(())
}

fn equal(left: &Path, right: &Path, ignore: Ignore) -> Result<()> {
    let differences = compare_trees(left, right, ignore)?;
    ensure!(
        differences.is_empty(),
        "{} differences, {:#?}",
        differences.len(),
        &differences[..differences.len().min(5)]
    );
    Ok(())
}

/// Checks and extracts our images, with `zstd` where that is known.
fn accepted(debian: &Debian, zstd: bool, ignore: Ignore) -> Result<()> {
    // Both versions leave the hole at the end of a file out, and shorten it; kernels do not.
    for name in ["hole", "sparse"] {
        fs::remove_file(debian.path("srv/tree").join(name))?;
    }
    let mut ways = vec![
        ("none", ImageCompression::None, 65536),
        ("lz4", ImageCompression::Lz4, 4096),
        ("lz4hc", ImageCompression::Lz4Hc(None), 65536),
        ("wide", ImageCompression::Lz4Hc(Some(3)), 1 << 20),
    ];
    if zstd {
        ways.push(("zstd", ImageCompression::Zstd(None), 65536));
    }
    for (name, compression, cluster_size) in ways {
        write(debian, name, compression, cluster_size)?;
        let found = debian.shell(&format!(
            "cd /srv; fsck.erofs --extract={name}.out --preserve {name} >/dev/null; dump.erofs -s {name}"
        ))?;
        ensure!(found.contains("Filesystem UUID"), "{name}: {found}");
        equal(&debian.path("srv/tree"), &debian.path(&format!("srv/{name}.out")), ignore)?;
    }
    Ok(())
}

/// It extracts neither attributes nor nanoseconds, copies hard links, and changes the owner after the mode.
#[test]
fn erofs_utils_1_5_accept_and_extract_our_images() -> Result<()> {
    let debian = with_odd_tree("bookworm")?;
    ensure!(
        debian.shell("dpkg-query -W -f '${Version}' erofs-utils")?.starts_with("1.5"),
        "Debian 12 has another version"
    );
    let ignore = Ignore {
        xattrs: true,
        nanoseconds: true,
        hard_links: true,
        set_id_modes: true,
        directory_times: true,
        ..Ignore::default()
    };
    accepted(&debian, false, ignore)
}

#[test]
fn erofs_utils_1_8_accept_and_extract_our_images() -> Result<()> {
    let debian = with_odd_tree("trixie")?;
    ensure!(
        debian.shell("dpkg-query -W -f '${Version}' erofs-utils")?.starts_with("1.8"),
        "Debian 13 has another version"
    );
    accepted(&debian, true, Ignore { xattrs: true, ..Ignore::default() })
}

#[test]
fn images_of_mkfs_erofs_1_8_are_read_as_the_trees_that_they_were_made_of() -> Result<()> {
    let debian = with_odd_tree("trixie")?;
    for options in
        ["", "-zlz4", "-zlz4hc,12 -C65536", "-zzstd -C65536", "-zlz4 -Eztailpacking", "-Eforce-inode-extended"]
    {
        debian.shell(&format!("cd /srv; rm -f image; mkfs.erofs {options} image tree >/dev/null 2>&1"))?;
        let image = Arc::new(Image::open(File::open(debian.path("srv/image"))?)?);
        image.check()?;
        let out = debian.path("srv/out");
        erofs_image::extract(&image.tree()?, &out)?;
        equal(&debian.path("srv/tree"), &out, Ignore::default())?;
        fs::remove_dir_all(&out)?;
    }
    Ok(())
}

/// What is not read is named, and nothing of it believed.
#[test]
fn images_with_what_is_not_read_are_refused_by_name() -> Result<()> {
    let debian = with_odd_tree("trixie")?;
    for options in ["-zlz4 -Efragments", "-zlz4 -Eall-fragments,dedupe -C65536", "-zdeflate"] {
        debian.shell(&format!("cd /srv; rm -f image; mkfs.erofs {options} image tree >/dev/null 2>&1"))?;
        let found = Image::open(File::open(debian.path("srv/image"))?).and_then(|image| image.check());
        let error = found.expect_err(options).to_string();
        ensure!(error.contains("is not supported; make the image without it"), "{options}: {error}");
    }
    Ok(())
}
