//! What scripts and people rely on: help, exit codes, JSON, and that the documentation tells the same.

mod seal_common;
mod update_common;

use std::{fs, path::Path, process::Stdio};

use iofs_policy::{
    dsse::{Envelope, PayloadType},
    manifest::Manifest,
};
use iofs_sign::seal::config::{Config, SlotsSection};
use seal_common::{Bench, command, fails, iofs_sign, passes};
use serde_json::Value;
use update_common::Machine;

fn documentation(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).unwrap()
}

/// The verbs that a help text lists.
fn verbs(help: &str) -> Vec<String> {
    let list = help.split("Commands:\n").nth(1).unwrap_or_default().lines().take_while(|line| !line.is_empty());
    list.filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .filter(|verb| verb != "help")
        .collect()
}

#[test]
fn every_verb_has_help_with_an_example_and_its_options_are_documented() {
    let documented = documentation("cli.md");
    let mut paths: Vec<Vec<String>> = vec![vec![]];
    let mut seen = 0;
    while let Some(path) = paths.pop() {
        let help = passes(&iofs_sign(path.iter().map(String::as_str).chain(["--help"])));
        let below = verbs(&help);
        if below.is_empty() {
            let name = path.join(" ");
            assert!(help.contains("Example"), "{name}: {help}");
            assert!(help.contains(&format!("  iofs-sign {name} ")), "{name}: the example shows the command: {help}");
            let section = documented.split(&format!("\n### `iofs-sign {name}")).nth(1);
            let section = section.unwrap_or_else(|| panic!("docs/cli.md lacks {name}")).split("\n##").next().unwrap();
            for option in options(&help) {
                assert!(section.contains(&format!("`{option}")), "docs/cli.md, {name}: lacks {option}");
            }
            seen += 1;
        }
        paths.extend(below.into_iter().map(|verb| [path.clone(), vec![verb]].concat()));
    }
    assert!(seen >= 9, "{seen}");
}

/// The long options that a help text lists, without those that every verb has.
fn options(help: &str) -> Vec<String> {
    let list = help.split("Options:\n").nth(1).unwrap_or_default();
    let list = list.split("\nExample").next().unwrap_or_default();
    list.lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'))
        .filter_map(|line| line.split([' ', ',', '=']).find(|word| word.starts_with("--")))
        .filter(|option| !["--json", "--quiet", "--help", "--version"].contains(option))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_exit_code_is_as_documented() {
    let bench = Bench::new();
    let key = bench.text("key.pem");
    let seal = |more: &[&str]| {
        let mut seal = command();
        seal.args(bench.image_arguments("out")).args(["--key", &key]).args(more);
        seal
    };
    let sealed = bench.sealed("sealed");
    fs::write(bench.path("text"), "text").unwrap();
    bench.key("other");

    passes(&bench.verify(&sealed));
    let mut seen = vec![
        (1, "system", command().args(["verify", &bench.text("absent"), "--key", &bench.text("key.pub.pem")]).output()),
        (2, "usage", seal(&["--threshold", "9"]).output()),
        (2, "usage", seal(&["--no-such-option"]).output()),
        (2, "usage", command().args(["seal"]).output()),
        (2, "usage", command().args(["no-such-verb"]).output()),
        (2, "usage", command().output()),
        (3, "bad-input", command().args(["verify", &bench.text("sealed"), "--key", &bench.text("text")]).output()),
        (
            4,
            "not-verified",
            command().args(["verify", &bench.text("sealed"), "--key", &bench.text("other.pub.pem")]).output(),
        ),
        (5, "missing", command().args(["uki", &bench.text("absent"), "--out", &bench.text("out")]).output()),
    ];
    let documented = documentation("cli.md");
    for (status, name, output) in seen.drain(..) {
        let text = fails(&output.unwrap(), status);
        assert!(text.starts_with("error: ") || text.contains("\nerror: ") || text.contains("Usage: "), "{text}");
        assert!(documented.contains(&format!("| {status} | `{name}` |")), "docs/cli.md lacks exit code {status}");
    }
    assert!(!bench.path("out").exists());
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let bench = Bench::new();
    let cases: [(&[&str], &str); 5] = [
        (&["keygen", &bench.text("key"), "--json"], "usage"),
        (&["--json", "verify", &bench.text("absent"), "--key", &bench.text("key.pub.pem")], "system"),
        (&["seal", "--json"], "usage"),
        (&["--json", "no-such-verb"], "usage"),
        (&["verify", "--json", "--threads", "many"], "usage"),
    ];
    for (arguments, status) in cases {
        let output = iofs_sign(arguments);
        let error: Value =
            serde_json::from_slice(&output.stderr).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        assert_eq!(error["error"]["status"], status);
        assert!(!error["error"]["fact"].as_str().unwrap().is_empty());
        assert_eq!(error["error"]["fact"].as_str().unwrap().lines().count(), 1, "{error}");
        assert!(output.stdout.is_empty());
    }
    // Help stays help.
    assert!(passes(&iofs_sign(["--json", "seal", "--help"])).contains("Usage: "));
    assert!(passes(&iofs_sign(["--json", "--version"])).starts_with("iofs-sign "));
}

/// The keys of a JSON object, of which the documentation names each.
fn assert_keys(verb: &str, value: &Value, expected: &[&str]) {
    let mut found: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = expected.to_vec();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "{verb}");
    let documented = documentation("cli.md");
    let section = documented.split(&format!("\n### `iofs-sign {verb}")).nth(1).unwrap().split("\n##").next().unwrap();
    for key in found {
        assert!(section.contains(&format!("`{key}`")), "docs/cli.md, {verb}: lacks {key}");
    }
}

