//! Key files against the real openssl, and files that are no keys.

mod seal_common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use seal_common::{Bench, command, fails, iofs_sign, openssl, passes, stderr, tool};

#[test]
fn openssl_reads_what_keygen_writes() {
    let bench = Bench::new();
    let name = bench.text("made");
    let made: serde_json::Value = serde_json::from_str(&passes(&iofs_sign(["keygen", &name, "--json"]))).unwrap();
    let [private, public] = ["private", "public"].map(|half| made[half].as_str().unwrap().to_owned());
    assert_eq!((private.as_str(), public.as_str()), (&*format!("{name}.pem"), &*format!("{name}.pub.pem")));
    assert!(openssl(&["pkey", "-in", &private, "-noout", "-text"]).starts_with("ED25519 Private-Key"));
    assert!(openssl(&["pkey", "-pubin", "-in", &public, "-noout", "-text"]).starts_with("ED25519 Public-Key"));
    assert_eq!(openssl(&["pkey", "-in", &private, "-pubout"]), fs::read_to_string(&public).unwrap());
    assert_eq!(openssl(&["pkey", "-in", &private]), fs::read_to_string(&private).unwrap());

    let (message, signature, der) = (bench.text("init"), bench.text("signature"), bench.text("der"));
    openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", &private, "-in", &message, "-out", &signature]);
    openssl(&["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", &public, "-in", &message, "-sigfile", &signature]);
    openssl(&["pkey", "-pubin", "-in", &public, "-outform", "der", "-out", &der]);
    let digest = openssl(&["dgst", "-sha256", "-r", &der]);
    assert_eq!(digest.split(' ').next(), made["keyid"].as_str(), "the key id is what openssl says");
}

#[test]
fn the_private_half_is_for_its_owner_alone_and_nothing_is_overwritten() {
    let bench = Bench::new();
    let made = Command::new("sh")
        .args(["-c", "umask 000; exec \"$0\" keygen \"$1\"", env!("CARGO_BIN_EXE_iofs-sign"), &bench.text("made")])
        .output()
        .unwrap();
    passes(&made);
    let mode = |name: &str| fs::metadata(bench.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("made.pem"), mode("made.pub.pem")), (0o600, 0o644));

    let before = fs::read(bench.path("made.pem")).unwrap();
    assert!(fails(&iofs_sign(["keygen", &bench.text("made")]), 2).contains("exists already"));
    fs::remove_file(bench.path("made.pem")).unwrap();
    fails(&iofs_sign(["keygen", &bench.text("made")]), 2);
    assert!(!bench.path("made.pem").exists(), "a public half alone is not overwritten either");
    fs::remove_file(bench.path("made.pub.pem")).unwrap();
    symlink(bench.path("elsewhere"), bench.path("made.pem")).unwrap();
    fails(&iofs_sign(["keygen", &bench.text("made")]), 2);
    assert!(!bench.path("elsewhere").exists(), "a dangling link is a name in use");
    fs::remove_file(bench.path("made.pem")).unwrap();
    passes(&iofs_sign(["keygen", &bench.text("made")]));
    assert_ne!(before, fs::read(bench.path("made.pem")).unwrap());
    assert!(fails(&iofs_sign(["keygen", &bench.text("no/such/directory")]), 1).contains("No such file"));
    assert_eq!(bench.hidden(), Vec::<String>::new());
}

#[test]
fn keys_by_openssl_seal_and_verify() {
    let bench = Bench::new();
    for suffix in ["", ".pub"] {
        fs::remove_file(bench.path(&format!("key{suffix}.pem"))).unwrap();
    }
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", &bench.text("key.pem")]);
    openssl(&["pkey", "-in", &bench.text("key.pem"), "-pubout", "-out", &bench.text("key.pub.pem")]);
    let sealed = bench.sealed("sealed");
    passes(&bench.verify(&sealed));
    // Carriage returns and text around the key, as mail programs leave them.
    let text = fs::read_to_string(bench.path("key.pub.pem")).unwrap();
    fs::write(bench.path("key.pub.pem"), text.replace('\n', "\r\n")).unwrap();
    passes(&bench.verify(&sealed));
}

