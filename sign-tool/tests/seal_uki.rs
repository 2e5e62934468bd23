//! Unified kernel images in sealed directories: by keys at hand, by keys elsewhere, and changed.

mod seal_common;
mod x509_common;

use std::{fs, path::Path};

use iofs_sign::{pe::Headers, uki::Part};
use seal_common::{Bench, assert_same, copy_directory, fails, files, iofs_sign, openssl, passes};
use x509_common::{Place, cached};

const LINE: &str = "console=ttyS0 quiet";

/// A bench, and pairs of X.509 keys. The kernel is a real one: firmware could start it.
struct Sealing {
    bench: Bench,
    place: Place,
}

impl Sealing {
    fn new() -> Self {
        let (bench, place) = (Bench::new(), Place::new());
        place.pair("db", "rsa:2048");
        place.pair("verity", "rsa:2048");
        place.pair("other", "rsa:2048");
        place.pair("pcr", "rsa:2048");
        let public = place.path("pcr.pub.pem");
        openssl(&["pkey", "-in", place.path("pcr.pem").to_str().unwrap(), "-pubout", "-out", public.to_str().unwrap()]);
        Self { bench, place }
    }

    fn certificate(&self, option: &str, name: &str) -> Vec<String> {
        vec![format!("--{option}-certificate"), self.text(&format!("{name}.crt"))]
    }

    fn pair(&self, option: &str, name: &str) -> Vec<String> {
        let key = [format!("--{option}-key"), self.text(&format!("{name}.pem"))];
        [key.to_vec(), self.certificate(option, name)].concat()
    }

    fn text(&self, name: &str) -> String {
        self.place.path(name).to_str().unwrap().to_owned()
    }

    fn arguments(&self, out: &str) -> Vec<String> {
        let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache/kernels/bookworm");
        let file = |name: &str| cache.join(name).to_str().unwrap().to_owned();
        let words =
            ["seal", "--root", &self.bench.text("root"), "--out", &self.bench.text(out), "--uki"].map(str::to_owned);
        let kernel = ["--kernel", &file("vmlinuz"), "--modules", &file("modules"), "--init", &self.bench.text("init")];
        [&words[..], &kernel.map(str::to_owned), &["--command-line", LINE].map(str::to_owned)].concat()
    }

    /// Seals with the ed25519 key and what else is said.
    fn seal(&self, out: &str, more: &[Vec<String>]) {
        let key = ["--key".to_owned(), self.bench.text("key.pem")];
        passes(&iofs_sign([self.arguments(out), key.to_vec(), more.concat()].concat()));
    }

    fn seal_unsigned(&self, out: &str, more: &[Vec<String>]) {
        let key = ["--unsigned".to_owned(), "--trust".to_owned(), self.bench.text("key.pub.pem")];
        passes(&iofs_sign([self.arguments(out), key.to_vec(), more.concat()].concat()));
    }

    /// What `verify` says of a directory in which `change` was done.
    fn refusal(&self, directory: &str, change: impl FnOnce(&Path)) -> String {
        let copy = self.bench.path("changed");
        if copy.exists() {
            fs::remove_dir_all(&copy).unwrap();
        }
        copy_directory(&self.bench.path(directory), &copy);
        change(&copy);
        fails(&self.bench.verify(&copy), 4)
    }
}

#[test]
fn an_image_is_sealed_signed_and_verified_and_the_same_each_time() {
    let sealing = Sealing::new();
    sealing.seal("one", &[sealing.pair("secure-boot", "db")]);
    sealing.seal("two", &[sealing.pair("secure-boot", "db")]);
    let one = files(&sealing.bench.path("one"));
    assert_same(&one, &files(&sealing.bench.path("two")));
    let report = passes(&sealing.bench.verify(&sealing.bench.path("one")));
    assert!(report.contains("roothash.p7s") && report.contains("uki.efi"), "{report}");

    let image = fs::read(sealing.bench.path("one/uki.efi")).unwrap();
    let headers = Headers::parse(&image).unwrap();
    let section = |part: Part| headers.find(part.section()).unwrap().contents(&image).to_vec();
    assert_eq!(section(Part::CommandLine), LINE.as_bytes());
    let os_release = b"ID=car\nVERSION_ID=7\nIMAGE_ID=\"car\"\nIMAGE_VERSION=\"7\"\n";
    assert_eq!(section(Part::OsRelease), os_release);
    assert_eq!(section(Part::Initrd), fs::read(sealing.bench.path("one/initramfs.img")).unwrap());
    assert_eq!(section(Part::Linux), cached("kernels/bookworm/vmlinuz"));
    let release = passes(&iofs_sign(["inspect", &sealing.bench.text("one/uki.efi")]));
    assert!(release.contains("signed by: CN=db (certificate sha256:"), "{release}");
}

