//! What people are told.

use iofs_attest::explain::{Status, explain};
use iofs_policy::{
    digest::Sha256Digest,
    uki::{BankDigests, UkiMeasurements, UkiSection},
};

use crate::support::*;

#[test]
fn an_honest_boot_is_as_predicted() {
    let release = reference("13.2-4", |_| {});
    let mut machine = Machine::booted(BOTH, &release);
    machine.measure_text(11, "sysinit");
    let verifier = Verifier::new(BOTH, vec![release]);
    let explanation = explain(&verifier.request(), &machine.evidence(&Quoted::new(BOTH)));
    assert_eq!(explanation.first_difference, None);
    assert!(explanation.problems.is_empty());
    let statuses: Vec<Status> = explanation.events[9..].iter().map(|event| event.status).collect();
    use Status::*;
    assert_eq!(statuses, [Predicted, Predicted, Predicted, Predicted, Accepted]);
    let text = explanation.to_string();
    assert!(text.starts_with("predicted from release org.example.gateway 13.2-4\n"), "{text}");
    assert!(text.contains("firmware      1  PCR  0  ignored       EV_SEPARATOR: separator\n"), "{text}");
    assert!(text.contains("user space    0  PCR 11  as predicted  phase: enter-initrd\n"), "{text}");
    assert!(text.ends_with("user space measured what was predicted\n"), "{text}");
}

#[test]
fn the_first_difference_is_named() {
    let release = reference("13.2-4", |_| {});
    let evil = reference("6.6.6", |_| {});
    let machine = Machine::booted(SHA256, &evil);
    let verifier = Verifier::new(SHA256, vec![release]);
    let explanation = explain(&verifier.request(), &machine.evidence(&Quoted::new(SHA256)));
    let [predicted, found] = ["13.2-4", "6.6.6"].map(|version| Sha256Digest::of(version.as_bytes()));
    assert_eq!(
        explanation.first_difference.unwrap(),
        format!(
            "PCR 13 event 1: predicted manifest:{predicted} of release org.example.gateway 13.2-4; \
             the log has manifest:{found}"
        )
    );
}

#[test]
fn what_is_missing_or_too_much_is_named() {
    let release = reference("13.2-4", |_| {});
    let verifier = Verifier::new(SHA256, vec![release.clone()]);
    let mut machine = Machine::booted(SHA256, &release);
    machine.records.pop();
    let mut evidence = machine.evidence(&Quoted::new(SHA256));
    evidence.pcrs = machine.registers();
    let explanation = explain(&verifier.request(), &evidence);
    assert_eq!(
        explanation.first_difference.as_deref(),
        Some("PCR 11 event 2: predicted leave-initrd of release org.example.gateway 13.2-4; the log has nothing more")
    );
    let text = explanation.to_string();
    assert!(text.contains("PCR 11 (sha256): the logs do not lead to the value that the device reports\n"), "{text}");
    let mut machine = Machine::booted(SHA256, &release);
    machine.measure_text(12, "more");
    let explanation = explain(&verifier.request(), &machine.evidence(&Quoted::new(SHA256)));
    let difference = explanation.first_difference.unwrap();
    assert_eq!(difference, "PCR 12 event 2: predicted nothing more; the log has more");
}

#[test]
fn what_cannot_be_read_is_a_problem_and_the_rest_is_explained() {
    let release = reference("13.2-4", |_| {});
    let machine = Machine::booted(SHA256, &release);
    let verifier = Verifier::new(SHA256, vec![release]);
    let mut evidence = machine.evidence(&Quoted::new(SHA256));
    evidence.firmware_log.as_mut().unwrap().0.truncate(100);
    evidence.measurement_log_torn = true;
    let explanation = explain(&verifier.request(), &evidence);
    assert_eq!(explanation.problems[0], "the measurement log is torn: its last record may be missing");
    assert!(explanation.problems[1].starts_with("firmware log: event 1: "), "{:?}", explanation.problems);
    assert_eq!(explanation.events.len(), 4);
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["events"][0]["status"], "predicted");
    assert_eq!(json["events"][0]["log"], "user-space");
}

#[test]
fn terminals_are_told_nothing() {
    let release = reference("13.2-4", |_| {});
    let mut machine = Machine::booted(SHA256, &release);
    machine.measure_text(12, "\u{1b}[2J\nevil");
    machine.firmware(0, EFI_ACTION, b"x", b"\x1b[2J");
    let verifier = Verifier::new(SHA256, vec![release]);
    let text = explain(&verifier.request(), &machine.evidence(&Quoted::new(SHA256))).to_string();
    assert!(!text.contains('\u{1b}') && !text.contains("\nevil"), "{text}");
}

