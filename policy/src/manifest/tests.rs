use ed25519_dalek::{Signer, SigningKey};

use super::*;
use crate::{
    trust::{TrustedKey, TrustedKeys},
    verity::{BlockSize, HashAlgorithm, HashFormat, Salt},
};

pub(crate) fn manifest() -> Manifest {
    Manifest {
        image: ImageIdentity {
            id: "test".parse().unwrap(),
            version: "1".parse().unwrap(),
            rollback_index: RollbackIndex(5),
            role: Role::Root,
            architecture: Architecture::X86_64,
            debug: false,
        },
        verity: SealedVerity {
            parameters: VerityParameters {
                format: HashFormat::Normal,
                algorithm: HashAlgorithm::Sha256,
                data_block_size: BlockSize::DEFAULT,
                hash_block_size: BlockSize::DEFAULT,
                data_blocks: 1000,
                salt: Salt::default(),
            },
            root_hash: RootHash::new(HashAlgorithm::Sha256, vec![7; 32]).unwrap(),
            hash_offset: 0,
            superblock_uuid: None,
            on_corruption: CorruptionAction::Panic,
            root_hash_signature: RootHashSignature::Off,
        },
        data: Place::PartUuid(Uuid::from_bytes([1; 16])),
        tree: Place::PartLabel("tree".parse().unwrap()),
        mount_options: vec![],
        overlay: Some(Overlay { tmpfs_size: "50%".parse().unwrap() }),
        volumes: vec![],
        init: "/sbin/init".parse().unwrap(),
        kernel_release: None,
        device_timeout: 30,
        on_failure: FailureAction::PowerOff,
        tpm: TpmRules::default(),
        command_lines: vec![],
        allowed_parameters: vec![],
        keys: None,
    }
}

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(crate) fn public(key: &SigningKey) -> TrustedKey {
    TrustedKey::from_bytes(key.verifying_key().as_bytes()).unwrap()
}

pub(crate) fn trust(keys: &[&SigningKey], threshold: u8) -> TrustPolicy {
    TrustPolicy {
        keys: TrustedKeys::new(keys.iter().map(|key| public(key)).collect(), threshold).unwrap(),
        image_id: "test".parse().unwrap(),
        role: Role::Root,
        minimum_rollback_index: RollbackIndex(5),
        on_failure: FailureAction::PowerOff,
        slots: None,
        key_sequence: KeySequence::default(),
        revoked: vec![],
    }
}

pub(crate) fn sign(manifest: &Manifest, keys: &[&SigningKey]) -> Vec<u8> {
    let mut envelope = Envelope::unsigned(PayloadType::Manifest, manifest.to_json());
    for key in keys {
        let signature = key.sign(&envelope.signed_bytes());
        envelope.add(public(key).id(), &signature.to_bytes()).unwrap();
    }
    envelope.to_json()
}

fn verify(envelope: &[u8], trust: &TrustPolicy) -> Result<VerifiedManifest, String> {
    VerifiedManifest::verify(envelope, trust, &KeyRing::of(trust), Architecture::X86_64)
        .map_err(|error| error.to_string())
}

#[test]
fn a_manifest_signed_by_a_trusted_key_verifies() {
    let verified = verify(&sign(&manifest(), &[&key(1)]), &trust(&[&key(1)], 1)).unwrap();
    assert_eq!(verified.manifest(), &manifest());
    assert_eq!(verified.signers(), [public(&key(1)).id()]);
}

#[test]
fn a_manifest_by_an_unknown_key_is_refused_and_both_keys_are_named() {
    let error = verify(&sign(&manifest(), &[&key(2)]), &trust(&[&key(1)], 1)).unwrap_err();
    assert!(error.contains(&public(&key(1)).id().to_string()), "{error}");
    assert!(error.contains(&public(&key(2)).id().to_string()), "{error}");
}

#[test]
fn a_threshold_counts_distinct_trusted_keys() {
    let trust = trust(&[&key(1), &key(2), &key(3)], 2);
    assert!(verify(&sign(&manifest(), &[&key(1)]), &trust).unwrap_err().contains("expected 2 by trusted keys"));
    assert!(verify(&sign(&manifest(), &[&key(1), &key(9)]), &trust).is_err());
    assert!(verify(&sign(&manifest(), &[&key(1), &key(9), &key(3)]), &trust).is_ok());
}

