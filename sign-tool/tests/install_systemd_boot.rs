//! `install` and `uninstall` where systemd-boot is the loader, from the first to the last.

mod install_common;
mod seal_common;

use std::fs;

use install_common::{OTHER, System, VFAT};
use iofs_policy::{
    dsse::{Envelope, PayloadType},
    manifest::{Manifest, Role},
    paths,
};
use seal_common::{RELEASE, fails, iofs_sign, openssl, passes};

/// The manifest in a kernel's mini-initramfs.
fn manifest(system: &System, release: &str) -> Manifest {
    let initramfs = system.path(&format!("boot/iofs/{release}/initramfs.img"));
    let (initramfs, out) = (initramfs.to_str().unwrap(), system.bench.text("manifest"));
    passes(&iofs_sign(["inspect", initramfs, "--extract", paths::MANIFEST, "--out", &out]));
    let envelope = Envelope::parse(&fs::read(&out).unwrap(), PayloadType::Manifest).unwrap();
    fs::remove_file(out).unwrap();
    Manifest::from_json(envelope.unverified_payload()).unwrap()
}

#[test]
fn a_kernel_gets_a_verified_entry_and_uninstall_leaves_no_trace() {
    let system = System::with_systemd_boot();
    fs::create_dir_all(system.path("var/lib")).unwrap();
    let before = system.content();
    let text = passes(&system.install(&[]));
    assert!(text.contains("stock initramfs") && text.contains(RELEASE), "{text}");

    let manifest = manifest(&system, RELEASE);
    assert_eq!(manifest.data.to_string(), format!("vfat:UUID={VFAT}:/iofs/{RELEASE}/image"));
    assert_eq!((manifest.data.clone(), manifest.image.role), (manifest.tree.clone(), Role::InitOverlay));
    assert_eq!((manifest.image.id.as_str(), manifest.image.version.as_str()), ("debian", RELEASE));
    let image = system.path(&format!("boot/iofs/{RELEASE}/image"));
    let (image, offset) = (image.to_str().unwrap(), manifest.verity.hash_offset.to_string());
    let root_hash = manifest.verity.root_hash.to_string();
    passes(&iofs_sign(["verity", "verify", image, image, &root_hash, "--hash-offset", &offset]));

    let entry = fs::read_to_string(system.path(&format!("boot/loader/entries/iofs-{RELEASE}.conf"))).unwrap();
    assert!(entry.contains("options root=UUID=1 ro quiet\n"), "{entry}");
    assert!(entry.ends_with(&format!("initrd /iofs/{RELEASE}/initramfs.img\n")), "{entry}");
    assert_eq!(fs::read_to_string(system.path("boot/loader/loader.conf")).unwrap(), "timeout 3\ndefault iofs-*\n");

    passes(&system.uninstall(&[]));
    let kept = system.path("etc/iofs/key.pem");
    assert!(kept.exists(), "the owner's key");
    system.assert_content(&before);
    assert!(fails(&system.uninstall(&[]), 2).contains("nothing is installed"));
}

/// As Debian 13 has it: the kernel's package puts it into /boot, from where kernel-install copies it to where the loader looks.
#[test]
fn of_a_kernel_in_two_places_the_one_that_the_loader_starts_is_sealed() {
    let system = System::with_systemd_boot();
    system.add_plain_kernel(RELEASE, &format!("initrd.img-{RELEASE}"));
    let steps = system.install(&["--dry-run"]);
    let stock = format!("seal /{}", System::stock_initramfs(RELEASE));
    assert!(passes(&steps).contains(&stock), "{}", String::from_utf8_lossy(&steps.stdout));
    passes(&system.install(&[]));
    assert!(system.path(&format!("boot/loader/entries/iofs-{RELEASE}.conf")).exists());
}

#[test]
fn a_dry_run_says_each_step_and_changes_nothing() {
    let system = System::with_systemd_boot();
    let before = system.content();
    let steps = system.steps(&system.install(&["--dry-run", "--json"]));
    assert_eq!(steps, ["seal", "folder", "write", "write", "write"]);
    let text = passes(&system.install(&["--dry-run"]));
    assert!(text.contains(&format!("give systemd-boot the entry iofs-{RELEASE}")), "{text}");
    system.assert_content(&before);
}

#[test]
fn what_is_the_same_is_not_sealed_again_and_what_changed_is() {
    let system = System::with_systemd_boot();
    passes(&system.install(&[]));
    let installed = system.content();
    assert!(passes(&system.install_again(&[])).contains("nothing to do"));
    system.assert_content(&installed);

    system.write(&System::stock_initramfs(RELEASE), system.initramfs(RELEASE, 2));
    let before = manifest(&system, RELEASE).verity.root_hash;
    assert_eq!(system.steps(&system.install_again(&["--json"])), ["seal", "folder"]);
    assert_ne!(manifest(&system, RELEASE).verity.root_hash, before);
    assert!(fs::read_dir(system.path("boot/iofs")).unwrap().count() == 1, "what was replaced is gone");
}

