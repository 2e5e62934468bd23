use ed25519_dalek::SigningKey;
use proptest::prelude::*;

use super::*;
use crate::{
    dsse::PayloadType,
    manifest::{
        Architecture, Place, RollbackIndex, VerificationError, VerifiedManifest,
        tests::{key, manifest, public, sign, trust},
    },
};

fn id(key: &SigningKey) -> KeyId {
    public(key).id()
}

fn set(keys: &[&SigningKey], threshold: u8) -> TrustedKeys {
    TrustedKeys::new(keys.iter().map(|key| public(key)).collect(), threshold).unwrap()
}

/// A release for a slot.
fn release() -> Manifest {
    let mut manifest = manifest();
    (manifest.data, manifest.tree) = (Place::Slot, Place::Slot);
    manifest.verity.hash_offset = 4_096_000;
    manifest
}

/// A release that moves the keys.
fn moving(sequence: u64, trusted: TrustedKeys, revoked: &[&SigningKey]) -> Manifest {
    let revoked = revoked.iter().map(|key| id(key)).collect();
    Manifest { keys: Some(KeyChange { sequence: KeySequence(sequence), trusted, revoked }), ..release() }
}

fn envelope(manifest: &Manifest, keys: &[&SigningKey]) -> Envelope {
    Envelope::parse(&sign(manifest, keys), PayloadType::Manifest).unwrap()
}

/// The link by which `from` hands over to `to`.
fn link(sequence: u64, from: &SigningKey, to: &SigningKey, revoked: &[&SigningKey]) -> Envelope {
    let signers = if from == to { vec![from] } else { vec![from, to] };
    envelope(&moving(sequence, set(&[to], 1), revoked), &signers)
}

fn ring() -> KeyRing {
    KeyRing::of(&trust(&[&key(1)], 1))
}

/// 1 hands over to 2, and that to 3; each is revoked.
fn history() -> KeyHistory {
    let first = KeyHistory::beginning(KeySequence(1), link(1, &key(1), &key(2), &[&key(1)]));
    first.with(KeySequence(2), link(2, &key(2), &key(3), &[&key(2)])).unwrap()
}

fn refused(result: Result<KeyRing, KeyMoveError>, text: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(text), "{error:?} lacks {text:?}");
}

#[test]
fn a_chain_of_releases_moves_the_keys_and_one_may_be_entered_in_its_middle() {
    let end = ring().follow(&history()).unwrap();
    assert_eq!((end.sequence(), end.keys()), (KeySequence(2), &set(&[&key(3)], 1)));
    assert_eq!(end.revoked(), [id(&key(1)), id(&key(2))]);
    let middle = ring().advance(&link(1, &key(1), &key(2), &[&key(1)])).unwrap();
    assert_eq!(middle.clone().follow(&history()).unwrap(), end);
    assert_eq!(end.clone().follow(&history()).unwrap(), end, "what was decided is passed over");
}

#[test]
fn a_link_counts_only_by_the_keys_before_and_behind_it() {
    let change = moving(1, set(&[&key(2)], 1), &[]);
    refused(
        ring().advance(&envelope(&change, &[&key(2)])),
        "key move 1: by the keys before it: signatures: expected 1",
    );
    refused(ring().advance(&envelope(&change, &[&key(1)])), "key move 1: by the keys that it names: signatures");
    let two_of_three = moving(1, set(&[&key(2), &key(3), &key(4)], 2), &[]);
    refused(ring().advance(&envelope(&two_of_three, &[&key(1), &key(2)])), "expected 2 by trusted keys");
    assert!(ring().advance(&envelope(&two_of_three, &[&key(1), &key(2), &key(4)])).is_ok());
    let strict = KeyRing::of(&trust(&[&key(1), &key(5)], 2));
    refused(strict.advance(&envelope(&change, &[&key(1), &key(2)])), "by the keys before it: signatures: expected 2");
}

#[test]
fn links_that_are_missing_or_in_another_order_are_refused() {
    let second = KeyHistory::beginning(KeySequence(2), link(2, &key(2), &key(3), &[]));
    refused(ring().follow(&second), "expected key move 1 next, found 2");
    let renamed = KeyHistory::beginning(KeySequence(1), link(2, &key(1), &key(3), &[]));
    refused(ring().follow(&renamed), "keys.sequence: expected 1, found 2");
    let [first, last] = [link(1, &key(1), &key(2), &[]), link(2, &key(2), &key(3), &[])];
    let swapped = KeyHistory::beginning(KeySequence(1), last).with(KeySequence(2), first).unwrap();
    refused(ring().follow(&swapped), "key move 1: by the keys before it");
    assert!(history().with(KeySequence(4), link(4, &key(3), &key(4), &[])).is_err());
}

