//! Enrolment of disks by the command line: real LUKS2 volumes in files, real software TPMs, and what other programs say of
//! the result.
#![cfg(feature = "enroll")]

mod enroll_common;
#[path = "../../tpm/tests/host_common/mod.rs"]
mod host_common;
mod seal_common;

use std::{
    fs,
    io::Write,
    process::{Command, Output, Stdio},
};

use enroll_common::{Disk, PASSPHRASE, ask, bytes, cryptsetup, json, kept, measure};
use host_common::{SoftwareTpm, require, with_certificates};
use iofs_luks::Token;
use iofs_policy::{
    digest::Sha256Digest,
    dsse::{Envelope, PayloadType},
    measurement::Measurement,
    pcr::{PcrBank, PcrDigest, PcrIndex},
    pcr_signature::PcrSignatures,
};
use iofs_tpm::{policy::PolicyDigest, policy_key::PolicyKey, unlock::UnsealError};
use seal_common::{Bench, fails, iofs_sign, passes, stderr};
use serde_json::json as value;

/// What a boot of a sealed release measures, in order.
fn measurements(bench: &Bench) -> Vec<(PcrIndex, Vec<u8>)> {
    let envelope = fs::read(bench.path("sealed/manifest.dsse.json")).unwrap();
    let envelope = Envelope::parse(&envelope, PayloadType::Manifest).unwrap();
    let manifest = Sha256Digest::of(envelope.unverified_payload());
    Measurement::of_boot(b"quiet", manifest, false).iter().map(|one| (one.pcr(), one.bytes())).collect()
}

#[test]
fn a_volume_that_is_bound_to_a_release_opens_between_its_phases_and_not_later() {
    let (bench, disk, software) = (Bench::new(), Disk::new(), SoftwareTpm::started());
    passes(&iofs_sign([bench.image_arguments("sealed"), vec!["--key".into(), bench.text("key.pem")]].concat()));
    let (release, key) = (bench.text("sealed"), bench.text("key.pub.pem"));
    let arguments = ["--release", &release, "--key", &key, "--command-line", "quiet"];
    // On the running system, whose registers hold something else.
    let done = disk.enrolled(&software, &arguments);
    assert_eq!(done["added"], value!([{"kind": "tpm2", "keyslot": 1, "token": 0, "proof": "loaded"}]), "{done}");
    let listed = &disk.list()["tokens"][0]["tpm2"];
    assert_eq!((&listed["pcrs"], &listed["bank"]), (&value!([11, 12, 13]), &"sha256".into()));
    let refused = ask(&software, &disk.tpm2_tokens()[0].1, None, &PcrSignatures::default()).unwrap_err();
    assert!(matches!(refused, UnsealError::RegistersChanged { .. }), "{refused}");

    let [before @ .., (phases, last)] = &measurements(&bench)[..] else { panic!("no measurements") };
    before.iter().for_each(|(pcr, bytes)| measure(&software, *pcr, bytes));
    assert_eq!(disk.opened_by_tpm(&software, None).len(), 1);
    // In that state it is proven as a whole.
    let again = Disk::new();
    assert_eq!(again.enrolled(&software, &arguments)["added"][0]["proof"], "unsealed");
    measure(&software, *phases, last);
    assert!(disk.opened_by_tpm(&software, None).is_empty() && again.opened_by_tpm(&software, None).is_empty());
    assert!(disk.opens_by("pass"), "the passphrase opens as before");

    // Without the command line, or with another key, nothing happens.
    let before = bytes(&disk.path("volume"));
    let told = fails(&disk.enroll(&software, &arguments[..4]), 2);
    assert!(told.contains("expected one command line, found 0"), "{told}");
    bench.key("other");
    let other = bench.text("other.pub.pem");
    fails(&disk.enroll(&software, &["--release", &release, "--key", &other, "--command-line", "quiet"]), 4);
    assert_eq!(bytes(&disk.path("volume")), before);
    assert_eq!(software.leftovers(), "");
}

#[test]
fn a_second_run_adds_nothing_and_a_rotation_replaces() {
    let (disk, software) = (Disk::new(), SoftwareTpm::started());
    assert_eq!(disk.enrolled(&software, &["--pcrs", "7"])["added"][0]["proof"], "unsealed");
    let before = bytes(&disk.path("volume"));
    let done = disk.enrolled(&software, &["--pcrs", "7"]);
    assert_eq!((&done["unchanged"], &done["added"]), (&0.into(), &value!([])));
    assert_eq!(bytes(&disk.path("volume")), before);
    let first = disk.tpm2_tokens();

    let done = disk.enrolled(&software, &["--pcrs", "7+8", "--rotate"]);
    assert_eq!(done["removed"], value!([{"kind": "tpm2", "keyslot": 1, "token": 0}]));
    let second = disk.tpm2_tokens();
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_ne!(first[0].1.blobs, second[0].1.blobs);
    // What the first one unsealed opens nothing any more.
    let old = ask(&software, &first[0].1, None, &PcrSignatures::default()).unwrap();
    assert!(disk.header().keyslots().all(|(slot, _)| !disk.opens(slot, &old)));
    assert_eq!(disk.opened_by_tpm(&software, None).len(), 1);
    assert_eq!(disk.kinds(), ["passphrase", "tpm2"]);
}