#[test]
fn json_results_have_the_documented_keys() {
    let bench = Bench::new();
    let run = |arguments: &[&str]| -> Value {
        serde_json::from_str(&passes(&iofs_sign([&["--json"], arguments].concat()))).unwrap()
    };
    assert_keys("keygen", &run(&["keygen", &bench.text("new")]), &["private", "public", "keyid"]);

    let arguments = [bench.arguments("sealed"), vec!["--key".into(), bench.text("key.pem")]].concat();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let plan = run(&[&arguments[..], &["--dry-run"]].concat());
    let keys = ["root", "entries", "remarks", "kernel_release", "modules", "trusted_keys", "threshold", "out"];
    assert_keys("seal", &plan, &keys);
    let told = run(&arguments);
    let keys = ["out", "image", "root_hash", "manifest_digest", "image_size", "initramfs_size", "waits_for"];
    assert_keys("seal", &told, &keys);
    assert_keys("seal", &told["image"], &["id", "version", "rollback_index", "role", "architecture", "debug"]);
    assert_eq!(told["waits_for"], "nothing");
    assert_eq!(told["root_hash"], fs::read_to_string(bench.path("sealed/roothash")).unwrap());

    bench.seal("unsigned", &["--unsigned", "--trust", &bench.text("key.pub.pem")]);
    assert_keys("sign", &run(&["sign", &bench.text("unsigned"), "--key", &bench.text("key.pem")]), &["waits_for"]);

    let report = run(&["verify", &bench.text("sealed"), "--key", &bench.text("key.pub.pem")]);
    assert_keys("verify", &report, &["verified", "image", "root_hash", "signers", "artifacts", "problems"]);
    assert_eq!((&report["verified"], &report["problems"]), (&true.into(), &Value::Array(vec![])));
    let disk = run(&["disk", &bench.text("sealed"), "--out", &bench.text("disk.img")]);
    assert_keys("disk", &disk, &["path", "size", "partitions"]);
    assert_keys("disk", &disk["partitions"][1], &["number", "label", "partuuid", "type_uuid", "offset", "size"]);
    let bundle = run(&["bundle", &bench.text("sealed"), "--out", &bench.text("bundle")]);
    assert_keys("bundle", &bundle, &["path", "size", "files"]);
    let tree = run(&["verity", "format", &bench.text("sealed/image.erofs"), &bench.text("tree")]);
    let keys = ["root_hash", "uuid", "parameters", "hash_offset", "hash_start_block", "hash_blocks", "hash_area_end"];
    assert_keys("verity format", &tree, &keys);

    fs::write(bench.path("sealed/roothash"), "x").unwrap();
    let output = iofs_sign(["--json", "verify", &bench.text("sealed"), "--key", &bench.text("key.pub.pem")]);
    fails(&output, 4);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verified"], false);
    assert_keys("verify", &report["problems"][0], &["artifact", "what"]);
}

#[test]
fn the_json_of_an_update_has_the_documented_keys() {
    let machine = Machine::running_v1(1 << 20);
    let update = machine.updated(&machine.seal("v2", "2", 1, &[]));
    let release = ["outcome", "slot", "device", "version", "rollback_index", "manifest_digest", "root_hash"];
    assert_keys("update", &update, &[&release[..], &["blocks", "bytes_read", "bytes_written"]].concat());
    assert_keys("update", &update["blocks"], &["total", "in_place", "reused", "read"]);
}