#[test]
fn stolen_key_what_a_key_signs_after_it_was_revoked_is_passed_over() {
    let here = ring().advance(&link(1, &key(1), &key(2), &[&key(1)])).unwrap();
    // Key 1 was stolen, and hands over to the thief's, by a link of the number that was decided.
    let other = KeyHistory::beginning(KeySequence(1), link(1, &key(1), &key(9), &[&key(2)]));
    assert_eq!(here.clone().follow(&other).unwrap(), here);
    let longer = other.with(KeySequence(2), link(2, &key(9), &key(8), &[])).unwrap();
    refused(here.follow(&longer), "key move 2: by the keys before it");
}

#[test]
fn a_revoked_key_does_not_come_back() {
    let here = ring().advance(&link(1, &key(1), &key(2), &[&key(1)])).unwrap();
    refused(here.advance(&link(2, &key(2), &key(1), &[])), &format!("found {}", id(&key(1))));
    let dropped = ring().advance(&link(1, &key(1), &key(2), &[])).unwrap();
    assert!(dropped.advance(&link(2, &key(2), &key(1), &[])).is_ok(), "it was only left out");
    let mut policy = trust(&[&key(2)], 1);
    policy.revoked = vec![id(&key(1))];
    refused(KeyRing::of(&policy).advance(&link(1, &key(2), &key(1), &[])), "expected no revoked key");
}

#[test]
fn signature_confusion_a_link_of_another_image_or_role_or_without_keys_is_refused() {
    let signed = |change: fn(&mut Manifest)| {
        let mut manifest = moving(1, set(&[&key(2)], 1), &[]);
        change(&mut manifest);
        ring().advance(&envelope(&manifest, &[&key(1), &key(2)]))
    };
    assert!(signed(|_| ()).is_ok());
    refused(signed(|it| it.image.id = "other".parse().unwrap()), "image id: expected test, found other");
    refused(signed(|it| it.image.role = Role::InitOverlay), "role: expected root, found initoverlay");
    refused(signed(|it| it.keys = None), "keys: expected other keys, found none");
    refused(signed(|it| it.device_timeout = 0), "device_timeout: expected 1 to 3600");
}

#[test]
fn a_release_is_verified_by_the_keys_of_its_point() {
    let policy = trust(&[&key(1)], 1);
    let verify = |manifest: &Manifest, keys: &[&SigningKey], ring: &KeyRing| {
        VerifiedManifest::verify(&sign(manifest, keys), &policy, ring, Architecture::X86_64)
    };
    let moved = ring().follow(&history()).unwrap();
    assert!(verify(&release(), &[&key(3)], &moved).is_ok());
    for revoked in [1, 2] {
        let error = verify(&release(), &[&key(revoked)], &moved).unwrap_err();
        assert!(matches!(error, VerificationError::Signature(_)), "{error}");
    }
    assert!(verify(&release(), &[&key(1)], &ring()).is_ok());
}

#[test]
fn a_release_cannot_move_the_keys_by_its_own_word() {
    let policy = trust(&[&key(1)], 1);
    let verify = |manifest: &Manifest, keys: &[&SigningKey], ring: &KeyRing| {
        VerifiedManifest::verify(&sign(manifest, keys), &policy, ring, Architecture::X86_64)
            .map_err(|error| error.to_string())
    };
    let release = moving(1, set(&[&key(2)], 1), &[&key(1)]);
    let both = [&key(1), &key(2)];
    let error = verify(&release, &both, &ring()).unwrap_err();
    assert_eq!(error, "manifest: keys: expected what the key history says of move 0, found move 1 of its own");
    let moved = ring().advance(&envelope(&release, &both)).unwrap();
    assert!(verify(&release, &both, &moved).is_ok());
    let other = moving(1, set(&[&key(2), &key(9)], 1), &[]);
    assert!(verify(&other, &both, &moved).unwrap_err().contains("move 1 of its own"));
}

#[test]
fn impossible_rules_are_refused_by_field() {
    let many: Vec<SigningKey> = (20..37).map(key).collect();
    for (manifest, text) in [
        (moving(0, set(&[&key(2)], 1), &[]), "keys.sequence: expected at least 1, found 0"),
        (moving(1, set(&[&key(2)], 1), &[&key(2)]), "expected no revoked key among the trusted ones"),
        (moving(1, set(&[&key(2)], 1), &[&key(1), &key(1)]), "is listed twice"),
        (moving(1, set(&[&key(2)], 1), &many.iter().collect::<Vec<_>>()), "expected at most 16 keys, found 17"),
    ] {
        let error = manifest.check().unwrap_err().to_string();
        assert!(error.contains(text), "{error:?} lacks {text:?}");
    }
    let elsewhere = Manifest { keys: moving(1, set(&[&key(2)], 1), &[]).keys, ..manifest() };
    assert!(elsewhere.check().unwrap_err().to_string().contains("the release is for no slot"));
    let mut policy = trust(&[&key(1)], 1);
    policy.revoked = vec![id(&key(1))];
    let error = TrustPolicy::parse(&policy.to_json()).unwrap_err().to_string();
    assert!(error.contains("expected no revoked key among the trusted ones"), "{error}");
    (policy.revoked, policy.key_sequence) = (vec![id(&key(2))], KeySequence(3));
    assert_eq!(TrustPolicy::parse(&policy.to_json()), Ok(policy));
}

