//! Register 15: one machine's own events, learnt from it and then demanded of it.

use iofs_attest::{
    explain::{Explanation, Status, explain},
    learn::learn,
    verify::Attested,
};
use iofs_policy::{
    measurement::{Measurement, VolumeKeyEvent},
    pcr::{PcrBank, PcrDigest},
};
use uuid::Uuid;

use crate::support::*;

const SELECTED: &str = "pcrs = [4, 7, 11, 12, 13, 15]";
const MACHINE_ID: &str = "machine-id:0123456789abcdef0123456789abcdef";

fn quoted(banks: &[PcrBank]) -> Quoted {
    let selection = banks.iter().map(|bank| (bank.algorithm_id(), vec![4, 7, 11, 12, 13, 15])).collect();
    Quoted { selection, ..Quoted::new(banks) }
}

/// What is measured of a volume whose key is this one: the digest stands for the HMAC.
fn volume(key: &str) -> Measurement<'static> {
    let (name, uuid) = ("state".parse().unwrap(), Uuid::from_u128(7));
    let key = key.to_owned();
    Measurement::VolumeKey(VolumeKeyEvent::new(&name, &uuid, |bank| {
        PcrDigest::of(bank, &[b"HMAC by ", key.as_bytes()])
    }))
}

/// A machine that opens these volumes while it boots, and whose systemd then measures these texts.
fn machine(banks: &[PcrBank], volumes: &[&str], texts: &[&str]) -> Machine {
    let release = reference("13.2-4", |_| {});
    let mut machine = Machine::new(banks);
    machine.firmware(4, APPLICATION, b"program", b"");
    machine.firmware(7, SEPARATOR, &[0; 4], &[0; 4]);
    let [entered, line, manifest, left] = release.release().measurements(LINE);
    [entered, line, manifest].iter().for_each(|step| machine.measure(step));
    volumes.iter().for_each(|key| machine.measure(&volume(key)));
    machine.measure(&left);
    texts.iter().for_each(|text| machine.measure_text(15, text));
    machine
}

/// A verifier whose policy was learnt from a machine.
fn learnt(banks: &[PcrBank], from: &Machine) -> Verifier {
    let verifier = Verifier::new(banks, vec![reference("13.2-4", |_| {})]).policy(SELECTED);
    let policy = learn(&verifier.request(), &from.evidence(&quoted(banks))).unwrap();
    verifier.policy(&policy)
}

/// The same verifier with this text behind its policy.
fn with_later(banks: &[PcrBank], from: &Machine, later: &str) -> Verifier {
    let verifier = Verifier::new(banks, vec![reference("13.2-4", |_| {})]).policy(SELECTED);
    let policy = learn(&verifier.request(), &from.evidence(&quoted(banks))).unwrap();
    verifier.policy(&(policy.replace("later = []\n", "") + later))
}

fn judged(verifier: &Verifier, machine: &Machine) -> Result<Attested, (&'static str, String)> {
    let verdict = verifier.verify(&machine.evidence(&quoted(&machine.banks)));
    verdict.map_err(|refusal| (refusal.reason(), refusal.to_string()))
}

fn explained(verifier: &Verifier, machine: &Machine) -> Explanation {
    explain(&verifier.request(), &machine.evidence(&quoted(&machine.banks)))
}

#[track_caller]
fn refused(verifier: &Verifier, machine: &Machine, expected: &str, found: &str) {
    let (reason, message) = judged(verifier, machine).unwrap_err();
    assert_eq!(reason, "identity", "{message}");
    assert_eq!(message, format!("PCR 15: expected {expected}, as learnt from this machine, found {found}"));
    let difference = explained(verifier, machine).first_difference.unwrap();
    assert!(
        difference.starts_with("PCR 15 event ") && difference.contains(&format!("expected {expected}")),
        "{difference}"
    );
}

/// What refusals call a volume's event.
fn named(key: &str) -> String {
    let digest = volume(key).digest(PcrBank::Sha256);
    format!("cryptsetup:state:00000000-0000-0000-0000-000000000007 ({digest})")
}

fn named_text(text: &str) -> String {
    format!("{text} ({})", PcrDigest::of(PcrBank::Sha256, &[text.as_bytes()]))
}

