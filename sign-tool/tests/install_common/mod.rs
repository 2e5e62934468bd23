//! A small system on disk to install into: kernels, initramfs, loader, and what the kernel says of its file systems.
#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

use crate::seal_common::{Bench, RELEASE, command, noise, passes, tool};

/// A kernel beside the bench's own.
pub(crate) const OTHER: &str = "6.2.0-test";
/// The vfat that is mounted on /boot.
pub(crate) const VFAT: &str = "12AB-34CD";
const MACHINE: &str = "0123456789abcdef0123456789abcdef";

pub(crate) struct System {
    pub(crate) bench: Bench,
}

impl System {
    /// A system as kernel-install and systemd-boot have it, with one kernel; /boot is a vfat.
    pub(crate) fn with_systemd_boot() -> Self {
        let system = Self::bare();
        system.write("etc/machine-id", format!("{MACHINE}\n"));
        system.write("boot/loader/loader.conf", "timeout 3\ndefault debian-*\n");
        system.write("boot/EFI/systemd/systemd-bootx64.efi", "MZ");
        system.add_kernel(RELEASE);
        system
    }

    /// A system as Debian has it, with one kernel in /boot and GRUB's configuration, but without its programs.
    pub(crate) fn with_grub() -> Self {
        let system = Self::bare();
        system.write("boot/grub/grub.cfg", "# stock\n");
        system.add_plain_kernel(RELEASE, &format!("initrd.img-{RELEASE}"));
        system
    }

    fn bare() -> Self {
        let system = Self { bench: Bench::new() };
        system.make_init();
        system.write("etc/os-release", "ID=debian\nVERSION_ID=13\nPRETTY_NAME='Debian'\n");
        system.write("dev/sda1", "");
        fs::create_dir_all(system.path("dev/disk/by-uuid")).unwrap();
        symlink("../../sda1", system.path("dev/disk/by-uuid").join(VFAT)).unwrap();
        fs::create_dir_all(system.path("sys/dev/block/8:1")).unwrap();
        system.mount_boot("vfat");
        fs::create_dir_all(system.path("etc/iofs")).unwrap();
        fs::copy(system.bench.path("key.pem"), system.path("etc/iofs/key.pem")).unwrap();
        system
    }

    /// What the kernel says of /boot.
    pub(crate) fn mount_boot(&self, kind: &str) {
        let mounts = format!("28 1 8:2 / / rw - ext4 /dev/sda2 rw\n29 28 8:1 / /boot rw - {kind} /dev/sda1 rw\n");
        self.write("proc/self/mountinfo", mounts);
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.bench.path("system").join(below)
    }

    pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// As kernel-install adds it.
    pub(crate) fn add_kernel(&self, release: &str) {
        let folder = format!("{MACHINE}/{release}");
        self.add_modules(release);
        self.write(&format!("boot/{folder}/linux"), self.kernel(release));
        self.write(&format!("boot/{folder}/initrd.img-{release}"), self.initramfs(release, 1));
        let entry = format!(
            "title Debian\nversion {release}\nsort-key debian\noptions root=UUID=1 ro quiet\nlinux /{folder}/linux\n\
             initrd /{folder}/initrd.img-{release}\n"
        );
        self.write(&format!("boot/loader/entries/{MACHINE}-{release}.conf"), entry);
    }

    /// As kernel-install removes it.
    pub(crate) fn remove_kernel(&self, release: &str) {
        fs::remove_dir_all(self.path(&format!("boot/{MACHINE}/{release}"))).unwrap();
        fs::remove_file(self.stock_entry(release)).unwrap();
    }

    /// The distribution's entry of a kernel.
    pub(crate) fn stock_entry(&self, release: &str) -> PathBuf {
        self.path(&format!("boot/loader/entries/{MACHINE}-{release}.conf"))
    }

    /// The distribution's initramfs of a kernel.
    pub(crate) fn stock_initramfs(release: &str) -> String {
        format!("boot/{MACHINE}/{release}/initrd.img-{release}")
    }

    /// As Debian's packages put it.
    pub(crate) fn add_plain_kernel(&self, release: &str, initramfs: &str) {
        self.add_modules(release);
        self.write(&format!("boot/vmlinuz-{release}"), self.kernel(release));
        self.write(&format!("boot/{initramfs}"), self.initramfs(release, 1));
    }

    fn add_modules(&self, release: &str) {
        let built_in = [
            "dm-verity",
            "erofs",
            "ext4",
            "fat",
            "loop",
            "nls_ascii",
            "nls_cp437",
            "nls_iso8859-1",
            "nls_utf8",
            "overlay",
            "vfat",
        ];
        let built_in: String = built_in.iter().map(|name| format!("kernel/{name}.ko\n")).collect();
        self.write(&format!("lib/modules/{release}/modules.builtin"), built_in);
    }

