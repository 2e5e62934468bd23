//! A sealed image, mounted by a real kernel, is the tree that it was made of, in every byte and all metadata.

mod random;
mod sources;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use iofs_sign::{
    erofs::ImageCompression,
    inspect::initramfs,
    sealed,
    tree::odd::{self, Odd},
};
use swtpm_tests::{Disk, Ending, Line, Machine, Newc, ScratchDisk, cache, chain::Chain, tools};

const PATIENCE: Duration = Duration::from_secs(600);

/// Room for the list that the guest writes.
const LIST_SIZE: u64 = 32 << 20;

/// Mounts the image on the first disk and lists it to the second.
const INIT: &str = "#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
# Three rounds: one leaves out what needs a module that comes later.
for round in 1 2 3; do
    for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk \\
        crc32c_intel libcrc32c erofs; do
        [ -e /lib/modules/*/$module.ko ] && insmod /lib/modules/*/$module.ko 2>/dev/null
    done
done
while [ ! -b /dev/vdb ]; do sleep 0.1; done
mount -t erofs -o ro /dev/vda /sysroot && list-tree /sysroot /dev/vdb && echo 'LIST COMPLETE'
poweroff -f
";

/// The lister, static like everything else in an initramfs.
fn lister() -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = cache::target_folder("static-tools")?;
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--package", "list-tree", "--target", &target])
        .arg("--target-dir")
        .arg(&folder)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(cache::workspace())
        .status()?;
    ensure!(status.success(), "list-tree does not build");
    Ok(folder.join(target).join("debug/list-tree"))
}

fn list_here(lister: &Path, tree: &Path) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("list");
    ensure!(Command::new(lister).arg(tree).arg(&out).status()?.success(), "list-tree failed here");
    Ok(fs::read_to_string(out)?)
}

/// Lists the sealed image as the chain's own kernel sees it.
fn list_in_guest(name: &str, chain: &Chain, lister: &Path) -> Result<String> {
    let directory = chain.directory();
    let out = ScratchDisk::empty(LIST_SIZE)?;
    let initrd = guest_initramfs(chain, lister)?;
    let mut vm = Machine::named(name)
        .kernel(directory.file(sealed::KERNEL))
        .initrd(initrd.path())
        .memory_mib(1024)
        .disk(Disk::raw(directory.file(sealed::IMAGE)).read_only())
        .disk(Disk::raw(out.path()))
        .start()?;
    vm.wait_for_line(&Line::exactly("LIST COMPLETE"), PATIENCE)?;
    ensure!(vm.wait_for_end(PATIENCE)? == Ending::PoweredOff);
    let bytes = out.read(0, usize::try_from(LIST_SIZE)?)?;
    let text = String::from_utf8(bytes)?;
    let end = text.find("END OF LIST\n").context("the guest's list is incomplete")?;
    Ok(text[..end + "END OF LIST\n".len()].to_owned())
}

/// The sealed initramfs' modules, with a shell as init in the place of verify-init.
fn guest_initramfs(chain: &Chain, lister: &Path) -> Result<tempfile::NamedTempFile> {
    let original = chain.directory().file(sealed::INITRAMFS);
    let second = initramfs::inspect(&original)?.segments.get(1).context("no second archive")?.offset;
    let mut bytes = fs::read(original)?;
    bytes.truncate(usize::try_from(second)?);
    let busybox = tools::require("busybox", "apt-get install busybox-static")?;
    let mut archive = Newc::new().folder("bin").program("bin/busybox", &fs::read(busybox)?);
    for applet in ["sh", "mount", "insmod", "sleep", "poweroff"] {
        archive = archive.link(&format!("bin/{applet}"), "busybox");
    }
    archive = archive.program("bin/list-tree", &fs::read(lister)?).program("init", INIT.as_bytes());
    bytes.extend(archive.finish());
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), bytes)?;
    Ok(file)
}

/// Seals `root`, and compares it to `tree`, which is the same as files.
fn equal(name: &str, suite: &str, root: &Path, tree: &Path, compression: ImageCompression) -> Result<()> {
    let (here, there) = lists(name, suite, root, tree, compression)?;
    compare(&here, &there)
}

