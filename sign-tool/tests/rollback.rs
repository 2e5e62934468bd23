//! An old release after a newer one was confirmed: `enroll --rollback-counter` and `mark-good` on real LUKS2 volumes and a
//! software TPM.
#![cfg(feature = "enroll")]

mod enroll_common;
#[path = "../../tpm/tests/host_common/mod.rs"]
mod host_common;
mod seal_common;
mod tpm_interposer;

use std::{fs, process::Output};

use enroll_common::{Disk, ask, json, lean, measure};
use host_common::{SoftwareTpm, require};
use iofs_policy::{
    digest::Sha256Digest,
    dsse::{Envelope, PayloadType},
    manifest::{Manifest, RollbackIndex, RollbackRule},
    measurement::Measurement,
    pcr::{PcrBank, PcrIndex},
    pcr_signature::PcrSignatures,
};
use iofs_tpm::{PinnedSrk, Protected, name::Public, rollback::DEFAULT_INDEX, unlock::UnsealError};
use seal_common::{Bench, command, fails, iofs_sign, passes, tool};
use serde_json::json as value;
use tpm_interposer::{flush, killed_behind};

/// A machine: its releases, its volume and its TPM.
struct Machine {
    bench: Bench,
    disk: Disk,
    software: SoftwareTpm,
}

impl Machine {
    /// Releases of these rollback indexes, in `r5` and so on.
    fn with(releases: &[u64]) -> Self {
        let machine = Self { bench: Bench::new(), disk: Disk::new(), software: SoftwareTpm::started() };
        for index in releases {
            let (key, index) = (machine.bench.text("key.pem"), index.to_string());
            let mut arguments = machine.bench.image_arguments(&format!("r{index}"));
            arguments.extend(["--key", &key, "--rollback-index", &index].map(str::to_owned));
            passes(&iofs_sign(arguments));
        }
        machine
    }

    fn try_enroll(&self, index: u64, more: &[&str]) -> Output {
        let (release, key) = (self.bench.text(&format!("r{index}")), self.bench.text("key.pub.pem"));
        let arguments =
            ["--release", &release, "--key", &key, "--command-line", "quiet", "--rollback-counter", "--json"];
        self.disk.enroll(&self.software, &[&arguments[..], more].concat())
    }

    fn enroll(&self, index: u64) {
        let done = json(&passes(&self.try_enroll(index, &[])));
        let added = &done["added"][0];
        assert!(matches!(added["proof"].as_str(), Some("loaded" | "unsealed")), "{done}");
        let rule: RollbackRule = serde_json::from_value(added["rollback"].clone()).unwrap();
        assert_eq!((rule.counter, rule.index), (DEFAULT_INDEX, RollbackIndex(index)));
    }

    /// The limits in the volume's tokens, by rollback index.
    fn limits(&self) -> Vec<(u64, u64)> {
        let limits = self.disk.tpm2_tokens().into_iter().map(|(_, token)| token.rollback.unwrap());
        limits.map(|RollbackRule { value, index, .. }| (index.0, value)).collect()
    }

    /// Resets the TPM, and measures what verify-init measures of a release before it opens volumes.
    fn boot(&self, index: u64) {
        let control = format!("127.0.0.1:{}", self.software.port() + 1);
        passes(&tool(
            require("swtpm_ioctl", "swtpm-tools").to_str().unwrap(),
            "swtpm-tools",
            &["--tcp", &control, "-i"],
        ));
        self.software.tool("tpm2_startup", &["-c"]);
        let envelope = fs::read(self.bench.path(&format!("r{index}/manifest.dsse.json"))).unwrap();
        let envelope = Envelope::parse(&envelope, PayloadType::Manifest).unwrap();
        let manifest = Sha256Digest::of(envelope.unverified_payload());
        let [before @ .., _] = &Measurement::of_boot(b"quiet", manifest, false);
        before.iter().for_each(|one| measure(&self.software, one.pcr(), &one.bytes()));
        let manifest = Manifest::from_json(envelope.unverified_payload()).unwrap();
        self.disk.write("boot.json", record(&manifest).to_string().as_bytes());
    }

    /// The refusals of all tokens, and `None` for each that opens.
    fn asked(&self) -> Vec<Option<UnsealError>> {
        self.asked_with(&PcrSignatures::default())
    }

    fn asked_with(&self, signatures: &PcrSignatures) -> Vec<Option<UnsealError>> {
        let ask = |token| ask(&self.software, token, None, signatures).err();
        self.disk.tpm2_tokens().iter().map(|(_, token)| ask(token)).collect()
    }