#[test]
fn a_pin_and_an_object_in_the_tpm_are_asked_for_and_kept() {
    let (disk, software) = (Disk::new(), SoftwareTpm::started());
    let pin = disk.write("pin", "Grüße 7\n".as_bytes());
    let done = disk.enrolled(&software, &["--pcrs", "", "--pin", "--pin-file", &pin, "--persistent"]);
    assert_eq!(done["added"][0]["proof"], "unsealed");
    let token = disk.tpm2_tokens().remove(0).1;
    assert!(token.pin && token.salt.as_ref().is_some_and(|salt| salt.len() == 32));
    assert_eq!(token.persistent, Some(0x8100_4940));
    assert!(kept(&software).contains("0x81004940"));
    assert_eq!(disk.opened_by_tpm(&software, Some("Grüße 7".as_bytes())).len(), 1);
    let wrong = ask(&software, &token, Some(b"7"), &PcrSignatures::default()).unwrap_err();
    assert!(matches!(wrong, UnsealError::WrongAuth { counted: true }), "{wrong}");
    // A second run cannot know whether it is the same PIN, and says so.
    let again = disk.enroll(&software, &["--pcrs", "", "--pin", "--pin-file", &pin, "--persistent"]);
    passes(&again);
    assert!(stderr(&again).contains("--rotate sets the new one"), "{}", stderr(&again));

    // A new PIN goes to another place in the TPM; the old place is free afterwards.
    let other = disk.write("other", b"0815");
    disk.enrolled(&software, &["--pcrs", "", "--pin", "--pin-file", &other, "--persistent", "--rotate"]);
    assert!(kept(&software).contains("0x81004941") && !kept(&software).contains("0x81004940"), "{}", kept(&software));
    assert_eq!(disk.opened_by_tpm(&software, Some(b"0815")).len(), 1);
    disk.enrolled(&software, &["--wipe", "tpm2"]);
    assert_eq!(kept(&software).trim(), "- 0x81000001");
    assert_eq!((disk.kinds(), disk.token_types()), (vec!["passphrase".to_owned()], vec![]));
    // Somebody else's object stays where it is.
    let told = fails(&disk.enroll(&software, &["--pcrs", "7", "--persistent=0x81000001"]), 1);
    assert!(told.contains("0x81000001: expected it to be free"), "{told}");
    assert_eq!((disk.kinds(), disk.token_types()), (vec!["passphrase".to_owned()], vec![]), "it was taken back");
}

/// A key pair, and its signature for a register 11 of zeros.
struct Signed {
    public: String,
    file: String,
}

