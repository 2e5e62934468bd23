//! `install` where unified kernel images are what starts: a real kernel and systemd's real stub.

mod install_common;
mod seal_common;
mod x509_common;

use std::{fs, path::Path};

use install_common::System;
use iofs_sign::{pe::Headers, secure_boot};
use seal_common::passes;
use x509_common::Place;

#[test]
fn a_signed_unified_kernel_image_starts_the_sealed_initramfs() {
    let system = System::with_grub();
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache/kernels/bookworm");
    let release = fs::read_to_string(kernel.join("version")).expect("no kernel in cache/\n  run: make cache");
    let release = release.trim();
    fs::remove_dir_all(system.path("boot")).unwrap();
    system.add_plain_kernel(release, &format!("initrd.img-{release}"));
    system.put_microcode_in_front(&format!("boot/initrd.img-{release}"), release);
    fs::copy(kernel.join("vmlinuz"), system.path(&format!("boot/vmlinuz-{release}"))).unwrap();
    system.write("boot/EFI/Linux/debian.efi", "MZ");
    system.write("etc/kernel/cmdline", "root=UUID=1 ro quiet\n");
    system.write("boot/loader/loader.conf", "timeout 3\n");
    let place = Place::new();
    place.pair("db", "rsa:2048");
    for name in ["db.pem", "db.crt"] {
        fs::copy(place.path(name), system.path("etc/iofs").join(name)).unwrap();
    }
    fs::create_dir_all(system.path("var/lib")).unwrap();
    let before = system.content();
    let keys = ["--secure-boot-key", "/etc/iofs/db.pem", "--secure-boot-certificate", "/etc/iofs/db.crt"];
    passes(&system.install(&keys));

    let image = fs::read(system.path(&format!("boot/EFI/Linux/iofs-{release}.efi"))).unwrap();
    let headers = Headers::parse(&image).unwrap();
    let section = |name: &str| headers.find(name).unwrap().contents(&image);
    assert_eq!(section(".cmdline"), b"root=UUID=1 ro quiet");
    assert_eq!(section(".uname"), release.as_bytes());
    let folder = fs::read_dir(system.path(&format!("boot/iofs/{release}"))).unwrap();
    let names: Vec<_> = folder.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["image"], "the mini-initramfs is in the image");
    assert_eq!(fs::read_to_string(system.path("boot/loader/loader.conf")).unwrap(), "timeout 3\ndefault iofs-*\n");
    assert!(section(".ucode").len() > 3000, "what is for the kernel itself comes first");
    assert_eq!(secure_boot::signers(&image).unwrap().len(), 1);

    assert!(passes(&system.install_again(&[])).contains("nothing to do"));
    passes(&system.uninstall(&[]));
    system.assert_content(&before);
}
