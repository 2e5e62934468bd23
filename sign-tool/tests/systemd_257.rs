//! Unified kernel images by Debian 13's own programs for them: ukify and systemd-measure of systemd 257.

mod seal_common;
mod systemd_common;
mod x509_common;

use std::{collections::BTreeMap, fs, path::Path};

use iofs_policy::{digest::Sha256Digest, dsse::PayloadType, hex, pcr::PcrBank, release::Release};
use iofs_sign::sealed::{self, SealedDirectory};
use seal_common::{Bench, fails, iofs_sign, noise, openssl, passes};
use serde_json::{Value, json};
use systemd_common::{Trixie, calculates_what_is_predicted, sections};
use x509_common::{Place, run};

const LINE: &str = "console=ttyS0 quiet";
/// What the files for `iofs-sign uki` are, by their sections, with the options that take them.
const PARTS: [(&str, &str); 8] = [
    (".cmdline", "--cmdline"),
    (".dtb", "--devicetree"),
    (".initrd", "--initrd"),
    (".linux", "--kernel"),
    (".osrel", "--os-release"),
    (".pcrpkey", "--pcr-public-key"),
    (".splash", "--splash"),
    (".ucode", "--microcode"),
];
/// Signatures for register 11, which are made of an image of the others.
const SIGNATURES: (&str, &str) = (".pcrsig", "--pcr-signature");

/// Images of Debian 13's kernel and stub, and what they are made of.
struct Images {
    place: Place,
}

impl Images {
    fn new() -> Self {
        let images = Self { place: Place::new() };
        for (name, bytes) in [
            (".cmdline", LINE.as_bytes()),
            (".dtb", &noise(700, 1)),
            (".initrd", &noise(5_001, 2)),
            (".osrel", b"ID=car\nVERSION_ID=7\n"),
            (".splash", &noise(90, 3)),
            (".ucode", &noise(513, 4)),
        ] {
            images.place.write(name, bytes);
        }
        fs::copy(cache("kernels/trixie/vmlinuz"), images.place.path(".linux")).unwrap();
        let (private, public) = (images.text("pcr.pem"), images.text(".pcrpkey"));
        openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &private]);
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
        images
    }

    fn text(&self, name: &str) -> String {
        self.place.path(name).to_str().unwrap().to_owned()
    }

    /// By `iofs-sign uki`, of these parts.
    fn assembled(&self, parts: &[(&str, &str)]) -> Vec<u8> {
        let mut words = vec!["uki".to_owned(), "--stub".to_owned(), cache("stubs/trixie/linuxx64.efi.stub")];
        for (section, option) in parts {
            let at = if *option == "--cmdline" { "@" } else { "" };
            words.extend([(*option).to_owned(), format!("{at}{}", self.text(section))]);
        }
        passes(&iofs_sign(words.into_iter().chain(["--out".to_owned(), self.text("image.efi")])));
        fs::read(self.place.path("image.efi")).unwrap()
    }

    /// The same with signatures for register 11 in it.
    fn with_signatures(&self) -> Vec<u8> {
        self.assembled(&PARTS);
        let signatures = self.signed(&[]);
        self.place.write(SIGNATURES.0, signatures.as_bytes());
        self.assembled(&[&PARTS[..], &[SIGNATURES]].concat())
    }

    /// What `iofs-sign policy sign` writes of the image that was assembled last.
    fn signed(&self, more: &[&str]) -> String {
        let (image, key) = (self.text("image.efi"), self.text("pcr.pem"));
        passes(&iofs_sign([&["policy", "sign", &image, "--key", &key], more].concat()))
    }
}

/// A file of the cache that `make cache` fills.
fn cache(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache").join(name);
    assert!(path.exists(), "{} is missing\n  run: make cache", path.display());
    path.to_str().unwrap().to_owned()
}

/// A section's size and SHA-256.
type Contents = (u64, String);

/// What ukify says of an image's sections.
fn by_ukify(trixie: &Trixie, image: &str, more: &[&str]) -> BTreeMap<String, Contents> {
    let said: [BTreeMap<String, Value>; 2] = ["--json=short", "--json=pretty"]
        .map(|form| serde_json::from_slice(&run(trixie.ukify().args(["inspect", image, form]).args(more))).unwrap());
    assert_eq!(said[0], said[1]);
    let [said, _] = said;
    said.into_iter().map(|(name, section)| (name, contents(&section))).collect()
}

/// What `iofs-sign inspect` says of them.
fn by_inspect(image: &str) -> BTreeMap<String, Contents> {
    let said: Value = serde_json::from_str(&passes(&iofs_sign(["inspect", image, "--json"]))).unwrap();
    let sections = said["sections"].as_array().unwrap_or_else(|| panic!("{said}"));
    let named = |section: &Value| (section["name"].as_str().unwrap().to_owned(), contents(section));
    let found: BTreeMap<_, _> = sections.iter().map(named).collect();
    assert_eq!(found.len(), sections.len(), "each once");
    found
}

fn contents(section: &Value) -> Contents {
    (section["size"].as_u64().unwrap(), section["sha256"].as_str().unwrap().to_owned())
}

