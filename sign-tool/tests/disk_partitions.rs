//! What `disk` adds for firmware and for systemd, as other tools read it.

mod seal_common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use iofs_policy::hex;
use seal_common::{Bench, fails, iofs_sign, noise, openssl, passes, stderr, tool};
use serde_json::Value;
use sha2::{Digest, Sha256};

const MIB: u64 = 1 << 20;
/// The least EFI system partition with FAT32.
const LEAST: u64 = 34 * MIB;

/// The headers of a PE32+ image for x86-64, as much as is looked at, and contents that do not compress.
fn pe_image(size: usize) -> Vec<u8> {
    let mut image = noise(size, 7);
    let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    set(0, b"MZ");
    set(0x3c, &0x40_u32.to_le_bytes());
    set(0x40, &[0; 512]);
    set(0x40, b"PE\0\0\x64\x86\0\0");
    set(0x40 + 20, &240_u16.to_le_bytes());
    let optional = 0x40 + 24;
    set(optional, &[0x0b, 0x02]);
    for (at, value) in [(32, 4096_u32), (36, 512), (60, 512), (108, 16)] {
        set(optional + at, &value.to_le_bytes());
    }
    image
}

/// A sealed directory with `uki.efi`.
fn sealed_with_uki(size: usize) -> (Bench, PathBuf) {
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    fs::write(sealed.join("uki.efi"), pe_image(size)).unwrap();
    (bench, sealed)
}

/// Runs `disk` and returns its report.
fn disk(bench: &Bench, name: &str, more: &[&str]) -> Value {
    let (sealed, out) = (bench.text("sealed"), bench.text(name));
    let arguments = ["--json", "disk", &sealed, "--out", &out];
    serde_json::from_str(&passes(&iofs_sign(arguments.iter().chain(more)))).unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// A partition's bytes.
fn partition(path: &Path, report: &Value, index: usize) -> Vec<u8> {
    let entry = &report["partitions"][index];
    let (offset, size) = (number(&entry["offset"]) as usize, number(&entry["size"]) as usize);
    fs::read(path).unwrap()[offset..offset + size].to_vec()
}

/// Writes the first partition to a file, and has other tools check and read it.
fn esp_is_sound(bench: &Bench, report: &Value, expected: &[u8]) {
    let (esp, copy) = (bench.path("esp"), bench.path("copy.efi"));
    fs::write(&esp, partition(&bench.path("disk.img"), report, 0)).unwrap();
    let checked = passes(&tool("/usr/sbin/fsck.fat", "dosfstools", &["-n", "-v", esp.to_str().unwrap()]));
    assert!(checked.contains("32 bit") || checked.contains("FAT32"), "{checked}");
    let listed = passes(&tool("mdir", "mtools", &["-/", "-b", "-i", esp.to_str().unwrap(), "::/"]));
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["::/EFI/", "::/EFI/BOOT/", "::/EFI/BOOT/BOOTX64.EFI"]);
    let arguments = ["-n", "-i", esp.to_str().unwrap(), "::/EFI/BOOT/BOOTX64.EFI", copy.to_str().unwrap()];
    passes(&tool("mcopy", "mtools", &arguments));
    assert!(fs::read(copy).unwrap() == expected, "another file came out");
}

