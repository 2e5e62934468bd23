//! The initramfs files that ours is compared with.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use iofs_sign::initramfs::{kernel::KernelImage, modules::ModuleSet, profile::Request};
use swtpm_tests::{Newc, cache, tools};

use crate::stopwatch::STOPWATCH;

/// What a mount of the image needs of the kernel, and nothing else. Debian's erofs asks for its checksums at run time.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "crc32c_generic", "erofs", "overlay"];

/// A busybox that loads modules and mounts the image as it is, without looking at anything, under an overlay like ours.
pub(crate) fn bare(suite: &str, device: &str) -> Result<Vec<u8>> {
    let kernel = cache::kernel(suite)?;
    let image = KernelImage::read(&kernel.vmlinuz)?;
    let modules = ModuleSet::collect(&image, &kernel.modules, &MODULES.map(Request::added))?;
    let mut script = "#!/bin/busybox sh\n".to_owned();
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        writeln!(script, "/bin/busybox mount -t {kind} {kind} {place}")?;
    }
    let mut archive = Newc::new();
    for folder in ["bin", "dev", "image", "memory", "modules", "proc", "root", "sys"] {
        archive = archive.folder(folder);
    }
    for id in modules.index.load_order(&modules.index.always(), &[]) {
        let module = modules.index.get(id);
        let name = format!("modules/{}.ko", module.name);
        archive = archive.file(&name, &modules.files[&module.file]);
        writeln!(script, "/bin/busybox insmod /{name}")?;
    }
    writeln!(script, "/bin/busybox mount -t erofs -o ro {device} /image")?;
    writeln!(script, "/bin/busybox mount -t tmpfs tmpfs /memory")?;
    writeln!(script, "/bin/busybox mkdir /memory/upper /memory/work")?;
    let layers = "lowerdir=/image,upperdir=/memory/upper,workdir=/memory/work";
    writeln!(script, "/bin/busybox mount -t overlay -o {layers} overlay /root")?;
    for place in ["dev", "proc", "sys"] {
        writeln!(script, "/bin/busybox mount --move /{place} /root/{place}")?;
    }
    writeln!(script, "exec /bin/busybox switch_root /root {STOPWATCH}")?;
    let busybox = tools::require("busybox", "apt-get install busybox-static")?;
    let archive = archive.program("bin/busybox", &fs::read(busybox)?).program("init", script.as_bytes()).finish();
    compressed(&archive)
}

/// As ours is.
fn compressed(archive: &[u8]) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), archive)?;
    let output = Command::new("zstd").args(["-q", "-19", "-c"]).arg(file.path()).output()?;
    ensure!(output.status.success(), "zstd: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// dracut as it is, for any machine, with what maps a root by dm-verity.
pub(crate) fn dracut(suite: &str, to: &Path) -> Result<()> {
    let kernel = cache::kernel(suite)?;
    let folder = fs::canonicalize(&kernel.modules)?;
    let version = fs::read_to_string(kernel.vmlinuz.with_file_name("version"))?;
    let mut dracut = Command::new(tools::require("dracut", "apt-get install dracut-core systemd")?);
    dracut.args([
        "--quiet",
        "--force",
        "--no-hostonly",
        "--compress",
        "zstd -19 -q -T0",
        "--add",
        "systemd-veritysetup",
    ]);
    dracut.args(["--kver", version.trim(), "--kmoddir"]).arg(&folder).arg(to);
    let output = dracut.output()?;
    ensure!(output.status.success() && to.exists(), "dracut: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
