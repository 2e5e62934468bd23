//! Where distributions put what they boot: Fedora's names, a /boot that is no file system of its own, microcode in front.

mod install_common;
mod seal_common;

use std::fs;

use install_common::{System, VFAT};
use seal_common::{RELEASE, passes};
use serde_json::Value;

fn planned(system: &System) -> Value {
    serde_json::from_str(&passes(&system.install(&["--dry-run", "--json"]))).unwrap()
}

#[test]
fn fedora_s_names_and_programs_are_found_and_its_rescue_kernel_is_passed_over() {
    let system = System::with_grub();
    fs::remove_dir_all(system.path("boot")).unwrap();
    system.write("boot/grub2/grub.cfg", "");
    // Its GRUB reads these, too: they do not make it systemd-boot.
    system.write("boot/loader/entries/0123-fedora.conf", "title Fedora\n");
    system.add_program("usr/sbin/grub2-mkconfig");
    system.add_plain_kernel(RELEASE, &format!("initramfs-{RELEASE}.img"));
    system.write("boot/vmlinuz-0-rescue-0123", "x");
    system.write("boot/initramfs-0-rescue-0123.img", "x");
    let plan = planned(&system);
    let [seal, .., run] = &plan["steps"].as_array().unwrap()[..] else { panic!("{plan}") };
    assert_eq!(seal["initramfs"][0], format!("/boot/initramfs-{RELEASE}.img"));
    assert_eq!(
        (&run["program"], &run["arguments"][1]),
        (&"/usr/sbin/grub2-mkconfig".into(), &"/boot/grub2/grub.cfg".into())
    );
    assert!(plan["remarks"][0].as_str().unwrap().contains("vmlinuz-0-rescue-0123: there are no modules"), "{plan}");
}

#[test]
fn on_the_root_s_file_system_the_place_has_the_path_from_its_own_root() {
    let system = System::with_grub();
    system.add_program("usr/sbin/grub-mkconfig");
    system.write("dev/sda2", "");
    std::os::unix::fs::symlink("../../sda2", system.path("dev/disk/by-uuid/2f0e7a54-5a4b-4f0c-9c5e-0a1b2c3d4e5f"))
        .unwrap();
    system.write("proc/self/mountinfo", "28 1 8:2 /@debian / rw - ext4 /dev/sda2 rw\n");
    let place = format!("ext4:UUID=2f0e7a54-5a4b-4f0c-9c5e-0a1b2c3d4e5f:/@debian/boot/iofs/{RELEASE}/image");
    assert_eq!(planned(&system)["steps"][0]["place"], place);
    // The key in /etc lies on the same file system, where only the folder /boot is the loader's.
    system.write(
        "proc/self/mountinfo",
        "28 1 8:2 / / rw - ext4 /dev/sda2 rw\n29 28 8:1 / /boot rw - vfat /dev/sda1 rw\n",
    );
    assert_eq!(planned(&system)["steps"][0]["place"], format!("vfat:UUID={VFAT}:/iofs/{RELEASE}/image"));
}

#[test]
fn microcode_in_front_of_an_initramfs_stays_in_front() {
    let system = System::with_systemd_boot();
    let early = system.put_microcode_in_front(&System::stock_initramfs(RELEASE), RELEASE);
    passes(&system.install(&[]));

    let written = fs::read(system.path(&format!("boot/iofs/{RELEASE}/early.img"))).unwrap();
    assert!(early.starts_with(&written) && written.len() > 3000, "{} of {}", written.len(), early.len());
    let entry = fs::read_to_string(system.path(&format!("boot/loader/entries/iofs-{RELEASE}.conf"))).unwrap();
    let expected = format!("initrd /iofs/{RELEASE}/early.img\ninitrd /iofs/{RELEASE}/initramfs.img\n");
    assert!(entry.ends_with(&expected), "{entry}");
}
