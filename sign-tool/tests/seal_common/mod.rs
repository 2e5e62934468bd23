//! What the tests of sealing share: a small system to seal, keys, and ways to run programs.
#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use iofs_sign::keys::{self, PrivateKey};
use tempfile::TempDir;

/// The release of the kernel here, which is none: a header, and a module folder that has all built in.
pub(crate) const RELEASE: &str = "6.1.0-test";

/// A place of a test's own, with a small root tree, a kernel, and the key pair `key`.
pub(crate) struct Bench {
    home: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::within(Path::new("/var/tmp"))
    }

    pub(crate) fn within(parent: &Path) -> Self {
        let bench = Self { home: tempfile::tempdir_in(parent).unwrap() };
        bench.key("key");
        bench.make_root();
        bench.make_kernel();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Makes a key pair: `NAME.pem` and `NAME.pub.pem`.
    pub(crate) fn key(&self, name: &str) -> PathBuf {
        keys::write_pair(&self.path(name), &PrivateKey::generate().unwrap()).unwrap().private
    }

    /// 300 KB that do not compress, and an os-release.
    fn make_root(&self) {
        let root = self.path("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("etc/os-release"), "ID=car\nVERSION_ID=7\n").unwrap();
        fs::write(root.join("usr/bin/tool"), noise(300_000, 1)).unwrap();
        std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
    }

    fn make_kernel(&self) {
        let mut kernel = noise(20_000, 2);
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e..0x210].copy_from_slice(&0x200_u16.to_le_bytes());
        let banner = format!("{RELEASE} (test) #1\0");
        kernel[0x400..0x400 + banner.len()].copy_from_slice(banner.as_bytes());
        fs::write(self.path("vmlinuz"), kernel).unwrap();
        let modules = self.path("modules").join(RELEASE);
        fs::create_dir_all(&modules).unwrap();
        let built_in = "kernel/dm-verity.ko\nkernel/erofs.ko\nkernel/overlay.ko\n";
        fs::write(modules.join("modules.builtin"), built_in).unwrap();
        fs::write(self.path("init"), static_program()).unwrap();
    }

    /// The arguments that seal the small root into `out`, with the kernel. What signs is missing.
    pub(crate) fn arguments(&self, out: &str) -> Vec<String> {
        let mut arguments = self.image_arguments(out);
        arguments.pop();
        for (option, name) in [("--kernel", "vmlinuz"), ("--modules", "modules"), ("--init", "init")] {
            arguments.extend([option.to_owned(), self.text(name)]);
        }
        arguments
    }

    /// The same without a kernel.
    pub(crate) fn image_arguments(&self, out: &str) -> Vec<String> {
        let (root, out) = (self.text("root"), self.text(out));
        ["seal", "--root", &root, "--out", &out, "--image-only"].map(str::to_owned).to_vec()
    }

    /// Seals the small root with the kernel into `out`.
    pub(crate) fn seal(&self, out: &str, more: &[&str]) -> PathBuf {
        let arguments = self.arguments(out);
        passes(&iofs_sign(arguments.iter().map(String::as_str).chain(more.iter().copied())));
        self.path(out)
    }

    /// Seals it with `key`.
    pub(crate) fn sealed(&self, out: &str) -> PathBuf {
        self.seal(out, &["--key", &self.text("key.pem")])
    }

    /// Runs `verify` with `key`.
    pub(crate) fn verify(&self, directory: &Path) -> Output {
        iofs_sign([
            OsStr::new("verify"),
            directory.as_os_str(),
            OsStr::new("--key"),
            self.path("key.pub.pem").as_os_str(),
        ])
    }

    /// The names of everything here that begins with a dot.
    pub(crate) fn hidden(&self) -> Vec<String> {
        let names = fs::read_dir(self.home.path()).unwrap();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with('.') || name.starts_with("iofs-"))
            .collect()
    }
}

/// Runs the program under test, away from what the caller's environment says about time and files.
pub(crate) fn iofs_sign(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    command().args(arguments).output().unwrap()
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iofs-sign"));
    command.env_remove("SOURCE_DATE_EPOCH").env_remove("IOFS_VERIFY_INIT");
    command
}

/// What it printed. It must have succeeded.
pub(crate) fn passes(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What it complained about. It must have ended with that status.
pub(crate) fn fails(output: &Output, status: i32) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs another program, which must be there.
pub(crate) fn tool(program: &str, package: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}\n  run: apt-get install {package}"))
}

/// Runs openssl, which must succeed.
pub(crate) fn openssl(arguments: &[&str]) -> String {
    passes(&tool("openssl", "openssl", arguments))
}

/// Every file of a directory.
pub(crate) fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    entries.map(|entry| read(entry.unwrap())).collect()
}

/// Fails with the names of the files that differ.
pub(crate) fn assert_same(left: &BTreeMap<String, Vec<u8>>, right: &BTreeMap<String, Vec<u8>>) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(left), names(right));
    let differing: Vec<&String> = left.keys().filter(|name| left[*name] != right[*name]).collect();
    assert!(differing.is_empty(), "these differ: {differing:?}");
}

/// Copies a directory of files.
pub(crate) fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for (name, bytes) in files(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
}

/// A stream of pseudo-random numbers (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub(crate) fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..size.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(size).collect()
}

/// The header of a static x86-64 program, and something to compress behind it.
fn static_program() -> Vec<u8> {
    let mut program = vec![0; 64];
    program[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    (program[16], program[18], program[24]) = (2, 62, 1);
    program.extend(noise(20_000, 3));
    program
}
