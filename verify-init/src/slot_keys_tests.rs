//! Boots out of slots whose keys moved, on the machine in memory. Key 7 is that of the trust policy.

use ed25519_dalek::{Signer, SigningKey};
use iofs_policy::{
    boot_record::{BootRecord, BootedSlot},
    dsse::{Envelope, PayloadType},
    failure::FailureAction,
    keys::{KeyChange, KeyHistory, KeySequence},
    manifest::Manifest,
    paths::{BOOT_RECORD, KEY_HISTORY_COPY},
    slots::{ConfirmedKeys, HistoryArea, SlotName, SlotRecord},
    trust::{KeyId, TrustedKey, TrustedKeys},
};
use nix::errno::Errno;

use crate::{
    boot,
    fake::{End, Fake},
    slots_tests::{DEVICES, STATE, again, boots, machine, record, release, set_record, slot_of},
};

const OLD: u8 = 7;
const NEW: u8 = 8;
const THIEF: u8 = 9;
use SlotName::{A, B};

fn public(seed: u8) -> TrustedKey {
    TrustedKey::from_bytes(SigningKey::from_bytes(&[seed; 32]).verifying_key().as_bytes()).unwrap()
}

fn id(seed: u8) -> KeyId {
    public(seed).id()
}

fn signed(manifest: &Manifest, keys: &[u8]) -> Envelope {
    let mut envelope = Envelope::unsigned(PayloadType::Manifest, manifest.to_json());
    let bytes = envelope.signed_bytes();
    for seed in keys {
        let signature = SigningKey::from_bytes(&[*seed; 32]).sign(&bytes);
        envelope.add(id(*seed), &signature.to_bytes()).unwrap();
    }
    envelope
}

/// A release that hands over from key to key, signed by both.
fn moving(version: &str, number: u64, [from, to]: [u8; 2]) -> (Manifest, Envelope) {
    let trusted = TrustedKeys::new(vec![public(to)], 1).unwrap();
    let change = KeyChange { sequence: KeySequence(number), trusted, revoked: vec![id(from)] };
    let manifest = Manifest { keys: Some(change), ..release(version, 5) };
    let envelope = signed(&manifest, &[from, to]);
    (manifest, envelope)
}

fn history(link: Envelope) -> KeyHistory {
    KeyHistory::beginning(KeySequence(1), link)
}

/// Puts a release by those keys into slot b.
fn put(fake: &mut Fake, manifest: &Manifest, envelope: &Envelope, history: Option<&KeyHistory>) {
    let history = history.map(KeyHistory::to_bytes);
    fake.put(DEVICES[1], &slot_of(manifest, &envelope.to_json(), history.as_deref()));
}

/// A machine with release 1 by the old key, and release 2, which moves the keys to the new one.
fn rotating() -> (Fake, KeyHistory) {
    let mut fake = machine(Some(&release("1", 5)), None);
    let (manifest, envelope) = moving("2", 1, [OLD, NEW]);
    let history = history(envelope.clone());
    put(&mut fake, &manifest, &envelope, Some(&history));
    (fake, history)
}

/// As `mark-good` leaves the partition.
fn confirm_keys(fake: &mut Fake, history: &KeyHistory) {
    let (bytes, area) = (history.to_bytes(), HistoryArea::Second);
    fake.device(STATE)[area.offset() as usize..][..bytes.len()].copy_from_slice(&bytes);
    let keys = Some(ConfirmedKeys::new(history, &bytes, area));
    let sequence = SlotRecord::newest(&fake.files[STATE]).0.map_or(1, |record| record.sequence + 1);
    set_record(fake, &SlotRecord { sequence, keys, ..SlotRecord::default() });
}

fn booted_slot(fake: &Fake) -> BootedSlot {
    serde_json::from_slice::<BootRecord>(&fake.files[BOOT_RECORD]).unwrap().slot.unwrap()
}

