//! Enrolment, quotes and verdicts by the command line, with real software TPMs on both sides.
#![cfg(feature = "tpm")]

#[path = "../../tpm/tests/host_common/mod.rs"]
mod host_common;
mod seal_common;
mod tpm_interposer;

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, process::Output, time::Duration};

use host_common::{SoftwareTpm, require, with_certificates};
use iofs_policy::{
    digest::Sha256Digest,
    dsse::{Envelope, PayloadType},
    measurement::Measurement,
    measurement_log::Record,
};
use iofs_tpm::{Tpm, pcr, transport::Socket};
use seal_common::{Bench, command, fails, iofs_sign, passes, stderr};
use serde_json::Value;
use tpm_interposer::{flush, killed_behind};

const HANDLE: &str = "0x8101494f";

/// Runs a verb of `attest` on a TPM.
fn on(software: &SoftwareTpm, arguments: &[&str]) -> Output {
    command().arg("attest").args(arguments).env("TPM2TOOLS_TCTI", software.tcti()).output().unwrap()
}

fn attest(arguments: &[&str]) -> Output {
    command().arg("attest").args(arguments).env("TPM2TOOLS_TCTI", "device:/dev/no-such-tpm").output().unwrap()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)))
}

fn read_json(path: &Path) -> Value {
    json(&fs::read(path).unwrap())
}

/// A software TPM with certificates, and its maker's.
struct Maker {
    ca: tempfile::TempDir,
}

impl Maker {
    fn new() -> Self {
        Self { ca: tempfile::tempdir().unwrap() }
    }

    fn make(&self) -> SoftwareTpm {
        SoftwareTpm::on(with_certificates(self.ca.path()))
    }

    fn text(&self, name: &str) -> String {
        self.ca.path().join(name).to_str().unwrap().to_owned()
    }

    fn root(&self) -> String {
        self.text("swtpm-localca-rootca-cert.pem")
    }

    fn intermediate(&self) -> String {
        self.text("issuercert.pem")
    }

    /// A certificate for a key that the maker never made, in DER and base64 as a request has it.
    fn certify(&self, key: &[&str], more: &[&str]) -> String {
        let out = self.text("forged");
        let output = std::process::Command::new(require("swtpm_cert", "swtpm-tools"))
            .args([
                "--type",
                "ek",
                "--tpm2",
                "--signkey",
                &self.text("signkey.pem"),
                "--issuercert",
                &self.intermediate(),
            ])
            .args(["--tpm-manufacturer", "id:00001014", "--tpm-model", "m", "--tpm-version", "1", "--out-cert", &out])
            .args(["--tpm-spec-family", "2.0", "--tpm-spec-revision", "164", "--tpm-spec-level", "0"])
            .args(key)
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        iofs_attest::base64_bytes::Base64Bytes(fs::read(&out).unwrap()).into()
    }
}

