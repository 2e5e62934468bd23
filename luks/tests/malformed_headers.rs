//! Headers that are not as they have to be: what is said about each, word for word.
//!
//! All but the damaged ones have the right checksum: somebody wrote them like that.

mod common;

use common::edit::{Both, DEBIAN_12, SIZE, VOLUME};
use iofs_luks::{Header, HeaderCopy, HeaderError};

fn good() -> Both {
    Both::of(DEBIAN_12)
}

/// What is said after one change of the JSON text.
#[track_caller]
fn says(from: &str, to: &str, expected: &str) {
    assert_eq!(good().replace(from, to).error(), format!("primary header: {expected}"), "{from} -> {to}");
}

const SEGMENT: &str = r#""segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":4096}}"#;
const AREA_0: &str =
    r#""area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64}"#;

#[test]
fn the_untouched_header_is_taken() {
    let header = good().read().unwrap();
    assert_eq!((header.copy, header.label.as_str(), header.notes.len()), (HeaderCopy::Primary, "fixture", 0));
    assert_eq!((header.keyslots().count(), header.tokens().count()), (5, 4));
}

#[test]
fn a_device_cut_short_anywhere_is_refused_or_read_from_what_is_left() {
    let whole = good().0;
    for length in [0, 5, 6, 511, 4095, 4096, 5000, SIZE - 1] {
        let error = Header::read(&mut &whole[..length], VOLUME).unwrap_err();
        let text = error.to_string();
        let length = if length < 4096 { "4096" } else { "16384" };
        assert!(text.starts_with(&format!("no intact LUKS2 header; primary: {length} bytes at byte 0: ")), "{text}");
        assert!(text.ends_with("secondary: there is none at any of the places where it can be, 16 KiB to 4 MiB"));
    }
    for length in [SIZE, SIZE + 4096, 2 * SIZE - 1] {
        let header = Header::read(&mut &whole[..length], VOLUME).unwrap();
        assert!(header.notes[0].starts_with("the secondary header is damaged: "), "{:?}", header.notes);
    }
}

/// The header with one field of the binary part changed in both copies.
fn binary(at: usize, bytes: &[u8]) -> Both {
    good().patch(0, at, bytes).patch(1, at, bytes)
}

#[test]
fn each_field_of_the_binary_header_is_checked() {
    let says = |both: Both, primary: &str, secondary: &str| {
        assert_eq!(both.error(), format!("no intact LUKS2 header; primary: {primary}; secondary: {secondary}"));
    };
    let twice = |both: Both, text: &str| says(both, text, text);
    const NOWHERE: &str = "there is none at any of the places where it can be, 16 KiB to 4 MiB";
    says(binary(0, b"LUCKS!"), r#"magic: expected "LUKS\xba\xbe", found "LUCKS!""#, NOWHERE);
    twice(binary(6, &[0, 3]), "version: expected 2, found 3");
    let size = "header size: expected 16 KiB to 4 MiB, a power of two, found ";
    twice(binary(8, &[0xff; 8]), &format!("{size}18446744073709551615 bytes"));
    twice(binary(8, &0_u64.to_be_bytes()), &format!("{size}0 bytes"));
    twice(binary(8, &0x4001_u64.to_be_bytes()), &format!("{size}16385 bytes"));
    twice(binary(8, &0x80_0000_u64.to_be_bytes()), &format!("{size}8388608 bytes"));
    let both = binary(256, &7_u64.to_be_bytes());
    says(
        both,
        "header offset: expected 0, where it is, found 7",
        "header offset: expected 16384, where it is, found 7",
    );
    twice(binary(24, &[b'x'; 48]), "label: expected a text padded with zeros");
    twice(binary(24, b"a\0b"), "label: expected a text padded with zeros");
    twice(binary(24, b"\xff"), "label: expected a text padded with zeros");
    twice(binary(208, b"\xc3\x28"), "subsystem: expected a text padded with zeros");
    twice(binary(72, b"md5\0\0\0"), "checksum algorithm: expected sha256 or sha512, found \"md5\"");
    twice(binary(72, &[b'a'; 32]), "checksum algorithm: expected a text padded with zeros");
    let uuid = "UUID: expected lower-case digits in groups of 8-4-4-4-12, found ";
    twice(binary(168, &[0; 40]), &format!("{uuid}\"\""));
    let spelled = b"11111111222233334444555555555555\0\0\0\0\0\0\0\0";
    twice(binary(168, spelled), &format!("{uuid}\"11111111222233334444555555555555\""));
    let upper = b"AAAAAAAA-2222-3333-4444-555555555555\0\0\0\0";
    twice(binary(168, upper), &format!("{uuid}\"AAAAAAAA-2222-3333-4444-555555555555\""));
}

#[test]
fn a_header_of_version_1_says_what_to_do() {
    let expected = "version: expected LUKS version 2, found 1; 'cryptsetup convert' makes one of the other";
    assert_eq!(binary(6, &[0, 1]).error(), expected);
}

#[test]
fn a_checksum_of_sha512_is_taken() {
    let header = binary(72, b"sha512").read().unwrap();
    assert_eq!((header.copy, header.notes.len()), (HeaderCopy::Primary, 0));
}

#[test]
fn every_flipped_bit_of_the_primary_header_leads_to_the_secondary() {
    let whole = good().0;
    // Every byte of what is not zero, and some of the rest.
    for at in (0..DEBIAN_12.len()).filter(|at| DEBIAN_12[*at] != 0).chain([300, 2000, SIZE - 1]) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        let header = Header::read(&mut damaged.as_slice(), VOLUME).unwrap();
        assert_eq!(header.copy, HeaderCopy::Secondary, "byte {at}");
        assert!(header.notes[0].starts_with("the primary header is damaged: "), "byte {at}: {:?}", header.notes);
    }
}

