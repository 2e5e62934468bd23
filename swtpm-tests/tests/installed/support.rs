//! What an owner does on a machine, and what it has to look like afterwards.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use swtpm_tests::{
    debian::package,
    installed::{Booted, Installed},
};

/// The fastest compression: an emulated processor is slow at it.
const CONFIGURATION: &str = "[filesystem]\ncompression = \"lz4\"\n";
const KEY: &str = "/etc/iofs/release";
/// What the boot loader and its makers read, file by file. The menu has times of its own.
const LISTING: &str = "find /boot /etc/grub.d /etc/kernel /etc/initramfs /etc/iofs /var/lib/iofs -xdev -type f \
                       -not -name grub.cfg -not -name grubenv 2>/dev/null | sort; \
                       find /boot/efi -type f 2>/dev/null | sort | xargs -r -d '\\n' sha256sum";

/// A machine, with where its root is.
pub(crate) struct Owned {
    pub(crate) machine: Installed,
    root: &'static str,
}

impl Owned {
    /// The machine of that name, carrying our package and that of its next kernel.
    pub(crate) fn new(name: &str, root: &'static str) -> Result<Self> {
        let machine = Installed::machine(name)?;
        let newer = machine.newer_kernel()?.1;
        Ok(Self { machine: machine.carrying(&[package()?, newer])?, root })
    }

    /// Boots, and holds what is up then against what was installed.
    fn boot(&self, kernel: &str) -> Result<Booted> {
        let mut booted = self.machine.boot()?;
        println!("{kernel} up after {:?}", booted.took);
        assert_eq!(booted.output("uname -r")?, kernel);
        assert_eq!(booted.output("systemctl is-system-running --wait; systemctl --failed --quiet")?, "running");
        assert_eq!(booted.output("findmnt -no SOURCE,FSTYPE / | tr -s ' '")?, self.root);
        booted.output("touch /boot/written && rm /boot/written")?;
        Ok(booted)
    }

    /// Boots as the distribution has it.
    pub(crate) fn stock(&self) -> Result<Booted> {
        let mut booted = self.boot(&self.machine.kernel()?)?;
        booted.output("! test -e /run/iofs/boot.json")?;
        Ok(booted)
    }

    /// Boots through a verified second stage, of which nothing is left.
    pub(crate) fn verified(&self, kernel: &str) -> Result<Booted> {
        let mut booted = self.boot(kernel)?;
        let record: Value = serde_json::from_str(&booted.output("cat /run/iofs/boot.json")?)?;
        assert_eq!((record["role"].as_str(), record["kernel_release"].as_str()), (Some("initoverlay"), Some(kernel)));
        assert_eq!(record["warnings"], serde_json::json!([]), "{record}");
        let status: Value = serde_json::from_str(&booted.output("iofs-sign --json status")?)?;
        assert_eq!(status["boot"]["root_hash"], record["root_hash"], "{status}");
        assert_eq!(booted.output("cat /sys/block/dm-*/dm/name 2>/dev/null | grep -c initoverlay || true")?, "0");
        assert_eq!(booted.output("cat /sys/block/loop*/loop/backing_file 2>/dev/null || true")?, "");
        assert_eq!(booted.output("grep -E ' (erofs|overlay) |/run/iofs' /proc/mounts || true")?, "");
        Ok(booted)
    }

    /// Installs the package on the stock system, then by it the verified boot. Says the sizes before and after.
    pub(crate) fn install(&self) -> Result<()> {
        let mut booted = self.stock()?;
        booted.output(&format!("({LISTING}) >/root/before"))?;
        booted.output("dpkg --install /mnt/iofs*.deb")?;
        booted.output(&format!("mkdir -p /etc/iofs && iofs-sign keygen {KEY}"))?;
        booted.output(&format!("cat >/root/iofs.toml <<'END'\n{CONFIGURATION}END"))?;
        let command = format!("iofs-sign install --key {KEY}.pem --config /root/iofs.toml");
        let steps = booted.output(&format!("{command} --dry-run"))?;
        ensure!(
            steps.contains("1. seal ") && booted.output("ls /boot/iofs 2>/dev/null || true")?.is_empty(),
            "{steps}"
        );
        let started = std::time::Instant::now();
        let installed: Value =
            serde_json::from_str(&booted.output(&command.replacen("install", "--json install", 1))?)?;
        println!("installed in {:?}", started.elapsed());
        for (kernel, sizes) in installed["sizes"].as_object().context("sizes")? {
            let size = |name: &str| sizes[name].as_u64().context("a size");
            let (stock, mini) = (size("stock_initramfs")?, size("initramfs")?);
            println!("{kernel}: stock initramfs {stock}, mini-initramfs {mini}, image {}", size("image")?);
            ensure!(mini * 4 < stock, "{installed}");
        }
        booted.power_off()
    }

    /// Installs the next kernel, boots it, and removes the one before: what is sealed comes and goes with them.
    pub(crate) fn upgrade(&self) -> Result<Booted> {
        let (old, (new, _)) = (self.machine.kernel()?, self.machine.newer_kernel()?);
        let mut booted = self.verified(&old)?;
        let started = std::time::Instant::now();
        booted.output("dpkg --install /mnt/linux-image-*.deb")?;
        println!("upgraded in {:?}", started.elapsed());
        assert_eq!(sealed(&mut booted)?, [old.clone(), new.clone()]);
        booted.power_off()?;

        let mut booted = self.verified(&new)?;
        booted.output(&format!("DEBIAN_FRONTEND=noninteractive dpkg --purge linux-image-{old}"))?;
        assert_eq!(sealed(&mut booted)?, [new]);
        let left = booted.output(&format!(
            "grep -rls -e {old} /boot/grub/grub.cfg /boot/efi/loader/entries || true; find /boot -name '*{old}*'"
        ))?;
        assert_eq!(left, "");
        Ok(booted)
    }

    /// Takes everything away again.
    pub(crate) fn uninstall(&self, mut booted: Booted) -> Result<()> {
        booted.output("iofs-sign uninstall")?;
        booted.output(&format!("rm -r {KEY}*; dpkg --purge iofs"))?;
        assert_eq!(booted.output(&format!("({LISTING}) | diff /root/before - || true"))?, "");
        assert_eq!(booted.output("grep -ls iofs /boot/grub/grub.cfg /boot/efi/loader/loader.conf || true")?, "");
        booted.power_off()?;
        self.stock()?.power_off()
    }
}

/// The kernels that are sealed.
fn sealed(booted: &mut Booted) -> Result<Vec<String>> {
    let folders = booted.output("ls -d /boot/iofs/*/ /boot/efi/iofs/*/ 2>/dev/null | xargs -n1 basename | sort -V")?;
    Ok(folders.lines().map(str::to_owned).collect())
}