    /// What a PCR key says of register 13 after this release's boot, with or without its rollback index.
    fn sign(&self, index: u64, more: &[&str]) -> PcrSignatures {
        self.boot(index);
        let wanted = [(PcrBank::Sha256, PcrIndex::MANIFEST)].into();
        let values = iofs_tpm::pcr::read(&mut lean(&self.software), &wanted).unwrap();
        let value = format!("13:{}", values.iter().next().unwrap().1.to_string().replace(":", "="));
        let (key, out) = (self.disk.text("pcr.pem"), self.disk.text("signatures"));
        let arguments = ["policy", "sign", "--pcr", &value, "--key", &key, "--out", &out];
        passes(&iofs_sign([&arguments[..], more].concat()));
        PcrSignatures::parse(&fs::read(&out).unwrap()).unwrap()
    }

    /// Binds the volume once to what a new PCR key signs of register 13.
    fn enroll_signed(&self, more: &[&str]) -> Output {
        let (private, public) = (self.disk.text("pcr.pem"), self.disk.text("pcr.pub.pem"));
        if !self.disk.path("pcr.pem").exists() {
            let options = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &private];
            passes(&tool("openssl", "openssl", &[&["genpkey"][..], &options].concat()));
            passes(&tool("openssl", "openssl", &["pkey", "-in", &private, "-pubout", "-out", &public]));
        }
        let arguments = ["--pcr-policy", &public, "--pcr-policy-pcrs", "13", "--rollback-counter", "--json"];
        self.disk.enroll(&self.software, &[&arguments[..], more].concat())
    }

    fn opens(&self) -> bool {
        self.asked().iter().any(Option::is_none)
    }

    fn mark_good(&self, tcti: &str, more: &[&str]) -> std::process::Command {
        let mut command = command();
        command.args(["mark-good", &self.disk.text("volume"), "--boot-record", &self.disk.text("boot.json"), "--json"]);
        command.args(more).env("TPM2TOOLS_TCTI", tcti);
        command
    }

    fn marked(&self) -> serde_json::Value {
        json(&passes(&self.mark_good(&self.software.tcti(), &[]).output().unwrap()))
    }

    fn counter(&self) -> u64 {
        let mut tpm = lean(&self.software);
        let public = iofs_tpm::srk::read_public(&mut tpm, 0x8100_0001).unwrap();
        let pin = PinnedSrk::new(Public::parse(public.as_bytes()).unwrap()).unwrap();
        let mut protected = Protected::start(&mut tpm, &pin).unwrap();
        protected.rollback_counter(DEFAULT_INDEX).unwrap()
    }
}

/// What verify-init leaves of a boot, as far as it counts here.
fn record(manifest: &Manifest) -> serde_json::Value {
    value!({
        "record_version": 1, "verify_init": "0.1.0", "image_id": manifest.image.id,
        "image_version": manifest.image.version, "rollback_index": manifest.image.rollback_index,
        "role": manifest.image.role, "architecture": manifest.image.architecture, "debug": false,
        "manifest_digest": "00".repeat(32), "signers": [], "root_hash": manifest.verity.root_hash, "data_device": "/dev/vda1",
        "hash_device": "/dev/vda2", "verity_table": "", "measured_banks": [], "kernel_release": "6.1.0", "warnings": [],
        "stages": [],
    })
}

