//! Keys, certificates and signed root hashes, exchanged with OpenSSL.

mod x509_common;

use std::{path::Path, process::Command};

use iofs_policy::verity::RootHash;
use iofs_sign::{
    roothash,
    x509::{SigningCertificate, X509Signer},
};
use x509_common::{Place, run};

const ROOT_HASH: &str = "4392712ba01368efdf14b05c76f9e4df0d53664630b5d48632ed17a137f39076";

fn openssl(arguments: &[&str], paths: &[&Path]) -> Vec<u8> {
    let mut paths = paths.iter();
    let mut command = Command::new("openssl");
    for argument in arguments {
        match *argument {
            "@" => command.arg(paths.next().unwrap()),
            word => command.arg(word),
        };
    }
    run(&mut command)
}

fn refusal(key: &Path, certificate: &Path) -> String {
    X509Signer::read(key, certificate).unwrap_err().to_string()
}

#[test]
fn a_key_is_read_in_every_form_that_openssl_writes_without_a_password() {
    let place = Place::new();
    let (key, certificate) = place.pair("one", "rsa:2048");
    let signature = X509Signer::read(&key, &certificate).unwrap().sign(b"text").unwrap();
    let forms: [&[&str]; 3] = [&["-traditional"], &["-outform", "der"], &["-traditional", "-outform", "der"]];
    for (number, form) in forms.iter().enumerate() {
        let other = place.path(&format!("form-{number}"));
        let arguments = [&["rsa", "-in", "@", "-out", "@"], *form].concat();
        openssl(&arguments, &[&key, &other]);
        let der = place.path("one.der");
        openssl(&["x509", "-in", "@", "-outform", "der", "-out", "@"], &[&certificate, &der]);
        assert_eq!(X509Signer::read(&other, &der).unwrap().sign(b"text").unwrap(), signature, "{form:?}");
    }
}

#[test]
fn keys_and_certificates_that_do_not_serve_are_refused_with_what_they_are() {
    let place = Place::new();
    let (key, certificate) = place.pair("one", "rsa:2048");
    let (other, _) = place.pair("other", "rsa:2048");
    let (curve, of_curve) = place.pair("curve", "ec -pkeyopt ec_paramgen_curve:P-256");
    let (short, of_short) = place.pair("short", "rsa:1024");
    assert!(refusal(&other, &certificate).contains("their public halves differ"));
    assert!(refusal(&curve, &certificate).ends_with("PEM or DER), found another kind of private key"));
    assert!(
        refusal(&key, &of_curve)
            .contains("expected a certificate for RSA of 2048 to 4096 bits, found a key of algorithm")
    );
    assert!(refusal(&short, &of_short).ends_with("found RSA of 1024 bits"));
    assert!(refusal(&certificate, &certificate).ends_with("found other PEM"));
    assert!(refusal(&key, &key).contains("expected an X.509 certificate (PEM or DER), found"));
    assert!(refusal(&place.write("empty", b""), &certificate).ends_with("found other bytes"));
    assert!(refusal(&place.path("absent"), &certificate).contains("No such file"));
    let encrypted = place.path("encrypted");
    openssl(&["pkey", "-in", "@", "-aes256", "-passout", "pass:secret", "-out", "@"], &[&key, &encrypted]);
    assert!(refusal(&encrypted, &certificate).ends_with("found an encrypted key: decrypt it to a file in memory"));
}

#[test]
fn a_signed_root_hash_equals_the_one_by_openssl_byte_for_byte() {
    let place = Place::new();
    let root_hash: RootHash = ROOT_HASH.parse().unwrap();
    let text = place.write("roothash", ROOT_HASH.as_bytes());
    for bits in ["rsa:2048", "rsa:4096"] {
        let (key, certificate) = place.pair("root hash", bits);
        let theirs = openssl(
            &[
                "smime", "-sign", "-nocerts", "-noattr", "-binary", "-outform", "der", "-in", "@", "-inkey", "@",
                "-signer", "@",
            ],
            &[&text, &key, &certificate],
        );
        let signer = X509Signer::read(&key, &certificate).unwrap();
        assert_eq!(roothash::sign(&root_hash, &signer).unwrap(), theirs);
        roothash::verify(&theirs, &root_hash, signer.certificate()).unwrap();
    }
}

#[test]
fn a_root_hash_signed_elsewhere_and_one_that_does_not_verify_are_told_apart() {
    let place = Place::new();
    let root_hash: RootHash = ROOT_HASH.parse().unwrap();
    let other_hash: RootHash = ROOT_HASH.replace('4', "5").parse().unwrap();
    let (key, certificate) = place.pair("one", "rsa:2048");
    let text = place.write("roothash", &roothash::to_sign(&root_hash));
    let signature = openssl(&["dgst", "-sha256", "-sign", "@", "@"], &[&key, &text]);
    let certificate = SigningCertificate::read(&certificate).unwrap();
    let file = roothash::assemble(&root_hash, &signature, &certificate).unwrap();
    roothash::verify(&file, &root_hash, &certificate).unwrap();

    let refused = roothash::assemble(&other_hash, &signature, &certificate).unwrap_err().to_string();
    assert!(
        refused.starts_with("the signature does not verify with the key of CN=one (certificate sha256:"),
        "{refused}"
    );
    assert!(roothash::verify(&file, &other_hash, &certificate).is_err());
    let other = place.signer("other");
    assert!(roothash::verify(&file, &root_hash, other.certificate()).is_err());
    for end in 0..file.len() {
        assert!(roothash::verify(&file[..end], &root_hash, &certificate).is_err(), "{end}");
    }
    let with_attributes = openssl(
        &["smime", "-sign", "-nocerts", "-binary", "-outform", "der", "-in", "@", "-inkey", "@", "-signer", "@"],
        &[&text, &key, &place.path("one.crt")],
    );
    let refused = roothash::verify(&with_attributes, &root_hash, &certificate).unwrap_err().to_string();
    assert_eq!(refused, "PKCS #7: expected no signed attributes, found some");
}
