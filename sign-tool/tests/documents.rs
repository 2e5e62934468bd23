//! What `docs/` says of the workspace, held against the workspace.

use std::{fs, path::Path};

use iofs_policy::{
    manifest::{Manifest, Volume},
    measurement::Measurement,
    measurement_log,
    modules::ModuleIndex,
    pcr::PcrBank,
    release::Release,
    trust::TrustPolicy,
};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The crates of one table of a `Cargo.toml` that come from elsewhere, with the versions asked for.
fn dependencies(manifest: &toml::Table, path: &[&str]) -> Vec<(String, String)> {
    let table = path.iter().fold(manifest, |table, key| table[*key].as_table().unwrap());
    let version = |entry: &toml::Value| {
        let version = entry.as_str().or_else(|| entry.get("version")?.as_str());
        version.map(str::to_owned)
    };
    table.iter().filter_map(|(name, entry)| Some((name.clone(), version(entry)?))).collect()
}

#[test]
fn every_dependency_is_explained_with_its_version() {
    let document = read("docs/dependencies.md");
    let mut expected = dependencies(&read("Cargo.toml").parse().unwrap(), &["workspace", "dependencies"]);
    expected.extend(dependencies(&read("fuzz/Cargo.toml").parse().unwrap(), &["dependencies"]));
    let mut explained: Vec<(String, String)> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(name, rest)| (name.to_owned(), rest.split(" | ").next().unwrap_or_default().to_owned()))
        .collect();
    expected.sort();
    explained.sort();
    assert_eq!(explained, expected, "left: docs/dependencies.md, right: Cargo.toml and fuzz/Cargo.toml");
}

/// The fenced blocks of one kind, in their order.
fn blocks(document: &str, kind: &str) -> Vec<String> {
    let fence = format!("```{kind}\n");
    document.split(&fence).skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.to_owned())).collect()
}

#[test]
fn the_examples_of_formats_are_what_this_version_writes() {
    let document = read("docs/formats.md");
    let [manifest, volume, trust, release, record] = &blocks(&document, "json")[..] else {
        panic!("expected five documents");
    };
    let [index] = &blocks(&document, "text")[..] else { panic!("expected one index") };
    assert_eq!(Manifest::from_json(manifest.as_bytes()).unwrap().to_json(), manifest.as_bytes());
    let parsed: Volume = serde_json::from_str(volume).unwrap();
    let values = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(serde_json::to_value(&parsed).unwrap(), values(volume));
    assert_eq!(TrustPolicy::parse(trust.as_bytes()).unwrap().to_json(), trust.as_bytes());
    assert_eq!(Release::from_json(release.as_bytes()).unwrap().to_json(), release.as_bytes());
    let logged = measurement_log::parse(format!("\u{1e}{record}").as_bytes()).unwrap();
    assert_eq!(logged[0].to_bytes()[1..], *record.as_bytes());
    assert_eq!(logged[0].digest(PcrBank::Sha256), Some(Measurement::EnterInitrd.digest(PcrBank::Sha256)));
    assert_eq!(&ModuleIndex::parse(index).unwrap().to_text(), index);
}
