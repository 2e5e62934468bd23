//! Both Debians with both makers of initramfs, by GRUB and systemd-boot, on LUKS and on LVM on RAID1.

use anyhow::Result;

use crate::support::Owned;

#[test]
fn debian_12_with_an_encrypted_root_is_asked_for_its_passphrase_by_a_verified_stage_and_uninstalls() -> Result<()> {
    let owned = Owned::new("bookworm-initramfs-tools-luks", "/dev/mapper/root_crypt ext4")?;
    owned.install()?;
    let mut booted = owned.verified(&owned.machine.kernel()?)?;
    assert!(booted.output("cryptsetup status root_crypt")?.contains("type:    LUKS2"));
    owned.uninstall(booted)
}

#[test]
fn debian_13_on_lvm_on_raid1_boots_by_a_verified_dracut() -> Result<()> {
    let owned = Owned::new("trixie-dracut-lvm", "/dev/mapper/system-root ext4")?;
    owned.install()?;
    let mut booted = owned.verified(&owned.machine.kernel()?)?;
    booted.output("grep -F '[UU]' /proc/mdstat")?;
    let levels = booted.output("lsblk --inverse --noheadings --list --output TYPE /dev/system/root")?;
    assert!(levels.contains("raid1"), "{levels}");
    booted.power_off()
}

#[test]
fn debian_12_with_dracut_and_grub_keeps_up_with_kernels() -> Result<()> {
    let owned = Owned::new("bookworm-dracut", "/dev/vda3 ext4")?;
    owned.install()?;
    owned.upgrade()?.power_off()
}

#[test]
fn debian_13_with_systemd_boot_keeps_up_with_kernels() -> Result<()> {
    let owned = Owned::new("trixie-systemd-boot", "/dev/vda3 ext4")?;
    owned.install()?;
    let mut booted = owned.upgrade()?;
    assert!(booted.output("bootctl status --no-pager")?.contains("Product: systemd-boot"));
    booted.power_off()
}
