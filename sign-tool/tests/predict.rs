//! `iofs-sign predict` of images with volumes: what their manifests decide of register 15, and what they do not.

mod seal_common;

use std::fs;

use iofs_policy::{
    digest::Sha256Digest,
    pcr::{PcrBank, PcrDigest, extend},
};
use seal_common::{Bench, fails, iofs_sign, passes};
use serde_json::Value;

/// Two volumes, each with these lines.
fn configuration(state: &str, logs: &str) -> String {
    let volume = |name: &str, more: &str| {
        format!(
            "[[volume]]\nname = \"{name}\"\nplace = \"PARTLABEL={name}\"\n{more}\n\
             use = {{ data = {{ path = \"/{name}\", file_system = \"ext4\" }} }}\n"
        )
    };
    format!("[tpm]\nuse = \"required\"\n{}{}", volume("state", state), volume("logs", logs))
}

fn pin(digest: Sha256Digest) -> String {
    format!("volume_key = \"{digest}\"")
}

fn sealed(configuration: &str) -> Bench {
    let bench = Bench::new();
    fs::write(bench.path("iofs.toml"), configuration).unwrap();
    let more = ["--key".to_owned(), bench.text("key.pem"), "--config".to_owned(), bench.text("iofs.toml")];
    passes(&iofs_sign([bench.image_arguments("sealed"), more.to_vec()].concat()));
    bench
}

fn predicted(bench: &Bench, release: &str) -> Value {
    let (release, key) = (bench.text(release), bench.text("key.pub.pem"));
    let words = ["predict", &release, "--key", &key, "--command-line", "quiet", "--json"];
    serde_json::from_str(&passes(&iofs_sign(words))).unwrap()
}

/// Digest and value of each event of a register.
fn events(predicted: &Value, bank: PcrBank, pcr: u8) -> Vec<(String, String)> {
    let events = predicted["predictions"][0]["banks"][bank.name()].as_array().unwrap();
    let word = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
    let of = events.iter().filter(|event| event["pcr"] == pcr);
    of.map(|event| (word(event, "digest"), word(event, "value"))).collect()
}

fn notes(predicted: &Value) -> Vec<&str> {
    predicted["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect()
}

#[test]
fn register_15_follows_from_pinned_volume_keys_in_the_sha256_bank_alone() {
    let (state, logs) = (Sha256Digest::of(b"state"), Sha256Digest::of(b"logs"));
    let bench = sealed(&configuration(&pin(state), &pin(logs)));
    let known = predicted(&bench, "sealed");
    let mut value = PcrDigest::zero(PcrBank::Sha256);
    let mut expected = Vec::new();
    for key in [state, logs] {
        let digest = PcrDigest::new(PcrBank::Sha256, key.as_bytes()).unwrap();
        value = extend(&value, &digest).unwrap();
        let [digest, value] = [digest, value].map(|one| one.to_string().split_off("sha256:".len()));
        expected.push((digest, value));
    }
    assert_eq!(events(&known, PcrBank::Sha256, 15), expected);
    // In between the manifest and the end of the phase.
    let order =
        known["predictions"][0]["banks"]["sha256"].as_array().unwrap().iter().map(|event| event["pcr"].as_u64());
    assert_eq!(order.collect::<Option<Vec<_>>>().unwrap(), [11, 12, 13, 15, 15, 11]);
    for bank in [PcrBank::Sha1, PcrBank::Sha384, PcrBank::Sha512] {
        assert!(events(&known, bank, 15).is_empty() && events(&known, bank, 11).len() == 2);
    }
    let notes = notes(&known);
    assert_eq!(notes.len(), 4, "{notes:?}");
    assert_eq!(
        notes[0],
        "PCR 15 (sha1) is the machine's own: a pinned volume_key is the event of the sha256 bank: those of the sha1 bank take \
         the volume key itself"
    );
    assert!(notes[3].starts_with("PCR 15 is predicted until leave-initrd"), "{notes:?}");

    // The statement alone does not say which volumes there are.
    let alone = predicted(&bench, "sealed/release.dsse.json");
    assert!(events(&alone, PcrBank::Sha256, 15).is_empty());
    assert!(self::notes(&alone)[0].starts_with("PCR 15 is the machine's own: whether"), "{alone}");

    // A manifest that is not the statement's decides nothing.
    let other = sealed(&configuration(&pin(logs), &pin(state)));
    fs::copy(other.path("sealed/manifest.dsse.json"), bench.path("sealed/manifest.dsse.json")).unwrap();
    let (release, key) = (bench.text("sealed"), bench.text("key.pub.pem"));
    let told = fails(&iofs_sign(["predict", &release, "--key", &key, "--command-line", "quiet"]), 4);
    assert!(told.contains("manifest.dsse.json: expected the release's manifest, "), "{told}");
}

#[test]
fn register_15_is_the_machine_s_own_where_any_volume_is_not_pinned_or_optional() {
    let (state, logs) = (pin(Sha256Digest::of(b"state")), pin(Sha256Digest::of(b"logs")));
    for (more, because) in [
        (String::new(), "volume logs: no volume_key is pinned, so that any volume of its place may be opened"),
        (format!("{logs}\noptional = true"), "volume logs is optional: the boot goes on without it"),
    ] {
        let known = predicted(&sealed(&configuration(&state, &more)), "sealed");
        assert!(PcrBank::ALL.into_iter().all(|bank| events(&known, bank, 15).is_empty()), "{known}");
        let expected = PcrBank::ALL.map(|bank| format!("PCR 15 ({bank}) is the machine's own: {because}"));
        assert_eq!(notes(&known), expected);
    }
}