    /// The bench's kernel, by another name.
    fn kernel(&self, release: &str) -> Vec<u8> {
        let mut kernel = fs::read(self.bench.path("vmlinuz")).unwrap();
        kernel[0x400..0x400 + release.len()].copy_from_slice(release.as_bytes());
        kernel
    }

    /// An initramfs with modules, and noise that does not compress.
    pub(crate) fn initramfs(&self, release: &str, seed: u64) -> Vec<u8> {
        let modules = format!("usr/lib/modules/{release}/modules.dep");
        self.archive(&[(&modules, vec![]), ("init", b"#!/bin/sh\n".to_vec()), ("noise", noise(200_000, seed))])
    }

    /// Has a kernel's initramfs begin with microcode, as Debian and Fedora do it, and gives that part.
    pub(crate) fn put_microcode_in_front(&self, initramfs: &str, release: &str) -> Vec<u8> {
        let early = self.archive(&[("kernel/x86/microcode/GenuineIntel.bin", noise(3000, 7))]);
        self.write(initramfs, [early.clone(), self.initramfs(release, 1)].concat());
        early
    }

    fn archive(&self, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let tree = self.bench.path("initramfs-tree");
        let _ = fs::remove_dir_all(&tree);
        for (path, bytes) in files {
            fs::create_dir_all(tree.join(path).parent().unwrap()).unwrap();
            fs::write(tree.join(path), bytes).unwrap();
        }
        let archive = self.bench.path("initramfs.cpio");
        let script = "cd \"$1\"; find . | sort | cpio --quiet -o -H newc >\"$2\"";
        passes(&tool("sh", "cpio", &["-ec", script, "sh", tree.to_str().unwrap(), archive.to_str().unwrap()]));
        fs::read(archive).unwrap()
    }

    pub(crate) fn command(&self, verb: &str, more: &[&str]) -> Command {
        let mut command = command();
        command.arg(verb).arg("--sysroot").arg(self.path("")).args(more);
        command
    }

    /// Runs `install` with the key that is there.
    pub(crate) fn install(&self, more: &[&str]) -> Output {
        self.command("install", &["--init", &self.bench.text("init"), "--key", "/etc/iofs/key.pem"])
            .args(more)
            .output()
            .unwrap()
    }

    /// Runs `install` as a hook does: with what earlier ones were told.
    pub(crate) fn install_again(&self, more: &[&str]) -> Output {
        self.command("install", &["--init", &self.bench.text("init")]).args(more).output().unwrap()
    }

    /// What it would do, by the names of the steps.
    pub(crate) fn steps(&self, output: &Output) -> Vec<String> {
        let result: Value = serde_json::from_str(&passes(output)).unwrap();
        let steps = result["steps"].as_array().unwrap();
        steps.iter().map(|step| step["do"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn uninstall(&self, more: &[&str]) -> Output {
        self.command("uninstall", more).output().unwrap()
    }

    /// Every file and folder, with mode and content.
    pub(crate) fn content(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let read = |path: &Path| if path.is_file() { fs::read(path).unwrap() } else { Vec::new() };
        let walk = walkdir::WalkDir::new(self.path("")).into_iter().map(|entry| entry.unwrap().into_path());
        walk.map(|path| (path.clone(), (fs::symlink_metadata(&path).unwrap().mode(), read(&path)))).collect()
    }

    /// Fails with the names of the files that differ from what was there.
    pub(crate) fn assert_content(&self, before: &BTreeMap<PathBuf, (u32, Vec<u8>)>) {
        let now = self.content();
        let names = |files: &BTreeMap<PathBuf, _>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&now), names(before));
        let differing: Vec<&PathBuf> = now.keys().filter(|path| now[*path] != before[*path]).collect();
        assert!(differing.is_empty(), "these differ: {differing:?}");
    }

    /// A static program that says of itself, as verify-init does, that it starts second stages.
    fn make_init(&self) {
        let (abilities, init) = (self.bench.text("abilities"), self.bench.text("init"));
        fs::write(&abilities, "full").unwrap();
        let section = format!(".iofs.abilities={abilities}");
        passes(&tool("objcopy", "binutils", &["--add-section", &section, busybox(), &init]));
    }

    /// A program of the system, which is changed into to run it: a static one, since nothing else is there.
    pub(crate) fn add_program(&self, path: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::copy(busybox(), self.path(path)).unwrap();
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn busybox() -> &'static str {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    busybox.expect("busybox is not installed\n  run: apt-get install busybox-static")
}
