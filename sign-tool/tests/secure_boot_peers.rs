//! Unified kernel images and their signatures, read by the programs that others use.

mod systemd_common;
mod x509_common;

use std::{path::Path, process::Command};

use iofs_sign::{
    pe::Headers,
    secure_boot,
    uki::{self, Part},
};
use x509_common::{Place, cached, run, stub};

/// A unified kernel image with each part that Debian 12's stub measures.
fn image(command_line: &str) -> Vec<u8> {
    let parts: [(Part, &[u8]); 7] = [
        (Part::Initrd, &[7; 5000]),
        (Part::CommandLine, command_line.as_bytes()),
        (Part::OsRelease, b"ID=debian\n"),
        (Part::Uname, b"6.12.0"),
        (Part::Linux, &cached("kernels/trixie/vmlinuz")),
        (Part::Splash, b"BM"),
        (Part::PcrPublicKey, b"-----BEGIN PUBLIC KEY-----\n"),
    ];
    uki::assemble(&stub(), &parts).unwrap().bytes
}

fn program(name: &str, arguments: &[&str], paths: &[&Path]) -> Command {
    let mut command = Command::new(name);
    command.args(arguments).args(paths);
    command
}

#[test]
fn two_other_programs_accept_the_signature_and_only_with_its_certificate() {
    let place = Place::new();
    let signer = place.signer("db");
    place.pair("other", "rsa:2048");
    let path = place.write("signed.efi", &secure_boot::sign(&image("quiet"), &signer).unwrap());
    let (db, other) = (place.path("db.crt"), place.path("other.crt"));
    run(program("sbverify", &["--cert"], &[&db]).arg(&path));
    run(program("osslsigncode", &["verify", "-CAfile"], &[&db]).arg("-in").arg(&path));
    assert!(!program("sbverify", &["--cert"], &[&other]).arg(&path).output().unwrap().status.success());
}

#[test]
fn signers_are_read_from_what_sbsign_and_debian_signed() {
    let place = Place::new();
    let (key, certificate) = place.pair("db", "rsa:4096");
    let unsigned = place.write("unsigned.efi", &image("quiet"));
    let signed = place.path("signed.efi");
    run(program("sbsign", &["--key"], &[&key])
        .arg("--cert")
        .arg(certificate)
        .arg("--output")
        .args([&signed, &unsigned]));
    let names = |image: &[u8]| -> Vec<String> {
        secure_boot::signers(image).unwrap().iter().map(|signer| signer.name().subject.clone()).collect()
    };
    assert_eq!(names(&std::fs::read(signed).unwrap()), ["CN=db"]);
    assert_eq!(names(&std::fs::read(unsigned).unwrap()), [""; 0]);
    let debian = names(&cached("kernels/bookworm/vmlinuz"));
    assert!(debian.len() == 1 && debian[0].contains("Debian Secure Boot Signer"), "{debian:?}");
}

#[test]
fn a_signature_by_openssl_over_the_written_bytes_gives_the_same_image() {
    let place = Place::new();
    let signer = place.signer("db");
    let image = image("quiet");
    let to_sign = place.write("to-sign", &secure_boot::to_sign(&image).unwrap());
    let signature = run(&mut program("openssl", &["dgst", "-sha256", "-sign"], &[&place.path("db.pem"), &to_sign]));
    let attached = secure_boot::attach(&image, &signature, signer.certificate()).unwrap();
    assert_eq!(attached, secure_boot::sign(&image, &signer).unwrap());
    let other = place.signer("other");
    let refused = secure_boot::attach(&image, &signature, other.certificate()).unwrap_err().to_string();
    assert!(refused.starts_with("the signature does not verify with the key of CN=other "), "{refused}");
    let twice = secure_boot::sign(&attached, &signer).unwrap_err().to_string();
    assert_eq!(twice, "certificate table: signatures: expected none yet, found one");
}

#[test]
fn a_changed_byte_of_a_signed_image_is_noticed_wherever_it_is() {
    let place = Place::new();
    // A stub is a PE image too, and a small one.
    let parts: [(Part, &[u8]); 3] = [(Part::Linux, &stub()), (Part::CommandLine, b"quiet"), (Part::Initrd, b"070701")];
    let image = uki::assemble(&stub(), &parts).unwrap().bytes;
    let signed = secure_boot::sign(&image, &place.signer("db")).unwrap();
    let signers = secure_boot::signers(&signed).unwrap();
    let table = Headers::parse(&signed).unwrap().certificates;
    // The checksum is covered by nothing and read by nobody; padding behind the signature may count as its own or not.
    let pe = u32::from_le_bytes(signed[0x3c..0x40].try_into().unwrap()) as usize;
    let checksum = pe + 24 + 64..pe + 24 + 68;
    let places = (0..table.start).step_by(97).chain(0..1024).chain(table.start + 4..table.end - 7);
    for at in places.filter(|at| !checksum.contains(at)) {
        let mut changed = signed.clone();
        changed[at] ^= 1;
        let found = secure_boot::signers(&changed);
        assert!(!found.is_ok_and(|found| found == signers), "byte {at} of {}, signature at {table:?}", signed.len());
    }
}

#[test]
fn register_11_equals_what_systemd_measure_calculates_in_every_phase_and_bank() {
    let place = Place::new();
    for command_line in ["quiet", "console=ttyS0 panic=-1", "x"] {
        systemd_common::calculates_what_is_predicted(&place, &image(command_line), systemd_common::measure());
    }
}

#[test]
fn objdump_reads_the_sections_and_their_contents() {
    let place = Place::new();
    let path = place.write("image.efi", &image("quiet splash"));
    let table = String::from_utf8(run(&mut program("objdump", &["-h"], &[&path]))).unwrap();
    for name in [".osrel", ".cmdline", ".initrd", ".splash", ".uname", ".pcrpkey", ".linux"] {
        assert!(table.contains(&format!(" {name} ")), "{name}: {table}");
    }
    // Into files of the test: run by root, programs can replace what stands in /dev.
    let (section, copy) = (place.path("section"), place.path("copy"));
    let dump = format!(".cmdline={}", section.display());
    run(&mut program("objcopy", &["-O", "binary", "--dump-section", &dump], &[&path, &copy]));
    let contents = std::fs::read(section).unwrap();
    assert_eq!(contents, b"quiet splash");
}
