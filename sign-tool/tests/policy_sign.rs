//! `iofs-sign policy sign` against systemd-measure, OpenSSL and a software TPM.
#![cfg(feature = "enroll")]

mod enroll_common;
#[path = "../../tpm/tests/host_common/mod.rs"]
mod host_common;
mod seal_common;
mod systemd_common;
mod x509_common;

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use enroll_common::{Disk, json};
use host_common::SoftwareTpm;
use iofs_policy::{
    hex,
    manifest::RollbackIndex,
    pcr::{PcrBank, PcrIndex},
    pcr_signature::{PcrSignature, PcrSignatures},
};
use iofs_sign::{
    pcr_policy::{self, PolicySigner},
    pe::{self, Headers, NewSection},
    uki,
};
use seal_common::{fails, iofs_sign, noise, openssl, passes, stderr, tool};
use tempfile::TempDir;

/// What goes into the image, by the names of systemd-measure's options, which are those of the sections.
const SECTIONS: [&str; 5] = ["linux", "osrel", "cmdline", "initrd", "pcrpkey"];

/// An image of systemd's stub, and the files that it is made of.
struct Image {
    home: TempDir,
}

impl Image {
    /// `key` is the public key for its `.pcrpkey`.
    fn with(key: &[u8]) -> Self {
        let image = Self { home: tempfile::tempdir().unwrap() };
        image.write("linux", &noise(30_000, 1));
        image.write("osrel", b"ID=car\n");
        image.write("cmdline", b"quiet");
        image.write("initrd", &noise(5_000, 2));
        image.write("pcrpkey", key);
        image.write("image.efi", &image.assemble(&[]));
        image
    }

    fn assemble(&self, more: &[(&str, &[u8])]) -> Vec<u8> {
        let stub = fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub").unwrap_or_else(|error| {
            panic!("systemd's stub: {error}\n  run: apt-get install systemd-boot-efi");
        });
        let mut parts: Vec<(String, Vec<u8>)> =
            SECTIONS.iter().map(|name| (format!(".{name}"), fs::read(self.path(name)).unwrap())).collect();
        parts.extend(more.iter().map(|(name, contents)| ((*name).to_owned(), contents.to_vec())));
        let new: Vec<_> = parts.iter().map(|(name, contents)| NewSection { name, contents }).collect();
        pe::append(&stub, &new).unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// Key files by `openssl`: private and public.
    fn key(&self, name: &str, arguments: &[&str]) -> (String, String) {
        let (private, public) = (self.path(name), self.path(&format!("{name}.pub")));
        openssl(&[arguments, &["-out", &private]].concat());
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
        (private, public)
    }
}

const RSA: [&str; 5] = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
const P256: [&str; 5] = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// The files of an image whose `.pcrpkey` is the public half of a new key.
fn image_of(kind: &[&str]) -> (Image, String) {
    let image = Image::with(b"none");
    let (private, public) = image.key("pcr.pem", kind);
    let image = Image { home: image.home };
    image.write("pcrpkey", &fs::read(public).unwrap());
    image.write("image.efi", &image.assemble(&[]));
    (image, private)
}

/// What `systemd-measure sign` of this machine writes of the same sections.
fn systemd_measure(image: &Image, private: &str, more: &[&str]) -> String {
    measured_by(systemd_common::measure(), image, private, more)
}

/// What this `systemd-measure sign` writes of the same sections. The one of 252 asks a TPM, of which it needs no value.
fn measured_by(mut command: Command, image: &Image, private: &str, more: &[&str]) -> String {
    let software = SoftwareTpm::started();
    command.arg("sign").args(SECTIONS.map(|name| format!("--{name}={}", image.path(name)))).args(more);
    command.arg(format!("--tpm2-device={}", software.tcti()));
    command.args([format!("--private-key={private}"), format!("--public-key={}", image.path("pcrpkey"))]);
    passes(&command.output().unwrap())
}

