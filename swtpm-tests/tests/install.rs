//! `install` on a real Debian with GRUB: its own menu, its own initramfs, its own kernel package and the hooks that they call.
//! The system is changed into, not booted.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use swtpm_tests::debian::{Debian, package};

type Files = BTreeMap<PathBuf, String>;

#[test]
fn debian_12_keeps_what_is_sealed_in_step_with_its_packages() -> Result<()> {
    keeps_in_step("bookworm")
}

#[test]
fn debian_13_keeps_what_is_sealed_in_step_with_its_packages() -> Result<()> {
    keeps_in_step("trixie")
}

/// The entries of GRUB's menu by their ids, those that are not in a submenu.
fn menu(debian: &Debian) -> Result<Vec<String>> {
    let text = fs::read_to_string(debian.path("boot/grub/grub.cfg"))?;
    let id = |line: &str| Some(line.strip_prefix("menuentry ")?.split('\'').nth(3)?.to_owned());
    Ok(text.lines().filter_map(id).collect())
}

fn sealed_for(debian: &Debian, release: &str) -> Result<Vec<u8>> {
    let image = debian.path("boot/iofs").join(release).join("image");
    fs::read(&image).with_context(|| image.display().to_string())
}

fn keeps_in_step(suite: &str) -> Result<()> {
    let debian = Debian::unpacked(suite)?;
    debian.install(&package()?)?;
    debian.system("mkdir -p /boot/grub && grub-mkconfig -o /boot/grub/grub.cfg")?;
    debian.system("iofs-sign keygen --quiet /etc/iofs-key")?;
    let stock_menu = menu(&debian)?;
    let release = debian.system("basename /lib/modules/*")?.trim().to_owned();
    let before = debian.files()?;

    a_failing_menu_is_undone(&debian, &before)?;
    debian.system("iofs-sign install --key /etc/iofs-key.pem")?;
    let entry = format!("iofs-{release}");
    assert_eq!(menu(&debian)?.first(), Some(&entry));
    the_entry_boots_what_is_sealed(&debian, &release)?;

    let first = sealed_for(&debian, &release)?;
    debian.system("echo 'dm_crypt' >>/etc/initramfs-tools/modules; update-initramfs -u")?;
    assert_ne!(sealed_for(&debian, &release)?, first, "sealed again");
    debian.system("sed -i /dm_crypt/d /etc/initramfs-tools/modules")?;

    // What kernel packages do when they are installed: the hook seals, zz-update-grub has the entry made.
    debian.system(&format!("iofs-sign uninstall --kernel {release} && ! grep -q {entry} /boot/grub/grub.cfg"))?;
    debian.system(&format!("run-parts --arg={release} --arg=/boot/vmlinuz-{release} /etc/kernel/postinst.d"))?;
    assert_eq!(menu(&debian)?.first(), Some(&entry));

    debian.system("iofs-sign uninstall")?;
    assert_eq!(menu(&debian)?, stock_menu);
    assert_eq!(without_made_anew(debian.files()?), without_made_anew(before));
    packages_go(&debian, &release)
}

/// Every file but what update-initramfs and grub-mkconfig made anew meanwhile.
fn without_made_anew(mut files: Files) -> Files {
    let made =
        |path: &Path| path == Path::new("boot/grub/grub.cfg") || path.to_string_lossy().starts_with("boot/initrd.img-");
    files.retain(|path, _| !made(path) && !path.starts_with("var/lib/initramfs-tools"));
    files
}

fn a_failing_menu_is_undone(debian: &Debian, before: &Files) -> Result<()> {
    let script = "
        printf '#!/bin/sh\\nexit 7\\n' >/etc/grub.d/99_fails; chmod 755 /etc/grub.d/99_fails
        ! iofs-sign install --key /etc/iofs-key.pem 2>/tmp/error
        grep -q 'everything is as it was before' /tmp/error
        rm /etc/grub.d/99_fails /tmp/error; rm -f /boot/grub/grub.cfg.new";
    debian.system(script)?;
    assert_eq!(&debian.files()?, before);
    Ok(())
}

/// GRUB finds each file that our entry names, and the root that the stock entry has.
fn the_entry_boots_what_is_sealed(debian: &Debian, release: &str) -> Result<()> {
    let text = fs::read_to_string(debian.path("boot/grub/grub.cfg"))?;
    let section = |id: &str| {
        let rest = text.split_once(id).with_context(|| format!("no {id} in {text}"))?.1;
        let body = rest.split_once("\n}").with_context(|| format!("{id} does not end"))?.0;
        Ok::<_, anyhow::Error>(body.to_owned())
    };
    let (ours, stock) = (section(&format!("'iofs-{release}' {{"))?, section("gnulinux-simple")?);
    let words = |body: &str, command: &str| {
        let line = body.lines().find_map(|line| line.trim().strip_prefix(command)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(words(&ours, "linux"), words(&stock, "linux"), "kernel and command line are the distribution's");
    let stock_initrd = words(&stock, "initrd").pop().context("an initrd")?;
    let folder = stock_initrd.rsplit_once('/').context("a path")?.0;
    assert_eq!(words(&ours, "initrd"), [format!("{folder}/iofs/{release}/initramfs.img")]);
    assert!(text.contains(&format!("set default='iofs-{release}'")), "{text}");
    // The file system that the manifest names has the path from its own root, as GRUB has it.
    let shown = debian.system(&format!(
        "iofs-sign inspect /boot/iofs/{release}/initramfs.img --extract /etc/iofs/manifest.dsse.json \
                                        --out /tmp/manifest && iofs-sign inspect /tmp/manifest --json; rm /tmp/manifest"
    ))?;
    assert!(shown.contains(&format!("{folder}/iofs/{release}/image")), "{shown}");
    Ok(())
}

/// The kernel's package takes what was sealed for it along, and ours leaves hooks that do nothing, then nothing.
fn packages_go(debian: &Debian, release: &str) -> Result<()> {
    debian.system("iofs-sign install --key /etc/iofs-key.pem --no-fallback")?;
    assert!(menu(debian)?.iter().all(|id| !id.starts_with("gnulinux")), "no fallback");
    debian.system(&format!("apt-get --quiet --yes remove linux-image-{release}"))?;
    assert!(!debian.path("boot/iofs").join(release).exists(), "gone with its kernel");
    assert_eq!(menu(debian)?.iter().filter(|id| id.starts_with("iofs-")).count(), 0);
    debian.system("apt-get --quiet --yes remove iofs")?;
    assert!(!debian.path("etc/grub.d/09_iofs").exists() && debian.path("etc/iofs/install.toml").exists());
    debian.system("test -x /etc/grub.d/10_linux")?;
    let hooks = ["/etc/kernel/postinst.d/zy-iofs", "/etc/kernel/postrm.d/zy-iofs", "/etc/initramfs/post-update.d/iofs"];
    for hook in hooks {
        debian.system(&format!("{hook} {release} /boot/initrd.img-{release}"))?;
    }
    debian.system("apt-get --quiet --yes purge iofs")?;
    for path in
        ["etc/iofs", "var/lib/iofs", "etc/kernel/postinst.d/zy-iofs", "etc/initramfs/post-update.d/iofs", "boot/iofs"]
    {
        assert!(!debian.path(path).exists(), "{path} is left");
    }
    Ok(())
}
