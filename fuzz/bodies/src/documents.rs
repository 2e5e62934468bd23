//! The JSON documents of `iofs-policy`.

use std::path::{Component, Path};

use iofs_policy::{
    dsse::{Envelope, MAX_SIGNATURES, PayloadType},
    keys::KeyRing,
    manifest::{Architecture, Manifest, VerifiedManifest},
    release::Release,
    trust::TrustPolicy,
    verity::Geometry,
};

use crate::sealed;

/// A DSSE envelope that parses is written so that it parses to the same; it lists no key twice; and whatever verifies with
/// the example key is what that key signed: no forgery, however the envelope is spelled.
pub fn dsse_envelope(data: &[u8]) -> bool {
    let accepted = [PayloadType::Manifest, PayloadType::Release].map(|payload_type| {
        let Ok(envelope) = Envelope::parse_unsigned(data, payload_type) else { return false };
        assert_eq!(Envelope::parse_unsigned(&envelope.to_json(), payload_type).as_ref(), Ok(&envelope));
        assert_eq!(Envelope::parse(data, payload_type).is_ok(), !envelope.signatures().is_empty());
        check_signatures(&envelope);
        !envelope.signatures().is_empty()
    });
    assert!(accepted != [true, true], "one envelope holds two types of payload");
    let trust = sealed::trust();
    if let Ok(verified) = VerifiedManifest::verify(data, &trust, &KeyRing::of(&trust), Architecture::X86_64) {
        assert_eq!(verified.manifest(), sealed::manifest());
    }
    accepted != [false, false]
}

fn check_signatures(envelope: &Envelope) {
    let signatures = envelope.signatures();
    assert!(signatures.len() <= MAX_SIGNATURES);
    for (index, one) in signatures.iter().enumerate() {
        assert!(!signatures[..index].iter().any(|other| other.keyid == one.keyid), "a key counts twice");
    }
    if let Ok(verified) = sealed::trust().keys.verify(envelope) {
        assert_eq!(verified.payload_type(), envelope.payload_type());
        assert!(verified.bytes() == sealed::signed_payload(envelope.payload_type()), "nobody signed this");
    }
}

/// A manifest that parses is written so that it parses to the same, and describes a hash tree that can exist.
pub fn manifest(data: &[u8]) -> bool {
    let Ok(manifest) = Manifest::from_json(data) else { return false };
    assert_eq!(Manifest::from_json(&manifest.to_json()).as_ref(), Ok(&manifest));
    let verity = &manifest.verity;
    assert!(Geometry::new(&verity.parameters).is_ok());
    assert_eq!(verity.root_hash.as_bytes().len(), verity.parameters.algorithm.digest_size());
    let init = Path::new(manifest.init.as_str());
    assert!(init.is_absolute() && init.components().all(|part| part != Component::ParentDir));
    assert!(!manifest.mount_options.iter().any(|option| option.as_str().contains(',') || option.as_str() == "rw"));
    true
}

/// A trust policy that parses is written so that it parses to the same, asks for at least one signature and for no more
/// than it has distinct keys.
pub fn trust_policy(data: &[u8]) -> bool {
    let Ok(policy) = TrustPolicy::parse(data) else { return false };
    assert_eq!(TrustPolicy::parse(&policy.to_json()).as_ref(), Ok(&policy));
    let keys = policy.keys.keys();
    assert!((1..=keys.len()).contains(&policy.keys.threshold().into()));
    for (index, key) in keys.iter().enumerate() {
        assert!(!keys[..index].contains(key), "a key counts twice");
    }
    true
}

/// A release statement that parses is written so that it parses to the same, and names each file once and none outside
/// the sealed directory.
pub fn release(data: &[u8]) -> bool {
    let Ok(release) = Release::from_json(data) else { return false };
    assert_eq!(Release::from_json(&release.to_json()).as_ref(), Ok(&release));
    for (index, artifact) in release.artifacts.iter().enumerate() {
        let parts: Vec<Component<'_>> = Path::new(&artifact.name).components().collect();
        assert!(matches!(parts[..], [Component::Normal(part)] if part.as_encoded_bytes() == artifact.name.as_bytes()));
        assert!(!release.artifacts[..index].iter().any(|other| other.name == artifact.name));
    }
    true
}