#[test]
fn by_an_rsa_key_the_signatures_are_those_of_systemd_measure_byte_for_byte() {
    let (image, private) = image_of(&RSA);
    let efi = image.path("image.efi");
    for phases in [
        &["--phase=enter-initrd"][..],
        &[
            "--phase=enter-initrd:leave-initrd:sysinit:ready",
            "--phase=enter-initrd:leave-initrd:sysinit",
            "--phase=enter-initrd",
            "--phase=enter-initrd:leave-initrd",
        ],
        &["--phase=:", "--phase=a:b"],
    ] {
        let theirs = systemd_measure(&image, &private, &[&["--bank=sha256"], phases].concat());
        let ours = passes(&iofs_sign([&["policy", "sign", &efi, "--key", &private], phases].concat()));
        assert_eq!(ours, theirs);
        assert_eq!(PcrSignatures::parse(theirs.as_bytes()).unwrap().to_json(), theirs.as_bytes());
    }
    let ours = passes(&iofs_sign(["policy", "sign", &efi, "--key", &private]));
    assert_eq!(ours, systemd_measure(&image, &private, &["--bank=sha256", "--phase=enter-initrd"]), "by default");
}

/// systemd signs the other banks' policies by the bank's own hash, up to 257 at least, and no TPM takes that where the policy's
/// digest is SHA-256: there, only the signatures differ.
#[test]
fn in_other_banks_the_policies_are_those_of_systemd_measure() {
    let (image, private) = image_of(&RSA);
    let banks = ["--bank=sha1", "--bank=sha256", "--bank=sha384", "--bank=sha512"];
    let ours = passes(&iofs_sign([
        "policy",
        "sign",
        &image.path("image.efi"),
        "--key",
        &private,
        "--bank=sha512,sha1,sha384,sha256",
    ]));
    let ours = PcrSignatures::parse(ours.as_bytes()).unwrap();
    openssl_verifies(&image, &ours);
    assert_eq!(ours.iter().count(), 4);
    let trixie = systemd_common::Trixie::unpacked();
    for program in [systemd_common::measure(), trixie.measure()] {
        let theirs = measured_by(program, &image, &private, &[&banks[..], &["--phase=enter-initrd"]].concat());
        let theirs = PcrSignatures::parse(theirs.as_bytes()).unwrap();
        assert_eq!(theirs.iter().count(), 4);
        for ((bank, ours), (their_bank, theirs)) in ours.iter().zip(theirs.iter()) {
            assert_eq!(
                (bank, &ours.registers, ours.key, ours.policy),
                (their_bank, &theirs.registers, theirs.key, theirs.policy)
            );
            if ours.signature != theirs.signature {
                let [policy, file] = [("pol", theirs.policy.as_bytes() as &[u8]), ("sig", &theirs.signature)]
                    .map(|(name, bytes)| image.write(name, bytes));
                let hash = format!("-{bank}");
                openssl(&["dgst", &hash, "-verify", &image.path("pcrpkey"), "-signature", &file, &policy]);
            }
        }
    }
}

/// Checks every signature of a file by openssl.
fn openssl_verifies(image: &Image, signatures: &PcrSignatures) {
    for (bank, signature) in signatures.iter() {
        let policy = image.write("pol", signature.policy.as_bytes());
        let file = image.write("sig", &signature.signature);
        let public = image.path("pcrpkey");
        let said = openssl(&["dgst", "-sha256", "-verify", &public, "-signature", &file, &policy]);
        assert_eq!(said, "Verified OK\n", "{bank}");
    }
}

#[test]
fn openssl_verifies_what_keys_in_each_form_that_it_writes_signed() {
    for (kind, count) in [(&RSA, 1), (&P256, 1)] {
        let (image, private) = image_of(kind);
        let efi = image.path("image.efi");
        let other = image.path("other-form.pem");
        openssl(&["pkey", "-in", &private, "-traditional", "-out", &other]);
        assert!(fs::read_to_string(&other).unwrap().contains(if kind == &RSA { "BEGIN RSA " } else { "BEGIN EC " }));
        let [first, second] =
            [&private, &other].map(|key| passes(&iofs_sign(["policy", "sign", &efi, "--key", key, "--quiet"])));
        assert_eq!(first, second, "the same key in another form");
        let signatures = PcrSignatures::parse(first.as_bytes()).unwrap();
        assert_eq!(signatures.iter().count(), count);
        openssl_verifies(&image, &signatures);
    }
    let (image, _) = image_of(&P256);
    let (with_parameters, public) = image.key("ecparam", &["ecparam", "-genkey", "-name", "prime256v1"]);
    assert!(fs::read_to_string(&with_parameters).unwrap().starts_with("-----BEGIN EC PARAMETERS"));
    let signer = PolicySigner::read(Path::new(&with_parameters)).unwrap();
    assert_eq!(signer.public_pem(), fs::read_to_string(public).unwrap());
}

