//! The attack of CVE-2025-59054 and CVE-2025-58356: a header that names `cipher_null`, so that a TPM's secret opens a volume
//! whose data is in clear, written by whoever had the disk. Each form of it is refused before anything is derived.

mod common;

use std::fs;

use common::{
    CHEAP, Volume,
    edit::{Both, DEBIAN_12, DEBIAN_13},
};

const CIPHER: &str = r#""encryption":"aes-xts-plain64""#;
const SEGMENT_CIPHER: &str = r#""encryption":"aes-xts-plain64","sector_size""#;
const NAMES: [&str; 4] = ["cipher_null-ecb", "cipher_null", "capi:ecb(cipher_null)-null", "null"];

fn refused(both: &Both, field: &str, expected: &str) {
    assert_eq!(both.error(), format!("primary header: {field}.encryption: expected {expected}"));
}

#[test]
fn luks_cipher_null_in_the_segment_is_refused() {
    for header in [DEBIAN_12, DEBIAN_13] {
        for name in NAMES {
            let both = Both::of(header).replace(SEGMENT_CIPHER, &SEGMENT_CIPHER.replace("aes-xts-plain64", name));
            let list = "aes-xts-plain64, or with integrity aes-xts-random, aes-gcm-random or aegis128-random";
            refused(&both, "segments.0", &format!("{list}, found {name:?}"));
        }
    }
}

#[test]
fn luks_cipher_null_in_any_keyslots_area_is_refused() {
    for name in NAMES {
        let json = Both::of(DEBIAN_12).json();
        for (slot, (at, _)) in json.match_indices(CIPHER).take(5).enumerate() {
            let mut json = json.clone();
            json.replace_range(at..at + CIPHER.len(), &CIPHER.replace("aes-xts-plain64", name));
            let both = Both::of(DEBIAN_12).with_area(json.as_bytes());
            refused(&both, &format!("keyslots.{slot}.area"), &format!("aes-xts-plain64, found {name:?}"));
        }
    }
}

/// As the published attack wrote it: no encryption anywhere, with the key sizes that go with it.
#[test]
fn luks_cipher_null_everywhere_is_refused() {
    let json = Both::of(DEBIAN_13).json();
    let json =
        json.replace(CIPHER, r#""encryption":"cipher_null-ecb""#).replace(r#""key_size":64"#, r#""key_size":32"#);
    let both = Both::of(DEBIAN_13).with_area(json.as_bytes());
    assert!(
        both.error().starts_with("primary header: segments.0.encryption: expected aes-xts-plain64"),
        "{}",
        both.error()
    );
}

/// The second header must not open what the first one cannot, nor the other way round.
#[test]
fn luks_cipher_null_in_the_newer_header_is_refused_though_the_older_one_is_good() {
    let bad =
        Both::of(DEBIAN_12).replace(SEGMENT_CIPHER, &SEGMENT_CIPHER.replace("aes-xts-plain64", "cipher_null-ecb"));
    let good = Both::of(DEBIAN_12);
    for newer in [0, 1] {
        let mut parts = [good.0[..16384].to_vec(), good.0[16384..].to_vec()];
        parts[newer].copy_from_slice(&bad.0[newer * 16384..(newer + 1) * 16384]);
        let both = Both(parts.concat()).patch(newer, 16, &1000_u64.to_be_bytes());
        let copy = ["primary", "secondary"][newer];
        assert!(both.error().starts_with(&format!("{copy} header: segments.0.encryption: ")), "{}", both.error());
    }
}

/// The attack itself, on a volume of a real cryptsetup, which goes on opening it: its owner's passphrase, or a TPM's secret,
/// gives the key of a volume whose data an attacker wrote in clear.
#[test]
fn luks_cipher_null_volumes_that_cryptsetup_still_opens_are_refused() {
    let volume = Volume::format(&CHEAP);
    let key = volume.volume_key();
    let mut bytes = fs::read(volume.path()).unwrap();
    let both = Both(bytes[..32768].to_vec());
    let both = both.replace(SEGMENT_CIPHER, &SEGMENT_CIPHER.replace("aes-xts-plain64", "cipher_null-ecb"));
    bytes[..32768].copy_from_slice(&both.0);
    fs::write(volume.path(), bytes).unwrap();
    assert!(volume.cryptsetup("luksDump", &[]).contains("cipher: cipher_null-ecb"));
    assert_eq!(volume.volume_key(), key, "cryptsetup derives the key from this header");
    let error = volume.header().unwrap_err().to_string();
    assert!(error.starts_with("primary header: segments.0.encryption: expected aes-xts-plain64"), "{error}");
}
