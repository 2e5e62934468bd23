//! `iofs-sign inspect` of LUKS2 volumes that real tools made.

use std::{fs, path::Path, process::Command};

use iofs_sign::inspect::{Inspection, inspect};
use tempfile::TempDir;

/// A volume of 20 MiB whose first header is the given one, with its second header damaged.
fn volume_with(directory: &TempDir, header: &str) -> std::path::PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../luks/tests/data");
    let mut bytes = fs::read(fixtures.join(header)).unwrap();
    bytes.resize(20 << 20, 0);
    let path = directory.path().join("volume");
    fs::write(&path, bytes).unwrap();
    path
}

fn text(path: &Path) -> String {
    inspect(path).map_or_else(|failure| failure.to_string(), |inspection| inspection.to_string())
}

#[test]
fn a_volume_with_tokens_of_systemd_257_is_explained() {
    let directory = TempDir::new().unwrap();
    let path = volume_with(&directory, "debian-13.header");
    let text = text(&path);
    for line in [
        "  label: \"fixture\"\n",
        "  data: from byte 16777216, up to the end; aes-xts-plain64 in sectors of 4096 bytes\n",
        "keyslot 0: opened by a passphrase; 512 bits, argon2id, 4 passes over 64 KiB in 1 lanes\n",
        "keyslot 1: opened by token 0; 512 bits, pbkdf2, 1000 iterations of sha512\n",
        "token 0: \"systemd-tpm2\", for keyslot 1\n  registers: 7+11 (sha256)\n  PIN: no\n  storage root key: 0x81000001, name 000b",
        "token 1: \"systemd-tpm2\", for keyslot 2\n  registers: 11 (sha256)\n  PIN: yes, salted\n",
        "token 2: \"systemd-tpm2\", for keyslot 3\n  registers: none (sha256)\n  signed registers: 11, by the key of PEM sha256:",
        "token 3: \"systemd-recovery\", for keyslot 4\n",
        "  warning: the secondary header is damaged: magic: expected \"SKUL\\xba\\xbe\", found ",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
    let Inspection::Luks2(volume) = inspect(&path).unwrap() else { panic!("something else") };
    let json = serde_json::to_value(&volume).unwrap();
    assert_eq!(json["keyslots"][1]["tokens"], serde_json::json!([0]));
    assert_eq!(json["tokens"][0]["tpm2"]["pcrs"], serde_json::json!([7, 11]));
    assert_eq!(json["tokens"][1]["tpm2"]["salted"], serde_json::json!(true));
}

#[test]
fn tokens_of_systemd_252_have_no_storage_root_key() {
    let directory = TempDir::new().unwrap();
    let text = text(&volume_with(&directory, "debian-12.header"));
    let expected = "  PIN: yes, without salt\n  storage root key: none pinned; made anew by the template (ecc)\n";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_header_by_itself_is_shown_with_a_warning() {
    let directory = TempDir::new().unwrap();
    let path = volume_with(&directory, "debian-13.header");
    fs::File::options().write(true).open(&path).unwrap().set_len(32768).unwrap();
    let text = text(&path);
    assert!(text.contains("  warning: a detached header, or a volume that was cut off: segments.0: "), "{text}");
}

#[test]
fn what_is_wrong_with_a_volume_is_named() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("volume");
    fs::File::create(&path).unwrap().set_len(20 << 20).unwrap();
    fs::write(directory.path().join("passphrase"), "correct horse").unwrap();
    let cryptsetup = |options: &[&str]| {
        let mut command = Command::new("cryptsetup");
        command.args(options).args(["--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
        command.arg("--key-file").arg(directory.path().join("passphrase")).arg(&path);
        let output = command.output().expect("cryptsetup; 'scripts/install-deps test' installs what the tests need");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    cryptsetup(&["luksFormat", "--type", "luks2"]);
    // The first header lost: the second one is found.
    let mut bytes = fs::read(&path).unwrap();
    let first = bytes[..4096].to_vec();
    bytes[..4096].fill(0);
    fs::write(&path, &bytes).unwrap();
    let damaged = text(&path);
    assert!(
        damaged.contains("  header: the secondary one, ")
            && damaged.contains("  warning: the primary header is damaged: ")
    );
    bytes[..4096].copy_from_slice(&first);
    fs::write(&path, &bytes).unwrap();
    cryptsetup(&["reencrypt", "--init-only", "--resilience", "none"]);
    let refused = text(&path);
    assert!(
        refused.contains("config.requirements.mandatory.0: expected no requirements: re-encryption must have ended")
    );
    assert!(refused.contains("'cryptsetup luksDump' shows headers that this toolkit refuses"), "{refused}");
    cryptsetup(&["luksFormat", "--type", "luks1"]);
    assert!(text(&path).contains("expected LUKS version 2, found 1; 'cryptsetup convert'"), "{}", text(&path));
}