fn refused(fake: &mut Fake, texts: &[&str]) {
    assert_eq!(boot(fake), End::Stopped(FailureAction::Halt), "{}", fake.console);
    for text in texts {
        assert!(fake.console.contains(text), "{text}: {}", fake.console);
    }
}

#[test]
fn a_release_on_trial_brings_its_keys_and_the_old_one_stays_what_is_fallen_back_to() {
    let (mut fake, history) = rotating();
    let mut order = Vec::new();
    for number in 0..3 {
        order.push(boots(&mut fake).0);
        let slot = booted_slot(&fake);
        let moved = slot.name == B;
        assert_eq!(slot.key_sequence, KeySequence(moved.into()));
        let left = fake.files.get(KEY_HISTORY_COPY);
        assert_eq!(left, moved.then(|| history.to_bytes()).as_ref(), "for mark-good");
        assert_eq!(record(&fake).keys, None, "boot {number} confirms nothing");
        fake = again(&fake);
        fake.put("/dev/dm-3", &[0; 100 * 4096]);
    }
    assert_eq!(order, [B, B, A]);
}

#[test]
fn stolen_key_once_confirmed_what_the_old_key_alone_signed_boots_no_more() {
    let (mut fake, history) = rotating();
    confirm_keys(&mut fake, &history);
    assert_eq!(boots(&mut fake).0, B);
    assert!(record(&fake).keys.is_some(), "the record keeps them");
    let mut fake = again(&fake);
    fake.put(DEVICES[1], &[0; 1 << 20]);
    refused(&mut fake, &["slot a: signatures: expected 1 by trusted keys", &id(NEW).to_string()]);
}

#[test]
fn a_release_without_a_history_of_its_own_boots_by_the_confirmed_keys() {
    let (mut fake, history) = rotating();
    confirm_keys(&mut fake, &history);
    let third = release("3", 5);
    put(&mut fake, &third, &signed(&third, &[NEW]), None);
    assert_eq!(boots(&mut fake), (B, "3".to_owned()));
    assert_eq!(booted_slot(&fake).key_sequence, KeySequence(1));
    assert!(!fake.files.contains_key(KEY_HISTORY_COPY));
}

#[test]
fn a_machine_that_skipped_the_middle_release_follows_the_history_in_the_slot() {
    let mut fake = machine(Some(&release("1", 5)), None);
    let middle = history(moving("2", 1, [OLD, NEW]).1);
    let third = release("3", 5);
    put(&mut fake, &third, &signed(&third, &[NEW]), Some(&middle));
    assert_eq!(boots(&mut fake), (B, "3".to_owned()));
    let mut without = machine(Some(&release("1", 5)), None);
    put(&mut without, &third, &signed(&third, &[NEW]), None);
    assert_eq!(boots(&mut without), (A, "1".to_owned()));
}

#[test]
fn stolen_key_what_an_old_key_signs_cannot_move_the_keys_once_they_moved() {
    let (_, confirmed) = rotating();
    let (manifest, theirs) = moving("9", 1, [OLD, THIEF]);
    let other = history(theirs.clone());
    let mut fake = machine(None, None);
    put(&mut fake, &manifest, &theirs, Some(&other));
    assert_eq!(boots(&mut fake), (B, "9".to_owned()), "before, it may: the machine trusts that key");
    let mut fake = machine(None, None);
    put(&mut fake, &manifest, &theirs, Some(&other));
    confirm_keys(&mut fake, &confirmed);
    refused(&mut fake, &["slot b: signatures: expected 1 by trusted keys", &id(THIEF).to_string()]);
    // Nor by going on from there.
    let (manifest, further) = moving("9", 2, [OLD, THIEF]);
    let longer = confirmed.with(KeySequence(2), further.clone()).unwrap();
    let mut fake = machine(None, None);
    put(&mut fake, &manifest, &further, Some(&longer));
    confirm_keys(&mut fake, &confirmed);
    refused(&mut fake, &["slot b: key move 2: by the keys before it: signatures: expected 1"]);
}

