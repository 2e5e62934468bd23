//! Volumes that the real `cryptsetup` made: what is derived here is what cryptsetup derives.

mod common;

use std::{fs, process::Command};

use common::{CHEAP, PASSPHRASE, Volume, run, slot, text};
use iofs_luks::{
    Argon2Variant, Cipher, Extent, Hash, Header, HeaderCopy, KNOWN_HEADER_SIZES, Kdf, Limits, OpenError, Priority,
};

/// The key that is derived here, and that cryptsetup derives, for a volume formatted with these options.
fn assert_same_key(options: &[&str]) -> Header {
    let volume = Volume::format(options);
    let key = volume.open(0, PASSPHRASE).unwrap();
    assert_eq!(key.as_bytes(), volume.volume_key(), "{options:?}");
    assert_eq!(volume.open(0, "wrong").unwrap_err(), OpenError::WrongPassphrase(slot(0)), "{options:?}");
    volume.header().unwrap()
}

#[test]
fn keys_by_pbkdf2_are_cryptsetups() {
    for (name, hash) in [("sha256", Hash::Sha256), ("sha512", Hash::Sha512)] {
        let header = assert_same_key(&[&CHEAP[..], &["--hash", name]].concat());
        let keyslot = header.keyslot(slot(0)).unwrap();
        assert!(
            matches!(&keyslot.kdf, Kdf::Pbkdf2 { hash: found, iterations: 1000, salt } if *found == hash && salt.len() == 32)
        );
        assert_eq!((keyslot.split_hash, keyslot.key_size), (hash, 64));
    }
}

#[test]
fn keys_by_argon2_are_cryptsetups() {
    let variants = [("argon2i", Argon2Variant::I), ("argon2id", Argon2Variant::Id)];
    for (name, variant) in variants {
        for (hash, memory, lanes) in [("sha256", "32", "1"), ("sha512", "16387", "4")] {
            let costs = ["--pbkdf-force-iterations", "4", "--pbkdf-memory", memory, "--pbkdf-parallel", lanes];
            let header = assert_same_key(&[&["--pbkdf", name, "--hash", hash], &costs[..]].concat());
            let Kdf::Argon2 { variant: found, time, memory_kib, .. } = header.keyslot(slot(0)).unwrap().kdf else {
                panic!("not argon2");
            };
            assert_eq!((found, time, memory_kib), (variant, 4, memory.parse().unwrap()));
        }
    }
}

#[test]
fn both_sizes_of_keys_and_sectors_are_taken() {
    for key_bits in ["256", "512"] {
        for sector_size in ["512", "4096"] {
            let options = ["--cipher", "aes-xts-plain64", "--key-size", key_bits, "--sector-size", sector_size];
            let header = assert_same_key(&[&CHEAP[..], &options[..]].concat());
            let segment = header.segment();
            assert_eq!(segment.sector_size.to_string(), sector_size);
            assert_eq!((segment.encryption, segment.integrity), (Cipher::AesXtsPlain64, None));
            assert_eq!(header.keyslot(slot(0)).unwrap().key_size * 8, key_bits.parse::<u32>().unwrap());
        }
    }
}

#[test]
fn headers_of_every_size_are_read() {
    for size in KNOWN_HEADER_SIZES {
        let size_text = size.to_string();
        let header = assert_same_key(&[&CHEAP[..], &["--luks2-metadata-size", &size_text]].concat());
        assert_eq!((header.header_size, header.copy), (size, HeaderCopy::Primary));
        assert_eq!(header.notes, Vec::<String>::new());
    }
}

#[test]
fn areas_of_keyslots_may_be_of_another_size_and_the_segment_elsewhere() {
    let header = assert_same_key(&[&CHEAP[..], &["--luks2-keyslots-size", "1M"]].concat());
    assert_eq!(header.keyslots_size, 1 << 20);
    // In 512-byte sectors.
    let header = assert_same_key(&[&CHEAP[..], &["--offset", "40960"]].concat());
    assert_eq!(header.segment().offset, 40960 * 512);
}

#[test]
fn a_detached_header_opens_too() {
    for offset in ["0", "2048"] {
        let volume = Volume::empty(4 << 20);
        let header_path = volume.file("header");
        let options = ["--type", "luks2", "--header", text(&header_path), "--offset", offset];
        volume.cryptsetup("luksFormat", &[&CHEAP[..], &options[..]].concat());
        let mut file = fs::File::open(&header_path).unwrap();
        let header = Header::read_with(&mut file, Extent::Detached).unwrap();
        assert_eq!(header.segment().offset, offset.parse::<u64>().unwrap() * 512);
        let key = header.open(&mut file, slot(0), PASSPHRASE.as_bytes(), &Limits::default()).unwrap();
        let key_path = volume.file("key");
        let options = ["--header", text(&header_path), "--dump-volume-key", "--volume-key-file", text(&key_path)];
        volume.cryptsetup("luksDump", &options);
        assert_eq!(key.as_bytes(), fs::read(key_path).unwrap());
    }
}