#[test]
fn a_machine_that_was_learnt_is_attested_with_its_volumes_and_its_identity() {
    for banks in [SHA256, BOTH] {
        let honest = machine(banks, &["a", "b"], &[MACHINE_ID]);
        let verifier = learnt(banks, &honest);
        assert!(judged(&verifier, &honest).unwrap().ignored_pcrs().is_empty());
        let explanation = explained(&verifier, &honest);
        assert_eq!(explanation.differences, [""; 0]);
        let of_15 = explanation.events.iter().filter(|event| event.pcr == Some(15));
        assert!(of_15.clone().count() == 3 && of_15.clone().all(|event| event.status == Status::Accepted));
        assert!(of_15.clone().next().unwrap().remark.as_deref().unwrap().contains("its label is not covered"));
    }
}

#[test]
fn attestation_forgery_register_15_without_anything_learnt() {
    let honest = machine(SHA256, &["a"], &[]);
    let verifier = Verifier::new(SHA256, vec![reference("13.2-4", |_| {})])
        .policy(&format!("{SELECTED}\n[firmware]\nignore = [4, 7]"));
    let (reason, message) = judged(&verifier, &honest).unwrap_err();
    assert_eq!(reason, "identity-unknown");
    assert_eq!(
        message,
        "PCR 15: expected [identity] in the policy, since the register is one machine's own, found none"
    );
    let next = verifier.verify(&honest.evidence(&quoted(SHA256))).unwrap_err().next_step();
    assert!(next.contains("`attest learn`") && next.contains("leave 15 out of pcrs"), "{next}");
    let explanation = explained(&verifier, &honest);
    let difference = explanation.first_difference.unwrap();
    assert_eq!(
        difference,
        format!("PCR 15 event 1: the policy has no [identity] to compare with; the log has {}", named("a"))
    );
}

#[test]
fn attestation_forgery_another_volume_in_the_place_of_one() {
    let verifier = learnt(SHA256, &machine(SHA256, &["a", "b"], &[]));
    let rogue = machine(SHA256, &["a", "rogue"], &[]);
    refused(&verifier, &rogue, &named("b"), &format!("event 4: {}", named("rogue")));
}

#[test]
fn attestation_forgery_another_volume_besides() {
    let verifier = learnt(SHA256, &machine(SHA256, &["a"], &[]));
    refused(&verifier, &machine(SHA256, &["a", "rogue"], &[]), "nothing more", &format!("event 4: {}", named("rogue")));
    refused(&verifier, &machine(SHA256, &["rogue", "a"], &[]), &named("a"), &format!("event 3: {}", named("rogue")));
    // The same volume twice is not what was learnt either.
    refused(&verifier, &machine(SHA256, &["a", "a"], &[]), "nothing more", &format!("event 4: {}", named("a")));
}

#[test]
fn attestation_forgery_a_volume_left_out() {
    let verifier = learnt(SHA256, &machine(SHA256, &["a", "b"], &[MACHINE_ID]));
    for (volumes, texts, expected, found) in [
        (&["a"][..], &[MACHINE_ID][..], named("b"), format!("event 5: {}", named_text(MACHINE_ID))),
        (&["a", "b"], &[], named_text(MACHINE_ID), "the end of the log".to_owned()),
        (&["a"], &[], named("b"), "the end of the log".to_owned()),
        (&[], &[], named("a"), "the end of the log".to_owned()),
    ] {
        refused(&verifier, &machine(SHA256, volumes, texts), &expected, &found);
    }
}

#[test]
fn attestation_forgery_volumes_in_another_order() {
    let verifier = learnt(SHA256, &machine(SHA256, &["a", "b"], &[]));
    refused(&verifier, &machine(SHA256, &["b", "a"], &[]), &named("a"), &format!("event 3: {}", named("b")));
}

#[test]
fn attestation_forgery_another_machine_id() {
    let verifier = learnt(SHA256, &machine(SHA256, &[], &[MACHINE_ID]));
    let other = machine(SHA256, &[], &["machine-id:f"]);
    refused(&verifier, &other, &named_text(MACHINE_ID), &format!("event 4: {}", named_text("machine-id:f")));
}

#[test]
fn a_machine_without_events_is_learnt_as_one_and_may_have_none() {
    let verifier = learnt(SHA256, &machine(SHA256, &[], &[]));
    assert!(judged(&verifier, &machine(SHA256, &[], &[])).is_ok());
    refused(&verifier, &machine(SHA256, &["a"], &[]), "nothing more", &format!("event 3: {}", named("a")));
}

