//! Somebody between program and TPM while a disk is enrolled.
#![cfg(feature = "enroll")]

mod enroll_common;
#[path = "../../tpm/tests/host_common/mod.rs"]
mod host_common;
mod seal_common;
mod tpm_interposer;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use enroll_common::{Disk, ask};
use host_common::SoftwareTpm;
use iofs_policy::pcr_signature::PcrSignatures;
use iofs_tpm::pin::pin_auth;
use seal_common::passes;
use tpm_interposer::{Interposer, Way};

#[test]
fn bus_interposer_never_sees_the_secret_of_an_enrolment() {
    let (disk, software) = (Disk::new(), SoftwareTpm::started());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let interposer = Interposer::touching(&software, move |_, _, message| {
        record.lock().unwrap().extend_from_slice(message);
        true
    });
    let pin = disk.write("pin", b"1234");
    let arguments = ["--pcrs", "7", "--pin", "--pin-file", &pin, "--persistent"];
    passes(&disk.command(&interposer.tcti(), &arguments).output().unwrap());
    let token = disk.tpm2_tokens().remove(0).1;
    let passphrase = ask(&software, &token, Some(b"1234"), &PcrSignatures::default()).unwrap();
    let secret = STANDARD.decode(&*passphrase).unwrap();
    let auth = pin_auth(b"1234", token.salt.as_deref());
    let seen = seen.lock().unwrap();
    let contains = |what: &[u8]| seen.windows(what.len()).any(|window| window == what);
    assert!(!contains(&secret[..16]) && !contains(&secret[16..]), "the secret");
    assert!(!contains(&passphrase[..16]), "the passphrase");
    assert!(!contains(&auth[..16]) && !contains(b"1234"), "the PIN");
    // The record is one: what is public passed.
    assert!(contains(&token.policy_hashes[0]) && contains(&token.blobs[0]), "the object");
}

/// One bit of each command and of each answer: the enrolment fails and leaves nothing that counts, or what it wrote opens.
#[test]
fn bus_interposer_who_changes_a_bit_of_an_enrolment_gains_no_token() {
    let software = SoftwareTpm::started();
    // With a storage root key in place each run is the same.
    passes(&Disk::new().enroll(&software, &["--pcrs", "7"]));
    let mut noticed = 0;
    for way in [Way::Command, Way::Answer] {
        for number in 1.. {
            let disk = Disk::new();
            let last = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&last);
            let interposer = Interposer::touching(&software, move |this_way, this, message| {
                counter.fetch_max(this, Ordering::SeqCst);
                if (this_way, this) == (way, number) {
                    // Behind the header, which tells how much there is to read.
                    let at = 10 + number * 7 % (message.len() - 9).max(1);
                    if let Some(byte) = message.get_mut(at) {
                        *byte ^= 1 << (number % 8);
                    }
                }
                true
            });
            let output = disk.command(&interposer.tcti(), &["--pcrs", "7", "--persistent"]).output().unwrap();
            for kind in ["--transient-object", "--loaded-session", "--saved-session"] {
                software.try_tool("tpm2_flushcontext", &[kind]);
            }
            assert!(disk.opens_by("pass"), "{way:?} {number}");
            let (tokens, opened) = (disk.tpm2_tokens().len(), disk.opened_by_tpm(&software, None).len());
            assert_eq!(tokens, opened, "{way:?} {number}: {}", disk.list());
            assert_eq!(output.status.success(), tokens == 1, "{way:?} {number}: {}", seal_common::stderr(&output));
            noticed += usize::from(!output.status.success());
            // The next run is undisturbed, and leaves one object in the TPM at most.
            passes(&disk.enroll(&software, &["--pcrs", "7", "--persistent", "--rotate"]));
            assert_eq!((disk.kinds().len(), disk.token_types().len()), (2, 1), "{way:?} {number}");
            passes(&disk.enroll(&software, &["--wipe", "tpm2"]));
            if number > last.load(Ordering::SeqCst) {
                break;
            }
        }
    }
    assert!(noticed > 20, "{noticed}");
}