impl Signed {
    fn new(disk: &Disk) -> Self {
        let (private, public) = (disk.text("policy.pem"), disk.text("policy.pub.pem"));
        let openssl = |arguments: &[&str]| {
            let output = Command::new(require("openssl", "openssl")).args(arguments).output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
        };
        openssl(&["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &private]);
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
        let zero = PcrDigest::zero(PcrBank::Sha256);
        let pol = PolicyDigest::ZERO.registers(&[((PcrBank::Sha256, PcrIndex::PHASES), zero)].into());
        let pol_file = disk.write("pol", pol.as_bytes());
        openssl(&["dgst", "-sha256", "-sign", &private, "-out", &disk.text("sig"), &pol_file]);
        let key = PolicyKey::from_pem(&bytes(&disk.path("policy.pub.pem"))).unwrap();
        let signature: String = iofs_attest::base64_bytes::Base64Bytes(bytes(&disk.path("sig"))).into();
        let signatures = value!({"sha256": [{
            "pcrs": [11],
            "pkfp": key.fingerprint().to_string(),
            "pol": iofs_policy::hex::encode(pol.as_bytes()),
            "sig": signature,
        }]});
        Self { public, file: disk.write("tpm2-pcr-signature.json", signatures.to_string().as_bytes()) }
    }
}

#[test]
fn a_signed_policy_opens_for_what_its_key_signed() {
    let (disk, software) = (Disk::new(), SoftwareTpm::started());
    let signed = Signed::new(&disk);
    let (public, file) = (signed.public, signed.file);
    // Nothing is signed yet.
    let done = disk.enrolled(&software, &["--pcr-policy", &public]);
    assert_eq!(done["added"][0]["proof"], "loaded");
    let token = disk.tpm2_tokens().remove(0).1;
    assert_eq!(token.signed.as_ref().unwrap().public_key_pem, bytes(&disk.path("policy.pub.pem")));
    assert!(token.pcrs.is_empty());

    let parsed = PcrSignatures::parse(&fs::read(&file).unwrap()).unwrap();
    let passphrase = ask(&software, &token, None, &parsed).unwrap();
    assert!(disk.opens(token.keyslots[0], &passphrase));
    let done = disk.enrolled(&software, &["--pcr-policy", &public, "--pcr-signature", &file, "--rotate"]);
    assert_eq!(done["added"][0]["proof"], "unsealed");

    measure(&software, PcrIndex::PHASES, b"something");
    let token = disk.tpm2_tokens().remove(0).1;
    let refused = ask(&software, &token, None, &parsed).unwrap_err();
    assert!(matches!(refused, UnsealError::NoSignature { .. }), "{refused}");
    let told = fails(&disk.enroll(&software, &["--pcr-policy", &public, "--pcrs", "11"]), 2);
    assert!(told.contains("PCR 11 is in --pcr-policy-pcrs and would be sealed too"), "{told}");
    let told = fails(&disk.enroll(&software, &["--pcr-policy", &file]), 3);
    assert!(told.contains("public key: expected PEM"), "{told}");
}

#[test]
fn a_recovery_key_opens_the_volume_however_it_is_typed() {
    let disk = Disk::new();
    let file = disk.text("recovery");
    let done = json(&passes(&disk.enroll_without(&["--recovery-key", "--recovery-key-file", &file, "--json"])));
    assert_eq!(done["added"], value!([{"kind": "recovery-key", "keyslot": 1, "token": 0, "proof": "opened"}]));
    let key = fs::read_to_string(&file).unwrap();
    assert!(!done.to_string().contains(key.trim()), "the key is nowhere else");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    disk.write("typed", key.trim().as_bytes());
    assert!(disk.opens_by("typed"), "cryptsetup opens by it");
    assert_eq!(disk.token_types(), ["systemd-recovery"]);
    // An existing file is not overwritten, and nothing is written to a pipe that nobody asked for.
    let before = bytes(&disk.path("volume"));
    let told = fails(&disk.enroll_without(&["--recovery-key", "--recovery-key-file", &file]), 2);
    assert!(told.contains("exists already"), "{told}");
    let told = fails(&disk.enroll_without(&["--recovery-key"]), 2);
    assert!(told.contains("standard output is no terminal"), "{told}");
    let told = fails(&disk.enroll_without(&["--recovery-key", "--recovery-key-file", "-", "--json"]), 2);
    assert!(told.contains("standard output has the result"), "{told}");
    assert_eq!(bytes(&disk.path("volume")), before);

    // It unlocks the volume for enrolment, in upper case and without dashes.
    let typed = disk.write("typed", key.trim().to_uppercase().replace('-', "").as_bytes());
    let told = passes(&disk.enroll_without(&[
        "--recovery-key",
        "--recovery-key-file",
        "-",
        "--rotate",
        "--unlock-key-file",
        &typed,
    ]));
    let (new, result) = told.split_once('\n').unwrap();
    assert!(result.contains("removed:   recovery key, keyslot 1"), "{told}");
    disk.write("new", new.as_bytes());
    disk.write("old", key.trim().as_bytes());
    assert!(disk.opens_by("new") && !disk.opens_by("old"));
}

#[test]
fn the_last_thing_that_somebody_knows_is_removed_with_consent_alone() {
    let (disk, software) = (Disk::new(), SoftwareTpm::started());
    disk.enrolled(&software, &["--pcrs", "7"]);
    let before = bytes(&disk.path("volume"));
    let refuse = |arguments: &[&str], expected: &str| {
        let told = fails(&disk.enroll(&software, arguments), 2);
        assert!(told.contains(expected), "{told} lacks {expected}");
        assert_eq!(bytes(&disk.path("volume")), before);
    };
    refuse(&["--wipe", "0"], "only the TPM would be left");
    refuse(&["--wipe", "passphrase,tpm2"], "nothing would be left");
    refuse(&["--wipe", "7"], "there is no keyslot 7");
    refuse(&["--wipe", "recovery-key"], "no keyslot is opened by: recovery key");
    refuse(&["--wipe", "everything"], "expected 0 to 31, tpm2, recovery-key or passphrase");

    // A second passphrase stays, but nobody showed it.
    let second = disk.add_passphrase("second", b"battery staple");
    let told = fails(&disk.enroll(&software, &["--wipe", "0"]), 2);
    assert!(told.contains("was not shown to open the volume"), "{told}");
    passes(&disk.enroll(&software, &["--wipe", "0", "--unlock-key-file", &second]));
    assert!(!disk.opens_by("pass") && disk.opens_by("second"));

    // A recovery key takes the passphrase's place in one run.
    let file = disk.text("recovery");
    let arguments =
        ["--recovery-key", "--recovery-key-file", &file, "--wipe", "passphrase", "--unlock-key-file", &second];
    passes(&disk.enroll(&software, &arguments));
    assert_eq!(disk.kinds(), ["recovery-key", "tpm2"]);
    let key = disk.write("key", fs::read_to_string(&file).unwrap().trim().as_bytes());
    passes(&disk.enroll(&software, &["--wipe", "recovery-key", "--accept-lockout", "--unlock-key-file", &key]));
    assert_eq!(disk.kinds(), ["tpm2"]);
    assert_eq!(disk.opened_by_tpm(&software, None).len(), 1);
}

#[test]
fn a_dry_run_writes_nothing_and_says_what_would_be_written() {
    let (disk, software) = (Disk::new(), SoftwareTpm::started());
    let before = bytes(&disk.path("volume"));
    let plan = disk.enrolled(
        &software,
        &["--pcrs", "7+11", "--persistent", "--recovery-key", "--recovery-key-file", "/no/such", "--dry-run"],
    );
    assert_eq!(bytes(&disk.path("volume")), before);
    assert_eq!(kept(&software), "", "no storage root key was made");
    assert_eq!(plan["add_tpm"]["pcrs"]["7"], "00".repeat(32));
    assert_eq!((&plan["add_recovery_key"], &plan["add_tpm"]["handle"]), (&true.into(), &"0x81004940".into()));
    disk.enrolled(&software, &["--pcrs", "7"]);
    let before = bytes(&disk.path("volume"));
    let text = passes(&disk.enroll(&software, &["--pcrs", "8", "--rotate", "--dry-run"]));
    assert!(text.contains("PCR  8 (sha256) is 0000") && text.contains("remove: keyslot 1"), "{text}");
    assert_eq!(bytes(&disk.path("volume")), before);
}

#[test]
fn what_cannot_be_enrolled_is_refused_and_stays_as_it_is() {
    let software = SoftwareTpm::started();
    let refuse = |disk: &Disk, arguments: &[&str], status: i32, expected: &str| {
        let before = bytes(&disk.path("volume"));
        let told = fails(&disk.enroll(&software, arguments), status);
        assert!(told.contains(expected) && told.contains("\n next: "), "{told} lacks {expected}");
        assert_eq!(bytes(&disk.path("volume")), before, "{expected}");
    };
    let disk = Disk::new();
    let wrong = disk.write("wrong", b"wrong");
    refuse(&disk, &["--pcrs", "7", "--unlock-key-file", &wrong], 4, "the passphrase opens no keyslot");
    refuse(&disk, &["--pcrs", "7", "--unlock-key-file", &disk.text("absent")], 1, "absent");
    refuse(&disk, &[], 2, "nothing to do");
    refuse(&disk, &["--pin"], 2, "whatever boots on this machine");
    refuse(&disk, &["--pcrs", ""], 2, "whoever has the machine would have the data");
    refuse(&disk, &["--rotate", "--wipe", "0"], 2, "--rotate: expected something that is added");
    refuse(&disk, &["--pcrs", "7", "--tcti", "tabrmd"], 2, "--tcti: expected device:PATH");
    let told = fails(&disk.enroll(&software, &["--pcrs", "7", "--persistent=0x40000001"]), 2);
    assert!(told.contains("expected 0x81000000 to 0x817fffff"), "{told}");
    let told = fails(&disk.enroll(&software, &["--pcrs", "11:sha1"]), 2);
    assert!(told.contains("SHA-1 is broken"), "{told}");
    // That one has the banks up to SHA-384.
    let authority = tempfile::tempdir().unwrap();
    let smaller = SoftwareTpm::on(with_certificates(authority.path()));
    let told = fails(&disk.enroll(&smaller, &["--pcrs", "11:sha512"]), 5);
    assert!(told.contains("sha512 bank is not active"), "{told}");

    refuse(&Disk::formatted(&["--type", "luks1"]), &["--pcrs", "7"], 3, "expected LUKS version 2, found 1");
    refuse(&Disk::empty(), &["--pcrs", "7"], 3, "no intact LUKS2 header");
    let short = Disk::empty();
    short.write("volume", b"LUKS");
    refuse(&short, &["--pcrs", "7"], 3, "no intact LUKS2 header");
    let absent = Disk::empty();
    fs::remove_file(absent.path("volume")).unwrap();
    fails(&absent.enroll(&software, &["--pcrs", "7"]), 1);
}

/// Room for one keyslot, and room for no token.
#[test]
fn a_full_header_is_refused_and_stays_whole() {
    let software = SoftwareTpm::started();
    let one = Disk::formatted(&["--type", "luks2", "--luks2-keyslots-size", "258048"]);
    let told = fails(&one.enroll(&software, &["--pcrs", "7"]), 1);
    assert!(told.contains("add keyslot 1") && told.contains("make room with --wipe"), "{told}");
    assert!(one.opens_by("pass"));
    assert_eq!((one.kinds(), one.token_types()), (vec!["passphrase".to_owned()], vec![]), "the marker is gone");

    let disk = Disk::new();
    for number in 0..32 {
        let token = disk.write("token", format!(r#"{{"type": "other", "keyslots": [], "n": {number}}}"#).as_bytes());
        passes(&cryptsetup(&["token", "import", "--json-file", &token, &disk.text("volume")]));
    }
    fails(&disk.enroll(&software, &["--pcrs", "7"]), 1);
    assert_eq!(disk.kinds(), ["passphrase"]);
    // No room for the finished token, though there was for the marker.
    let disk = Disk::new();
    let filler = "x".repeat(10_500);
    let token = disk.write("token", format!(r#"{{"type": "other", "keyslots": [], "filler": "{filler}"}}"#).as_bytes());
    passes(&cryptsetup(&["token", "import", "--json-file", &token, &disk.text("volume")]));
    fails(&disk.enroll(&software, &["--pcrs", "7"]), 1);
    assert_eq!((disk.kinds(), disk.token_types()), (vec!["passphrase".to_owned()], vec!["other".to_owned()]));
    assert!(disk.opens_by("pass"));
}

/// A memory file that takes no writes, whoever asks: root may write to files of mode 0444.
#[test]
fn a_volume_that_takes_no_writes_is_reported() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let (disk, software) = (Disk::new(), SoftwareTpm::started());
    let memory = memfd_create("volume", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    let mut memory = fs::File::from(memory);
    memory.write_all(&bytes(&disk.path("volume"))).unwrap();
    fcntl_add_seals(&memory, SealFlags::WRITE).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&memory);
    let path = format!("/proc/{}/fd/{fd}", std::process::id());
    let mut enroll = seal_common::command();
    enroll.args(["enroll", &path, "--pcrs", "7", "--unlock-key-file", &disk.text("pass"), "--tcti", &software.tcti()]);
    let told = fails(&enroll.output().unwrap(), 1);
    assert!(told.contains("add a token") && told.contains("may be written"), "{told}");
}

#[test]
fn lockout_and_absence_of_the_tpm_are_told_before_anything_is_written() {
    let (disk, software) = (Disk::new(), SoftwareTpm::started());
    let before = bytes(&disk.path("volume"));
    let told = fails(&disk.enroll_without(&["--pcrs", "7"]), 5);
    assert!(told.contains("device:/dev/no-such-tpm"), "{told}");
    software.tool("tpm2_createprimary", &["-C", "o", "-c", "guess.ctx", "-p", "right"]);
    software.tool("tpm2_dictionarylockout", &["--setup-parameters", "-n", "1", "-t", "1000", "-l", "1000"]);
    software.try_tool("tpm2_create", &["-C", "guess.ctx", "-P", "wrong", "-u", "u", "-r", "r"]);
    software.try_tool("tpm2_flushcontext", &["--transient-object"]);
    let told = fails(&disk.enroll(&software, &["--pcrs", "7"]), 1);
    assert!(told.contains("the TPM is locked") && told.contains("--clear-lockout"), "{told}");
    assert_eq!(bytes(&disk.path("volume")), before);
}

/// Tokens that systemd-cryptenroll wrote are listed, count as what they are, and are replaced.
#[test]
fn what_systemd_cryptenroll_wrote_is_listed_and_rotated() {
    let (disk, software) = (Disk::new(), SoftwareTpm::started());
    let systemd = |arguments: &[&str]| {
        let output = Command::new(require("systemd-cryptenroll", "systemd"))
            .args(arguments)
            .arg(disk.path("volume"))
            .env("PASSWORD", PASSPHRASE)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    systemd(&[&format!("--tpm2-device={}", software.tcti()), "--tpm2-pcrs=7+8"]);
    let recovery = systemd(&["--recovery-key"]);
    assert_eq!(disk.kinds(), ["passphrase", "recovery-key", "tpm2"]);
    let listed = disk.list();
    assert_eq!(listed["tokens"][0]["tpm2"]["pcrs"], value!([7, 8]));
    assert_eq!(listed["tokens"][0]["problem"], value!(null));
    let text = passes(&disk.enroll_without(&["--list"]));
    assert!(text.contains("token    0  systemd-tpm2: PCRs 7+8 (sha256)"), "{text}");
    // Its recovery key unlocks.
    let key = disk.write("key", recovery.trim().as_bytes());
    let done = disk.enrolled(&software, &["--pcrs", "7", "--rotate", "--unlock-key-file", &key]);
    assert_eq!(done["removed"], value!([{"kind": "tpm2", "keyslot": 1, "token": 0}]));
    assert_eq!(disk.opened_by_tpm(&software, None).len(), 1);
    // It reads what was written here.
    let told = systemd(&[]);
    let rows: Vec<Vec<&str>> = told.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(rows, [["0", "password"], ["2", "recovery"], ["3", "tpm2"]], "{told}");
    let dump = passes(&cryptsetup(&["luksDump", &disk.text("volume")]));
    for expected in ["systemd-tpm2", "systemd-recovery", "tpm2-hash-pcrs:   7", "tpm2-pcr-bank:    sha256"] {
        assert!(dump.contains(expected), "{dump} lacks {expected}");
    }
}

#[test]
fn volumes_of_other_forms_are_enrolled_and_keep_their_name() {
    let software = SoftwareTpm::started();
    let argon2 = ["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "64", "--label", "a label"];
    let large = ["--luks2-metadata-size", "4m", "--luks2-keyslots-size", "4m"];
    let small = ["--key-size", "256", "--sector-size", "512", "--hash", "sha512"];
    for options in [&argon2[..], &large, &small] {
        let disk = Disk::formatted(&[&["--type", "luks2"], options].concat());
        let before = disk.list();
        disk.enrolled(&software, &["--pcrs", "7"]);
        assert_eq!(disk.opened_by_tpm(&software, None).len(), 1, "{options:?}");
        assert!(disk.opens_by("pass"), "{options:?}");
        let after = disk.list();
        assert_eq!((&after["uuid"], &after["label"]), (&before["uuid"], &before["label"]));
        assert_eq!(after["keyslots"][0], before["keyslots"][0], "{options:?}");
    }
}

/// HMAC by the volume key, as OpenSSL makes it of what cryptsetup dumps.
#[test]
fn the_id_of_a_volume_key_is_what_other_programs_compute() {
    let disk = Disk::new();
    let before = bytes(&disk.path("volume"));
    let done = json(&passes(&disk.enroll_without(&["--volume-key", "state", "--json"])));
    assert_eq!(bytes(&disk.path("volume")), before);
    let (pass, key, volume) = (disk.text("pass"), disk.text("key"), disk.text("volume"));
    let dump =
        ["luksDump", "--batch-mode", "--dump-volume-key", "--key-file", &pass, "--volume-key-file", &key, &volume];
    passes(&cryptsetup(&dump));
    let text = format!("cryptsetup:state:{}", done["uuid"].as_str().unwrap());
    let text = disk.write("text", text.as_bytes());
    let key = format!("hexkey:{}", iofs_policy::hex::encode(&bytes(&disk.path("key"))));
    let openssl = Command::new(require("openssl", "openssl"))
        .args(["dgst", "-sha256", "-mac", "HMAC", "-macopt", &key, "-r", &text])
        .output()
        .unwrap();
    let expected = passes(&openssl);
    assert_eq!(done["volume_key"], expected.split_whitespace().next().unwrap());
}

/// A board that is gone takes nothing along but its own way in.
#[test]
fn what_an_absent_tpm_keeps_does_not_stop_the_owner() {
    let (disk, software) = (Disk::new(), SoftwareTpm::started());
    disk.enrolled(&software, &["--pcrs", "7", "--persistent"]);
    let marker =
        br#"{"type": "iofs-pending", "keyslots": [], "iofs-slot": 9, "iofs-handle": 2164279617, "iofs-name": "000b"}"#;
    let marker = disk.write("marker", marker);
    passes(&cryptsetup(&["token", "import", "--json-file", &marker, &disk.text("volume")]));
    drop(software);
    let output = disk.enroll_without(&["--wipe", "tpm2"]);
    passes(&output);
    assert!(stderr(&output).contains("tpm2_evictcontrol -c 0x81004940"), "{}", stderr(&output));
    assert!(stderr(&output).contains("token 1 is not cleared away"), "{}", stderr(&output));
    assert_eq!((disk.kinds(), disk.token_types()), (vec!["passphrase".to_owned()], vec!["iofs-pending".to_owned()]));
    let other = SoftwareTpm::started();
    disk.enrolled(&other, &["--pcrs", "7"]);
    assert_eq!(disk.token_types(), ["systemd-tpm2"]);
}

/// What libcryptsetup's plugin of systemd takes (`systemd_tpm2_plugin_params` in its `cryptsetup-tokens/`), with room for what
/// later versions add.
#[repr(C)]
struct PluginParameters {
    pcr_mask: u32,
    device: *const std::ffi::c_char,
    signature: *const std::ffi::c_char,
    later: [*const std::ffi::c_char; 6],
}

/// Opens a volume by a token as `cryptsetup open --token-only` does: systemd's plugin asks the TPM.
fn opens_by_plugin(
    disk: &Disk,
    software: &SoftwareTpm,
    token: u32,
    pin: Option<&[u8]>,
    signature: Option<&str>,
) -> bool {
    use libcryptsetup_rs::{
        CryptInit,
        consts::{flags::CryptActivate, vals::EncryptionFormat},
    };
    let device = std::ffi::CString::new(software.tcti()).unwrap();
    let signature = signature.map(|path| std::ffi::CString::new(path).unwrap());
    let mut parameters = PluginParameters {
        pcr_mask: u32::MAX,
        device: device.as_ptr(),
        signature: signature.as_ref().map_or(std::ptr::null(), |path| path.as_ptr()),
        later: [std::ptr::null(); 6],
    };
    let mut volume = CryptInit::init(&disk.path("volume")).unwrap();
    volume.context_handle().load::<()>(Some(EncryptionFormat::Luks2), None).unwrap();
    let mut tokens = volume.token_handle();
    let (parameters, flags) = (Some(&mut parameters), CryptActivate::empty());
    let opened = match pin {
        None => tokens.activate_by_token(None, Some(token), parameters, flags).is_ok(),
        Some(pin) => {
            tokens.activate_by_token_pin(None, Some("systemd-tpm2"), Some(token), pin, parameters, flags).is_ok()
        }
    };
    // What the kernel's resource manager does for systemd.
    for kind in ["--transient-object", "--loaded-session", "--saved-session"] {
        software.try_tool("tpm2_flushcontext", &[kind]);
    }
    opened
}

/// Whether the systemd of this machine knows storage root keys.
fn systemd_has_storage_root_keys() -> bool {
    let output = Command::new(require("systemd-cryptenroll", "systemd")).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap() > 252
}

/// libcryptsetup wants to be called by one thread: this test has its own process.
#[test]
#[ignore = "run by the test below"]
fn alone_tokens_open_by_the_plugin_of_systemd() {
    for options in [&["--systemd-252"][..], &[]] {
        if options.is_empty() && !systemd_has_storage_root_keys() {
            continue;
        }
        let (disk, software) = (Disk::new(), SoftwareTpm::started());
        let pin = disk.write("pin", b"1234");
        disk.enrolled(&software, &[&["--pcrs", "7+8"][..], options].concat());
        disk.enrolled(&software, &[&["--pcrs", "7", "--pin", "--pin-file", &pin][..], options].concat());
        assert!(opens_by_plugin(&disk, &software, 0, None, None), "{options:?}: registers");
        assert!(!opens_by_plugin(&disk, &software, 1, Some(b"4321"), None), "{options:?}: a wrong PIN");
        assert!(opens_by_plugin(&disk, &software, 1, Some(b"1234"), None), "{options:?}: a PIN");
        measure(&software, PcrIndex::new(8).unwrap(), b"something");
        assert!(!opens_by_plugin(&disk, &software, 0, None, None), "{options:?}: other registers");

        let signed = Signed::new(&disk);
        let done = disk.enrolled(&software, &[&["--pcr-policy", &signed.public][..], options].concat());
        let token = done["added"][0]["token"].as_u64().unwrap() as u32;
        assert!(opens_by_plugin(&disk, &software, token, None, Some(&signed.file)), "{options:?}: a signed policy");
        measure(&software, PcrIndex::PHASES, b"something");
        assert!(!opens_by_plugin(&disk, &software, token, None, Some(&signed.file)), "{options:?}: nothing is signed");
    }
}

#[test]
fn tokens_open_by_the_plugin_of_systemd() {
    let program = std::env::current_exe().unwrap();
    let mut alone = Command::new(program);
    alone.args([
        "--ignored",
        "--exact",
        "alone_tokens_open_by_the_plugin_of_systemd",
        "--test-threads=1",
        "--nocapture",
    ]);
    let output = alone.output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&told));
}

/// The keys of a JSON object, of which the documentation names each.
fn assert_keys(value: &serde_json::Value, expected: &[&str]) {
    let mut found: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = expected.to_vec();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let documented = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md")).unwrap();
    let section = documented.split("\n### `iofs-sign enroll ").nth(1).unwrap().split("\n##").next().unwrap();
    for key in found {
        assert!(section.contains(&format!("`{key}`")), "docs/cli.md, enroll: lacks {key}");
    }
}

#[test]
fn json_results_have_the_documented_keys() {
    let (disk, software) = (Disk::new(), SoftwareTpm::started());
    let plan = disk.enrolled(&software, &["--pcrs", "7", "--dry-run"]);
    assert_keys(&plan, &["uuid", "clear", "add_recovery_key", "add_tpm", "remove"]);
    assert_keys(&plan["add_tpm"], &["bank", "pcrs", "signed_pcrs", "handle"]);
    let done = disk.enrolled(&software, &["--pcrs", "7"]);
    assert_keys(&done, &["uuid", "cleared", "volume_key", "unchanged", "added", "removed"]);
    assert_keys(&done["added"][0], &["kind", "keyslot", "token", "proof"]);
    let listed = disk.list();
    assert_keys(&listed, &["uuid", "label", "keyslots", "tokens", "notes"]);
    assert_keys(&listed["keyslots"][0], &["slot", "kind", "token", "kdf"]);
    let token = &listed["tokens"][0];
    assert_keys(token, &["token", "type", "keyslots", "tpm2", "problem"]);
    let keys = ["pcrs", "bank", "signed_pcrs", "pin", "salted", "srk", "handle", "policy_hashes"];
    assert_keys(&token["tpm2"], &keys);
    let done = disk.enrolled(&software, &["--wipe", "tpm2"]);
    assert_keys(&done["removed"][0], &["kind", "keyslot", "token"]);
}

/// Runs a command on a terminal of its own, and types there.
fn typed(command: &Command, answers: &[&str]) -> Output {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut script = Command::new(require("script", "bsdutils"));
    script.args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"]);
    command.get_envs().for_each(|(name, value)| {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    });
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut keyboard = child.stdin.take().unwrap();
    let answers: Vec<String> = answers.iter().map(|answer| format!("{answer}\n")).collect();
    let typist = std::thread::spawn(move || {
        for answer in answers {
            // What is typed before the question is thrown away, as with every program that asks for a passphrase.
            std::thread::sleep(std::time::Duration::from_millis(1500));
            if keyboard.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
        // The terminal stays until the program is done.
        std::thread::sleep(std::time::Duration::from_secs(3));
    });
    let output = child.wait_with_output().unwrap();
    typist.join().unwrap();
    output
}

#[test]
fn the_terminal_asks_without_echo_and_shows_the_recovery_key_once() {
    let disk = Disk::new();
    let mut command = seal_common::command();
    command.arg("enroll").arg(disk.path("volume")).arg("--recovery-key");
    let output = typed(&command, &["wrong", PASSPHRASE]);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("passphrase or recovery key of the volume: "), "{shown}");
    assert!(shown.contains("that opens no keyslot"), "{shown}");
    assert!(!shown.contains(PASSPHRASE) && !shown.contains("wrong"), "{shown}");
    let is_key = |word: &&str| word.len() == 71 && word.matches('-').count() == 7;
    let keys: Vec<&str> = shown.split_whitespace().filter(is_key).collect();
    assert_eq!(keys.len(), 1, "{shown}");
    assert!(shown.contains('█'), "a QR code: {shown}");
    disk.write("key", keys[0].as_bytes());
    assert!(disk.opens_by("key"));

    let software = SoftwareTpm::started();
    let mut command = seal_common::command();
    command.arg("enroll").arg(disk.path("volume")).args(["--pcrs", "7", "--pin", "--tcti", &software.tcti()]);
    let output = typed(&command, &["1234", "1235"]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stdout));
    let output = typed(&command, &["1234", "1234", PASSPHRASE]);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !shown.contains("1234"), "{shown}");
    assert_eq!(disk.opened_by_tpm(&software, Some(b"1234")).len(), 1);
    let broken = typed(&command, &["\u{3}"]);
    assert_eq!(broken.status.code(), Some(2), "{}", String::from_utf8_lossy(&broken.stdout));
    assert!(matches!(disk.header().tokens().count(), 2));
    assert!(disk.header().tokens().any(|(_, token)| matches!(token, Token::Recovery { .. })));
}