#[test]
fn ukify_257_lists_the_sections_of_our_images_as_we_do() {
    let (trixie, images) = (Trixie::unpacked(), Images::new());
    images.with_signatures();
    let image = images.text("image.efi");
    assert_eq!(by_ukify(&trixie, &image, &["--all"]), by_inspect(&image));

    let mut shown = by_ukify(&trixie, &image, &[]);
    let [of_stub, of_kernel] =
        [".sbat", ".uname"].map(|name| shown.remove(name).unwrap_or_else(|| panic!("no {name}")));
    assert_ne!(of_stub.0, 0);
    let release = fs::read_to_string(cache("kernels/trixie/version")).unwrap();
    assert_eq!(of_kernel.1, Sha256Digest::of(release.trim().as_bytes()).to_string());
    let given = PARTS.iter().chain([&SIGNATURES]).map(|(name, _)| {
        let bytes = fs::read(images.place.path(name)).unwrap();
        ((*name).to_owned(), (bytes.len() as u64, Sha256Digest::of(&bytes).to_string()))
    });
    assert_eq!(shown, given.collect());
}

/// With the key for register 11, `seal` puts signatures into the image by itself.
#[test]
fn ukify_257_finds_in_a_sealed_image_what_its_release_states() {
    let (trixie, images, bench) = (Trixie::unpacked(), Images::new(), Bench::new());
    let out = bench.text("sealed");
    let words = ["seal", "--root", &bench.text("root"), "--init", &bench.text("init"), "--command-line", LINE, "--uki"];
    let kernel = ["--kernel", &cache("kernels/trixie/vmlinuz"), "--modules", &cache("kernels/trixie/modules")];
    let stub = ["--stub", &cache("stubs/trixie/linuxx64.efi.stub")];
    let keys = ["--key", &bench.text("key.pem"), "--pcr-key", &images.text("pcr.pem"), "--out", &out];
    passes(&iofs_sign([&words[..], &kernel, &stub, &keys].concat()));

    let directory = SealedDirectory::new(Path::new(&out));
    let image = directory.file(sealed::UKI);
    let image = image.to_str().unwrap();
    assert_eq!(by_ukify(&trixie, image, &["--all"]), by_inspect(image));
    let mut shown = by_ukify(&trixie, image, &[]);
    assert!(shown.remove(SIGNATURES.0).is_some(), "it is not measured");
    let envelope = directory.envelope(sealed::RELEASE, PayloadType::Release).unwrap();
    let stated = Release::from_json(envelope.unverified_payload()).unwrap().uki.unwrap().sections;
    let stated = stated.iter().map(|section| {
        let digest = section.digests.get(PcrBank::Sha256).unwrap();
        (section.name.clone(), hex::encode(digest.as_bytes()))
    });
    assert_eq!(
        shown.into_iter().map(|(name, (_, digest))| (name, digest)).collect::<BTreeMap<_, _>>(),
        stated.collect()
    );
}

#[test]
fn register_11_equals_what_systemd_measure_257_calculates_in_every_phase_and_bank() {
    let (trixie, images) = (Trixie::unpacked(), Images::new());
    let least: Vec<_> = PARTS.into_iter().filter(|(name, _)| [".initrd", ".linux"].contains(name)).collect();
    for image in [images.assembled(&PARTS), images.with_signatures(), images.assembled(&least)] {
        calculates_what_is_predicted(&images.place, &image, trixie.measure());
    }
}

/// ukify sorts sections in a way of its own.
#[test]
fn images_of_ukify_257_are_predicted_as_systemd_measure_does_and_refused_where_the_machine_chooses() {
    let (trixie, images) = (Trixie::unpacked(), Images::new());
    images.place.write("profile", b"ID=main\n");
    let build = |more: &[&str]| {
        let mut ukify = trixie.ukify();
        ukify.args([
            "build",
            "--linux",
            &images.text(".linux"),
            "--initrd",
            &images.text(".initrd"),
            "--uname",
            "6.12",
        ]);
        ukify.args(["--cmdline", LINE, "--stub", &cache("stubs/trixie/linuxx64.efi.stub")]);
        run(ukify.args(["--output", &images.text("image.efi")]).args(more));
        fs::read(images.place.path("image.efi")).unwrap()
    };
    calculates_what_is_predicted(&images.place, &build(&[]), trixie.measure());

    build(&["--profile", &format!("@{}", images.text("profile"))]);
    let (image, key) = (images.text("image.efi"), images.text("pcr.pem"));
    let refused = fails(&iofs_sign(["policy", "sign", &image, "--key", &key]), 3);
    assert!(refused.contains("found .profile, of which its stub chooses"), "{refused}");
    let inspected: Value = serde_json::from_str(&passes(&iofs_sign(["inspect", &image, "--json"]))).unwrap();
    assert_eq!((&inspected["pcr11"], &inspected["unpredicted"]), (&json!({}), &json!(".profile")));
}

#[test]
fn by_an_rsa_key_the_signatures_are_those_of_systemd_measure_257_byte_for_byte() {
    let (trixie, images) = (Trixie::unpacked(), Images::new());
    let image = images.assembled(&PARTS);
    let sections = sections(&images.place, &image);
    let keys =
        [format!("--private-key={}", images.text("pcr.pem")), format!("--public-key={}", images.text(".pcrpkey"))];
    for more in [
        &["--bank=sha256", "--phase=enter-initrd"][..],
        &[
            "--bank=sha256",
            "--phase=enter-initrd:leave-initrd:sysinit:ready",
            "--phase=enter-initrd",
            "--phase=enter-initrd:leave-initrd",
        ],
        &["--bank=sha256", "--phase=:", "--phase=enter-initrd:leave-initrd:sysinit"],
    ] {
        let theirs = run(trixie.measure().arg("sign").args(&sections).args(&keys).args(more));
        assert_eq!(images.signed(more), String::from_utf8(theirs).unwrap(), "{more:?}");
    }
}