#[test]
fn a_false_label_is_the_first_difference() {
    let release = reference("13.2-4", |_| {});
    let mut machine = Machine::booted(SHA256, &release);
    machine.records[1].content.string = Some("command-line:other".to_owned());
    let verifier = Verifier::new(SHA256, vec![release]);
    machine.measure_text(11, "sysinit");
    let explanation = explain(&verifier.request(), &machine.evidence(&Quoted::new(SHA256)));
    assert_eq!(
        explanation.first_difference.as_deref(),
        Some("PCR 12 event 1: the log has command-line:other, which is not what was measured")
    );
    assert_eq!(explanation.events.last().unwrap().status, Status::Accepted);
}

/// Secure Boot's variable, as firmware measures it (UEFI_VARIABLE_DATA), and what is expected in its place.
#[test]
fn an_event_that_the_policy_does_not_list_is_told_with_what_it_lists() {
    let release = reference("13.2-4", |release| release.kernel_authenticode = Some(Sha256Digest::of(b"kernel")));
    let variable = |value: u8| {
        let name: Vec<u8> = "SecureBoot".encode_utf16().flat_map(u16::to_le_bytes).collect();
        [&[0; 16][..], &10_u64.to_le_bytes(), &1_u64.to_le_bytes(), &name, &[value]].concat()
    };
    let booted = |secure: u8, kernel: &[u8]| {
        let mut machine = Machine::new(SHA256);
        machine.firmware(7, 0x8000_0001, &variable(secure), &variable(secure));
        machine.firmware_digest(4, APPLICATION, Sha256Digest::of(kernel), b"");
        machine.boot(&release, LINE);
        machine
    };
    let verifier = Verifier::new(SHA256, vec![release.clone()]);
    let learnt = iofs_attest::learn::learn(&verifier.request(), &booted(1, b"kernel").evidence(&Quoted::new(SHA256)));
    let verifier = verifier.policy(&learnt.unwrap());
    let evidence = booted(0, b"other").evidence(&Quoted::new(SHA256));
    assert_eq!(verifier.verify(&evidence).unwrap_err().reason(), "unknown-event");
    let of = |bytes: &[u8]| format!("sha256:{}", Sha256Digest::of(bytes));
    let explanation = explain(&verifier.request(), &evidence);
    assert_eq!(
        explanation.differences,
        [
            format!(
                "PCR 7, firmware log, event 1: variable SecureBoot, off: expected {} of the policy; found {}",
                of(&variable(1)),
                of(&variable(0))
            ),
            format!(
                "PCR 4, firmware log, event 2: 0 bytes: expected the release's kernel, {}; found {}",
                of(b"kernel"),
                of(b"other")
            ),
        ]
    );
    let text = explanation.to_string();
    assert!(text.contains("\nfirst difference: PCR 7,") && text.contains("\nthen: PCR 4,"), "{text}");
    assert!(explain(&verifier.request(), &booted(1, b"kernel").evidence(&Quoted::new(SHA256))).differences.is_empty());
}

#[test]
fn a_file_of_the_release_that_is_not_there_is_named() {
    let release = reference("13.2-4", |_| {});
    let machine = Machine::booted(SHA256, &release);
    let policy = "[firmware]\nignore = [0, 1, 2, 3, 4, 5, 6, 7, 8, 14]\n[firmware.pcr.9]\nrelease = true";
    let verifier = Verifier::new(SHA256, vec![release]).policy(policy);
    let evidence = machine.evidence(&Quoted::new(SHA256));
    assert_eq!(verifier.verify(&evidence).unwrap_err().reason(), "release-file");
    assert_eq!(
        explain(&verifier.request(), &evidence).differences,
        ["PCR 9, firmware log: expected an event of a file of release org.example.gateway 13.2-4; found none"]
    );
}

