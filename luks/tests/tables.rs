//! The tables of device-mapper, and what the kernel reports of them.

mod common;

use common::edit::{Both, DEBIAN_12, VOLUME};
use iofs_luks::{Below, Header, IntegritySuperblock, KeyReference};
use iofs_policy::verity::{DeviceNumber, LoadedTarget};

const SEGMENT: &str = r#""encryption":"aes-xts-plain64","sector_size":4096"#;
const DEVICE: DeviceNumber = DeviceNumber { major: 254, minor: 1 };

fn key() -> KeyReference {
    KeyReference { bytes: 64, description: "iofs:state".to_owned() }
}

fn below(bytes: u64) -> Below<'static> {
    Below::Device { bytes }
}

fn plain(header: &Header) -> String {
    let table = header.crypt_table("254:1", below(VOLUME), &key()).unwrap();
    format!("0 {} crypt {table}", table.sectors())
}

/// A header whose segment has another cipher, sector size and integrity.
fn authenticated(cipher: &str, sector_size: u32, integrity: &str) -> Both {
    let integrity =
        format!(r#""integrity":{{"type":"{integrity}","journal_encryption":"none","journal_integrity":"none"}}"#);
    let segment = format!(r#""encryption":"{cipher}","sector_size":{sector_size},{integrity}"#);
    Both::of(DEBIAN_12).replace(SEGMENT, &segment)
}

fn superblock(tag_size: u16, block_size: u32) -> IntegritySuperblock {
    IntegritySuperblock { version: 5, tag_size, data_sectors: 6400, block_size, fixed_padding: true, fixed_hmac: false }
}

#[test]
fn a_plain_segment_is_mapped_as_cryptsetup_does() {
    let header = Both::of(DEBIAN_12).read().unwrap();
    assert_eq!(plain(&header), "0 8192 crypt aes-xts-plain64 :64:logon:iofs:state 0 254:1 32768 1 sector_size:4096");
    let header = Both::of(DEBIAN_12)
        .replace("\"sector_size\":4096", "\"sector_size\":512")
        .replace("\"iv_tweak\":\"0\"", "\"iv_tweak\":\"7\"");
    assert_eq!(plain(&header.read().unwrap()), "0 8192 crypt aes-xts-plain64 :64:logon:iofs:state 7 254:1 32768");
    let header = Both::of(DEBIAN_12).replace("dynamic", "1048576").read().unwrap();
    assert_eq!(plain(&header), "0 2048 crypt aes-xts-plain64 :64:logon:iofs:state 0 254:1 32768 1 sector_size:4096");
}

#[test]
fn persistent_flags_become_options() {
    let flags = r#""flags":["no-write-workqueue","allow-discards","no-read-workqueue","submit-from-crypt-cpus","same-cpu-crypt"],"json_size":"#;
    let header = Both::of(DEBIAN_12).replace(r#""json_size":"#, flags).read().unwrap();
    let options =
        "6 allow_discards same_cpu_crypt submit_from_crypt_cpus no_read_workqueue no_write_workqueue sector_size:4096";
    assert_eq!(plain(&header), format!("0 8192 crypt aes-xts-plain64 :64:logon:iofs:state 0 254:1 32768 {options}"));
}

#[test]
fn an_authenticated_segment_is_two_devices() {
    for (cipher, integrity, tag, name) in [
        ("aes-xts-plain64", "hmac(sha256)", 32, "capi:authenc(hmac(sha256),xts(aes))-plain64"),
        ("aes-xts-random", "hmac(sha256)", 48, "capi:authenc(hmac(sha256),xts(aes))-random"),
    ] {
        let header = authenticated(cipher, 4096, integrity).read().unwrap();
        let lower = header.integrity_table("254:1", VOLUME, &superblock(tag, 4096)).unwrap();
        assert_eq!(
            (lower.sectors(), lower.to_string()),
            (6400, format!("254:1 32768 {tag} J 2 block_size:4096 fix_padding"))
        );
        let upper = header.crypt_table("254:2", Below::Integrity(&lower), &key()).unwrap();
        assert_eq!(upper.sectors(), 6400);
        let expected = format!("{name} :64:logon:iofs:state 0 254:2 0 2 integrity:{tag}:aead sector_size:4096");
        assert_eq!(upper.to_string(), expected);
    }
}

#[test]
fn ciphers_that_authenticate_by_themselves_are_named_as_the_kernel_does() {
    // Keyslots of 32 bytes, as for AES-256, and of 16.
    for (cipher, bytes, tag, name) in
        [("aes-gcm-random", "32", 28, "capi:gcm(aes)-random"), ("aegis128-random", "16", 32, "capi:aegis128-random")]
    {
        let json = authenticated(cipher, 512, "aead")
            .json()
            .replace("\"key_size\":64,\"af\"", &format!("\"key_size\":{bytes},\"af\""));
        let header = Both::of(DEBIAN_12).with_area(json.as_bytes()).read().unwrap();
        let lower = header.integrity_table("254:1", VOLUME, &superblock(tag, 512)).unwrap();
        assert_eq!(lower.to_string(), format!("254:1 32768 {tag} J 2 block_size:512 fix_padding"));
        let upper = header.crypt_table("254:2", Below::Integrity(&lower), &key()).unwrap();
        assert_eq!(upper.to_string(), format!("{name} :64:logon:iofs:state 0 254:2 0 1 integrity:{tag}:aead"));
    }
}

#[test]
fn flags_of_an_authenticated_segment_are_those_that_it_can_have() {
    let flags = r#""flags":["allow-discards","no-journal","same-cpu-crypt"],"json_size":"#;
    let header =
        authenticated("aes-xts-plain64", 4096, "hmac(sha256)").replace(r#""json_size":"#, flags).read().unwrap();
    let sb = IntegritySuperblock { fixed_padding: false, fixed_hmac: true, ..superblock(32, 4096) };
    let lower = header.integrity_table("254:1", VOLUME, &sb).unwrap();
    assert_eq!(lower.to_string(), "254:1 32768 32 D 2 block_size:4096 fix_hmac");
    let upper = header.crypt_table("254:2", Below::Integrity(&lower), &key()).unwrap().to_string();
    assert!(upper.ends_with(" 3 same_cpu_crypt integrity:32:aead sector_size:4096"), "{upper}");
}

#[test]
fn a_superblock_that_the_header_does_not_describe_is_refused() {
    let header = authenticated("aes-xts-plain64", 4096, "hmac(sha256)").read().unwrap();
    let says =
        |superblock: IntegritySuperblock| header.integrity_table("254:1", VOLUME, &superblock).unwrap_err().to_string();
    assert_eq!(says(superblock(16, 4096)), "tag size of the superblock: expected 32, found 16");
    assert_eq!(says(superblock(32, 512)), "block size of the superblock: expected 4096, found 512");
    for data_sectors in [0, 6401, 8192, u64::MAX - 7] {
        let text = says(IntegritySuperblock { data_sectors, ..superblock(32, 4096) });
        assert_eq!(
            text,
            format!(
                "data sectors of the superblock: expected a multiple of 8 sectors, below 8192, found {data_sectors}"
            )
        );
    }
}

#[test]
fn tables_that_do_not_fit_the_segment_are_refused() {
    let header = Both::of(DEBIAN_12).read().unwrap();
    let says = |device: &str, below: Below<'_>, key: &KeyReference| {
        header.crypt_table(device, below, key).unwrap_err().to_string()
    };
    let small = "device: expected whole sectors of 4096 bytes behind byte 16777216, found";
    assert_eq!(says("254:1", below(16_777_216), &key()), format!("{small} 16777216 bytes"));
    assert_eq!(says("254:1", below(VOLUME + 512), &key()), format!("{small} 20972032 bytes"));
    let word = "expected one word without blanks or backslashes, found";
    assert_eq!(says("a b", below(VOLUME), &key()), format!("device: {word} \"a b\""));
    let broken = KeyReference { bytes: 64, description: "x 0 254:9".to_owned() };
    assert_eq!(says("254:1", below(VOLUME), &broken), format!("key description: {word} \"x 0 254:9\""));
    let with = authenticated("aes-xts-plain64", 4096, "hmac(sha256)").read().unwrap();
    let lower = with.integrity_table("254:1", VOLUME, &superblock(32, 4096)).unwrap();
    assert_eq!(says("254:1", Below::Integrity(&lower), &key()), "integrity: expected none, found a table");
    let error = with.crypt_table("254:1", below(VOLUME), &key()).unwrap_err();
    assert_eq!(error.to_string(), "integrity: expected hmac(sha256), found no table");
    let error = header.integrity_table("254:1", VOLUME, &superblock(32, 4096)).unwrap_err();
    assert_eq!(error.to_string(), "integrity: expected one, found none");
}

#[test]
fn a_loaded_crypt_table_is_the_one_that_was_made() {
    let flags = r#""flags":["allow-discards"],"json_size":"#;
    let header = Both::of(DEBIAN_12).replace(r#""json_size":"#, flags).read().unwrap();
    let table = header.crypt_table("/dev/disk", below(VOLUME), &key()).unwrap();
    let says =
        |line: &str| table.check_loaded(&LoadedTarget::parse(line).unwrap(), DEVICE).map_err(|error| error.to_string());
    let good = "0 8192 crypt aes-xts-plain64 :64:logon:iofs:state 0 254:1 32768 2 sector_size:4096 allow_discards";
    assert_eq!(says(good), Ok(()));
    for (from, to, expected) in [
        ("0 8192", "8 8192", "start: expected 0, found 8"),
        ("8192", "8184", "sectors: expected 8192, found 8184"),
        (" crypt ", " linear ", "target: expected crypt, found linear"),
        ("aes-xts", "cipher_null", "cipher: expected aes-xts-plain64, found cipher_null-plain64"),
        ("iofs:state", "other", "key: expected :64:logon:iofs:state, found :64:logon:other"),
        (" 0 254", " 1 254", "IV offset: expected 0, found 1"),
        ("254:1", "254:2", "device: expected 254:1, found 254:2"),
        ("32768", "0", "start on the device: expected 32768, found 0"),
        (
            "2 sector_size:4096 allow_discards",
            "1 sector_size:4096",
            "optional arguments: expected allow_discards sector_size:4096, found sector_size:4096",
        ),
        (
            "allow_discards",
            "sector_size:4096",
            "optional arguments: expected allow_discards sector_size:4096, found sector_size:4096 sector_size:4096",
        ),
        (
            " 32768 2 sector_size:4096 allow_discards",
            "",
            "table line: expected as many fields as the target has, found \"aes-xts-plain64 :64:logon:iofs:state 0 254:1\"",
        ),
    ] {
        assert_eq!(says(&good.replacen(from, to, 1)), Err(expected.to_owned()));
    }
    assert!(says(&good.replace(" 2 ", " 3 ")).unwrap_err().contains("the number of optional arguments"));
}

#[test]
fn a_loaded_integrity_table_has_the_kernels_own_options_and_no_others() {
    let header = authenticated("aes-xts-plain64", 4096, "hmac(sha256)").read().unwrap();
    let table = header.integrity_table("/dev/disk", VOLUME, &superblock(32, 4096)).unwrap();
    let says =
        |line: &str| table.check_loaded(&LoadedTarget::parse(line).unwrap(), DEVICE).map_err(|error| error.to_string());
    let good = "0 6400 integrity 254:1 32768 32 J 7 block_size:4096 journal_sectors:72 interleave_sectors:32768 buffer_sectors:128 journal_watermark:50 commit_time:10000 fix_padding";
    assert_eq!(says(good), Ok(()));
    for (from, to) in [
        ("block_size:4096", "block_size:512"),
        ("journal_sectors:72", "allow_discards"),
        ("journal_sectors:72", "internal_hash:crc32c"),
        ("journal_sectors:72", "meta_device:254:9"),
        ("journal_sectors:72", "recalculate"),
        ("fix_padding", "commit_time:1"),
    ] {
        assert!(
            says(&good.replace(from, to))
                .unwrap_err()
                .starts_with("optional arguments: expected block_size:4096 fix_padding")
        );
    }
    assert_eq!(says(&good.replace(" J ", " R ")), Err("mode: expected J, found R".to_owned()));
    assert_eq!(says(&good.replace(" 32 J", " 16 J")), Err("tag size: expected 32, found 16".to_owned()));
}