#[test]
fn a_volume_opens_by_what_was_signed_for_the_registers_of_now() {
    for kind in [&RSA, &P256] {
        let (disk, software) = (Disk::new(), SoftwareTpm::started());
        let (image, private) = image_of(kind);
        enroll_common::measure(&software, PcrIndex::PHASES, b"anything");
        let registers = BTreeSet::from([(PcrBank::Sha256, PcrIndex::PHASES)]);
        let values = iofs_tpm::pcr::read(&mut enroll_common::lean(&software), &registers).unwrap();
        let value = hex::encode(values.iter().next().unwrap().1.as_bytes());
        let (signatures, public) = (image.path("signatures"), image.path("pcrpkey"));
        let pcr = format!("11:sha256={value}");
        let signed = iofs_sign(["policy", "sign", "--pcr", &pcr, "--key", &private, "--out", &signatures, "--json"]);
        let signed = json(&passes(&signed));
        assert_eq!(
            (&signed["signatures"][0]["pcrs"][0], &signed["signatures"][0]["bank"]),
            (&11.into(), &"sha256".into())
        );
        let done = disk.enrolled(&software, &["--pcr-policy", &public, "--pcr-signature", &signatures]);
        assert_eq!(done["added"][0]["proof"], "unsealed");
    }
}

#[test]
fn the_stubs_own_signatures_are_for_the_image_that_they_are_put_into() {
    let (image, private) = image_of(&P256);
    let key = PolicySigner::read(Path::new(&private)).unwrap();
    let before = fs::read(image.path("image.efi")).unwrap();
    let index = RollbackIndex(3);
    let signatures = pcr_policy::sign_for_stub(&before, &key, index).unwrap();
    assert_eq!(signatures.iter().count(), 1);
    let whole = image.assemble(&[(".pcrsig", &signatures.to_json())]);
    let predicted = |image: &[u8]| uki::predict(&Headers::parse(image).unwrap(), image, PcrBank::Sha256).unwrap();
    assert_eq!(predicted(&before), predicted(&whole), ".pcrsig is not measured");
    assert_eq!(pcr_policy::sign_for_stub(&whole, &key, index).unwrap(), signatures);
    assert!(predicted(&whole).iter().all(|one| one.value.len() == 64), "hexadecimal alone: {:?}", predicted(&whole));

    let refused = |signatures: &PcrSignatures, index| {
        pcr_policy::verify_image(&whole, signatures, RollbackIndex(index)).unwrap_err().to_string()
    };
    pcr_policy::verify_image(&whole, &signatures, index).unwrap();
    assert_eq!(refused(&signatures, 4), "sha256: expected a signature for rollback index 4, found one for 3");
    let changed = |change: fn(&mut PcrSignature)| {
        let mut one = signatures.iter().next().unwrap().1.clone();
        change(&mut one);
        let mut signatures = PcrSignatures::default();
        signatures.insert(PcrBank::Sha256, one);
        signatures
    };
    let plain = changed(|one| one.rollback = None);
    pcr_policy::verify_image(&whole, &plain, index).unwrap();
    // What was signed for one purpose does not pass for the other.
    let swapped = changed(|one| one.rollback.as_mut().unwrap().signature = one.signature.clone());
    assert!(refused(&swapped, 3).contains("the signature does not verify"));
    let swapped = changed(|one| one.signature = one.rollback.clone().unwrap().signature);
    assert!(refused(&swapped, 3).contains("the signature does not verify"));
    let (other, _) = image.key("other.pem", &P256);
    let other = PolicySigner::read(Path::new(&other)).unwrap();
    let mut both = pcr_policy::sign_for_stub(&whole, &other, index).unwrap();
    assert!(refused(&both, 3).contains("expected a signature by the key in .pcrpkey"));
    both.merge(signatures);
    pcr_policy::verify_image(&whole, &both, index).unwrap();
}