#[test]
fn exposed_and_published_keys_are_warned_about() {
    let bench = Bench::new();
    fs::set_permissions(bench.path("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let arguments = [bench.image_arguments("out"), vec!["--key".into(), bench.text("key.pem")]].concat();
    let output = iofs_sign(arguments);
    passes(&output);
    assert!(stderr(&output).contains("others can read this private key: chmod 600"), "{}", stderr(&output));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../keys-example/DO-NOT-SHIP-example-1.pem");
    let output = iofs_sign([bench.image_arguments("example"), vec!["--key".into(), example.into()]].concat());
    passes(&output);
    assert!(stderr(&output).contains("anybody can sign with it"), "{}", stderr(&output));
}

/// Every file that people give by mistake or by malice, and the exit code and words for it.
#[test]
fn what_is_no_private_key_is_refused_without_showing_any_of_it() {
    let bench = Bench::new();
    let pem = fs::read_to_string(bench.path("key.pem")).unwrap();
    let body = pem.lines().nth(1).unwrap().to_owned();
    let file = |name: &str, text: &[u8]| fs::write(bench.path(name), text).unwrap();
    let make = |arguments: &[&str]| drop(openssl(arguments));
    let encrypted = bench.text("encrypted");
    make(&[
        "pkcs8",
        "-topk8",
        "-v2",
        "aes256",
        "-passout",
        "pass:x",
        "-in",
        &bench.text("key.pem"),
        "-out",
        &encrypted,
    ]);
    make(&["genpkey", "-quiet", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &bench.text("rsa")]);
    make(&["genpkey", "-algorithm", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &bench.text("ec")]);
    make(&["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", &bench.text("sec1")]);
    make(&["genpkey", "-algorithm", "x25519", "-out", &bench.text("x25519")]);
    make(&["pkey", "-in", &bench.text("key.pem"), "-outform", "der", "-out", &bench.text("der")]);
    file("garbage", pem.replace(&body, &format!("{}?!", &body[..40])).as_bytes());
    file("cut", pem.replace(&body, &body[..40]).as_bytes());
    file("no-end", pem.lines().take(2).collect::<Vec<_>>().join("\n").as_bytes());
    file("label", pem.replace("PRIVATE KEY", "SECRET").as_bytes());
    file("bare", body.as_bytes());
    file("empty", b"");
    file("blank", b"\n \n");
    file("binary", &seal_common::noise(100_000, 5));
    fs::File::create(bench.path("sparse")).unwrap().set_len(1 << 30).unwrap();
    fs::create_dir(bench.path("directory")).unwrap();
    fs::copy(bench.path("key.pub.pem"), bench.path("public")).unwrap();

    for (name, status, expected) in [
        ("encrypted", 3, "\"ENCRYPTED PRIVATE KEY\""),
        ("rsa", 3, "expected an unencrypted ed25519 private key"),
        ("ec", 3, "expected an unencrypted ed25519 private key"),
        ("sec1", 3, "\"EC PRIVATE KEY\""),
        ("x25519", 3, "expected an unencrypted ed25519 private key"),
        ("der", 3, "expected an unencrypted ed25519 private key"),
        ("garbage", 3, "expected an unencrypted ed25519 private key"),
        ("cut", 3, "expected an unencrypted ed25519 private key"),
        ("no-end", 3, "expected an unencrypted ed25519 private key"),
        ("label", 3, "\"SECRET\""),
        ("bare", 3, "without a PEM label"),
        ("empty", 3, "an empty file"),
        ("blank", 3, "without a PEM label"),
        ("binary", 3, "without a PEM label"),
        ("sparse", 3, "without a PEM label"),
        ("public", 3, "\"PUBLIC KEY\""),
        ("directory", 1, "Is a directory"),
        ("absent", 1, "No such file"),
    ] {
        let arguments =
            [bench.image_arguments("out"), vec!["--key".into(), bench.text(name), "--json".into()]].concat();
        let output = iofs_sign(arguments);
        let text = fails(&output, status);
        let error: serde_json::Value = serde_json::from_str(&text).unwrap();
        let error = &error["error"];
        let fact = error["fact"].as_str().unwrap();
        assert!(
            fact.starts_with(&format!("{}key {}: ", if status == 1 { "read " } else { "" }, bench.text(name))),
            "{fact}"
        );
        assert!(fact.contains(expected), "{name}: {fact} lacks {expected}");
        assert_eq!(error["status"], if status == 1 { "system" } else { "bad-input" });
        assert_eq!(error["next_step"].is_string(), status != 1, "{fact}");
        assert!(output.stdout.is_empty(), "{name}");
        for part in body.as_bytes().windows(8) {
            assert!(!text.contains(std::str::from_utf8(part).unwrap()), "{name}: {text} shows the key");
        }
        assert!(!bench.path("out").exists());
    }
}

#[test]
fn what_is_no_public_key_is_refused() {
    let bench = Bench::new();
    let sealed = bench.sealed("sealed");
    openssl(&["genpkey", "-algorithm", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &bench.text("ec")]);
    openssl(&["pkey", "-in", &bench.text("ec"), "-pubout", "-out", &bench.text("ec.pub")]);
    // The neutral element: for it, anything verifies.
    let mut der = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00\x01".to_vec();
    der.resize(44, 0);
    fs::write(bench.path("weak.der"), der).unwrap();
    let encoded = passes(&tool("openssl", "openssl", &["base64", "-in", &bench.text("weak.der")]));
    fs::write(bench.path("weak"), format!("-----BEGIN PUBLIC KEY-----\n{encoded}-----END PUBLIC KEY-----\n")).unwrap();
    for (name, expected) in [
        ("key.pem", "\"PRIVATE KEY\""),
        ("ec.pub", "expected an ed25519 public key"),
        ("weak", "a weak point"),
        ("vmlinuz", "without a PEM label"),
    ] {
        let output = command().arg("verify").arg(&sealed).arg("--key").arg(bench.path(name)).output().unwrap();
        let text = fails(&output, 3);
        assert!(text.contains(expected) && text.contains("\n next: "), "{text}");
    }
}
