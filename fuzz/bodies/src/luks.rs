//! LUKS2: what anybody who had the disk can write.

use std::io;

use iofs_luks::{
    Below, Header, IntegritySuperblock, KeyReference, Limits, OpenError, ReadAt, Token, Tpm2Token, with_checksum,
};
use iofs_policy::verity::{DeviceNumber, LoadedTarget};

/// The volume's size.
const VOLUME: u64 = 1 << 30;
/// Of a header with its JSON area, the smallest that there is.
const SIZE: usize = 16384;

/// A header that is taken names an allowed cipher, nothing in it lies over anything else or outside of the volume, costs
/// are refused before anything is read, and its table is one that the kernel takes as it is meant. The input stands for a
/// volume's beginning, with zeros behind it; it is read as it is, and with the right checksum.
pub fn luks_header(data: &[u8]) -> bool {
    if let Ok(header) = Header::read(&mut Padded(data), VOLUME) {
        check(&header);
    }
    let mut bytes = data.to_vec();
    bytes.resize(SIZE, 0);
    match Header::read(&mut Padded(&with_checksum(bytes)), VOLUME) {
        Ok(header) => {
            check(&header);
            true
        }
        Err(error) => {
            assert!(error.to_string().len() < 2000, "a message for people: {error}");
            false
        }
    }
}

/// A token that is taken is the same once it was written anew, where all of it was understood.
pub fn luks_token(data: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(data) else { return false };
    match Token::parse(text) {
        Token::Broken { why, .. } => {
            assert!(why.to_string().len() < 2000, "a message for people: {why}");
            false
        }
        Token::SystemdTpm2(token) => {
            check_token(&token);
            true
        }
        Token::Recovery { .. } | Token::Other { .. } => true,
    }
}

/// A superblock that is taken is within the kernel's limits, and decided by its first 64 bytes.
pub fn integrity_superblock(data: &[u8]) -> bool {
    let Ok(superblock) = IntegritySuperblock::decode(data) else { return false };
    assert_eq!(IntegritySuperblock::decode(&data[..IntegritySuperblock::SIZE]), Ok(superblock));
    assert!((1..=5).contains(&superblock.version) && [512, 1024, 2048, 4096].contains(&superblock.block_size));
    true
}

fn check(header: &Header) {
    let end = check_places(header);
    let segment = header.segment();
    assert!(segment.offset >= end && segment.offset < VOLUME);
    assert!(segment.size.is_none_or(|size| size <= VOLUME - segment.offset));
    assert!(
        ["aes-xts-plain64", "aes-xts-random", "aes-gcm-random", "aegis128-random"].contains(&segment.encryption.name())
    );
    let slots = header.passphrase_slots();
    assert!(slots.iter().all(|slot| header.keyslot(*slot).is_some_and(|keyslot| keyslot.bound)));
    let least = Limits { max_memory_kib: 0, max_argon2_work_kib: 0, max_pbkdf2_iterations: 0 };
    for (slot, keyslot) in header.keyslots() {
        let error = header.open(&mut NotRead, slot, b"", &least).expect_err("nothing is allowed");
        assert_eq!(keyslot.bound, matches!(error, OpenError::TooCostly { .. }));
    }
    for (_, token) in header.tokens() {
        if let Token::SystemdTpm2(token) = token {
            check_token(token);
            assert!(token.keyslots.iter().all(|slot| header.keyslot(*slot).is_some()));
        }
    }
    check_table(header);
}

/// Where the last keyslot may end.
fn check_places(header: &Header) -> u64 {
    let start = 2 * header.header_size;
    let end = start + header.keyslots_size;
    let mut areas: Vec<_> = header.keyslots().map(|(_, one)| (one.area, u64::from(one.key_size))).collect();
    areas.sort_by_key(|(area, _)| area.offset);
    let mut free = start;
    for (area, key_size) in areas {
        assert!(area.offset >= free && area.size >= key_size * 4000);
        free = area.offset + area.size;
    }
    assert!(free <= end);
    end
}

fn check_token(token: &Tpm2Token) {
    assert!(!token.blobs.is_empty() && token.blobs.len() == token.policy_hashes.len());
    let Token::SystemdTpm2(mut again) = Token::parse(&token.to_json()) else {
        panic!("it is refused once written anew")
    };
    again.unknown.clone_from(&token.unknown);
    assert_eq!(*again, *token);
}

fn check_table(header: &Header) {
    let key = KeyReference { bytes: 64, description: "iofs:x".to_owned() };
    let Ok(table) = header.crypt_table("254:1", Below::Device { bytes: VOLUME }, &key) else { return };
    let text = table.to_string();
    let loaded = LoadedTarget { start: 0, sectors: table.sectors(), target: "crypt", parameters: &text };
    assert_eq!(table.check_loaded(&loaded, DeviceNumber { major: 254, minor: 1 }), Ok(()));
    assert!(table.sectors() > 0 && table.sectors() <= (VOLUME - header.segment().offset) / 512);
}

/// The bytes, and zeros behind them.
struct Padded<'a>(&'a [u8]);

impl ReadAt for Padded<'_> {
    fn read_at(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        assert!(length <= 4 << 20, "no header is larger");
        if offset.checked_add(length as u64).is_none_or(|end| end > VOLUME) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; length];
        let rest = self.0.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(length);
        bytes[..length].copy_from_slice(&rest[..length]);
        Ok(bytes)
    }
}

/// What must not be read.
struct NotRead;

impl ReadAt for NotRead {
    fn read_at(&mut self, offset: u64, _length: usize) -> io::Result<Vec<u8>> {
        panic!("byte {offset} is read before costs are looked at");
    }
}
