//! One sealed configuration that several bodies hold their input against.

use std::sync::LazyLock;

use iofs_policy::{
    dsse::{Envelope, PayloadType},
    keys::{KeyRing, KeySequence},
    manifest::{Architecture, Manifest, RollbackIndex, VerifiedManifest},
    trust::{TrustPolicy, TrustedKeys},
};
use iofs_sign::keys::PrivateKey;

/// A manifest as `seal` wrote it; its envelope in the corpus of `dsse_envelope` is signed by the first example key.
const MANIFEST: &[u8] = include_bytes!("../../corpus/manifest/sealed.json");

/// The release statement that goes with it, signed by the same key.
const RELEASE: &[u8] = include_bytes!("../../corpus/release/sealed.json");

/// The first example key's public half.
const EXAMPLE_KEY: &str = "9fcc5289971019a560cb1dc73201943b4a54db099e4f85396e863a76cee51dbf";

/// What was sealed.
pub(crate) fn manifest() -> &'static Manifest {
    static PARSED: LazyLock<Manifest> = LazyLock::new(|| {
        Manifest::from_json(MANIFEST).expect("the corpus holds what this version seals: see fuzz/corpus/README.md")
    });
    &PARSED
}

/// The exact bytes that the first example key signed in the corpus, by their type.
pub(crate) fn signed_payload(payload_type: PayloadType) -> &'static [u8] {
    match payload_type {
        PayloadType::Manifest => MANIFEST,
        PayloadType::Release => RELEASE,
    }
}

/// Trust in the first example key, for the sealed manifest.
pub(crate) fn trust() -> TrustPolicy {
    let key = EXAMPLE_KEY.to_owned().try_into().expect("the example key is sound");
    policy(TrustedKeys::new(vec![key], 1).expect("one key, one signature"), manifest())
}

/// The sealed manifest as the boot side sees it, and two that allow more.
pub(crate) struct Sealed {
    /// A release image without exceptions.
    pub(crate) strict: VerifiedManifest,
    /// The same as a debug image.
    pub(crate) debug: VerifiedManifest,
    /// The same with `systemd.unit` and `init=/bin/sh` allowed.
    pub(crate) lenient: VerifiedManifest,
}

/// Signed once, since a signature takes longer than what the bodies do.
pub(crate) static SEALED: LazyLock<Sealed> = LazyLock::new(|| {
    let [strict, mut debug, mut lenient] = [(); 3].map(|()| manifest().clone());
    debug.image.debug = true;
    lenient.allowed_parameters = vec!["systemd.unit".to_owned(), "init=/bin/sh".to_owned()];
    Sealed { strict: verified(&strict), debug: verified(&debug), lenient: verified(&lenient) }
});

fn verified(manifest: &Manifest) -> VerifiedManifest {
    let key = PrivateKey::generate().expect("the system has random numbers");
    let mut envelope = Envelope::unsigned(PayloadType::Manifest, manifest.to_json());
    key.sign(&mut envelope).expect("the first signature");
    let keys = TrustedKeys::new(vec![key.public()], 1).expect("one key, one signature");
    let trust = policy(keys, manifest);
    VerifiedManifest::verify(&envelope.to_json(), &trust, &KeyRing::of(&trust), Architecture::X86_64)
        .expect("just signed")
}

fn policy(keys: TrustedKeys, manifest: &Manifest) -> TrustPolicy {
    TrustPolicy {
        keys,
        image_id: manifest.image.id.clone(),
        role: manifest.image.role,
        minimum_rollback_index: RollbackIndex(0),
        on_failure: manifest.on_failure,
        slots: None,
        key_sequence: KeySequence::default(),
        revoked: Vec::new(),
    }
}