/// Sections of an image, as a stub measures them: a section more or less is told alone, and not all that it shifts.
#[test]
fn sections_of_an_image_are_told_one_by_one() {
    let section = |name: &str, contents: &str| UkiSection {
        name: name.to_owned(),
        digests: BankDigests::of(&[contents.as_bytes()]),
    };
    let release = reference("13.2-4", |release| {
        release.uki = Some(UkiMeasurements {
            stub: "257".to_owned(),
            authenticode: BankDigests::of(&[b"image"]),
            initrd: BankDigests::of(&[b"initrd"]),
            sections: vec![section(".linux", "kernel"), section(".osrel", "os"), section(".sbat", "sbat")],
        });
    });
    let verifier = Verifier::new(SHA256, vec![release.clone()]);
    let differences = |sections: &[(&str, &str)]| {
        let mut machine = Machine::new(SHA256);
        for (name, contents) in sections {
            let name = format!("{name}\0");
            machine.firmware(11, IPL, name.as_bytes(), name.as_bytes());
            machine.firmware(11, IPL, contents.as_bytes(), name.as_bytes());
        }
        machine.boot(&release, LINE);
        let evidence = machine.evidence(&Quoted::new(SHA256));
        let explained = explain(&verifier.request(), &evidence).differences;
        assert_eq!(
            verifier.verify(&evidence).map_err(|refusal| refusal.reason()).err(),
            (!explained.is_empty()).then_some("uki")
        );
        explained
    };
    let of = |text: &str| format!("sha256:{}", Sha256Digest::of(text.as_bytes()));
    let (linux, os, sbat) = ((".linux", "kernel"), (".osrel", "os"), (".sbat", "sbat"));
    assert_eq!(differences(&[linux, os, sbat]), [""; 0]);
    assert_eq!(
        differences(&[(".linux", "other"), os, sbat]),
        [format!(
            "PCR 11, firmware log, event 2: .linux: predicted: .linux contents, {}; found {}",
            of("kernel"),
            of("other")
        )]
    );
    assert_eq!(
        differences(&[linux, (".ucode", "new"), os, sbat]),
        [
            format!("PCR 11, firmware log, event 3: .ucode: predicted: no such section; found {}", of(".ucode\0")),
            format!("PCR 11, firmware log, event 4: .ucode: predicted: no such section; found {}", of("new")),
        ]
    );
    let missing = |what: &str, digest: String| {
        format!("PCR 11, firmware log: predicted: {what}, {digest}; found the end of what the stub measured")
    };
    for (left, name, contents) in [([linux, sbat], ".osrel", "os"), ([linux, os], ".sbat", "sbat")] {
        let named = missing(name, of(&format!("{name}\0")));
        assert_eq!(differences(&left), [named, missing(&format!("{name} contents"), of(contents))]);
    }
    // The same sections in another order are told by their places.
    assert_eq!(differences(&[linux, sbat, os]).len(), 4);
    // One section twice.
    assert_eq!(differences(&[linux, os, sbat, sbat]).len(), 2);
}

#[test]
fn a_release_that_the_policy_does_not_accept_is_named() {
    let release = reference("13.2-4", |release| {
        release.image.debug = true;
        release.image.rollback_index = iofs_policy::manifest::RollbackIndex(3);
    });
    let machine = Machine::booted(SHA256, &release);
    let verifier = Verifier::new(SHA256, vec![release]).policy("minimum_rollback_index = 7");
    let evidence = machine.evidence(&Quoted::new(SHA256));
    assert_eq!(verifier.verify(&evidence).unwrap_err().reason(), "debug");
    assert_eq!(
        explain(&verifier.request(), &evidence).differences,
        [
            "PCR 13: release org.example.gateway 13.2-4: expected a production image; found a debug image",
            "PCR 13: release org.example.gateway 13.2-4: expected rollback index 7 or more; found 3",
        ]
    );
}

#[test]
fn a_value_that_the_policy_does_not_pin_is_named() {
    let release = reference("13.2-4", |_| {});
    let machine = Machine::booted(SHA256, &release);
    let pinned = format!(
        "[firmware]\nignore = [1, 2, 3, 4, 5, 6, 7, 8, 9, 14]\n[firmware.pcr.0]\nvalues = [\"sha256:{}\"]",
        "00".repeat(32)
    );
    let verifier = Verifier::new(SHA256, vec![release]).policy(&pinned);
    let evidence = machine.evidence(&Quoted::new(SHA256));
    assert_eq!(verifier.verify(&evidence).unwrap_err().reason(), "firmware-value");
    let found = machine.values[&(iofs_policy::pcr::PcrBank::Sha256, 0)];
    assert_eq!(
        explain(&verifier.request(), &evidence).differences,
        [format!("PCR 0: expected one of the policy's values; found {found}")]
    );
}
