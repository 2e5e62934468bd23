//! Signing on machines that see no more than the bytes to be signed.

mod seal_common;

use std::{fs, path::Path};

use seal_common::{Bench, assert_same, copy_directory, fails, files, iofs_sign, openssl, passes};

fn unsigned(bench: &Bench, out: &str) {
    bench.seal(out, &["--unsigned", "--trust", &bench.text("key.pub.pem")]);
}

/// Signs `to-sign.bin` with openssl, as a hardware token would.
fn sign_with_openssl(bench: &Bench, directory: &str, key: &str) -> String {
    let (input, signature) = (bench.text(&format!("{directory}/to-sign.bin")), bench.text("signature"));
    let key = bench.text(&format!("{key}.pem"));
    openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", &key, "-in", &input, "-out", &signature]);
    signature
}

fn attach(bench: &Bench, directory: &str, key: &str, signature: &str) -> std::process::Output {
    let key = bench.text(&format!("{key}.pub.pem"));
    iofs_sign(["attach", &bench.text(directory), "--key", &key, "--signature", signature])
}

fn sign(bench: &Bench, directory: &str, keys: &[&str]) -> std::process::Output {
    let mut arguments = vec!["sign".to_owned(), bench.text(directory)];
    arguments.extend(keys.iter().flat_map(|key| ["--key".to_owned(), bench.text(&format!("{key}.pem"))]));
    iofs_sign(arguments)
}

#[test]
fn two_signatures_by_openssl_give_what_a_direct_seal_gives() {
    let bench = Bench::new();
    let direct = files(&bench.sealed("direct"));
    unsigned(&bench, "attached");
    for document in ["manifest.dsse.json", "release.dsse.json"] {
        let signature = sign_with_openssl(&bench, "attached", "key");
        let printed = fs::read(bench.path("attached/to-sign.bin")).unwrap();
        assert!(printed.starts_with(b"DSSEv1 "), "{document}");
        passes(&attach(&bench, "attached", "key", &signature));
    }
    assert_same(&direct, &files(&bench.path("attached")));
    passes(&bench.verify(&bench.path("attached")));

    unsigned(&bench, "signed");
    passes(&sign(&bench, "signed", &["key"]));
    assert_same(&direct, &files(&bench.path("signed")));
    // Once more changes nothing.
    passes(&sign(&bench, "signed", &["key"]));
    assert_same(&direct, &files(&bench.path("signed")));
    let text = fails(&attach(&bench, "signed", "key", &bench.text("signature")), 2);
    assert!(text.contains("is complete"), "{text}");
}

#[test]
fn the_state_in_between_is_told_and_refused_by_verify() {
    let bench = Bench::new();
    let arguments = bench.arguments("out");
    let options = ["--unsigned", "--trust", &bench.text("key.pub.pem"), "--json"].map(str::to_owned);
    let told: serde_json::Value =
        serde_json::from_str(&passes(&iofs_sign([&arguments[..], &options].concat()))).unwrap();
    assert_eq!(told["waits_for"], "signature");
    assert_eq!(told["document"], "manifest.dsse.json");
    assert_eq!(told["threshold"], 1);
    assert_eq!(told["signed_by"], serde_json::json!([]));
    let digest = openssl(&["dgst", "-sha256", "-r", &bench.text("out/to-sign.bin")]);
    assert_eq!(digest.split(' ').next(), told["to_sign_sha256"].as_str());
    fails(&bench.verify(&bench.path("out")), 4);
    let signature = sign_with_openssl(&bench, "out", "key");
    let key = bench.text("key.pub.pem");
    let output = iofs_sign(["attach", &bench.text("out"), "--key", &key, "--signature", &signature, "--json"]);
    let told: serde_json::Value = serde_json::from_str(&passes(&output)).unwrap();
    assert_eq!(told["document"], "release.dsse.json");
    fails(&bench.verify(&bench.path("out")), 4);
    passes(&attach(&bench, "out", "key", &sign_with_openssl(&bench, "out", "key")));
    passes(&bench.verify(&bench.path("out")));
}

#[test]
fn two_of_three_people_sign_on_two_machines() {
    let bench = Bench::new();
    for name in ["alice", "bob", "carol", "mallory"] {
        bench.key(name);
    }
    let mut options: Vec<String> = ["--unsigned", "--threshold", "2"].map(str::to_owned).to_vec();
    for name in ["alice", "bob", "carol"] {
        options.extend(["--trust".to_owned(), bench.text(&format!("{name}.pub.pem"))]);
    }
    let at_alice = bench.seal("alices", &options.iter().map(String::as_str).collect::<Vec<_>>());
    let text = passes(&sign(&bench, "alices", &["alice"]));
    assert!(text.contains("has 1 of 2"), "{text}");
    assert!(!at_alice.join("initramfs.img").exists());
    // The same person again does not count twice, and a stranger not at all.
    let before = files(&at_alice);
    passes(&sign(&bench, "alices", &["alice"]));
    fails(&sign(&bench, "alices", &["mallory"]), 2);
    fails(&sign(&bench, "alices", &["carol", "mallory"]), 2);
    assert_same(&before, &files(&at_alice));

    copy_directory(&at_alice, &bench.path("carols"));
    let text = passes(&sign(&bench, "carols", &["carol"]));
    assert!(text.contains("release.dsse.json (has 1 of 2)"), "{text}");
    let verify = |threshold: &str| {
        let mut arguments = vec!["verify".to_owned(), bench.text("carols"), "--threshold".into(), threshold.into()];
        for name in ["alice", "bob", "carol"] {
            arguments.extend(["--key".to_owned(), bench.text(&format!("{name}.pub.pem"))]);
        }
        iofs_sign(arguments)
    };
    // Carol's signature is enough for nobody, however little the caller asks for.
    fails(&verify("1"), 4);
    passes(&sign(&bench, "carols", &["alice"]));
    passes(&verify("2"));
    fails(&verify("3"), 4);
}