#[test]
fn a_manifest_that_moves_keys_without_a_history_is_refused() {
    let mut fake = machine(None, None);
    let (manifest, envelope) = moving("2", 1, [OLD, NEW]);
    put(&mut fake, &manifest, &envelope, None);
    refused(&mut fake, &["slot b: manifest: keys: expected what the key history says of move 0, found move 1"]);
}

#[test]
fn a_history_that_is_damaged_or_none_puts_its_slot_out() {
    let third = release("3", 5);
    for (bytes, text) in
        [(&b"x"[..], "slot b: key history: line 1"), (b"iofs-key-history 1\nfirst 1\n{}\n", "line 3: envelope")]
    {
        let mut fake = machine(None, None);
        fake.put(DEVICES[1], &slot_of(&third, &signed(&third, &[NEW]).to_json(), Some(bytes)));
        refused(&mut fake, &[text]);
    }
    let (mut fake, history) = rotating();
    let at = fake.files[DEVICES[1]].windows(18).position(|bytes| bytes == b"iofs-key-history 1").unwrap();
    fake.device(DEVICES[1])[at + history.to_bytes().len() - 5] ^= 1;
    assert_eq!(boots(&mut fake).0, A);
    fake.put(DEVICES[0], &[0; 1 << 20]);
    refused(&mut again(&fake), &["slot b: slot footer: key history: its digest is wrong: it is damaged"]);
}

#[test]
fn confirmed_keys_that_cannot_be_read_leave_those_of_the_trust_policy_with_a_warning() {
    let damage: [fn(&mut Fake); 4] = [
        |fake| fake.device(STATE)[HistoryArea::Second.offset() as usize + 50] ^= 1,
        |fake| fake.broken.push(("read_at /dev/vda3 139264", Errno::EIO)),
        |fake| {
            // Another history that holds, and that nobody confirmed.
            let other = history(moving("9", 1, [OLD, THIEF]).1).to_bytes();
            fake.device(STATE)[HistoryArea::Second.offset() as usize..][..other.len()].copy_from_slice(&other);
        },
        |fake| {
            // Confirmed on a machine with another trust policy.
            let other = history(moving("2", 1, [THIEF, NEW]).1);
            confirm_keys(fake, &other);
        },
    ];
    assert_eq!(HistoryArea::Second.offset(), 139_264);
    for (number, damage) in damage.into_iter().enumerate() {
        let (mut fake, history) = rotating();
        confirm_keys(&mut fake, &history);
        damage(&mut fake);
        assert_eq!(boots(&mut fake).0, B, "case {number}: by the history in its slot");
        assert!(fake.console.contains("warning: /dev/vda3: "), "case {number}: {}", fake.console);
        assert!(fake.console.contains(": the keys of the trust policy count"), "case {number}: {}", fake.console);
    }
}

#[test]
fn whatever_call_fails_while_keys_move_a_slot_is_booted_or_the_machine_stops_with_a_report() {
    let fresh = || {
        let (mut fake, history) = rotating();
        confirm_keys(&mut fake, &history);
        fake
    };
    let mut clean = fresh();
    boot(&mut clean);
    for number in 0..clean.calls.len() {
        let mut fake = fresh();
        fake.fail = Some((number, Errno::EIO));
        match boot(&mut fake) {
            End::Stopped(_) => {
                assert!(
                    fake.console.contains("BOOT REFUSED") || fake.calls[number] == "print",
                    "{}",
                    fake.calls[number]
                );
            }
            End::Init(..) if fake.files.contains_key(BOOT_RECORD) => {
                let slot = booted_slot(&fake);
                assert!(slot.name == B || fake.console.contains("trust policy count"), "{}", fake.calls[number]);
            }
            End::Init(..) => {}
        }
    }
}
