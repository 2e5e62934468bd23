//! Power lost at any moment of an enrolment: the process is killed behind each command that the TPM executed, and in front of
//! each write to the volume.
#![cfg(feature = "enroll")]

mod enroll_common;
#[path = "../../tpm/tests/host_common/mod.rs"]
mod host_common;
mod seal_common;
mod tpm_interposer;

use std::{fs, process::Command};

use enroll_common::{Disk, kept};
use host_common::{SoftwareTpm, require};
use seal_common::passes;
use tpm_interposer::{flush, killed_behind};

/// The enrolment that is interrupted: everything that writes.
const ROTATE: [&str; 6] = ["--pcrs", "7", "--persistent", "--recovery-key", "--rotate", "--recovery-key-file"];

/// A volume with a passphrase, a recovery key and a TPM's token whose object the TPM keeps: all of it is replaced.
fn enrolled(software: &SoftwareTpm) -> Disk {
    let disk = Disk::new();
    let key = disk.text("old-key");
    passes(&disk.enroll(software, &["--pcrs", "7", "--persistent", "--recovery-key", "--recovery-key-file", &key]));
    disk
}

/// What has to hold however far the run came.
fn still_opens(disk: &Disk, software: &SoftwareTpm, step: usize) {
    assert!(disk.opens_by("pass"), "step {step}: the passphrase opens");
    assert!(!disk.opened_by_tpm(software, None).is_empty(), "step {step}: the TPM opens: {}", disk.list());
    let opens = |name: &str| {
        let key = fs::read_to_string(disk.path(name)).unwrap_or_default();
        disk.write("typed", key.trim().as_bytes());
        disk.opens_by("typed")
    };
    assert!(opens("old-key") || opens("new-key"), "step {step}: a recovery key opens");
}

/// What has to hold after the next run, whatever the one before left.
fn is_complete(disk: &Disk, software: &SoftwareTpm, step: usize) {
    assert_eq!(disk.kinds(), ["passphrase", "recovery-key", "tpm2"], "step {step}: {}", disk.list());
    let mut types = disk.token_types();
    types.sort();
    assert_eq!(types, ["systemd-recovery", "systemd-tpm2"], "step {step}");
    assert_eq!(disk.opened_by_tpm(software, None).len(), 1, "step {step}");
    let kept = kept(software);
    assert_eq!(kept.lines().count(), 2, "step {step}: the storage root key and one object: {kept}");
}

fn complete(disk: &Disk, software: &SoftwareTpm, step: usize) {
    let key = disk.text("last-key");
    let output = disk.enroll(software, &[&ROTATE[..], &[&key]].concat());
    assert!(output.status.success(), "step {step}: {}", seal_common::stderr(&output));
    is_complete(disk, software, step);
    let key = fs::read_to_string(&key).unwrap();
    disk.write("typed", key.trim().as_bytes());
    assert!(disk.opens_by("typed"), "step {step}: the last recovery key opens");
}

/// The run that was cut off at this step cost nothing, and the next one does all of it.
fn recovers(disk: &Disk, software: &SoftwareTpm, step: usize) {
    flush(software);
    still_opens(disk, software, step);
    let _ = fs::remove_file(disk.path("last-key"));
    complete(disk, software, step);
    fs::rename(disk.path("last-key"), disk.path("old-key")).unwrap();
}

#[test]
fn power_cut_at_each_tpm_command_of_an_enrolment_leaves_what_opened_before() {
    let software = SoftwareTpm::started();
    let disk = enrolled(&software);
    let mut steps = 0;
    for last in 1.. {
        let key = disk.text("new-key");
        let _ = fs::remove_file(&key);
        let rotate = |tcti: &str| disk.command(tcti, &[&ROTATE[..], &[&key]].concat());
        if !killed_behind(&software, last, rotate) {
            is_complete(&disk, &software, last);
            break;
        }
        recovers(&disk, &software, last);
        steps += 1;
    }
    assert!(steps > 20, "{steps}");
    assert_eq!(software.leftovers(), "");
}

#[test]
fn power_cut_at_each_write_of_a_header_leaves_what_opened_before() {
    let software = SoftwareTpm::started();
    let disk = enrolled(&software);
    let strace = require("strace", "strace");
    let mut steps = 0;
    for step in 1.. {
        let key = disk.text("new-key");
        let _ = fs::remove_file(&key);
        let inner = disk.command(&software.tcti(), &[&ROTATE[..], &[&key]].concat());
        let mut command = Command::new(&strace);
        // libcryptsetup writes by write(2); in front of the one that is counted the process is gone.
        command.args([
            "--quiet=all",
            "--follow-forks",
            "--output",
            "/dev/null",
            "--trace",
            "write,pwrite64,pwritev,writev",
        ]);
        command.arg("--trace-path").arg(disk.path("volume"));
        command.args(["--inject", &format!("write,pwrite64,pwritev,writev:signal=SIGKILL:when={step}")]);
        command.arg(inner.get_program()).args(inner.get_args()).env("TPM2TOOLS_TCTI", software.tcti());
        let output = command.output().unwrap();
        if output.status.success() {
            is_complete(&disk, &software, step);
            break;
        }
        assert!(output.stderr.is_empty(), "step {step}: {}", seal_common::stderr(&output));
        recovers(&disk, &software, step);
        steps += 1;
    }
    // Each header is written in three parts, twice; there are two areas of new keyslots and two of old ones.
    assert!(steps > 60, "{steps}");
}

/// A passphrase that took the number of a keyslot that was never made is nobody's leftover.
#[test]
fn power_cut_before_the_keyslot_does_not_cost_a_passphrase_that_came_after() {
    let disk = Disk::new();
    let marker = disk.write("marker", br#"{"type": "iofs-pending", "keyslots": [], "iofs-slot": 1}"#);
    passes(&enroll_common::cryptsetup(&["token", "import", "--json-file", &marker, &disk.text("volume")]));
    disk.add_passphrase("second", b"battery staple");
    let list = passes(&disk.enroll_without(&["--list"]));
    assert!(list.contains("left by an enrolment that was interrupted"), "{list}");
    let key = disk.text("key");
    passes(&disk.enroll_without(&["--recovery-key", "--recovery-key-file", &key]));
    assert_eq!(disk.kinds(), ["passphrase", "passphrase", "recovery-key"]);
    assert_eq!(disk.token_types(), ["systemd-recovery"]);
    assert!(disk.opens_by("second") && disk.opens_by("pass"));
}