#[test]
fn signatures_made_elsewhere_give_the_same_directory_as_keys_at_hand() {
    let sealing = Sealing::new();
    let pcr = |option: &str, name: &str| vec![option.to_owned(), sealing.text(name)];
    let pairs = [sealing.pair("secure-boot", "db"), sealing.pair("verity", "verity"), pcr("--pcr-key", "pcr.pem")];
    sealing.seal("direct", &pairs);
    let direct = files(&sealing.bench.path("direct"));

    let certificates = [
        sealing.certificate("secure-boot", "db"),
        sealing.certificate("verity", "verity"),
        pcr("--pcr-public-key", "pcr.pub.pem"),
    ];
    sealing.seal_unsigned("attached", &certificates);
    let (directory, to_sign) = (sealing.bench.text("attached"), sealing.bench.text("attached/to-sign.bin"));
    let signature = sealing.text("signature");
    for signer in ["verity", "key", "pcr", "db", "key"] {
        if signer == "pcr" {
            let refused = fails(&iofs_sign(["attach", &directory, "--signature", &signature]), 2);
            assert!(refused.contains("waits for signatures for register 11 by key"), "{refused}");
            passes(&iofs_sign(["sign", &directory, "--pcr-key", &sealing.text("pcr.pem")]));
        } else if signer == "key" {
            let key = sealing.bench.text("key.pem");
            openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", &key, "-in", &to_sign, "-out", &signature]);
            let public = sealing.bench.text("key.pub.pem");
            passes(&iofs_sign(["attach", &directory, "--key", &public, "--signature", &signature]));
        } else {
            let other = sealing.text("other.pem");
            openssl(&["dgst", "-sha256", "-sign", &other, "-out", &signature, &to_sign]);
            let refused = fails(&iofs_sign(["attach", &directory, "--signature", &signature]), 4);
            assert!(refused.contains(&format!("does not verify with the key of CN={signer} (")), "{refused}");
            let key = sealing.text(&format!("{signer}.pem"));
            openssl(&["dgst", "-sha256", "-sign", &key, "-out", &signature, &to_sign]);
            passes(&iofs_sign(["attach", &directory, "--signature", &signature]));
        }
    }
    assert_same(&direct, &files(&sealing.bench.path("attached")));

    sealing.seal_unsigned("signed", &certificates);
    let directory = sealing.bench.text("signed");
    let sign = |keys: Vec<String>| passes(&iofs_sign([vec!["sign".to_owned(), directory.clone()], keys].concat()));
    let key = vec!["--key".to_owned(), sealing.bench.text("key.pem")];
    assert!(sign(key.clone()).contains("waits for: a signature for roothash.p7s by CN=verity"));
    assert!(sign(sealing.pair("verity", "verity")).contains("a signature over manifest.dsse.json (has 0 of 1)"));
    assert!(sign(key.clone()).contains("waits for: signatures for register 11 by key"));
    assert!(sign(pcr("--pcr-key", "pcr.pem")).contains("waits for: a signature for uki.efi by CN=db"));
    assert!(sign([key, sealing.pair("secure-boot", "db")].concat()).contains("complete:"));
    assert_same(&direct, &files(&sealing.bench.path("signed")));
    passes(&sealing.bench.verify(&sealing.bench.path("signed")));
}

#[test]
fn verify_names_what_is_wrong_with_the_image_and_the_signed_root_hash() {
    let sealing = Sealing::new();
    sealing.seal("sealed", &[sealing.pair("secure-boot", "db")]);
    let refused = sealing.refusal("sealed", |copy| {
        let mut image = fs::read(copy.join("uki.efi")).unwrap();
        let at = image.windows(LINE.len()).position(|bytes| bytes == LINE.as_bytes()).unwrap();
        image[at] ^= 1;
        fs::write(copy.join("uki.efi"), image).unwrap();
    });
    assert!(refused.contains("uki.efi: expected SHA-256"), "{refused}");
    for name in ["uki.efi", "roothash.p7s", "secure-boot.crt", "roothash.crt"] {
        let refused = sealing.refusal("sealed", |copy| fs::remove_file(copy.join(name)).unwrap());
        assert!(refused.contains(name), "{refused}");
    }
    // A statement over an image that another key signed, by the one who signs statements.
    sealing.seal("other", &[sealing.pair("secure-boot", "other")]);
    let refused = sealing.refusal("other", |copy| {
        fs::copy(sealing.bench.path("sealed/secure-boot.crt"), copy.join("secure-boot.crt")).unwrap();
    });
    assert!(refused.contains("secure-boot.crt") && refused.contains("more)"), "{refused}");
}

#[test]
fn what_cannot_be_made_into_an_image_is_refused_before_anything_is_written() {
    let sealing = Sealing::new();
    let key = ["--key".to_owned(), sealing.bench.text("key.pem")];
    let seal = |more: &[&str], expected: &str| {
        let more: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
        let refused = fails(&iofs_sign([sealing.arguments("out"), key.to_vec(), more].concat()), 2);
        assert!(refused.contains(expected), "{refused}");
        assert!(!sealing.bench.path("out").exists());
    };
    fs::write(sealing.bench.path("iofs.toml"), "[boot]\ncommand_lines = [\"a\", \"b\"]\n").unwrap();
    seal(&["--secure-boot-key", "x"], "--secure-boot-certificate");
    let mut arguments = sealing.arguments("out");
    arguments.truncate(arguments.len() - 2);
    let config = ["--config".to_owned(), sealing.bench.text("iofs.toml")];
    let refused = fails(&iofs_sign([arguments, key.to_vec(), config.to_vec()].concat()), 2);
    assert!(refused.contains("boot.command_lines: a unified kernel image has one, found 2"), "{refused}");
    fs::write(sealing.place.path("stub"), "MZ").unwrap();
    let stub = ["--stub".to_owned(), sealing.text("stub")];
    let refused = fails(&iofs_sign([sealing.arguments("out"), key.to_vec(), stub.to_vec()].concat()), 3);
    assert!(refused.contains("stub: expected a PE image, found another file"), "{refused}");
    assert!(!sealing.bench.path("out").exists());
}