#[test]
fn what_systemd_adds_later_is_accepted_where_the_policy_says_so_and_once() {
    let honest = machine(SHA256, &["a"], &[]);
    let later = |text: &str| {
        let digest = PcrDigest::of(PcrBank::Sha256, &[text.as_bytes()]);
        format!("\n[[identity.later]]\nlabel = \"{text}\"\ndigests = [\"{digest}\"]\n")
    };
    let verifier = with_later(SHA256, &honest, &(later("file-system:/") + &later("file-system:/var")));
    for texts in [&[][..], &["file-system:/"], &["file-system:/var", "file-system:/"]] {
        assert!(judged(&verifier, &machine(SHA256, &["a"], texts)).is_ok(), "{texts:?}");
    }
    let nothing = "nothing but the events of identity.later, each once";
    for texts in [&["file-system:/", "file-system:/"][..], &["file-system:/", MACHINE_ID]] {
        refused(&verifier, &machine(SHA256, &["a"], texts), nothing, &format!("event 6: {}", named_text(texts[1])));
    }
    // Later is not instead.
    let without = machine(SHA256, &[], &["file-system:/"]);
    refused(&verifier, &without, &named("a"), &format!("event 4: {}", named_text("file-system:/")));
}

/// Learning anew with such a policy keeps what may come later apart.
#[test]
fn what_may_come_later_stays_so_when_the_policy_is_learnt_again() {
    let digest = PcrDigest::of(PcrBank::Sha256, &[MACHINE_ID.as_bytes()]);
    let later = format!("\n[[identity.later]]\nlabel = \"as before\"\ndigests = [\"{digest}\"]\n");
    let mut verifier = with_later(SHA256, &machine(SHA256, &["a"], &[]), &later);
    let other = machine(SHA256, &["b"], &[MACHINE_ID]);
    let again = learn(&verifier.request(), &other.evidence(&quoted(SHA256))).unwrap();
    verifier = verifier.policy(&again);
    assert!(judged(&verifier, &other).is_ok());
    assert!(judged(&verifier, &machine(SHA256, &["b"], &[])).is_ok(), "{again}");
    assert!(again.contains("label = \"as before\""), "{again}");
    assert!(judged(&verifier, &machine(SHA256, &["a"], &[])).is_err());
}

#[test]
fn attestation_forgery_a_lying_label_of_what_is_a_plain_digest() {
    let honest = machine(SHA256, &["a"], &[MACHINE_ID]);
    let verifier = learnt(SHA256, &honest);
    let mut forged = honest.clone();
    forged.records.last_mut().unwrap().content.string = Some("machine-id:of another".to_owned());
    let (reason, message) = judged(&verifier, &forged).unwrap_err();
    assert_eq!(reason, "relabelled");
    assert!(message.contains("event 5 in PCR 15: it says \"machine-id:of another\""), "{message}");
    // A volume's event cannot be called anything else: only a volume key's label is not compared.
    let mut forged = honest.clone();
    forged.records[3].content.string = Some(MACHINE_ID.to_owned());
    assert_eq!(judged(&verifier, &forged).unwrap_err().0, "relabelled");
}

#[test]
fn attestation_forgery_a_volume_key_s_label_decides_nothing() {
    let honest = machine(SHA256, &["a"], &[MACHINE_ID]);
    let verifier = learnt(SHA256, &honest);
    let label = honest.records[3].content.string.clone();
    let mut rogue = machine(SHA256, &["rogue"], &[MACHINE_ID]);
    rogue.records[3].content.string = label;
    assert_eq!(judged(&verifier, &rogue).unwrap_err().0, "identity");
    // Another text to the right digest, or none, is the same event.
    let mut relabelled = honest.clone();
    relabelled.records[3].content.string = Some("cryptsetup:\u{1b}[2Jother:7".to_owned());
    assert!(judged(&verifier, &relabelled).is_ok());
    assert!(!explained(&verifier, &relabelled).to_string().contains('\u{1b}'));
    relabelled.records.iter_mut().for_each(|record| record.content.string = None);
    assert!(judged(&verifier, &relabelled).is_ok());
    // In other registers that label is a lie as every other.
    let mut elsewhere = honest;
    elsewhere.records[2].content.string = Some("cryptsetup:state:7".to_owned());
    assert_eq!(judged(&verifier, &elsewhere).unwrap_err().0, "relabelled");
}

#[test]
fn attestation_forgery_another_story_of_register_15() {
    let honest = machine(SHA256, &["a", "b"], &[]);
    let verifier = learnt(SHA256, &honest);
    let rogue = machine(SHA256, &["a", "rogue"], &[]);
    // The good machine's log to the other one's registers, with the good values beside the quote, or the true ones.
    for beside in [honest.registers(), rogue.registers()] {
        let mut evidence = rogue.evidence(&quoted(SHA256));
        evidence.measurement_log = honest.evidence(&quoted(SHA256)).measurement_log;
        evidence.pcrs = beside;
        assert_eq!(verifier.verify(&evidence).unwrap_err().reason(), "replay");
    }
}

