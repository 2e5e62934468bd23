//! Installed Debians boot as they come: by their own boot loader, kernel and initramfs. What tests do to them starts from here.

use std::fs;

use anyhow::{Context, Result};
use swtpm_tests::installed::{Booted, Installed};

/// Boots a machine, and holds the system that is up then against what was installed.
fn boots(machine: &Installed, root: &str) -> Result<Booted> {
    let mut booted = machine.boot()?;
    println!("up after {:?}", booted.took);
    assert_eq!(booted.output("uname -r")?, machine.kernel()?);
    assert_eq!(booted.output("systemctl is-system-running --wait; systemctl --failed --quiet")?, "running");
    assert_eq!(booted.output("findmnt -no SOURCE,FSTYPE / | tr -s ' '")?, root);
    assert_eq!(booted.output("findmnt -no SOURCE,FSTYPE /boot/efi | tr -s ' '")?, "/dev/vda1 vfat");
    Ok(booted)
}

#[test]
fn debian_12_with_initramfs_tools_boots_by_grub_and_keeps_what_was_written() -> Result<()> {
    let given = tempfile::NamedTempFile::new()?;
    fs::write(given.path(), "from the host")?;
    let machine = Installed::machine("bookworm-initramfs-tools")?.carrying(&[given.path()])?;
    let mut booted = boots(&machine, "/dev/vda3 ext4")?;
    assert_eq!(booted.output("findmnt -no SOURCE,FSTYPE /boot | tr -s ' '")?, "/dev/vda2 ext4");
    let name = given.path().file_name().context("it has a name")?.to_string_lossy().into_owned();
    booted.output(&format!("cp /mnt/{name} /root/kept"))?;
    booted.power_off()?;

    let mut again = boots(&machine, "/dev/vda3 ext4")?;
    assert_eq!(again.output("cat /root/kept")?, "from the host");
    again.power_off()
}

#[test]
fn debian_12_with_an_encrypted_root_boots_once_its_passphrase_is_typed() -> Result<()> {
    let machine = Installed::machine("bookworm-initramfs-tools-luks")?;
    let mut booted = boots(&machine, "/dev/mapper/root_crypt ext4")?;
    assert!(booted.output("cryptsetup status root_crypt")?.contains("type:    LUKS2"));
    booted.power_off()
}

#[test]
fn debian_12_with_dracut_boots_by_grub() -> Result<()> {
    let machine = Installed::machine("bookworm-dracut")?;
    boots(&machine, "/dev/vda3 ext4")?.power_off()
}

#[test]
fn debian_13_on_lvm_on_raid1_boots_by_grub_and_dracut() -> Result<()> {
    let machine = Installed::machine("trixie-dracut-lvm")?;
    let mut booted = boots(&machine, "/dev/mapper/system-root ext4")?;
    let levels =
        booted.output("lsblk --inverse --noheadings --list --output NAME,TYPE /dev/system/root | tr -s ' '")?;
    assert!(levels.contains("raid1"), "{levels}");
    booted.output("grep -F '[UU]' /proc/mdstat")?;
    booted.power_off()
}

#[test]
fn debian_13_boots_by_an_entry_of_systemd_boot() -> Result<()> {
    let machine = Installed::machine("trixie-systemd-boot")?;
    let mut booted = boots(&machine, "/dev/vda3 ext4")?;
    assert!(booted.output("bootctl status --no-pager")?.contains("Product: systemd-boot"));
    let entries = booted.output("ls /boot/efi/loader/entries")?;
    assert!(entries.contains(&machine.kernel()?), "{entries}");
    booted.power_off()
}