#[test]
fn the_first_partition_is_a_fat32_with_the_image_where_firmware_looks() {
    let (bench, sealed) = sealed_with_uki(3_000_000);
    let report = disk(&bench, "disk.img", &[]);
    let entry = &report["partitions"][0];
    assert_eq!((&entry["label"], number(&entry["offset"]), number(&entry["size"])), (&"esp".into(), MIB, LEAST));
    assert_eq!(entry["type_uuid"], "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    esp_is_sound(&bench, &report, &fs::read(sealed.join("uki.efi")).unwrap());

    let checked = passes(&tool("/usr/sbin/sfdisk", "fdisk", &["--verify", &bench.text("disk.img")]));
    assert!(checked.contains("No errors detected"), "{checked}");
    let table = passes(&tool("/usr/sbin/sfdisk", "fdisk", &["--dump", &bench.text("disk.img")]));
    let esp = table.lines().find(|line| line.contains("C12A7328-F81F-11D2-BA4B-00A0C93EC93B")).unwrap();
    assert!(!esp.contains("attrs"), "updates write it: {esp}");
    let inspected = passes(&iofs_sign(["inspect", &bench.text("disk.img")]));
    assert!(inspected.contains("(EFI system partition)\n  begins with: FAT32"), "{inspected}");
}

#[test]
fn a_large_image_gets_a_partition_for_two() {
    let (bench, sealed) = sealed_with_uki(40_000_000);
    let report = disk(&bench, "disk.img", &[]);
    let size = number(&report["partitions"][0]["size"]);
    assert!(size.is_multiple_of(MIB) && (80_000_000..90_000_000).contains(&size), "{size}");
    let uki = fs::read(sealed.join("uki.efi")).unwrap();
    esp_is_sound(&bench, &report, &uki);
    let esp = bench.text("esp");
    passes(&tool("mcopy", "mtools", &["-i", &esp, &bench.text("copy.efi"), "::/EFI/BOOT/NEXT.EFI"]));
}

#[test]
fn large_clusters_and_the_least_size_are_sound_too() {
    for (size, expected) in [("300M", 300 * MIB), ("35651584", LEAST)] {
        let (bench, sealed) = sealed_with_uki(1_000_000);
        let report = disk(&bench, "disk.img", &["--esp-size", size]);
        assert_eq!(number(&report["partitions"][0]["size"]), expected);
        esp_is_sound(&bench, &report, &fs::read(sealed.join("uki.efi")).unwrap());
    }
}

#[test]
fn the_image_fills_the_least_partition_that_it_is_given() {
    let (bench, sealed) = sealed_with_uki(60_000_000);
    // As the refusal of less says.
    let arguments = ["disk", &bench.text("sealed"), "--esp-size", "34M", "--out", &bench.text("disk.img")];
    let output = iofs_sign(arguments);
    fails(&output, 2);
    let told = stderr(&output);
    let least = told.split("expected ").nth(1).unwrap().split(' ').next().unwrap();
    let report = disk(&bench, "disk.img", &["--esp-size", least]);
    esp_is_sound(&bench, &report, &fs::read(sealed.join("uki.efi")).unwrap());
}

#[test]
fn the_same_input_gives_the_same_disk_and_no_image_the_one_without_it() {
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    let before = disk(&bench, "before.img", &[]);
    let uki = pe_image(1_000_000);
    fs::write(bench.path("given.efi"), &uki).unwrap();
    let given = bench.text("given.efi");
    let report = disk(&bench, "one.img", &["--uki", &given]);
    disk(&bench, "two.img", &["--uki", &given]);
    fs::write(sealed.join("uki.efi"), &uki).unwrap();
    disk(&bench, "three.img", &[]);
    let one = fs::read(bench.path("one.img")).unwrap();
    for other in ["two.img", "three.img"] {
        assert!(one == fs::read(bench.path(other)).unwrap(), "{other} differs");
    }
    for index in 0..2 {
        let sealed = partition(&bench.path("before.img"), &before, index);
        assert!(sealed == partition(&bench.path("one.img"), &report, index + 1));
        assert_eq!(before["partitions"][index]["partuuid"], report["partitions"][index + 1]["partuuid"]);
    }
}

#[test]
fn what_is_no_image_for_the_sealed_processor_is_refused() {
    let (bench, sealed) = sealed_with_uki(4096);
    let mut uki = pe_image(4096);
    uki[0x44..0x46].copy_from_slice(&[0x64, 0xaa]);
    for (bytes, expected) in [(uki, "expected an image for x86-64, found one for arm64"), (vec![0; 100], "a PE image")]
    {
        fs::write(sealed.join("uki.efi"), bytes).unwrap();
        let output = iofs_sign(["disk", &bench.text("sealed"), "--out", &bench.text("disk.img")]);
        fails(&output, 3);
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
        assert!(!bench.path("disk.img").exists() && bench.hidden().is_empty());
    }
    fs::remove_file(sealed.join("uki.efi")).unwrap();
    let arguments = ["disk", &bench.text("sealed"), "--esp-size", "64M", "--out", &bench.text("disk.img")];
    fails(&iofs_sign(arguments), 2);
    fails(&iofs_sign([&arguments[..3], &["64X"], &arguments[4..]].concat()), 2);
}

/// Makes a certificate, and signs the root hash as the kernel and systemd take it.
fn sign_root_hash(bench: &Bench) {
    let (key, certificate) = (bench.text("x509.key"), bench.text("x509.crt"));
    let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test/", "-days", "10"];
    openssl(&[&request[..], &["-keyout", &key, "-out", &certificate]].concat());
    let (hash, out) = (bench.text("sealed/roothash"), bench.text("sealed/roothash.p7s"));
    let sign = ["smime", "-sign", "-nocerts", "-noattr", "-binary", "-outform", "der", "-in", &hash, "-out", &out];
    openssl(&[&sign[..], &["-signer", &certificate, "-inkey", &key]].concat());
}

#[test]
fn the_signature_of_the_root_hash_becomes_a_partition_that_openssl_verifies() {
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    sign_root_hash(&bench);
    let certificate = bench.text("x509.crt");
    let report = disk(&bench, "disk.img", &["--verity-certificate", &certificate]);
    let entry = &report["partitions"][2];
    assert_eq!(entry["label"], "root-verity-sig");
    assert_eq!(entry["type_uuid"], "41092b05-9fc8-4523-994f-2def0408b176");
    let bytes = partition(&bench.path("disk.img"), &report, 2);
    assert_eq!(bytes.len() % 4096, 0);
    let end = bytes.iter().position(|byte| *byte == 0).unwrap();
    assert!(bytes[end..].iter().all(|byte| *byte == 0));
    let document: Value = serde_json::from_slice(&bytes[..end]).unwrap();
    let hash = fs::read_to_string(sealed.join("roothash")).unwrap();
    assert_eq!(document["rootHash"], hash);

    let der = bench.text("x509.der");
    openssl(&["x509", "-in", &certificate, "-outform", "der", "-out", &der]);
    let fingerprint = hex::encode(&Sha256::digest(fs::read(&der).unwrap()));
    assert_eq!(document["certificateFingerprint"], fingerprint);
    let (text, signature, content) = (bench.text("text"), bench.text("p7s"), bench.text("sealed/roothash"));
    fs::write(&text, document["signature"].as_str().unwrap()).unwrap();
    openssl(&["base64", "-d", "-A", "-in", &text, "-out", &signature]);
    let verify = ["smime", "-verify", "-binary", "-inform", "der", "-noverify", "-in", &signature];
    openssl(&[&verify[..], &["-content", &content, "-certfile", &certificate, "-nointern"]].concat());

    // The same by a file that holds others behind it, by its form in DER, and beside the signature.
    let chain = [fs::read(&certificate).unwrap(), fs::read(&certificate).unwrap()].concat();
    fs::write(bench.path("chain.crt"), chain).unwrap();
    disk(&bench, "chain.img", &["--verity-certificate", &bench.text("chain.crt")]);
    assert!(fs::read(bench.path("disk.img")).unwrap() == fs::read(bench.path("chain.img")).unwrap());
    fs::copy(&der, sealed.join("roothash.crt")).unwrap();
    disk(&bench, "other.img", &[]);
    assert!(fs::read(bench.path("disk.img")).unwrap() == fs::read(bench.path("other.img")).unwrap());
    let inspected = passes(&iofs_sign(["inspect", &bench.text("disk.img")]));
    let expected = "(root verity signature, x86-64)\n  begins with: signature of a root hash";
    assert!(inspected.contains(expected), "{inspected}");
}

#[test]
fn a_signature_without_its_certificate_and_the_other_way_round_is_refused() {
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    sign_root_hash(&bench);
    let (directory, out, certificate) = (bench.text("sealed"), bench.text("disk.img"), bench.text("x509.crt"));
    let arguments = ["disk", &directory, "--out", &out];
    let output = iofs_sign(arguments);
    fails(&output, 2);
    assert!(stderr(&output).contains("--verity-certificate"), "{}", stderr(&output));
    let with = [&arguments[..], &["--verity-certificate", &certificate]].concat();
    for bytes in [&b"no certificate"[..], &[0x30, 0x82, 0xff, 0xff]] {
        fs::write(sealed.join("roothash.crt"), bytes).unwrap();
        fails(&iofs_sign(arguments), 3);
    }
    fs::write(sealed.join("roothash.p7s"), "no signature").unwrap();
    fails(&iofs_sign(&with), 3);
    fs::remove_file(sealed.join("roothash.p7s")).unwrap();
    fails(&iofs_sign(&with), 2);
}

#[test]
fn a_signature_of_another_root_hash_or_by_another_key_is_refused() {
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    sign_root_hash(&bench);
    let (directory, out) = (bench.text("sealed"), bench.text("disk.img"));
    let disk = |certificate: &str| iofs_sign(["disk", &directory, "--out", &out, "--verity-certificate", certificate]);
    fs::rename(bench.path("x509.crt"), bench.path("first.crt")).unwrap();
    let first = fs::read(sealed.join("roothash.p7s")).unwrap();
    sign_root_hash(&bench);
    let output = disk(&bench.text("first.crt"));
    fails(&output, 4);
    assert!(stderr(&output).contains("roothash.p7s: the signature does not verify"), "{}", stderr(&output));

    let hash = fs::read_to_string(sealed.join("roothash")).unwrap();
    fs::write(sealed.join("roothash"), hash.chars().rev().collect::<String>()).unwrap();
    sign_root_hash(&bench);
    fails(&disk(&bench.text("x509.crt")), 4);
    fs::write(sealed.join("roothash.p7s"), first).unwrap();
    passes(&disk(&bench.text("first.crt")));
    assert!(bench.path("disk.img").exists());
}