#[test]
fn rollback_an_old_release_opens_nothing_once_a_newer_one_is_confirmed() {
    let machine = Machine::with(&[5, 6]);
    machine.enroll(5);
    let first = machine.counter();
    assert_eq!(machine.limits(), [(5, first)]);
    let rule = value!({"counter": DEFAULT_INDEX, "value": first, "index": 5});
    assert_eq!(machine.disk.list()["tokens"][0]["tpm2"]["rollback"], rule);
    let shown = passes(&iofs_sign(["inspect", &machine.disk.text("volume")]));
    assert!(shown.contains("rollback index: 5, until counter 0x0180494f is above"), "{shown}");
    machine.boot(5);
    assert!(machine.opens());
    assert_eq!(machine.marked()["after"], first, "the first release confirms nothing new");

    // The update comes: both releases open, so that there is a way back.
    machine.enroll(6);
    assert_eq!(machine.limits(), [(5, first), (6, first + 1)]);
    let old_volume = fs::read(machine.disk.path("volume")).unwrap();
    machine.boot(6);
    assert!(machine.opens());
    machine.boot(5);
    assert!(machine.opens(), "not confirmed yet: the boot itself raises nothing");

    machine.boot(6);
    let marked = machine.marked();
    assert_eq!(marked, value!({"counter": "0x0180494f", "rollback_index": 6, "before": first, "after": first + 1}),);
    assert_eq!(machine.marked()["before"], first + 1, "once more changes nothing");
    assert!(machine.opens());

    // The old release, with the volume as it was, header and all.
    machine.boot(5);
    fs::write(machine.disk.path("volume"), old_volume).unwrap();
    let asked = machine.asked();
    assert!(matches!(asked[0], Some(UnsealError::Superseded { .. })), "{asked:?}");
    assert!(matches!(asked[1], Some(UnsealError::RegistersChanged { .. })), "{asked:?}");
    let told = fails(&machine.mark_good(&machine.software.tcti(), &[]).output().unwrap(), 4);
    assert!(told.contains("a newer release was confirmed"), "{told}");
    // Whoever has the owner's password removes the counter, and makes it again.
    machine.software.tool("tpm2_nvundefine", &["-C", "o", "0x180494f"]);
    assert!(matches!(machine.asked()[0], Some(UnsealError::NoCounter { .. })));
    let again = ["-Q", "-C", "o", "-a", "ownerwrite|nt=counter|ownerread|authread|no_da", "0x180494f"];
    machine.software.tool("tpm2_nvdefine", &again);
    machine.software.tool("tpm2_nvincrement", &["-Q", "-C", "o", "0x180494f"]);
    assert!(matches!(machine.asked()[0], Some(UnsealError::Superseded { .. })));
    assert!(machine.disk.opens_by("pass"), "the passphrase opens as before");
}