#[test]
fn of_several_keyslots_each_opens_by_its_own_passphrase() {
    let volume = Volume::format(&CHEAP);
    fs::write(volume.file("other"), "another").unwrap();
    let add = |options: &[&str]| {
        let mut command = Command::new("cryptsetup");
        command.args(["luksAddKey", "--batch-mode", "--key-file"]).arg(volume.key_file());
        run(command.args(CHEAP).args(options).arg(volume.path()).arg(volume.file("other")));
    };
    add(&["--key-slot", "31"]);
    add(&["--key-slot", "5", "--unbound", "--key-size", "256"]);
    volume.cryptsetup("config", &["--key-slot", "31", "--priority", "prefer"]);
    let header = volume.header().unwrap();
    assert_eq!(header.keyslots().map(|(slot, _)| slot.get()).collect::<Vec<_>>(), [0, 5, 31]);
    assert_eq!(header.keyslot(slot(31)).unwrap().priority, Priority::Prefer);
    assert_eq!(header.passphrase_slots(), [slot(31), slot(0)], "the preferred one first, the unbound one never");
    let key = volume.volume_key();
    assert_eq!(volume.open(31, "another").unwrap().as_bytes(), key);
    assert_eq!(volume.open(0, "another").unwrap_err(), OpenError::WrongPassphrase(slot(0)));
    assert_eq!(volume.open(5, "another").unwrap_err(), OpenError::Unbound(slot(5)));
    assert_eq!(volume.open(6, "another").unwrap_err(), OpenError::NoSuchSlot(slot(6)));
    let any = |passphrase: &str| {
        header.try_passphrase(&mut volume.source(), passphrase.as_bytes(), &Limits::default()).map(|(slot, _)| slot)
    };
    assert_eq!(any(PASSPHRASE), Ok(slot(0)));
    assert_eq!(any("another"), Ok(slot(31)));
    let wrong = any("neither").unwrap_err().to_string();
    let expected = "the passphrase opens no keyslot; keyslot 31: the passphrase does not open it; \
                    keyslot 0: the passphrase does not open it";
    assert_eq!(wrong, expected);
    volume.cryptsetup("config", &["--key-slot", "0", "--priority", "ignore"]);
    assert_eq!(volume.header().unwrap().passphrase_slots(), [slot(31)]);
}

#[test]
fn costs_beyond_the_limits_are_refused_before_anything_is_derived() {
    let volume = Volume::format(&["--pbkdf", "argon2id", "--pbkdf-force-iterations", "5", "--pbkdf-memory", "2048"]);
    let header = volume.header().unwrap();
    let refused = |limits: Limits| {
        // Nothing that could be read: an area that was asked for would be another error.
        let mut nothing: &[u8] = &[];
        header.open(&mut nothing, slot(0), PASSPHRASE.as_bytes(), &limits).unwrap_err().to_string()
    };
    let limits = Limits { max_memory_kib: 2047, ..Limits::default() };
    assert_eq!(refused(limits), "keyslot 0: expected at most 2047 KiB of memory for argon2, found 2048");
    let limits = Limits { max_argon2_work_kib: 10239, ..Limits::default() };
    assert_eq!(refused(limits), "keyslot 0: expected at most 10239 KiB of memory times passes of argon2, found 10240");
    let limits = Limits { max_pbkdf2_iterations: 999, ..Limits::default() };
    assert_eq!(refused(limits), "keyslot 0: expected at most 999 iterations of pbkdf2 for the digest, found 1000");
    assert!(refused(Limits::default()).starts_with("keyslot 0: 256000 bytes at byte 32768: "));
    let volume = Volume::format(&CHEAP);
    let header = volume.header().unwrap();
    let mut nothing: &[u8] = &[];
    let limits = Limits { max_pbkdf2_iterations: 999, ..Limits::default() };
    let error = header.open(&mut nothing, slot(0), PASSPHRASE.as_bytes(), &limits).unwrap_err().to_string();
    assert_eq!(error, "keyslot 0: expected at most 999 iterations of pbkdf2, found 1000");
}

#[test]
fn a_volume_in_re_encryption_is_refused() {
    let volume = Volume::format(&CHEAP);
    let before = volume.header().unwrap().sequence_id;
    volume.cryptsetup("reencrypt", &[&CHEAP[..], &["--init-only", "--resilience", "none"]].concat());
    let expected = "primary header: config.requirements.mandatory.0: expected no requirements: re-encryption must have \
                    ended, found \"online-reencrypt-v2\"";
    assert_eq!(volume.header().unwrap_err().to_string(), expected);
    assert!(before > 0);
}

#[test]
fn labels_flags_and_other_tokens_are_read_as_cryptsetup_wrote_them() {
    let volume = Volume::format(&[&CHEAP[..], &["--label", "Größe", "--subsystem", "vault"]].concat());
    fs::write(volume.file("token"), r#"{"type":"mine","keyslots":["0"],"n":[1.5,-2,{"a":null}]}"#).unwrap();
    run(Command::new("cryptsetup")
        .args(["token", "import", "--json-file"])
        .arg(volume.file("token"))
        .arg(volume.path()));
    let header = volume.header().unwrap();
    assert_eq!((header.label.as_str(), header.subsystem.as_str()), ("Größe", "vault"));
    let uuid = volume.cryptsetup("luksUUID", &[]);
    assert_eq!(header.uuid.to_string(), uuid.trim());
    assert_eq!(header.tokens().next().unwrap().1.kind(), "mine");
    assert!(header.passphrase_slots().is_empty());
    let error = header.try_passphrase(&mut volume.source(), PASSPHRASE.as_bytes(), &Limits::default()).unwrap_err();
    assert_eq!(error, OpenError::NoPassphraseSlot);
    // The first header damaged, as by a misdirected write.
    let mut bytes = fs::read(volume.path()).unwrap();
    bytes[..4096].fill(0);
    fs::write(volume.path(), bytes).unwrap();
    let header = volume.header().unwrap();
    assert_eq!((header.copy, header.tokens().count()), (HeaderCopy::Secondary, 1));
    assert_eq!(volume.open(0, PASSPHRASE).unwrap().as_bytes().len(), 64);
}