#[test]
fn a_history_has_one_spelling_and_bounds() {
    let history = history();
    let bytes = history.to_bytes();
    assert_eq!(KeyHistory::parse(&bytes), Ok(history.clone()));
    assert!(bytes.starts_with(b"iofs-key-history 1\nfirst 1\n{"));
    let text = String::from_utf8(bytes).unwrap();
    for (changed, expected) in [
        (text.replacen("history 1", "history 2", 1), "line 1: expected \"iofs-key-history 1\""),
        (text.replacen("first 1", "first 01", 1), "line 2: expected"),
        (text.replacen("first 1", "first 0", 1), "line 2: expected"),
        (text.replacen("first 1", "first 18446744073709551615", 1), "line 2: expected"),
        (text.trim_end().to_owned(), "text that a newline ends"),
        (text.clone() + "\n", "line 5: envelope"),
        (text.lines().take(2).map(|line| format!("{line}\n")).collect(), "1 to 16 key moves, found 0"),
        (text.clone() + &"{}\n".repeat(15), "1 to 16 key moves, found 17"),
        (text.clone() + &" ".repeat(MAX_HISTORY_SIZE), "expected at most 131072 bytes"),
        (String::new(), "line 1"),
    ] {
        let error = KeyHistory::parse(changed.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
    let mut full = KeyHistory::beginning(KeySequence(1), link(1, &key(1), &key(1), &[]));
    for number in 2..=MAX_LINKS as u64 {
        full = full.with(KeySequence(number), link(number, &key(1), &key(1), &[])).unwrap();
    }
    assert_eq!(ring().follow(&full).unwrap().sequence(), full.last());
    let next = KeySequence(MAX_LINKS as u64 + 1);
    assert_eq!(full.with(next, link(next.0, &key(1), &key(1), &[])), Err(HistoryError::Links(17)));
    let mut large = moving(1, set(&[&key(1)], 1), &[]);
    large.command_lines = vec!["x".repeat(MAX_HISTORY_SIZE)];
    let begun = KeyHistory::beginning(KeySequence(1), link(1, &key(1), &key(1), &[]));
    assert!(matches!(begun.with(KeySequence(1), envelope(&large, &[&key(1)])), Err(HistoryError::TooLarge(_))));
}

#[test]
fn a_history_goes_on_with_another_one_and_keeps_what_was_decided() {
    let decided = KeyHistory::beginning(KeySequence(1), link(1, &key(1), &key(2), &[&key(1)]));
    assert_eq!(decided.extended_by(&history()).unwrap(), history());
    assert_eq!(history().extended_by(&decided).unwrap(), history());
    let other = KeyHistory::beginning(KeySequence(1), link(1, &key(1), &key(9), &[]));
    assert_eq!(decided.extended_by(&other).unwrap(), decided);
    let late = KeyHistory::beginning(KeySequence(3), link(3, &key(3), &key(4), &[]));
    assert!(decided.extended_by(&late).is_err());
    assert_eq!(history().extended_by(&late).unwrap().last(), KeySequence(3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Keys 1, 2 and 3 sign whatever they like, in any order: only the chain counts, and the sequence is its length.
    #[test]
    fn whatever_links_there_are_the_keys_follow_one_chain(moves in prop::collection::vec((1..4_u8, 1..4_u8, any::<bool>()), 1..6)) {
        let mut links = (1..).zip(&moves).map(|(number, (from, to, revokes))| {
            let (from_key, none): (_, &[&SigningKey]) = (key(*from), &[]);
            let revoked = [&from_key];
            link(number, &from_key, &key(*to), if *revokes && from != to { &revoked } else { none })
        });
        let mut history = KeyHistory::beginning(KeySequence(1), links.next().unwrap());
        for (number, link) in (2..).zip(links) {
            history = history.with(KeySequence(number), link).unwrap();
        }
        let (mut holder, mut revoked) = (1, Vec::new());
        let holds = moves.iter().all(|(from, to, revokes)| {
            // Both sign.
            let signs = [*from, *to].contains(&holder) && !revoked.contains(to);
            if *revokes && from != to { revoked.push(*from) }
            holder = *to;
            signs
        });
        let found = ring().follow(&history);
        prop_assert_eq!(found.is_ok(), holds, "{:?}", moves);
        if let Ok(found) = found {
            prop_assert_eq!(found.keys(), &set(&[&key(holder)], 1));
            prop_assert_eq!(found.sequence(), history.last());
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(KeyHistory::parse(&bytes).is_err());
    }
}

#[test]
fn the_floor_of_the_trust_policy_holds_for_what_moved_keys_sign() {
    let policy = TrustPolicy { minimum_rollback_index: RollbackIndex(6), ..trust(&[&key(1)], 1) };
    let moved = KeyRing::of(&policy).follow(&history()).unwrap();
    let error =
        VerifiedManifest::verify(&sign(&release(), &[&key(3)]), &policy, &moved, Architecture::X86_64).unwrap_err();
    assert!(matches!(error, VerificationError::Rollback { .. }), "{error}");
}