#[test]
fn a_signature_that_claims_a_trusted_key_and_fails_is_refused_although_others_suffice() {
    let mut envelope = Envelope::unsigned(PayloadType::Manifest, manifest().to_json());
    let signature = key(1).sign(&envelope.signed_bytes());
    envelope.add(public(&key(1)).id(), &signature.to_bytes()).unwrap();
    envelope.add(public(&key(2)).id(), &signature.to_bytes()).unwrap();
    let error = verify(&envelope.to_json(), &trust(&[&key(1), &key(2)], 1)).unwrap_err();
    assert!(error.contains("does not verify"), "{error}");
}

#[test]
fn signature_confusion_another_role_image_architecture_or_type_is_refused() {
    let signed = |change: fn(&mut Manifest)| {
        let mut other = manifest();
        change(&mut other);
        verify(&sign(&other, &[&key(1)]), &trust(&[&key(1)], 1)).unwrap_err()
    };
    assert_eq!(signed(|it| it.image.role = Role::InitOverlay), "manifest: role: expected root, found initoverlay");
    assert_eq!(
        signed(|it| it.image.architecture = Architecture::Arm64),
        "manifest: architecture: expected x86-64, found arm64"
    );
    assert_eq!(signed(|it| it.image.id = "other".parse().unwrap()), "manifest: image id: expected test, found other");
    assert_eq!(
        signed(|it| it.image.rollback_index = RollbackIndex(4)),
        "manifest: rollback_index: expected at least 5, found 4"
    );

    let mut release = Envelope::unsigned(PayloadType::Release, manifest().to_json());
    let signature = key(1).sign(&release.signed_bytes());
    release.add(public(&key(1)).id(), &signature.to_bytes()).unwrap();
    let relabelled = String::from_utf8(release.to_json()).unwrap().replace(".release.", ".manifest.");
    let error = verify(relabelled.as_bytes(), &trust(&[&key(1)], 1)).unwrap_err();
    assert!(error.contains("does not verify"), "{error}");
}

#[test]
fn every_bit_of_a_signed_envelope_counts() {
    let envelope = sign(&manifest(), &[&key(1)]);
    let trust = trust(&[&key(1)], 1);
    let original = verify(&envelope, &trust).unwrap();
    for bit in 0..envelope.len() * 8 {
        let mut changed = envelope.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        if let Ok(verified) = verify(&changed, &trust) {
            // White space between JSON tokens is the one thing that may differ, and it changes nothing.
            assert_eq!(verified, original, "bit {bit}");
            assert!(changed[bit / 8].is_ascii_whitespace(), "bit {bit}");
        }
    }
}

#[test]
fn unknown_and_impossible_fields_are_refused() {
    let json = String::from_utf8(manifest().to_json()).unwrap();
    for (from, to, expected) in [
        ("\"overlay\"", "\"overlayy\"", "unknown field `overlayy`"),
        ("\"data_blocks\": 1000", "\"data_blocks\": 0", "data blocks: expected at least 1"),
        ("\"data_block_size\": 4096", "\"data_block_size\": 4095", "expected a power of two"),
        ("\"device_timeout\": 30", "\"device_timeout\": 0", "device_timeout: expected 1 to 3600"),
        ("\"data_blocks\": 1000", "\"data_blocks\": 18446744073709551615", "18446744073709551615 data blocks"),
        (&"07".repeat(32), &"07".repeat(64), "expected 32 bytes for sha256, found 64"),
        ("\"on_failure\": \"poweroff\"", "\"on_failure\": \"shell\"", "unknown variant `shell`"),
    ] {
        let changed = json.replacen(from, to, 1);
        assert_ne!(changed, json, "{from}");
        let error = Manifest::from_json(changed.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}

#[test]
fn at_one_place_the_tree_follows_the_data() {
    let mut manifest = manifest();
    manifest.tree = manifest.data.clone();
    let error = manifest.check().unwrap_err().to_string();
    assert_eq!(error, "manifest: verity.hash_offset: expected at least 4096000, behind the data at one place, found 0");
    manifest.verity.hash_offset = 4_096_000;
    assert_eq!(manifest.check(), Ok(()));
    manifest.tree = Place::Memory;
    assert!(manifest.check().unwrap_err().to_string().contains("both are in memory, or neither, found memory"));
    manifest.data = Place::Memory;
    assert_eq!(manifest.check(), Ok(()));
}

#[test]
fn a_second_stage_needs_a_writable_layer_in_memory() {
    let mut manifest = manifest();
    manifest.image.role = Role::InitOverlay;
    assert_eq!(manifest.check(), Ok(()));
    manifest.overlay = None;
    assert_eq!(manifest.check(), Err(ManifestError::NoOverlay));
}
