//! Where `install` cannot, it says so, says what to do, and changes nothing.

mod install_common;
mod seal_common;

use std::{fs, os::unix::fs::symlink, process::Command};

use install_common::{OTHER, System};
use seal_common::{RELEASE, fails, tool};

/// `install` with these options must end with that status, say that, and change nothing.
fn refuses(system: &System, more: &[&str], status: i32, expected: &[&str]) {
    let before = system.content();
    let text = fails(&system.install(more), status);
    for part in expected {
        assert!(text.contains(part), "expected {part:?} in: {text}");
    }
    system.assert_content(&before);
}

#[test]
fn a_boot_file_system_on_lvm_raid_or_luks_is_none_to_seal_for() {
    for (files, name) in [
        (vec![("dm/uuid", "LVM-abc\n")], "LVM"),
        (vec![("dm/uuid", "CRYPT-LUKS2-abc-boot\n")], "an encrypted volume"),
        (vec![("md/level", "raid1\n")], "a RAID array"),
    ] {
        let system = System::with_systemd_boot();
        for (file, text) in files {
            system.write(&format!("sys/dev/block/8:1/{file}"), text);
        }
        refuses(&system, &[], 2, &[name, "--place memory"]);
    }
}

#[test]
fn a_boot_file_system_of_another_type_is_none_to_seal_for() {
    let system = System::with_systemd_boot();
    system.mount_boot("btrfs");
    refuses(&system, &[], 2, &["/dev/sda1 (btrfs): expected one of vfat, ext4, erofs", "--place memory"]);
}

#[test]
fn two_kernels_with_one_initramfs_are_refused() {
    let system = System::with_grub();
    system.add_plain_kernel(OTHER, &format!("initrd.img-{OTHER}"));
    let (first, second) = (format!("boot/initrd.img-{RELEASE}"), format!("boot/initrd.img-{OTHER}"));
    let says = [RELEASE, OTHER, "share it", "update-initramfs -u -k all"];
    fs::remove_file(system.path(&second)).unwrap();
    symlink(format!("initrd.img-{RELEASE}"), system.path(&second)).unwrap();
    refuses(&system, &[], 3, &says);
    fs::remove_file(system.path(&second)).unwrap();
    fs::hard_link(system.path(&first), system.path(&second)).unwrap();
    refuses(&system, &[], 3, &says);
}

#[test]
fn an_initramfs_of_another_kernel_is_refused() {
    let system = System::with_systemd_boot();
    system.write(&System::stock_initramfs(RELEASE), system.initramfs("5.10.0-old", 1));
    refuses(
        &system,
        &[],
        3,
        &[&format!("expected modules of {RELEASE}, found those of 5.10.0-old"), "update-initramfs"],
    );
}

#[test]
fn without_a_kernel_there_is_nothing_to_seal() {
    let system = System::with_systemd_boot();
    refuses(&system, &["--kernel", OTHER], 2, &["no kernel 6.2.0-test", RELEASE]);
    system.remove_kernel(RELEASE);
    system.write("boot/loader/entries/rescue.conf", "title Rescue\nefi /rescue.efi\n");
    refuses(&system, &[], 2, &["no kernel was found", "install a kernel package"]);
    system.write("boot/vmlinuz-7.0", "x");
    refuses(&system, &[], 2, &["/boot/vmlinuz-7.0: it has no initramfs beside it"]);
}

#[test]
fn without_a_loader_or_with_two_nothing_is_told() {
    let system = System::with_systemd_boot();
    system.write("boot/grub/grub.cfg", "");
    refuses(&system, &[], 2, &["more than one boot loader is there: grub, systemd-boot", "--loader"]);
    refuses(&system, &["--loader", "uki"], 2, &["no boot loader of kind uki"]);
    fs::remove_file(system.path("boot/grub/grub.cfg")).unwrap();
    fs::remove_dir_all(system.path("boot/loader")).unwrap();
    refuses(&system, &[], 2, &["no boot loader was found"]);
}