#[test]
fn a_device_is_enrolled_and_its_release_attested() {
    let (bench, maker) = (Bench::new(), Maker::new());
    let software = maker.make();
    let text = |name: &str| bench.text(name);

    passes(&on(&software, &["enroll", "request", "--out", &text("request.json")]));
    let request = read_json(&bench.path("request.json"));
    assert!(request["ek_certificate"].is_string());
    assert_eq!(request["banks"], serde_json::json!(["sha1", "sha256", "sha384"]));
    passes(&attest(&[
        "enroll",
        "challenge",
        &text("request.json"),
        "--name",
        "gate 7",
        "--state",
        &text("state"),
        "--ek-root",
        &maker.root(),
        "--ek-intermediate",
        &maker.intermediate(),
        "--out",
        &text("challenge.json"),
    ]));
    assert_eq!(fs::metadata(bench.path("state")).unwrap().permissions().mode() & 0o777, 0o600);
    passes(&on(&software, &["enroll", "activate", &text("challenge.json"), "--out", &text("answer.json")]));
    // A wrong answer enrols nobody, and the right one still counts.
    fs::write(bench.path("wrong.json"), r#"{"enrolment_version": 1, "secret": "AAAA"}"#).unwrap();
    let accept = |answer: &str, out: &str| {
        attest(&["enroll", "accept", &text(answer), "--state", &text("state"), "--out", &text(out), "--json"])
    };
    let told = fails(&accept("wrong.json", "device.json"), 4);
    assert!(told.contains("answer: expected the secret of the challenge, found another"), "{told}");
    assert!(!bench.path("device.json").exists() && bench.path("state").exists());
    let accepted = json(passes(&accept("answer.json", "device.json")).as_bytes());
    assert_eq!((&accepted["name"], &accepted["ek_root"]), (&"gate 7".into(), &"CN=swtpm-localca-rootca".into()));
    assert!(!bench.path("state").exists(), "the state is removed");

    // What verify-init does: registers, then the log.
    passes(&iofs_sign([bench.image_arguments("sealed"), vec!["--key".into(), text("key.pem")]].concat()));
    boot(&bench, &software, "quiet");
    fs::write(bench.path("policy.toml"), "command_lines = [\"quiet\"]\n").unwrap();
    let nonce = passes(&attest(&["nonce"]));
    fs::write(bench.path("nonce"), &nonce).unwrap();
    let at_nonce = format!("@{}", text("nonce"));
    let quoted = on(
        &software,
        &["quote", "--nonce", &at_nonce, "--measurement-log", &text("log"), "--out", &text("evidence.json")],
    );
    passes(&quoted);
    assert!(stderr(&quoted).contains("binary_bios_measurements is not there"), "{}", stderr(&quoted));
    let verify = |more: &[&str]| {
        let fixed = ["verify", "--evidence", &text("evidence.json"), "--device", &text("device.json"), "--json"];
        let release = ["--release", &text("sealed"), "--key", &text("key.pub.pem"), "--policy", &text("policy.toml")];
        attest(&[&fixed[..], &release, more].concat())
    };
    let verdict = json(passes(&verify(&["--nonce", &at_nonce, "--update"])).as_bytes());
    assert_eq!(verdict["verdict"], "attested", "{verdict}");
    assert_eq!(verdict["attested"]["command_line"], "quiet");
    assert!(read_json(&bench.path("device.json"))["last_seen"]["clock"].is_u64());

    // Refused: another nonce; another key's release; a register that went on since.
    let refused = verify(&["--nonce", &"00".repeat(32)]);
    let told = fails(&refused, 4);
    assert!(told.contains("refused (nonce)"), "{told}");
    assert_eq!(json(&refused.stdout)["reason"], "nonce");
    bench.key("other");
    let other = attest(&[
        "verify",
        "--evidence",
        &text("evidence.json"),
        "--device",
        &text("device.json"),
        "--nonce",
        &at_nonce,
        "--release",
        &text("sealed"),
        "--key",
        &text("other.pub.pem"),
    ]);
    fails(&other, 4);
    fs::write(bench.path("broken.json"), "{").unwrap();
    let broken = attest(&[
        "verify",
        "--evidence",
        &text("broken.json"),
        "--device",
        &text("device.json"),
        "--nonce",
        &at_nonce,
        "--release",
        &text("sealed"),
        "--key",
        &text("key.pub.pem"),
    ]);
    fails(&broken, 3);
    software.tool("tpm2_pcrextend", &[&format!("13:sha256={}", "00".repeat(32))]);
    passes(&on(
        &software,
        &["quote", "--nonce", &at_nonce, "--measurement-log", &text("log"), "--out", &text("later.json")],
    ));
    let later = attest(&[
        "verify",
        "--evidence",
        &text("later.json"),
        "--device",
        &text("device.json"),
        "--nonce",
        &at_nonce,
        "--release",
        &text("sealed"),
        "--key",
        &text("key.pub.pem"),
        "--policy",
        &text("policy.toml"),
    ]);
    assert!(fails(&later, 4).contains("refused (replay)"));

    // Many at once: one of each, in order.
    let line = |evidence: &str| {
        let (device, evidence) = (read_json(&bench.path("device.json")), read_json(&bench.path(evidence)));
        serde_json::json!({"device": device, "nonce": nonce.trim(), "evidence": evidence}).to_string()
    };
    fs::write(bench.path("lines"), [line("evidence.json"), line("later.json"), "?".to_owned()].join("\n")).unwrap();
    let many = passes(&attest(&[
        "verify",
        "--jsonl",
        &text("lines"),
        "--release",
        &text("sealed"),
        "--key",
        &text("key.pub.pem"),
        "--policy",
        &text("policy.toml"),
    ]));
    let verdicts: Vec<Value> = many.lines().map(|line| json(line.as_bytes())).collect();
    assert_eq!(
        verdicts.iter().map(|one| one["verdict"].as_str().unwrap()).collect::<Vec<_>>(),
        ["attested", "refused", "refused"]
    );

    // Explained without anything else; learnt from what is good alone.
    let explained = json(passes(&attest(&["explain", "--evidence", &text("evidence.json"), "--json"])).as_bytes());
    assert_eq!(explained["events"].as_array().unwrap().len(), 4, "{explained}");
    let learn = |evidence: &str| {
        attest(&[
            "learn",
            "--evidence",
            &text(evidence),
            "--device",
            &text("device.json"),
            "--nonce",
            &at_nonce,
            "--release",
            &text("sealed"),
            "--key",
            &text("key.pub.pem"),
            "--policy",
            &text("policy.toml"),
            "--out",
            &text("learnt.toml"),
        ])
    };
    fails(&learn("later.json"), 4);
    assert!(!bench.path("learnt.toml").exists());
    passes(&learn("evidence.json"));
    assert!(fs::read_to_string(bench.path("learnt.toml")).unwrap().contains("command_lines = [\"quiet\"]"));

    // Predicted and measured are the same.
    let predicted = json(
        passes(&iofs_sign([
            "predict",
            &text("sealed"),
            "--key",
            &text("key.pub.pem"),
            "--command-line",
            "quiet",
            "--bank",
            "sha256",
            "--json",
        ]))
        .as_bytes(),
    );
    let events = predicted["predictions"][0]["banks"]["sha256"].as_array().unwrap();
    let evidence = read_json(&bench.path("evidence.json"));
    for (pcr, event) in [("11", 3), ("12", 1), ("13", 2)] {
        assert_eq!(events[event]["value"], evidence["pcrs"]["sha256"][pcr]);
    }
    assert_eq!(software.leftovers(), "");
}

/// Measures what a boot of the sealed release measures, and writes the log.
fn boot(bench: &Bench, software: &SoftwareTpm, line: &str) {
    let envelope = fs::read(bench.path("sealed/manifest.dsse.json")).unwrap();
    let envelope = Envelope::parse(&envelope, PayloadType::Manifest).unwrap();
    let manifest = Sha256Digest::of(envelope.unverified_payload());
    let address = SocketAddr::from(([127, 0, 0, 1], software.port()));
    let mut tpm = Tpm::new(Socket::tcp(address, Duration::from_secs(60)).unwrap());
    let active = pcr::active_banks(&mut tpm).unwrap();
    let mut log = Vec::new();
    for measurement in Measurement::of_boot(line.as_bytes(), manifest, false) {
        let digests: Vec<_> = active.banks().map(|bank| measurement.digest(bank)).collect();
        pcr::extend(&mut tpm, &active, measurement.pcr(), &digests).unwrap();
        log.extend(Record::new(&measurement, &digests, None, 0).to_bytes());
    }
    fs::write(bench.path("log"), log).unwrap();
}

#[test]
fn endorsement_keys_that_their_maker_did_not_certify_are_refused() {
    let (bench, maker, other) = (Bench::new(), Maker::new(), Maker::new());
    let (software, second, stranger) = (maker.make(), maker.make(), other.make());
    for (software, name) in [(&software, "one"), (&second, "two"), (&stranger, "three")] {
        passes(&on(software, &["enroll", "request", "--out", &bench.text(name)]));
    }
    let (root, intermediate) = (maker.root(), maker.intermediate());
    let challenge = |request: &str, more: &[&str]| {
        let fixed = ["enroll", "challenge", &bench.text(request), "--name", "n", "--state", &bench.text("state")];
        let output = attest(&[&fixed[..], more].concat());
        if !output.status.success() {
            assert!(!bench.path("state").exists() && output.stdout.is_empty(), "nothing is written");
        }
        let _ = fs::remove_file(bench.path("state"));
        output
    };
    let trusted = ["--ek-root", &root, "--ek-intermediate", &intermediate];
    passes(&challenge("one", &trusted));
    let changed = |name: &str, field: &str, value: Value| {
        let mut request = read_json(&bench.path("one"));
        request[field] = value;
        fs::write(bench.path(name), request.to_string()).unwrap();
    };
    let refuse = |request: &str, more: &[&str], status: i32, expected: &str| {
        let told = fails(&challenge(request, &[&trusted[..], more].concat()), status);
        assert!(told.contains(expected), "{told} lacks {expected}");
        assert!(told.contains("\n next: "), "{told}");
    };

    // Another CA, though it has the same names.
    refuse("three", &[], 4, "expected a signature by CN=swtpm-localca, found one that does not verify");
    // A good certificate, of another TPM.
    changed("swapped", "ek_certificate", read_json(&bench.path("two"))["ek_certificate"].clone());
    refuse("swapped", &[], 4, "expected the endorsement key of the request in it, found another key");
    // --allow-unverified-ek does not make a bad certificate good.
    refuse("swapped", &["--allow-unverified-ek"], 4, "found another key");
    refuse("one", &["--at", "2001-01-01T00:00:00Z"], 4, "expected it to be valid at 2001-01-01T00:00:00Z");
    // Expired.
    let public = iofs_attest::public::Public::parse(&base64(&read_json(&bench.path("one"))["ek_public"])).unwrap();
    let iofs_attest::public::Key::Rsa { modulus, .. } = &public.key else { panic!("expected RSA") };
    let certificate = maker.certify(&["--modulus", &iofs_policy::hex::encode(modulus)], &["--days", "1"]);
    changed("expired", "ek_certificate", certificate.into());
    passes(&challenge("expired", &trusted));
    refuse("expired", &["--at", "2100-01-01T00:00:00Z"], 4, "expected it to be valid at 2100-01-01T00:00:00Z");
    // No certificate at all.
    changed("none", "ek_certificate", Value::Null);
    refuse("none", &[], 4, "expected a certificate of the endorsement key, found none");
    let output = challenge("none", &["--allow-unverified-ek"]);
    passes(&output);
    assert!(stderr(&output).contains("nobody vouches for this endorsement key"), "{}", stderr(&output));
    // No root, no word about it.
    let told = fails(&challenge("one", &[]), 2);
    assert!(told.contains("--ek-root: expected the certificate of a trusted maker"), "{told}");
}

fn base64(value: &Value) -> Vec<u8> {
    let bytes: iofs_attest::base64_bytes::Base64Bytes = serde_json::from_value(value.clone()).unwrap();
    bytes.0
}

/// The chip has to be the one with both keys: the attestation key of another is not enrolled.
#[test]
fn an_attestation_key_of_another_tpm_is_not_enrolled() {
    let bench = Bench::new();
    let (good, bad) = (SoftwareTpm::started(), SoftwareTpm::started());
    for ek in ["rsa", "ecc"] {
        let handle = if ek == "rsa" { "0x81014950" } else { HANDLE };
        for (software, name) in [(&good, "good"), (&bad, "bad")] {
            let name = bench.text(&format!("{name}-{ek}"));
            passes(&on(software, &["enroll", "request", "--ek", ek, "--ak-handle", handle, "--out", &name]));
        }
        let mut request = read_json(&bench.path(&format!("good-{ek}")));
        request["ak_public"] = read_json(&bench.path(&format!("bad-{ek}")))["ak_public"].clone();
        fs::write(bench.path("mixed"), request.to_string()).unwrap();
        let (state, challenge) = (bench.text(&format!("state-{ek}")), bench.text("challenge"));
        passes(&attest(&[
            "enroll",
            "challenge",
            &bench.text("mixed"),
            "--name",
            "n",
            "--state",
            &state,
            "--allow-unverified-ek",
            "--out",
            &challenge,
        ]));
        for software in [&good, &bad] {
            let output = on(software, &["enroll", "activate", &challenge, "--ak-handle", handle]);
            let told = fails(&output, 4);
            assert!(told.contains("the challenge is not for the keys of this TPM"), "{told}");
            assert!(!told.contains("WARNING") && !told.contains("ERROR"), "libtss2 is silent: {told}");
            assert!(output.stdout.is_empty());
        }
    }
    assert_eq!(good.leftovers() + &bad.leftovers(), "");
}

/// A P-256 key with a certificate in NV storage, as chips have it.
#[test]
fn a_certified_key_of_p256_is_found_and_enrolled() {
    let (bench, maker) = (Bench::new(), Maker::new());
    drop(maker.make());
    let software = SoftwareTpm::started();
    passes(&on(&software, &["enroll", "request", "--ek", "ecc", "--out", &bench.text("first")]));
    let public = iofs_attest::public::Public::parse(&base64(&read_json(&bench.path("first"))["ek_public"])).unwrap();
    let iofs_attest::public::Key::Ecc { point, .. } = &public.key else { panic!("expected ECC") };
    let [x, y] = [&point[1..33], &point[33..]].map(iofs_policy::hex::encode);
    let certificate = base64(&maker.certify(&["--ecc-x", &x, "--ecc-y", &y, "--ecc-curveid", "secp256r1"], &[]).into());
    // Some makers leave more room than the certificate needs.
    software.write("certificate", &[&certificate[..], &[0xff; 100]].concat());
    let size = (certificate.len() + 100).to_string();
    software
        .tool("tpm2_nvdefine", &["0x01c0000a", "-C", "o", "-s", &size, "-a", "ownerread|authread|ownerwrite|no_da"]);
    software.tool("tpm2_nvwrite", &["0x01c0000a", "-C", "o", "-i", "certificate"]);
    passes(&on(&software, &["enroll", "request", "--out", &bench.text("request")]));
    assert_eq!(base64(&read_json(&bench.path("request"))["ek_certificate"]), certificate);
    passes(&attest(&[
        "enroll",
        "challenge",
        &bench.text("request"),
        "--name",
        "n",
        "--state",
        &bench.text("state"),
        "--ek-root",
        &maker.root(),
        "--ek-intermediate",
        &maker.intermediate(),
        "--out",
        &bench.text("challenge"),
    ]));
    passes(&on(&software, &["enroll", "activate", &bench.text("challenge"), "--out", &bench.text("answer")]));
    passes(&attest(&[
        "enroll",
        "accept",
        &bench.text("answer"),
        "--state",
        &bench.text("state"),
        "--out",
        &bench.text("device"),
    ]));
}

/// Killed behind each command that the TPM executed: the handle is free or holds the whole key, and a second run does it.
#[test]
fn an_enrolment_that_is_killed_at_any_step_is_completed_by_the_next() {
    let bench = Bench::new();
    let software = SoftwareTpm::started();
    let (mut steps, mut kept) = (0, 0);
    for last in 1.. {
        let request = |tcti: &str| {
            let mut request = command();
            request.args(["attest", "enroll", "request", "--out", &bench.text("request"), "--tcti", tcti]);
            request
        };
        if !killed_behind(&software, last, request) {
            break;
        }
        steps += 1;
        assert!(!bench.path("request").exists(), "the request is the last thing that is written");
        flush(&software);
        let persistent = software.tool("tpm2_getcap", &["handles-persistent"]);
        let before = persistent.contains("0x8101494F").then(|| software.tool("tpm2_readpublic", &["-c", HANDLE]));
        passes(&on(&software, &["enroll", "request", "--out", &bench.text("request")]));
        let after = software.tool("tpm2_readpublic", &["-c", HANDLE]);
        if let Some(before) = before {
            kept += 1;
            assert_eq!(before, after, "a key that was made stays");
        }
        assert_eq!(bench.hidden(), Vec::<String>::new());
        assert_eq!(software.leftovers(), "");
        fs::remove_file(bench.path("request")).unwrap();
        software.tool("tpm2_evictcontrol", &["-c", HANDLE]);
    }
    assert!(kept > 0 && steps > kept + 5, "{steps} steps, {kept} of them behind TPM2_EvictControl");
    eprintln!("killed at {steps} steps, {kept} of them behind TPM2_EvictControl");
}

#[test]
fn a_record_of_another_device_and_a_state_in_use_are_kept() {
    let bench = Bench::new();
    let software = SoftwareTpm::started();
    let text = |name: &str| bench.text(name);
    passes(&on(&software, &["enroll", "request", "--out", &text("request")]));
    let challenge = |state: &str| {
        attest(&[
            "enroll",
            "challenge",
            &text("request"),
            "--name",
            "n",
            "--state",
            &text(state),
            "--allow-unverified-ek",
            "--out",
            &text("challenge"),
        ])
    };
    passes(&challenge("state"));
    let before = fs::read(bench.path("challenge")).unwrap();
    assert!(fails(&challenge("state"), 2).contains("exists already"));
    assert_eq!(fs::read(bench.path("challenge")).unwrap(), before);
    passes(&on(&software, &["enroll", "activate", &text("challenge"), "--out", &text("answer")]));
    let state = fs::read(bench.path("state")).unwrap();
    let accept = || attest(&["enroll", "accept", &text("answer"), "--state", &text("state"), "--out", &text("device")]);
    passes(&accept());
    // Power was lost between writing the record and removing the state, and a quote was seen meanwhile.
    let mut device = read_json(&bench.path("device"));
    device["last_seen"] = serde_json::json!({"reset_count": 1, "restart_count": 0, "clock": 5});
    fs::write(bench.path("device"), device.to_string()).unwrap();
    fs::write(bench.path("state"), &state).unwrap();
    passes(&accept());
    assert_eq!(read_json(&bench.path("device")), device);
    assert!(!bench.path("state").exists());
    // Another device's.
    device["ak_public"] = read_json(&bench.path("request"))["ek_public"].clone();
    fs::write(bench.path("device"), device.to_string()).unwrap();
    fs::write(bench.path("state"), &state).unwrap();
    assert!(fails(&accept(), 2).contains("it is the record of a device with other keys: \"n\""));
    assert_eq!(read_json(&bench.path("device")), device);
}

#[test]
fn errors_of_the_tpm_say_what_to_do() {
    let software = SoftwareTpm::started();
    let told = fails(&attest(&["quote", "--nonce", "00112233"]), 5);
    assert!(told.starts_with("error: open the TPM at device:/dev/no-such-tpm: "), "{told}");
    let told = fails(&on(&software, &["quote", "--nonce", "00112233", "--json"]), 1);
    let error = &json(told.as_bytes())["error"];
    assert_eq!(error["fact"], "persistent handle 0x8101494f: expected an attestation key, found nothing");
    assert!(error["next_step"].as_str().unwrap().contains("attest enroll request"));
    let state = json(passes(&on(&software, &["lockout", "--json"])).as_bytes());
    assert_eq!(state["locked"], false);
    software.tool("tpm2_changeauth", &["-c", "o", "secret"]);
    let told = fails(&on(&software, &["enroll", "request"]), 1);
    assert!(
        told.contains("TPM2_EvictControl: the TPM refuses the password") && told.contains("--owner-auth"),
        "{told}"
    );
    let password = software.write("password", b"secret\n");
    passes(&on(&software, &["enroll", "request", "--owner-auth", &password]));
    assert_eq!(software.leftovers(), "");
}
