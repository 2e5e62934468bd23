//! `seal --trust-times` gives the bytes that `seal` gives, and reads less.

mod seal_common;

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::PathBuf,
    thread::sleep,
    time::Duration,
};

use seal_common::{Bench, assert_same, command, fails, files, iofs_sign, noise, passes};

/// After this, no file was changed just now.
const SETTLED: Duration = Duration::from_millis(2100);

/// A bench whose tree has three files, with a cache of its own.
struct Again(Bench);

impl Again {
    fn new() -> Self {
        let again = Self(Bench::new());
        fs::write(again.file("usr/bin/other"), b"text ".repeat(10_000)).unwrap();
        sleep(SETTLED);
        again
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path("root").join(name)
    }

    /// The list of files.
    fn list(&self) -> PathBuf {
        let mut entries = fs::read_dir(self.0.path("cache")).unwrap().map(|entry| entry.unwrap().path());
        entries.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("files-")).unwrap()
    }

    /// Seals with the option into `out`; returns how many files were not read.
    fn seal(&self, out: &str, more: &[&str]) -> u64 {
        let (key, cache) = (self.0.text("key.pem"), self.0.text("cache"));
        let mut arguments = self.0.image_arguments(out);
        arguments.extend(["--json", "--replace", "--trust-times", "--key", &key, "--cache", &cache].map(str::to_owned));
        arguments.extend(more.iter().map(|text| (*text).to_owned()));
        let told: serde_json::Value = serde_json::from_str(&passes(&iofs_sign(arguments))).unwrap();
        self.compare(out, more);
        told["unchanged_files"].as_u64().unwrap()
    }

    /// With what is sealed without the option.
    fn compare(&self, out: &str, more: &[&str]) {
        let key = self.0.text("key.pem");
        let mut arguments = self.0.image_arguments("plain");
        arguments.extend(["--replace", "--key", &key].iter().chain(more).map(|text| (*text).to_owned()));
        passes(&iofs_sign(arguments));
        assert_same(&files(&self.0.path("plain")), &files(&self.0.path(out)));
    }
}

#[test]
fn what_looks_unchanged_is_not_read_and_all_files_are_the_same() {
    let again = Again::new();
    assert_eq!(again.seal("sealed", &[]), 0);
    assert_eq!(again.seal("sealed", &[]), 3, "in the place of the one before");
    assert_eq!(again.seal("next", &[]), 3, "beside it");
    fs::write(again.file("etc/os-release"), "ID=car\nVERSION_ID=8\n").unwrap();
    assert_eq!(again.seal("next", &[]), 2);
    assert_eq!(again.seal("next", &[]), 2, "what was changed a moment before may change again");
}

#[test]
fn without_the_image_before_or_its_list_all_files_are_read() {
    let again = Again::new();
    again.seal("sealed", &[]);
    fs::remove_dir_all(again.0.path("sealed")).unwrap();
    assert_eq!(again.seal("sealed", &[]), 0, "the image is gone");

    let image = File::options().write(true).open(again.0.path("sealed/image.erofs")).unwrap();
    image.write_all_at(&noise(4096, 9), 8192).unwrap();
    assert_eq!(again.seal("sealed", &[]), 2, "the image is damaged");

    fs::set_permissions(again.list(), Permissions::from_mode(0o620)).unwrap();
    assert_eq!(again.seal("sealed", &[]), 0, "others can write the list");
    assert_eq!(again.list().metadata().unwrap().permissions().mode() & 0o777, 0o600);

    fs::write(again.list(), b"no list").unwrap();
    assert_eq!(again.seal("sealed", &[]), 0, "the list is none");
    fs::remove_dir_all(again.0.path("cache")).unwrap();
    assert_eq!(again.seal("sealed", &[]), 0, "the list is gone");
    assert_eq!(again.seal("sealed", &[]), 3);
}

#[test]
fn a_tree_that_is_sealed_otherwise_is_read() {
    let again = Again::new();
    again.seal("sealed", &[]);
    assert_eq!(again.seal("other", &["--compression", "none"]), 0);
    assert_eq!(again.seal("other", &["--compression", "none"]), 3);
}

#[test]
fn a_list_needs_a_folder() {
    let again = Bench::new();
    let key = again.text("key.pem");
    let mut arguments = again.image_arguments("sealed");
    arguments.extend(["--key", &key, "--trust-times"].map(str::to_owned));
    let homeless = command().args(&arguments).env_remove("HOME").env_remove("XDG_CACHE_HOME").output().unwrap();
    let text = fails(&homeless, 2);
    assert!(text.contains("--trust-times: no folder to keep the list of files in"), "{text}");
    assert!(text.contains("give --cache DIR"), "{text}");
    arguments.push("--no-cache".to_owned());
    assert!(fails(&iofs_sign(arguments), 2).contains("--no-cache"));

    // What cannot be kept costs time, not the release.
    let below_a_file = again.text("vmlinuz/cache");
    let mut arguments = again.image_arguments("sealed");
    arguments.extend(["--key", &key, "--trust-times", "--cache", &below_a_file].map(str::to_owned));
    let output = iofs_sign(arguments);
    passes(&output);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("the next image will be made of all files anew"), "{told}");
}