#[test]
fn a_key_must_be_there_and_not_on_the_boot_file_system() {
    let system = System::with_systemd_boot();
    let before = system.content();
    let text = fails(&system.install_again(&[]), 2);
    assert!(text.contains("no key: nobody could sign") && text.contains("iofs-sign keygen"), "{text}");
    system.assert_content(&before);
    refuses(&system, &["--key", "/etc/iofs/absent.pem"], 1, &["/etc/iofs/absent.pem", "iofs-sign keygen"]);
    system.write("boot/keys/key.pem", fs::read(system.bench.path("key.pem")).unwrap());
    symlink("/boot/keys/key.pem", system.path("etc/iofs/link.pem")).unwrap();
    for key in ["/boot/keys/key.pem", "/etc/iofs/link.pem"] {
        refuses(&system, &["--key", key], 2, &[key, "on the boot file system, which everybody reads"]);
    }
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    let system = System::with_grub();
    refuses(&system, &[], 5, &["grub-mkconfig", "(update-grub), is not installed", "apt-get install grub2-common"]);
}

#[test]
fn settings_that_are_none_are_named() {
    let system = System::with_systemd_boot();
    system.write("etc/iofs/install.toml", "plaice = 'memory'\n");
    refuses(&system, &[], 3, &["/etc/iofs/install.toml", "unknown field `plaice`"]);
}

/// Runs `install` with a file system of this size on the system's /boot, to be read or written.
fn install_on(system: &System, size: &str, mode: &str) -> std::process::Output {
    let script = "
        boot=$1; size=$2; mode=$3; shift 3
        mv \"$boot\" \"$boot.stock\"; mkdir \"$boot\"
        mount -t tmpfs -o \"size=$size\" tmpfs \"$boot\"
        cp -a \"$boot.stock/.\" \"$boot\"
        mount -o \"remount,$mode\" \"$boot\"
        status=0; \"$@\" || status=$?
        diff -r \"$boot.stock\" \"$boot\" || status=99
        umount \"$boot\"; rmdir \"$boot\"; mv \"$boot.stock\" \"$boot\"
        exit $status";
    let boot = system.path("boot");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]).arg(boot).args([size, mode]);
    command.arg(env!("CARGO_BIN_EXE_iofs-sign")).args(["install", "--key", "/etc/iofs/key.pem", "--sysroot"]);
    command.arg(system.path("")).args(["--init", &system.bench.text("init")]).output().unwrap()
}

#[test]
fn a_full_boot_file_system_stays_as_it_was() {
    tool("unshare", "util-linux", &["--version"]);
    let system = System::with_systemd_boot();
    fs::create_dir_all(system.path("var/lib")).unwrap();
    let before = system.content();
    let text = fails(&install_on(&system, "400k", "rw"), 1);
    assert!(text.contains("boot file system: /boot/iofs needs") && text.contains("apt-get autoremove"), "{text}");
    system.assert_content(&before);
    assert!(install_on(&system, "9m", "rw").status.code() == Some(99), "it fits, and changes the files");
}

#[test]
fn a_read_only_boot_file_system_is_refused_before_anything_is_sealed() {
    let system = System::with_systemd_boot();
    let before = system.content();
    let text = fails(&install_on(&system, "9m", "ro"), 1);
    assert!(text.contains("mounted read-only") && text.contains("remount,rw"), "{text}");
    system.assert_content(&before);
}

#[test]
fn a_program_that_fails_in_the_middle_has_everything_put_back() {
    let system = System::with_grub();
    // It is none of busybox's names: it fails.
    system.add_program("usr/sbin/grub-mkconfig");
    fs::create_dir_all(system.path("var/lib")).unwrap();
    fs::create_dir_all(system.path("etc/grub.d")).unwrap();
    refuses(&system, &[], 1, &["grub-mkconfig -o /boot/grub/grub.cfg", "everything is as it was before"]);
}