/// The same but for the root itself: bsdtar leaves the folder that it unpacks into as it is.
fn equal_below(name: &str, suite: &str, root: &Path, tree: &Path, compression: ImageCompression) -> Result<()> {
    let (here, there) = lists(name, suite, root, tree, compression)?;
    let below = |list: &str| list.split_once('\n').map(|(_, below)| below.to_owned()).context("an empty list");
    compare(&below(&here)?, &below(&there)?)
}

fn lists(name: &str, suite: &str, root: &Path, tree: &Path, compression: ImageCompression) -> Result<(String, String)> {
    let lister = lister()?;
    let chain = Chain::seal(suite, root, |request| request.config.filesystem.compression = Some(compression))?;
    Ok((list_here(&lister, tree)?, list_in_guest(name, &chain, &lister)?))
}

fn compare(here: &str, there: &str) -> Result<()> {
    let mut lines = here.lines().zip(there.lines());
    if let Some((expected, found)) = lines.find(|(expected, found)| expected != found) {
        anyhow::bail!("expected {expected}\n   found {found}");
    }
    ensure!(here == there, "the lists have {} and {} lines", here.lines().count(), there.lines().count());
    ensure!(here.lines().count() > 100, "a list of {} lines proves nothing", here.lines().count());
    Ok(())
}

/// A folder for sources and files, on disk.
fn work() -> Result<tempfile::TempDir> {
    Ok(tempfile::tempdir_in("/var/tmp")?)
}

fn equal_odd(name: &str, suite: &str, compression: ImageCompression) -> Result<()> {
    let work = work()?;
    odd::build(work.path(), Odd::ALL)?;
    equal(name, suite, work.path(), work.path(), compression)
}

#[test]
fn debian_12_s_root_mounted_by_its_kernel_equals_the_tree() -> Result<()> {
    let work = work()?;
    let (archive, tree) = sources::debian("bookworm", work.path())?;
    equal("image_equals_tree_bookworm", "bookworm", &archive, &tree, ImageCompression::Lz4)
}

#[test]
fn a_container_image_of_debian_13_mounted_by_its_kernel_equals_the_tree() -> Result<()> {
    let work = work()?;
    let (layout, tree) = sources::container("trixie", work.path())?;
    equal("image_equals_tree_trixie", "trixie", &layout, &tree, ImageCompression::Lz4Hc(None))
}

/// Debian 12's is of initramfs-tools.
#[test]
fn an_initramfs_of_initramfs_tools_mounted_by_6_1_equals_its_archives() -> Result<()> {
    let work = work()?;
    let (image, tree) = sources::stock_initramfs("bookworm-package", work.path())?;
    equal_below("image_equals_tree_initramfs_tools", "bookworm", &image, &tree, ImageCompression::Lz4)
}

/// Debian 13's is of dracut.
#[test]
fn an_initramfs_of_dracut_mounted_by_6_12_equals_its_archives() -> Result<()> {
    let work = work()?;
    let (image, tree) = sources::stock_initramfs("trixie-package", work.path())?;
    equal_below("image_equals_tree_dracut", "trixie", &image, &tree, ImageCompression::Zstd(None))
}

#[test]
fn the_tree_of_odd_entries_mounted_by_6_1_equals_the_tree() -> Result<()> {
    equal_odd("image_equals_tree_odd_6_1", "bookworm", ImageCompression::Lz4)
}

#[test]
fn the_tree_of_odd_entries_mounted_by_6_12_equals_the_tree() -> Result<()> {
    equal_odd("image_equals_tree_odd_6_12", "trixie", ImageCompression::None)
}

#[test]
fn three_hundred_random_trees_mounted_by_each_kernel_equal_the_trees() -> Result<()> {
    let work = work()?;
    random::many(work.path(), 300, 1)?;
    let equal = |name, suite, compression| equal(name, suite, work.path(), work.path(), compression);
    equal("image_equals_tree_random_6_1", "bookworm", ImageCompression::Lz4)?;
    equal("image_equals_tree_random_6_12", "trixie", ImageCompression::Zstd(None))
}

/// Minutes under emulation, which is why `make test` leaves it out.
#[test]
#[ignore = "takes minutes: cargo test -p swtpm-tests --test image_equals_tree -- --ignored"]
fn a_tree_of_one_gigabyte_and_60000_entries_mounted_by_6_12_equals_the_tree() -> Result<()> {
    let work = work()?;
    random::large(work.path(), 60_000, 1 << 30)?;
    equal("image_equals_tree_large", "trixie", work.path(), work.path(), ImageCompression::Lz4)
}