#[test]
fn where_both_are_damaged_both_are_described() {
    let mut whole = good().0;
    whole[5000] ^= 1;
    whole[SIZE + 5000] ^= 1;
    let error = Header::read(&mut whole.as_slice(), VOLUME).unwrap_err();
    let HeaderError::Neither { primary, secondary } = &error else { panic!("{error}") };
    for text in [primary.to_string(), secondary.to_string()] {
        assert!(text.starts_with("checksum: expected "), "{text}");
    }
}

#[test]
fn the_newer_header_counts_and_an_interrupted_write_is_told() {
    let label = |text: &[u8]| [text, &[0; 8]].concat();
    let newer = |copy: usize, number: u64| {
        let both = good().patch(copy, 16, &number.to_be_bytes());
        both.patch(copy, 24, &label(b"newer")).read().unwrap()
    };
    let header = newer(0, 100);
    assert_eq!((header.copy, header.label.as_str()), (HeaderCopy::Primary, "newer"));
    assert_eq!(
        header.notes[0],
        format!(
            "the secondary header is older (sequence id {}, not 100): a write was interrupted",
            good().read().unwrap().sequence_id
        )
    );
    let header = newer(1, u64::MAX);
    assert_eq!((header.copy, header.label.as_str()), (HeaderCopy::Secondary, "newer"));
    assert!(header.notes[0].starts_with("the primary header is older (sequence id "));
    // An old secondary header changes nothing.
    let header = newer(1, 0);
    assert_eq!((header.copy, header.label.as_str()), (HeaderCopy::Primary, "fixture"));
}