#[test]
fn kernels_come_and_go() {
    let system = System::with_systemd_boot();
    passes(&system.install(&[]));
    system.add_kernel(OTHER);
    passes(&system.install_again(&["--kernel", OTHER]));
    assert_eq!(manifest(&system, OTHER).kernel_release.unwrap(), OTHER);

    passes(&system.uninstall(&["--kernel", OTHER]));
    assert!(!system.path(&format!("boot/iofs/{OTHER}")).exists());
    assert!(!system.path(&format!("boot/loader/entries/iofs-{OTHER}.conf")).exists());
    assert!(system.path(&format!("boot/iofs/{RELEASE}/image")).exists());

    passes(&system.install_again(&[]));
    system.remove_kernel(OTHER);
    let steps = system.steps(&system.install_again(&["--json"]));
    assert_eq!(steps, ["remove", "remove-folder"], "of the kernel that is gone");
    assert!(!system.path(&format!("boot/iofs/{OTHER}")).exists());
}

#[test]
fn in_memory_the_image_is_a_part_of_the_mini_initramfs() {
    let system = System::with_systemd_boot();
    // No early boot looks through that.
    fs::create_dir_all(system.path("sys/dev/block/8:1/md")).unwrap();
    passes(&system.install(&["--place", "memory"]));
    assert_eq!(manifest(&system, RELEASE).data.to_string(), "memory");
    assert!(!system.path(&format!("boot/iofs/{RELEASE}/image")).exists());
    let size = fs::metadata(system.path(&format!("boot/iofs/{RELEASE}/initramfs.img"))).unwrap().len();
    assert!(size > 200_000, "{size}");
}

#[test]
fn without_a_fallback_the_stock_entry_goes_and_comes_back() {
    let system = System::with_systemd_boot();
    fs::create_dir_all(system.path("var/lib")).unwrap();
    let before = system.content();
    passes(&system.install(&["--no-fallback"]));
    let names = fs::read_dir(system.path("boot/loader/entries")).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names, [format!("iofs-{RELEASE}.conf")]);
    assert!(passes(&system.install_again(&[])).contains("nothing to do"));
    // What goes with a kernel does not come back without it.
    system.add_kernel(OTHER);
    passes(&system.install_again(&["--kernel", OTHER]));
    let stock = system.stock_entry(OTHER);
    assert!(!stock.exists());
    fs::write(&stock, "").unwrap();
    system.remove_kernel(OTHER);
    passes(&system.install_again(&[]));
    fs::remove_dir_all(system.path(&format!("lib/modules/{OTHER}"))).unwrap();
    passes(&system.uninstall(&[]));
    system.assert_content(&before);
}

#[test]
fn what_somebody_else_changed_since_stays() {
    let system = System::with_systemd_boot();
    passes(&system.install(&[]));
    system.write("boot/loader/loader.conf", "timeout 9\n");
    assert!(passes(&system.uninstall(&[])).contains("loader.conf was changed since"));
    assert_eq!(fs::read_to_string(system.path("boot/loader/loader.conf")).unwrap(), "timeout 9\n");
}

#[test]
fn a_command_signs_in_the_place_of_a_key() {
    let system = System::with_systemd_boot();
    fs::remove_file(system.path("etc/iofs/key.pem")).unwrap();
    fs::copy(system.bench.path("key.pub.pem"), system.path("etc/iofs/key.pub.pem")).unwrap();
    openssl(&["version"]);
    let agent = |command: &str| {
        system
            .command(
                "install",
                &["--init", &system.bench.text("init"), "--agent-key", "/etc/iofs/key.pub.pem", "--agent", command],
            )
            .output()
            .unwrap()
    };
    fs::create_dir_all(system.path("var/lib")).unwrap();
    let before = system.content();
    assert!(fails(&agent("head -c 64 /dev/zero; exit 3"), 1).contains("exit status: 3"));
    assert!(fails(&agent("echo no"), 1).contains("expected 64 bytes, found 3"));
    fails(&agent("head -c 64 /dev/zero"), 4);
    system.assert_content(&before);

    let (bytes, key) = (system.bench.text("bytes"), system.bench.text("key.pem"));
    let sign = format!("cat >'{bytes}'; openssl pkeyutl -sign -rawin -inkey '{key}' -in '{bytes}'");
    passes(&agent(&sign));
    assert_eq!(manifest(&system, RELEASE).image.role, Role::InitOverlay);
    assert!(passes(&system.install_again(&[])).contains("nothing to do"));
}