#[test]
fn a_reader_that_leaves_early_causes_no_panic() {
    let bench = Bench::new();
    let mut child = command();
    child.args(["seal", "--help"]).stdout(Stdio::piped());
    drop(child.spawn().unwrap().stdout.take());
    let mut child = command();
    child.args(["--json", "keygen", &bench.text("new")]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    fails(&output, 0);
}

#[test]
fn the_documented_configuration_is_the_default_and_complete() {
    let text = documentation("configuration.md");
    let example = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let parsed: Config = toml::from_str(example).unwrap();
    assert_eq!(format!("{parsed:?}"), format!("{:?}", Config::default()), "the example is the default");

    // Slots are a section of their own: an empty one is not the same as none.
    let slots = text.split("## Slots").nth(1).unwrap().split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let with_slots: Config = toml::from_str(slots).unwrap();
    assert_eq!(format!("{:?}", with_slots.slots), format!("{:?}", Some(SlotsSection::default())));
    let complete = example.replace("\n# ", "\n") + slots;
    let parsed: Config = toml::from_str(&complete).unwrap();
    let shown = format!("{parsed:#?}");
    assert!(!shown.contains("None"), "the example has a value for every field: {shown}");

    let bench = Bench::new();
    fs::write(bench.path("iofs.toml"), example).unwrap();
    let seal = |out: &str, more: &[&str]| {
        let mut seal = command();
        seal.args(bench.image_arguments(out)).args(["--key", &bench.text("key.pem")]).args(more);
        seal.output().unwrap()
    };
    passes(&seal("with", &["--config", &bench.text("iofs.toml")]));
    passes(&seal("without", &[]));
    seal_common::assert_same(&seal_common::files(&bench.path("with")), &seal_common::files(&bench.path("without")));
    for (text, expected) in [
        ("[image]\nidd = 'x'\n", "unknown field `idd`"),
        ("[pictures]\n", "unknown field `pictures`"),
        ("[image]\nid = 7\n", "invalid type"),
        ("[boot]\non_failure = 'shell'\n", "unknown variant `shell`"),
        ("[boot]\ndevice_timeout = 0\n", "expected 1 to 3600"),
        ("[trust]\nthreshold = 0\n", "trusted keys"),
        ("[verity]\ndata_block_size = 1000\n", "power of two"),
        ("[verity]\ndata_block_size = 8192\n", "verity.data_block_size: expected at most 4096"),
        ("[image\n", "iofs.toml"),
    ] {
        fs::write(bench.path("iofs.toml"), text).unwrap();
        let text = fails(&seal("other", &["--config", &bench.text("iofs.toml")]), 2);
        assert!(text.contains(expected), "{text} lacks {expected}");
        assert!(!bench.path("other").exists());
    }
}

#[test]
fn a_complete_configuration_is_sealed_into_manifest_and_trust_policy() {
    let bench = Bench::new();
    let text = documentation("configuration.md");
    let example = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap().replace("\n# ", "\n");
    fs::create_dir(bench.path("keys")).unwrap();
    bench.key("keys/next");
    // Paths of keys are relative to the file, not to where the program runs.
    fs::write(bench.path("srk.pub"), [0, 1, 7]).unwrap();
    let text = example
        .replace("keys = []", "keys = ['keys/next.pub.pem']")
        .replace("size = \"50%\"", "size = \"7m\"")
        .replace("use = \"preferred\"", "use = \"required\"");
    fs::write(bench.path("iofs.toml"), text).unwrap();
    let mut seal = command();
    seal.args(bench.image_arguments("out")).args(["--key", &bench.text("key.pem")]);
    seal.args(["--config", &bench.text("iofs.toml"), "--image-version", "99", "--rollback-index", "4"]);
    passes(&seal.output().unwrap());
    passes(&bench.verify(&bench.path("out")));
    let trust: Value = serde_json::from_slice(&fs::read(bench.path("out/trust.json")).unwrap()).unwrap();
    assert_eq!(trust["keys"]["public_keys"].as_array().unwrap().len(), 2, "{trust}");
    assert_eq!(trust["image_id"], "org.example.gateway");
    let envelope = fs::read(bench.path("out/manifest.dsse.json")).unwrap();
    let envelope = Envelope::parse(&envelope, PayloadType::Manifest).unwrap();
    let manifest = Manifest::from_json(envelope.unverified_payload()).unwrap();
    assert_eq!((manifest.image.version.as_str(), manifest.image.rollback_index.0), ("99", 4), "options go first");
    assert_eq!(manifest.verity.parameters.salt.to_string(), "00ff");
    assert_eq!(manifest.data.to_string(), "PARTLABEL=system_a");
    assert_eq!(manifest.tpm.srk.unwrap().as_bytes(), [0, 1, 7]);
    assert_eq!(manifest.overlay.unwrap().tmpfs_size.as_str(), "7m");
}

/// A kernel for another processor would only fail at boot.
#[test]
fn an_architecture_other_than_the_kernels_is_refused() {
    let bench = Bench::new();
    fs::write(bench.path("iofs.toml"), "[image]\narchitecture = 'arm64'\n").unwrap();
    let arguments = [bench.arguments("out"), vec!["--key".into(), bench.text("key.pem")]].concat();
    let text = fails(&iofs_sign([arguments, vec!["--config".into(), bench.text("iofs.toml")]].concat()), 2);
    assert!(text.contains("expected one for arm64, found one for x86-64"), "{text}");
}