#[test]
fn attestation_forgery_register_15_extended_by_firmware() {
    let honest = machine(SHA256, &["a"], &[]);
    let verifier = learnt(SHA256, &honest);
    let mut early = Machine::new(SHA256);
    early.firmware_digest(15, EFI_ACTION, iofs_policy::digest::Sha256Digest::of(b"early"), b"");
    early.firmware(4, APPLICATION, b"program", b"");
    early.firmware(7, SEPARATOR, &[0; 4], &[0; 4]);
    for record in honest.records.clone() {
        early.extend(record.pcr, &record.digest(PcrBank::Sha256).unwrap());
        early.records.push(record);
    }
    assert_eq!(judged(&verifier, &early).unwrap_err().0, "unknown-event");
}

#[test]
fn attestation_forgery_another_volume_in_one_bank_alone() {
    let honest = machine(BOTH, &["a"], &[]);
    let verifier = learnt(BOTH, &honest);
    let mut mixed = machine(BOTH, &["a"], &[]);
    let (good, rogue) = (volume("a"), volume("rogue"));
    for (bank, event) in [(PcrBank::Sha1, &rogue), (PcrBank::Sha256, &good)] {
        mixed.values.insert((bank, 15), PcrDigest::zero(bank));
        mixed.extend(15, &event.digest(bank));
    }
    mixed.records[3].digests[0].digest = iofs_policy::hex::encode(rogue.digest(PcrBank::Sha1).as_bytes());
    assert_eq!(judged(&verifier, &mixed).unwrap_err().0, "identity");
}

#[test]
fn attestation_forgery_a_bank_that_nothing_was_learnt_of() {
    let honest = machine(BOTH, &["a"], &[]);
    let learnt = learnt(SHA256, &machine(SHA256, &["a"], &[]));
    let only = Verifier::new(BOTH, learnt.references.clone());
    let digest = volume("a").digest(PcrBank::Sha384);
    let text =
        format!("{SELECTED}\n[firmware]\nignore = [4, 7]\n[identity]\n[[identity.events]]\ndigests = [\"{digest}\"]\n");
    let verifier = only.policy(&text);
    let (reason, message) = judged(&verifier, &honest).unwrap_err();
    assert_eq!(reason, "identity");
    assert!(message.starts_with("PCR 15: expected no digest of a demanded bank"), "{message}");
}

#[test]
fn learning_a_machine_writes_the_labels_for_people() {
    let honest = machine(BOTH, &["a"], &[MACHINE_ID]);
    let verifier = Verifier::new(BOTH, vec![reference("13.2-4", |_| {})]).policy(SELECTED);
    let policy = learn(&verifier.request(), &honest.evidence(&quoted(BOTH))).unwrap();
    let (_, identity) = policy.split_once("[identity]\n").unwrap();
    let digests = |measured: &dyn Fn(PcrBank) -> PcrDigest| {
        BOTH.iter().map(|bank| format!("\"{}\"", measured(*bank))).collect::<Vec<_>>().join(", ")
    };
    let (key, text) = (volume("a"), |bank| PcrDigest::of(bank, &[MACHINE_ID.as_bytes()]));
    assert_eq!(
        identity,
        format!(
            "later = []\n\
             \n[[identity.events]]\nlabel = \"cryptsetup:state:00000000-0000-0000-0000-000000000007\"\ndigests = [{}]\n\
             \n[[identity.events]]\nlabel = \"{MACHINE_ID}\"\ndigests = [{}]\n",
            digests(&|bank| key.digest(bank)),
            digests(&text)
        )
    );
}

/// Nothing is learnt of a register that the log does not explain.
#[test]
fn a_register_15_that_no_log_explains_is_not_learnt() {
    let mut odd = machine(SHA256, &["a"], &[]);
    odd.extend(15, &PcrDigest::of(PcrBank::Sha256, &[b"not noted"]));
    let verifier = Verifier::new(SHA256, vec![reference("13.2-4", |_| {})]).policy(SELECTED);
    let mut evidence = odd.evidence(&quoted(SHA256));
    evidence.pcrs = odd.registers();
    assert_eq!(learn(&verifier.request(), &evidence).unwrap_err().reason(), "replay");
}