#[test]
fn two_different_headers_of_one_sequence_id_are_told_and_the_first_one_counts() {
    let both = good();
    let json = both.json().replacen(r#""priority""#, "", 0).replacen("dynamic", "1048576", 1);
    let mut area = json.into_bytes();
    area.resize(SIZE - 4096, 0);
    let header = both.patch(1, 4096, &area).read().unwrap();
    assert_eq!(header.segment().size, None);
    assert_eq!(header.notes, ["the secondary header says something else, and is as new"]);
}

#[test]
fn an_intact_header_that_is_refused_is_not_replaced_by_the_older_one() {
    let both = good();
    let json = both.json().replacen("aes-xts-plain64", "aes-cbc-plain64", 1);
    let mut area = json.into_bytes();
    area.resize(SIZE - 4096, 0);
    let both = both.patch(0, 4096, &area).patch(0, 16, &100_u64.to_be_bytes());
    let expected = "primary header: keyslots.0.area.encryption: expected aes-xts-plain64, found \"aes-cbc-plain64\"";
    assert_eq!(both.error(), expected);
}

#[test]
fn a_secondary_header_elsewhere_is_found_where_the_primary_is_gone() {
    let whole = good().0;
    for size in iofs_luks::KNOWN_HEADER_SIZES {
        let size = size as usize;
        let mut moved = whole[SIZE..].to_vec();
        moved.resize(size, 0);
        moved[8..16].copy_from_slice(&(size as u64).to_be_bytes());
        moved[256..264].copy_from_slice(&(size as u64).to_be_bytes());
        let json = Both(whole.clone()).json().replace("12288", &(size - 4096).to_string());
        let json = json.replacen("16744448", &(16_777_216 - 2 * size).to_string(), 1);
        // Areas begin behind both headers.
        let json = (0..5).fold(json, |json, slot| {
            let (old, new) = (32768 + slot * 258_048, 2 * size + slot * 258_048);
            json.replace(&format!("\"{old}\""), &format!("\"{new}\""))
        });
        moved[4096..4096 + json.len()].copy_from_slice(json.as_bytes());
        let disk = [vec![0; size], iofs_luks::with_checksum(moved)].concat();
        let header = Header::read(&mut disk.as_slice(), VOLUME).unwrap();
        assert_eq!((header.copy, header.header_size), (HeaderCopy::Secondary, size as u64));
    }
}

#[test]
fn a_secondary_header_of_another_size_than_its_place_is_not_used() {
    let mut whole = good().patch(1, 8, &0x8000_u64.to_be_bytes()).0;
    let header = Header::read(&mut whole.as_slice(), VOLUME).unwrap();
    let expected =
        "the secondary header is damaged: header size: expected 16384 bytes, after which it begins, found 32768";
    assert_eq!(header.notes, [expected]);
    whole[0] = 0;
    let error = Header::read(&mut whole.as_slice(), VOLUME).unwrap_err().to_string();
    assert!(error.ends_with("secondary: header size: expected 16384 bytes, after which it begins, found 32768"));
}

/// What is said of a whole JSON area.
#[track_caller]
fn area_says(area: &[u8], expected: &str) {
    assert_eq!(good().with_area(area).error(), format!("primary header: {expected}"));
}

#[test]
fn the_json_area_holds_one_text_and_zeros() {
    area_says(b"", "JSON: expected it to begin with {");
    area_says(b" {}", "JSON: expected it to begin with {");
    area_says(b"[]", "JSON: expected it to begin with {");
    area_says(b"\xef\xbb\xbf{}", "JSON: expected it to begin with {");
    area_says(b"{}\0\0x", "JSON: expected zeros behind the text, found 0x78 at byte 4");
    area_says(&vec![b'{'; SIZE - 4096], "JSON: expected a zero behind the text, found none");
    area_says(b"{", "JSON: EOF while parsing an object at line 1 column 1");
    area_says(b"{}{}", "JSON: trailing characters at line 1 column 3");
    area_says(b"{\"a\":1,}", "JSON: trailing comma at line 1 column 8");
    area_says(b"{\"a\":\"\xff\"}", "JSON: invalid unicode code point at line 1 column 7");
    area_says(b"{\"a\":\"\\ud800\"}", "JSON: unexpected end of hex escape at line 1 column 13");
    area_says(b"{\"a\":NaN}", "JSON: expected value at line 1 column 6");
    area_says(b"{\"a\":1e999}", "JSON: number out of range at line 1 column 10");
}

#[test]
fn json_that_is_deep_wide_or_ambiguous_is_refused() {
    let deep = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
    area_says(deep(11).as_bytes(), "a: expected no such field, found a list of 1");
    area_says(deep(12).as_bytes(), "JSON: values lie in each other more than 12 deep at line 1 column 17");
    area_says(deep(6000).as_bytes(), "JSON: values lie in each other more than 12 deep at line 1 column 17");
    let names: Vec<_> = (0..257).map(|name| format!("\"{name}\":0")).collect();
    let text = format!("{{{}}}", names.join(","));
    let error = good().with_area(text.as_bytes()).error();
    assert!(error.starts_with("primary header: JSON: an object has more than 256 names at line 1 "), "{error}");
    says(
        r#""type":"luks2""#,
        r#""type":"luks2","type":"luks2""#,
        "JSON: \"type\" occurs twice in an object at line 1 column 39",
    );
    let json = good().json().replacen(r#"{"keyslots":"#, r#"{"config":{},"keyslots":"#, 1);
    let column = json.rfind(r#""config""#).unwrap() + r#""config""#.len();
    let expected = format!("JSON: \"config\" occurs twice in an object at line 1 column {column}");
    says(r#"{"keyslots":"#, r#"{"config":{},"keyslots":"#, &expected);
}

#[test]
fn json_of_very_many_values_is_refused() {
    // 4 MiB, the largest header.
    let size: usize = 4 << 20;
    let mut header = DEBIAN_12.to_vec();
    header.truncate(4096);
    header[8..16].copy_from_slice(&(size as u64).to_be_bytes());
    header.extend(b"{\"a\":[0");
    header.resize(size - 3, 0);
    for at in (4103..size - 4).step_by(2) {
        header[at..at + 2].copy_from_slice(b",0");
    }
    header.truncate(size - 4);
    header.extend(b"]}\0\0");
    let disk = iofs_luks::with_checksum(header);
    let error = Header::read(&mut disk.as_slice(), VOLUME).unwrap_err().to_string();
    assert!(error.starts_with("primary header: JSON: there are more than 20000 values at line 1 column "), "{error}");
}

#[test]
fn objects_that_must_be_there_are() {
    area_says(b"{}", "config: expected an object, found nothing");
    area_says(br#"{"config":{}}"#, "segments: expected an object, found nothing");
    for (name, found) in
        [("keyslots", "keyslots"), ("tokens", "tokens"), ("segments", "segments"), ("digests", "digests")]
    {
        let error = good().replace(&format!("\"{name}\":{{\""), &format!("\"{name}\":[],\"x\":{{\"")).error();
        assert_eq!(error, "primary header: x: expected no such field, found an object", "{found}");
    }
    says(r#""config":{"#, r#""config":[],"configs":{"#, "configs: expected no such field, found an object");
}

#[test]
fn a_volume_has_one_segment_of_an_allowed_form() {
    let changed = |from: &str, to: &str| SEGMENT.replacen(from, to, 1);
    let says = |from: &str, to: &str, expected: &str| says(SEGMENT, &changed(from, to), expected);
    says(r#""0":{"#, r#""1":{"#, "segments: expected one segment, \"0\", found \"1\"");
    says(r#""0":{"#, r#""1":{},"0":{"#, "segments: expected one segment, \"0\", found \"1\", \"0\"");
    says(r#""type":"crypt""#, r#""type":"linear""#, "segments.0.type: expected crypt, found \"linear\"");
    says(r#""type":"crypt","#, "", "segments.0.type: expected a text, found nothing");
    says(r#""type":"crypt""#, r#""type":"hw-opal-crypt""#, "segments.0.type: expected crypt, found \"hw-opal-crypt\"");
    says(
        r#""iv_tweak""#,
        r#""flags":["in-reencryption"],"iv_tweak""#,
        "segments.0.flags: expected no such field, found a list of 1",
    );
    says("16777216", "-1", "segments.0.offset: expected a text of decimal digits, found \"-1\"");
    says("16777216", "016777216", "segments.0.offset: expected a text of decimal digits, found \"016777216\"");
    says("\"16777216\"", "16777216", "segments.0.offset: expected a text of decimal digits, found 16777216");
    says(
        "16777216",
        "18446744073709551616",
        "segments.0.offset: expected a text of decimal digits, found \"18446744073709551616\"",
    );
    says("16777216", "16777217", "segments.0.offset: expected a multiple of 512, found \"16777217\"");
    says("dynamic", "1000", "segments.0.size: expected dynamic, or a multiple of 4096 above 0, found \"1000\"");
    says("dynamic", "0", "segments.0.size: expected dynamic, or a multiple of 4096 above 0, found \"0\"");
    says("dynamic", "Dynamic", "segments.0.size: expected a text of decimal digits, found \"Dynamic\"");
    says("4096}", "8192}", "segments.0.sector_size: expected 512, 1024, 2048 or 4096, found 8192");
    says("4096}", "0}", "segments.0.sector_size: expected 512, 1024, 2048 or 4096, found 0");
    says(
        "4096}",
        "-512}",
        "segments.0.sector_size: expected a number from 0 to 4294967295, found a negative number or a fraction",
    );
    says(
        "\"iv_tweak\":\"0\"",
        "\"iv_tweak\":null",
        "segments.0.iv_tweak: expected a text of decimal digits, found null",
    );
    let none = r#""segments":{}"#;
    self::says(SEGMENT, none, "segments: expected one segment, \"0\", found none");
}

#[test]
fn ciphers_beside_the_allowed_ones_are_refused() {
    let segment = |cipher: &str| SEGMENT.replace("aes-xts-plain64", cipher);
    let list = "aes-xts-plain64, or with integrity aes-xts-random, aes-gcm-random or aegis128-random";
    for cipher in ["aes-cbc-essiv:sha256", "serpent-xts-plain64", "aes-xts-plain", "capi:xts(aes)-plain64", ""] {
        let expected = format!("segments.0.encryption: expected {list}, found {cipher:?}");
        says(SEGMENT, &segment(cipher), &expected);
    }
    for cipher in ["aes-xts-random", "aes-gcm-random", "aegis128-random"] {
        let expected =
            format!("segments.0.encryption: expected a cipher that goes without integrity, found {cipher:?}");
        says(SEGMENT, &segment(cipher), &expected);
    }
}

#[test]
fn authenticated_segments_have_an_allowed_form() {
    let integrity = |cipher: &str, integrity: &str| {
        SEGMENT.replace("aes-xts-plain64\"", &format!("{cipher}\",\"integrity\":{integrity}"))
    };
    let hmac = |kind: &str| format!(r#"{{"type":"{kind}","journal_encryption":"none","journal_integrity":"none"}}"#);
    let good = |kind: &str| integrity("aes-xts-plain64", &hmac(kind));
    says(
        SEGMENT,
        &good("crc32c"),
        "segments.0.integrity.type: expected hmac(sha256), hmac(sha512) or aead, found \"crc32c\"",
    );
    says(
        SEGMENT,
        &good("none"),
        "segments.0.integrity.type: expected hmac(sha256), hmac(sha512) or aead, found \"none\"",
    );
    says(
        SEGMENT,
        &good("aead"),
        "segments.0.encryption: expected a cipher that goes with aead, found \"aes-xts-plain64\"",
    );
    let journal = hmac("hmac(sha256)").replacen("none", "ctr(aes)", 1);
    let expected = "segments.0.integrity.journal_encryption: expected none, found \"ctr(aes)\"";
    says(SEGMENT, &integrity("aes-xts-plain64", &journal), expected);
    let unknown = hmac("hmac(sha256)").replacen('{', "{\"inline\":true,", 1);
    says(
        SEGMENT,
        &integrity("aes-xts-plain64", &unknown),
        "segments.0.integrity.inline: expected no such field, found true",
    );
    let short = hmac("hmac(sha256)").replacen('{', "{\"key_size\":16,", 1);
    let expected = "segments.0.integrity.key_size: expected a number from 32 to 32, found 16";
    says(SEGMENT, &integrity("aes-xts-plain64", &short), expected);
    // The keyslots of this volume hold 64 bytes: a cipher key and a HMAC key of 32 each.
    assert!(self::good().replace(SEGMENT, &good("hmac(sha256)")).read().is_ok());
    let expected = "keyslots.0.key_size: expected one of [96, 128], for aes-xts-plain64, found 64";
    says(SEGMENT, &good("hmac(sha512)"), expected);
}

#[test]
fn nothing_lies_over_anything_else() {
    let area =
        |offset: u64, size: u64| AREA_0.replace("32768", &offset.to_string()).replace("258048", &size.to_string());
    let place = "expected a place of its own between 32768 and 16777216, found";
    says(AREA_0, &area(0, 258_048), &format!("keyslots.0.area: {place} 0 to 258048"));
    says(AREA_0, &area(28672, 258_048), &format!("keyslots.0.area: {place} 28672 to 286720"));
    says(AREA_0, &area(290_816, 258_048), &format!("keyslots.1.area: {place} 290816 to 548864"));
    says(AREA_0, &area(32768, 262_144), &format!("keyslots.1.area: {place} 290816 to 548864"));
    says(AREA_0, &area(16_773_120, 258_048), &format!("keyslots.0.area: {place} 16773120 to 17031168"));
    says(AREA_0, &area(32768, 0), "keyslots.0.area.size: expected a multiple of 4096, above 0, found \"0\"");
    says(
        AREA_0,
        &area(32768, 4096),
        "keyslots.0.area.size: expected at least 256000 bytes, for 4000 stripes of the key, found \"4096\"",
    );
    says(AREA_0, &area(32769, 258_048), "keyslots.0.area.offset: expected a multiple of 4096, found \"32769\"");
    let (offset, size) = (u64::MAX - 4095, 258_048);
    says(AREA_0, &area(offset, size), "keyslots.0.area.size: expected a size that fits a volume, found \"258048\"");
    for (offset, found) in [("0", "0"), ("4096", "4096"), ("16776704", "16776704")] {
        let expected =
            format!("segments.0.offset: expected 16777216 or more, behind headers and keyslots, found \"{found}\"");
        says(SEGMENT, &SEGMENT.replace("16777216", offset), &expected);
    }
}

#[test]
fn the_segment_is_on_the_device() {
    let says = |both: Both, bytes: u64, expected: &str| {
        let error = both.read_on(bytes).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "primary header: segments.0: expected a sector or more within the device's {bytes} bytes, found {expected}"
            )
        );
    };
    assert!(good().read_on(16_777_216 + 4096).is_ok());
    says(good(), 16_777_216 + 4095, "what is behind 16777216");
    says(good(), 0, "what is behind 16777216");
    let sized = |size: &str| good().replace("dynamic", size);
    assert!(sized("4194304").read().is_ok());
    says(sized("4198400"), VOLUME, "4198400 bytes at 16777216");
    says(sized("18446744073709547520"), VOLUME, "18446744073709547520 bytes at 16777216");
}

#[test]
fn keyslots_have_an_allowed_form() {
    says(
        r#""type":"luks2""#,
        r#""type":"reencrypt""#,
        "keyslots.0.type: expected luks2: a volume in re-encryption is not opened, found \"reencrypt\"",
    );
    says(
        r#""type":"raw""#,
        r#""type":"datashift""#,
        "keyslots.0.area.type: expected raw: a volume in re-encryption is not opened, found \"datashift\"",
    );
    says(r#"{"keyslots":{"0""#, r#"{"keyslots":{"32""#, "keyslots: expected names from \"0\" to \"31\", found \"32\"");
    says(r#"{"keyslots":{"0""#, r#"{"keyslots":{"00""#, "keyslots: expected names from \"0\" to \"31\", found \"00\"");
    says(r#"{"keyslots":{"0""#, r#"{"keyslots":{"a""#, "keyslots: expected names from \"0\" to \"31\", found \"a\"");
    says(
        r#""key_size":64,"af""#,
        r#""key_size":129,"af""#,
        "keyslots.0.key_size: expected a number from 1 to 128, found 129",
    );
    says(
        r#""key_size":64,"af""#,
        r#""key_size":0,"af""#,
        "keyslots.0.key_size: expected a number from 1 to 128, found 0",
    );
    says(
        r#""key_size":64,"af""#,
        r#""key_size":63,"af""#,
        "keyslots.0.key_size: expected one of [32, 64], for aes-xts-plain64, found 63",
    );
    says(
        r#""key_size":64,"af""#,
        r#""key_size":32,"af""#,
        "keyslots.1.key_size: expected 32, as in the keyslot before, found 64",
    );
    says(r#""key_size":64}"#, r#""key_size":48}"#, "keyslots.0.area.key_size: expected 32 or 64, found 48");
    says(r#""type":"luks1""#, r#""type":"none""#, "keyslots.0.af.type: expected luks1, found \"none\"");
    says(
        r#""stripes":4000"#,
        r#""stripes":4294967295"#,
        "keyslots.0.af.stripes: expected a number from 4000 to 4000, found 4294967295",
    );
    says(r#""stripes":4000"#, r#""stripes":1"#, "keyslots.0.af.stripes: expected a number from 4000 to 4000, found 1");
    says(r#""hash":"sha256""#, r#""hash":"sha1""#, "keyslots.0.af.hash: expected sha256 or sha512, found \"sha1\"");
    says(
        r#""type":"luks2""#,
        r#""priority":3,"type":"luks2""#,
        "keyslots.0.priority: expected a number from 0 to 2, found 3",
    );
}

#[test]
fn key_derivation_has_an_allowed_form() {
    says("\"argon2id\"", "\"argon2d\"", "keyslots.0.kdf.type: expected pbkdf2, argon2i or argon2id, found \"argon2d\"");
    says(
        "\"memory\":64",
        "\"memory\":4194305",
        "keyslots.0.kdf.memory: expected a number from 32 to 4194304, found 4194305",
    );
    says("\"memory\":64", "\"memory\":31", "keyslots.0.kdf.memory: expected a number from 32 to 4194304, found 31");
    says("\"time\":4", "\"time\":0", "keyslots.0.kdf.time: expected a number from 1 to 4294967295, found 0");
    says(
        "\"time\":4",
        "\"time\":4294967296",
        "keyslots.0.kdf.time: expected a number from 1 to 4294967295, found 4294967296",
    );
    says(
        "\"time\":4",
        "\"time\":1.5",
        "keyslots.0.kdf.time: expected a number from 1 to 4294967295, found a negative number or a fraction",
    );
    says("\"cpus\":1", "\"cpus\":5", "keyslots.0.kdf.cpus: expected a number from 1 to 4, found 5");
    says(
        "\"iterations\":1000",
        "\"iterations\":999",
        "keyslots.1.kdf.iterations: expected a number from 1000 to 4294967295, found 999",
    );
    says(
        "\"pbkdf2\",\"hash\":\"sha512\"",
        "\"pbkdf2\",\"hash\":\"whirlpool\"",
        "keyslots.1.kdf.hash: expected sha256 or sha512, found \"whirlpool\"",
    );
    says(
        "\"salt\":\"",
        "\"salt\":\"AAAA\",\"x\":\"",
        "keyslots.0.kdf.salt: expected base64 of 8 to 64 bytes, found \"AAAA\"",
    );
    says("\"salt\":\"", "\"salt\":\"*\",\"x\":\"", "keyslots.0.kdf.salt: expected base64, found \"*\"");
    let long = "A".repeat(88);
    says(
        "\"salt\":\"",
        &format!("\"salt\":\"{long}\",\"x\":\""),
        &format!("keyslots.0.kdf.salt: expected base64 of 8 to 64 bytes, found {:?}…", &long[..60]),
    );
}

#[test]
fn every_keyslot_and_the_segment_have_one_digest() {
    const SLOTS: &str = r#""keyslots":["0","1","2","3","4"]"#;
    says(SLOTS, r#""keyslots":["0","1","2","3"]"#, "digests: expected one for keyslot 4, found none");
    says(
        SLOTS,
        r#""keyslots":["0","1","2","3","4","4"]"#,
        "digests.0.keyslots.5: expected each slot once, found \"4\"",
    );
    says(
        SLOTS,
        r#""keyslots":["0","1","2","3","4","5"]"#,
        "digests.0.keyslots: expected keyslots that exist, each once, not 5, found a list of 6",
    );
    says(SLOTS, r#""keyslots":[0]"#, "digests.0.keyslots.0: expected a text, found 0");
    says(
        SLOTS,
        r#""keyslots":["32"]"#,
        "digests.0.keyslots.0: expected a slot's number, \"0\" to \"31\", found \"32\"",
    );
    says(r#""segments":["0"]"#, r#""segments":[]"#, "digests: expected one for segment 0, found none");
    says(
        r#""segments":["0"]"#,
        r#""segments":["1"]"#,
        "digests.0.segments: expected \"0\" alone, or nothing, found a list of 1",
    );
    says(
        r#""segments":["0"]"#,
        r#""segments":["0","1"]"#,
        "digests.0.segments: expected \"0\" alone, or nothing, found a list of 2",
    );
    let json = good().json();
    let start = json.find(r#""digests":{"#).unwrap() + r#""digests":{"#.len();
    let digest = &json[start..json.find(r#"},"config""#).unwrap()];
    says(digest, "", "digests: expected one for keyslot 0, found none");
    let second = digest.replacen("\"0\"", "\"1\"", 1);
    says(
        digest,
        &format!("{digest},{second}"),
        "digests.1.keyslots: expected keyslots that exist, each once, not 0, found a list of 5",
    );
    let second = second.replacen(SLOTS, r#""keyslots":[]"#, 1);
    says(digest, &format!("{digest},{second}"), "digests: expected one digest for the segment, found another, 1");
}

#[test]
fn digests_have_an_allowed_form() {
    let digest = |from: &str, to: &str| {
        let json = good().json();
        let (before, digests) = json.split_at(json.find(r#""digests":{"#).unwrap());
        assert!(digests.contains(from));
        good().with_area(format!("{before}{}", digests.replacen(from, to, 1)).as_bytes()).error()
    };
    let says = |from: &str, to: &str, expected: &str| {
        assert_eq!(digest(from, to), format!("primary header: digests.0.{expected}"));
    };
    says(r#""pbkdf2""#, r#""sha256""#, "type: expected pbkdf2, found \"sha256\"");
    says(r#""hash":"sha256""#, r#""hash":"md5""#, "hash: expected sha256 or sha512, found \"md5\"");
    let json = good().json();
    let start = json.find(r#""digest":""#).unwrap() + r#""digest":""#.len();
    let expected = format!("digest: expected base64 of 64 bytes, found {:?}", &json[start..start + 44]);
    says(r#""hash":"sha256""#, r#""hash":"sha512""#, &expected);
    says(r#""digest":""#, r#""digest":"","x":""#, "digest: expected base64 of 32 bytes, found \"\"");
    says(r#""digest":""#, r#""digest":"AA==","x":""#, "digest: expected base64 of 32 bytes, found \"AA==\"");
}

#[test]
fn the_configuration_agrees_with_the_binary_header() {
    says(
        r#""json_size":"12288""#,
        r#""json_size":"28672""#,
        "config.json_size: expected \"12288\", as the binary header says, found \"28672\"",
    );
    says(r#""json_size":"12288","#, "", "config.json_size: expected a text of decimal digits, found nothing");
    let sizes = "config.keyslots_size: expected a multiple of 4096, at most 134217728, found";
    says(r#""keyslots_size":"16744448""#, r#""keyslots_size":"134221824""#, &format!("{sizes} \"134221824\""));
    says(r#""keyslots_size":"16744448""#, r#""keyslots_size":"16744449""#, &format!("{sizes} \"16744449\""));
    says(
        r#""keyslots_size":"16744448""#,
        r#""keyslots_size":"0""#,
        "keyslots.0.area: expected a place of its own between 32768 and 32768, found 32768 to 290816",
    );
}

#[test]
fn requirements_of_any_kind_are_refused() {
    for requirement in ["online-reencrypt-v2", "offline-reencrypt", "opal", "inline-hw-tags", "a-later-feature"] {
        let to = format!(r#""requirements":{{"mandatory":["{requirement}"]}},"json_size":"#);
        let expected = format!(
            "config.requirements.mandatory.0: expected no requirements: re-encryption must have ended, found {requirement:?}"
        );
        says(r#""json_size":"#, &to, &expected);
    }
    let unknown = r#""requirements":{"optional":[]},"json_size":"#;
    says(r#""json_size":"#, unknown, "config.requirements.optional: expected no such field, found a list of 0");
    assert!(good().replace(r#""json_size":"#, r#""requirements":{"mandatory":[]},"json_size":"#).read().is_ok());
}

#[test]
fn flags_are_known_or_noted() {
    let header = good()
        .replace(r#""json_size":"#, r#""flags":["allow-discards","x","no-journal"],"json_size":"#)
        .read()
        .unwrap();
    assert_eq!(header.flags, [iofs_luks::Flag::AllowDiscards, iofs_luks::Flag::NoJournal]);
    assert_eq!(header.notes, ["the activation flag \"x\" is unknown and has no effect"]);
}