#[test]
fn rollback_old_signatures_and_old_releases_open_nothing_that_was_enrolled_once() {
    let machine = Machine::with(&[5, 6, 7]);
    machine.boot(5);
    let told = fails(&machine.enroll_signed(&[]), 2);
    assert!(told.contains("--rollback-index N"), "no boot record says it: {told}");
    let done = json(&passes(&machine.enroll_signed(&["--rollback-index", "6"])));
    let first = machine.counter();
    assert_eq!(done["added"][0]["rollback"], value!({"counter": DEFAULT_INDEX, "value": first, "index": 6}));
    assert_eq!(json(&passes(&machine.enroll_signed(&["--rollback-index", "6"])))["unchanged"], 0);
    let listed = passes(&iofs_sign(["enroll", &machine.disk.text("volume"), "--list"]));
    let range = "rollback index 6 to 69, the first until counter 0x0180494f is above";
    assert!(listed.contains(range), "{listed}");

    // All three releases are signed by the right key. The one below the enrolled index opens nothing from the start.
    let (five, six, seven) = (
        machine.sign(5, &["--rollback-index", "5"]),
        machine.sign(6, &["--rollback-index", "6"]),
        machine.sign(7, &["--rollback-index", "7"]),
    );
    let asked = |boots: u64, signatures: &PcrSignatures| {
        machine.boot(boots);
        machine.asked_with(signatures).remove(0)
    };
    assert!(matches!(asked(5, &five), Some(UnsealError::OtherRollbackIndex { .. })));
    assert!(asked(6, &six).is_none() && asked(7, &seven).is_none(), "enrolled once");
    let plain = machine.sign(7, &[]);
    assert!(matches!(asked(7, &plain), Some(UnsealError::NoRollbackIndex { .. })));

    assert_eq!(
        machine.marked(),
        value!({
            "counter": "0x0180494f", "rollback_index": 7, "before": first, "after": first + 1,
        })
    );
    assert!(asked(7, &seven).is_none());
    assert!(matches!(asked(6, &six), Some(UnsealError::Superseded { .. })), "an old release with its own signatures");
    assert!(matches!(asked(6, &seven), Some(UnsealError::NoSignature { .. })), "an old release with newer signatures");
    assert!(matches!(asked(7, &six), Some(UnsealError::NoSignature { .. })), "older signatures alone");
    let lie = fs::read_to_string(machine.disk.path("signatures")).unwrap();
    assert!(!lie.contains("iofs-rollback"), "systemd-measure's own form");
    let lie = String::from_utf8(six.to_json()).unwrap().replace(r#""index":6"#, r#""index":7"#);
    let lie = PcrSignatures::parse(lie.as_bytes()).unwrap();
    assert!(matches!(asked(6, &lie), Some(UnsealError::BadSignature { .. })), "an old release that calls itself newer");

    // Beyond what was enrolled: counted up that far, nothing would open the volume.
    let record = fs::read_to_string(machine.disk.path("boot.json")).unwrap();
    let far = record.replace(r#""rollback_index":6"#, r#""rollback_index":70"#);
    machine.disk.write("boot.json", far.as_bytes());
    let told = fails(&machine.mark_good(&machine.software.tcti(), &[]).output().unwrap(), 3);
    assert!(told.contains("expected a token of counter 0x0180494f for rollback index 70"), "{told}");
    assert!(machine.disk.opens_by("pass"));
}

#[test]
fn what_would_lock_out_or_bind_nothing_is_refused() {
    let machine = Machine::with(&[5, 6, 900]);
    let told = fails(&machine.try_enroll(5, &["--pcrs", "11+12"]), 2);
    assert!(told.contains("expected register 13"), "{told}");
    let told = fails(&machine.try_enroll(5, &["--systemd-252"]), 2);
    assert!(told.contains("no systemd opens a key that ends with a rollback counter"), "{told}");
    let told = fails(&machine.disk.enroll(&machine.software, &["--pcrs", "7", "--rollback-counter"]), 2);
    assert!(told.contains("expected what tells this release from older ones"), "{told}");
    let told = passes(&machine.try_enroll(5, &["--dry-run"]));
    assert!(!told.is_empty() && machine.software.tool("tpm2_getcap", &["handles-nv-index"]).trim().is_empty());

    machine.enroll(6);
    // The release that runs has no token: the TPM would never open the volume again.
    machine.boot(5);
    let told = fails(&machine.mark_good(&machine.software.tcti(), &[]).output().unwrap(), 3);
    assert!(told.contains("expected a token of counter 0x0180494f for rollback index 5"), "{told}");
    let told = fails(&machine.try_enroll(5, &[]), 2);
    assert!(told.contains("found an older one"), "{told}");
    let told = fails(&machine.try_enroll(900, &[]), 2);
    assert!(told.contains("expected at most 256 steps at once, found 894"), "{told}");
    let dry = json(&passes(&{
        machine.boot(6);
        machine.mark_good(&machine.software.tcti(), &["--dry-run"]).output().unwrap()
    }));
    assert_eq!(dry["before"], dry["after"]);
}

#[test]
fn power_cut_at_each_step_of_a_confirmation_leaves_a_release_that_opens() {
    let machine = Machine::with(&[5, 8]);
    machine.enroll(5);
    let first = machine.counter();
    machine.enroll(8);
    machine.boot(8);
    let mut last = 1;
    let mut before = first;
    while killed_behind(&machine.software, last, |tcti| machine.mark_good(tcti, &[])) {
        flush(&machine.software);
        let now = machine.counter();
        assert!((before..=first + 3).contains(&now), "{last}: from {before} to {now}");
        assert!(machine.opens(), "{last}: the running release opens at {now}");
        before = now;
        last += 1;
    }
    assert!(last > 6, "{last}");
    assert_eq!(machine.counter(), first + 3);
    flush(&machine.software);
    assert_eq!(machine.marked()["after"], first + 3);
    machine.boot(5);
    assert!(!machine.opens());
}

#[test]
fn power_cut_at_each_step_of_an_enrolment_with_a_counter_leaves_what_the_next_one_completes() {
    let machine = Machine::with(&[5]);
    machine.boot(5);
    let (release, key) = (machine.bench.text("r5"), machine.bench.text("key.pub.pem"));
    let arguments = ["--release", &release, "--key", &key, "--command-line", "quiet", "--rollback-counter"];
    let mut last = 1;
    loop {
        // Neither a token nor a counter is there before.
        let disk = Disk::new();
        machine.software.try_tool("tpm2_nvundefine", &["-C", "o", "0x180494f"]);
        if !killed_behind(&machine.software, last, |tcti| disk.command(tcti, &arguments)) {
            break;
        }
        flush(&machine.software);
        assert!(disk.opens_by("pass"), "{last}");
        let done = disk.enrolled(&machine.software, &arguments);
        assert!(done["unchanged"] == 0 || done["added"][0]["proof"] == "unsealed", "{last}: {done}");
        assert_eq!(disk.opened_by_tpm(&machine.software, None).len(), 1, "{last}");
        last += 1;
    }
    assert!(last > 10, "{last}");
}