#[test]
fn earlier_signatures_stay_and_later_phases_are_warned_of() {
    let (image, private) = image_of(&P256);
    let (efi, out) = (image.path("image.efi"), image.path("out"));
    let sign = |more: &[&str]| {
        let output = iofs_sign([&["policy", "sign", &efi, "--key", &private, "--out", &out], more].concat());
        passes(&output);
        stderr(&output)
    };
    assert!(!sign(&[]).contains("warning"));
    let first = PcrSignatures::parse(&fs::read(&out).unwrap()).unwrap();
    let warned = sign(&["--append", &out, "--phase", "enter-initrd:leave-initrd"]);
    assert!(warned.contains("warning: phase enter-initrd:leave-initrd: others than the initramfs"), "{warned}");
    let both = PcrSignatures::parse(&fs::read(&out).unwrap()).unwrap();
    assert_eq!((first.iter().count(), both.iter().count()), (1, 2));
    assert!(sign(&["--append", &out]).is_empty());
    assert_eq!(PcrSignatures::parse(&fs::read(&out).unwrap()).unwrap().iter().count(), 2, "once each");

    let (other, _) = image.key("other.pem", &P256);
    let output = iofs_sign(["policy", "sign", &efi, "--key", &other]);
    passes(&output);
    assert!(stderr(&output).contains(".pcrpkey is not the public half of"), "{}", stderr(&output));
}

#[test]
fn what_cannot_be_signed_is_named_and_no_secret_is_shown() {
    let (image, private) = image_of(&P256);
    let efi = image.path("image.efi");
    let refused = |arguments: &[&str], status| fails(&iofs_sign([&["policy", "sign"], arguments].concat()), status);
    let linux = image.path("linux");
    assert!(refused(&[&linux, "--key", &private], 3).contains("expected a PE image, found another file"));
    let public = image.path("pcrpkey");
    assert!(refused(&[&efi, "--key", &public], 3).contains("labelled \"PUBLIC KEY\""));
    let (p384, _) = image.key("p384", &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]);
    assert!(refused(&[&efi, "--key", &p384], 3).contains("neither RSA nor P-256"));
    let small = image.path("small");
    passes(&tool("openssl", "openssl", &["genrsa", "-out", &small, "1024"]));
    assert!(refused(&[&efi, "--key", &small], 3).contains("a key that no TPM takes"));
    let encrypted = image.path("encrypted");
    openssl(&["pkey", "-in", &private, "-aes256", "-passout", "pass:x", "-out", &encrypted]);
    assert!(refused(&[&efi, "--key", &encrypted], 3).contains("labelled \"ENCRYPTED PRIVATE KEY\""));
    openssl(&["ec", "-in", &private, "-aes256", "-passout", "pass:x", "-out", &encrypted]);
    assert!(refused(&[&efi, "--key", &encrypted], 3).contains("it is encrypted"));
    for (pcr, expected) in [
        ("24:sha256=00", "expected 0 to 23, found 24"),
        ("11:sha3=00", "expected sha1, sha256, sha384 or sha512"),
        ("11:sha256=00", "expected 32 bytes, found 1"),
        ("11", "expected INDEX:BANK=HEX"),
    ] {
        let told = refused(&["--pcr", pcr, "--key", &private], 2);
        assert!(told.contains(expected), "{told}");
    }
    let zero = format!("11:sha1={}", "00".repeat(20));
    let one = format!("11:sha1={}", "11".repeat(20));
    assert!(refused(&["--pcr", &zero, "--pcr", &one, "--key", &private], 2).contains("expected one value, found two"));
    assert!(refused(&[&efi, "--key", &private, "--json"], 2).contains("JSON themselves"));
    let broken = image.write("broken", b"{\"sha256\":[{}]}");
    assert!(refused(&[&efi, "--key", &private, "--append", &broken], 3).contains("missing field"));
    let text = fs::read_to_string(&private).unwrap();
    let secret = text.lines().nth(1).unwrap();
    assert!(!format!("{:?}", PolicySigner::read(Path::new(&private)).unwrap()).contains(&secret[..16]));
}