#[test]
fn a_wrong_signature_is_refused_and_changes_nothing() {
    let bench = Bench::new();
    bench.key("other");
    unsigned(&bench, "out");
    let before = files(&bench.path("out"));
    let to_sign = bench.text("out/to-sign.bin");
    let refused = |signature: &str, key: &str, status: i32, expected: &str| {
        let text = fails(&attach(&bench, "out", key, signature), status);
        assert!(text.contains(expected) && text.contains("\n next: "), "{text}");
        assert_same(&before, &files(&bench.path("out")));
    };

    let signature = sign_with_openssl(&bench, "out", "key");
    let mut bytes = fs::read(&signature).unwrap();
    refused(&signature, "other", 2, "is not among those that this image trusts");
    for (index, bit) in [(0, 1), (31, 128), (32, 1), (63, 128)] {
        bytes[index] ^= bit;
        fs::write(bench.path("bad"), &bytes).unwrap();
        refused(&bench.text("bad"), "key", 4, "the signature for manifest.dsse.json");
        bytes[index] ^= bit;
    }
    let others = sign_with_openssl(&bench, "out", "other");
    refused(&others, "key", 4, "not their hash");

    // What `openssl dgst` and many hardware tools sign: the hash of the bytes.
    let (hash, of_hash) = (bench.text("hash"), bench.text("of-hash"));
    openssl(&["dgst", "-sha256", "-binary", "-out", &hash, &to_sign]);
    openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", &bench.text("key.pem"), "-in", &hash, "-out", &of_hash]);
    refused(&of_hash, "key", 4, "not their hash");

    let encoded = bench.text("encoded");
    openssl(&["base64", "-in", &of_hash, "-out", &encoded]);
    refused(&encoded, "key", 3, "expected 64 raw bytes");
    fs::write(bench.path("nothing"), "").unwrap();
    refused(&bench.text("nothing"), "key", 3, "found 0");
    fs::File::create(bench.path("huge")).unwrap().set_len(1 << 30).unwrap();
    refused(&bench.text("huge"), "key", 3, "expected 64 raw bytes");

    // A signature for the other document, made in advance.
    bench.sealed("direct");
    passes(&attach(&bench, "out", "key", &sign_with_openssl(&bench, "out", "key")));
    let before = files(&bench.path("out"));
    fs::write(bench.path("old"), &bytes).unwrap();
    let text = fails(&attach(&bench, "out", "key", &bench.text("signature-that-is-not-there")), 1);
    assert!(text.contains("No such file"), "{text}");
    let text = fails(&attach(&bench, "out", "key", &bench.text("of-hash")), 4);
    assert!(text.contains("the signature for release.dsse.json"), "{text}");
    assert_same(&before, &files(&bench.path("out")));
}

/// Each state that a kill can leave is the directory before or after the replacement of one file.
#[test]
fn signing_that_was_killed_is_completed_by_running_it_again() {
    let bench = Bench::new();
    let direct = files(&bench.sealed("direct"));
    unsigned(&bench, "unsigned");
    let start = bench.path("unsigned");
    let from = |names: &[&str], directory: &Path| {
        for name in names {
            fs::write(directory.join(name), &direct[*name]).unwrap();
        }
    };
    let signed_initramfs = ["manifest.dsse.json", "initramfs.img"];
    let all = ["manifest.dsse.json", "initramfs.img", "release.dsse.json"];
    let steps: [(&str, &[&str], &[&str]); 6] = [
        ("before-anything", &[], &["to-sign.bin"]),
        ("manifest-signed", &signed_initramfs[..1], &[]),
        ("initramfs-written", &signed_initramfs, &[]),
        ("release-signed", &all, &[]),
        ("base-removed", &all, &["initramfs.base"]),
        ("to-sign-removed", &all, &["initramfs.base", "to-sign.bin"]),
    ];
    for (name, done, gone) in steps {
        let directory = bench.path(name);
        copy_directory(&start, &directory);
        from(done, &directory);
        gone.iter().for_each(|file| fs::remove_file(directory.join(file)).unwrap());
        // What the kill left of the file that was being written.
        fs::write(directory.join(".iofs-AbCdEf"), "half").unwrap();
        passes(&sign(&bench, name, &["key"]));
        assert_same(&direct, &files(&directory));
    }
    // The release statement is there, and waits: it is only signed.
    unsigned(&bench, "half");
    passes(&attach(&bench, "half", "key", &sign_with_openssl(&bench, "half", "key")));
    fs::remove_file(bench.path("half/to-sign.bin")).unwrap();
    passes(&sign(&bench, "half", &["key"]));
    assert_same(&direct, &files(&bench.path("half")));
}

/// What was swapped before the signature is no release, whoever signs it.
#[test]
fn a_directory_that_was_changed_while_it_waited_never_verifies() {
    let bench = Bench::new();
    for name in ["image.erofs", "image.verity", "roothash", "manifest.dsse.json", "trust.json"] {
        let out = format!("changed-{name}");
        unsigned(&bench, &out);
        let path = bench.path(&out).join(name);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        sign(&bench, &out, &["key"]);
        fails(&bench.verify(&bench.path(&out)), 4);
    }
}
