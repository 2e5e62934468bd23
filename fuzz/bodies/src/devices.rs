//! What verify-init learns of devices from the kernel and from disks that anybody may have written.

use iofs_policy::{
    manifest::{FilePlace, MediumKind},
    verity::Superblock,
};
use verify_init::{
    gpt::Header,
    medium,
    superblock::difference,
    uevent::{new_modalias, value},
};

use crate::sealed;

/// The logical blocks of most disks.
const BLOCK: usize = 512;
/// More is never read of a disk's table.
const MOST_ENTRIES: usize = 128 * 1024;

/// A partition table that is accepted gives one id for each entry and asks for no more than 128 KiB; a changed bit in
/// header or entries is noticed. The input is the block at LBA 1, and the entries.
///
/// Nothing but luck finds a checksum, so the table is also read with both corrected.
pub fn gpt(data: &[u8]) -> bool {
    if let Some(fixed) = with_checksums(data) {
        read_table(&fixed);
    }
    read_table(data)
}

fn read_table(data: &[u8]) -> bool {
    let (block, rest) = data.split_at(data.len().min(BLOCK));
    let Ok(header) = Header::parse(block) else { return false };
    assert!((128..=MOST_ENTRIES).contains(&header.length));
    assert!(header.offset.checked_add(header.length as u64).is_some());
    let mut changed = block.to_vec();
    changed[BLOCK.min(92) - 1] ^= 0x10;
    assert!(Header::parse(&changed).is_err(), "a change of the header is not noticed");
    let Some(entries) = rest.get(..header.length) else {
        assert!(header.unique_ids(rest).is_err());
        return false;
    };
    let Ok(ids) = header.unique_ids(entries) else { return false };
    assert!((1..=256).contains(&ids.len()) && header.length.is_multiple_of(ids.len()));
    let size = header.length / ids.len();
    for (entry, id) in entries.chunks_exact(size).zip(&ids) {
        assert_eq!(entry[16..32], id.to_bytes_le());
    }
    let mut changed = entries.to_vec();
    changed[header.length / 2] ^= 1;
    assert!(header.unique_ids(&changed).is_err(), "a change of the entries is not noticed");
    true
}

/// The input with the checksums that its own sizes ask for; `None` where those lie outside.
fn with_checksums(data: &[u8]) -> Option<Vec<u8>> {
    let number = |at: usize| Some(u32::from_le_bytes(*data.get(at..)?.first_chunk()?) as usize);
    let size = number(12).filter(|size| (92..=BLOCK).contains(size))?;
    let length = number(80)?.checked_mul(number(84)?)?;
    let mut fixed = data.to_vec();
    let sum = crc32(fixed.get(BLOCK..)?.get(..length)?);
    fixed[88..92].copy_from_slice(&sum.to_le_bytes());
    fixed[16..20].fill(0);
    let sum = crc32(&fixed[..size]);
    fixed[16..20].copy_from_slice(&sum.to_le_bytes());
    Some(fixed)
}

/// CRC-32 bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// A value of an event is what stands behind the first `KEY=` at the start of an item, up to the separator; and only a
/// device that comes has a modalias.
pub fn uevent(data: &[u8]) -> bool {
    for separator in [0, b'\n'] {
        for key in ["MODALIAS", "PARTNAME", "PARTUUID", "DEVNAME", "MAJOR", "M"] {
            assert_eq!(value(data, separator, key), slowly(data, separator, key));
        }
    }
    let Some(modalias) = new_modalias(data) else { return false };
    assert!(!modalias.is_empty() && !modalias.contains('\0'));
    assert!([&b"add@"[..], b"bind@", b"change@"].iter().any(|action| data.starts_with(action)));
    true
}

fn slowly<'a>(data: &'a [u8], separator: u8, key: &str) -> Option<&'a [u8]> {
    let start = format!("{key}=").into_bytes();
    let at = (0..data.len()).find(|at| {
        data[*at..].starts_with(&start) && at.checked_sub(1).is_none_or(|before| data[before] == separator)
    })?;
    let found = &data[at + start.len()..];
    Some(&found[..found.iter().position(|byte| *byte == separator).unwrap_or(found.len())])
}

/// Only the sealed superblock's own 512 bytes pass; for all others, the field that is named shows two different values.
pub fn superblock_difference(data: &[u8]) -> bool {
    let verity = &sealed::manifest().verity;
    let sealed =
        Superblock { parameters: verity.parameters.clone(), uuid: verity.superblock_uuid.expect("sealed with one") };
    let difference = difference(&sealed, data);
    let same = data.first_chunk() == Some(&sealed.encode());
    assert_eq!(difference.is_none(), same);
    if let Some(difference) = difference {
        assert!(!difference.field.is_empty());
        assert_ne!(difference.expected, difference.found, "{}", difference.field);
    }
    same
}

/// An id that is read of a file system can be sealed as it stands, and is read of its superblock alone: neither what
/// follows behind nor a broken magic changes that.
pub fn file_system_id(data: &[u8]) -> bool {
    let found: Vec<_> = MediumKind::ALL.into_iter().filter_map(|kind| Some((kind, medium::id(kind, data)?))).collect();
    for (kind, id) in &found {
        let text = format!("{}:UUID={id}:/image", kind.name());
        let place: FilePlace = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(place.to_string(), text);
        let head = &data[..data.len().min(medium::HEAD)];
        assert_eq!(medium::id(*kind, head).as_ref(), Some(id));
        let mut changed = head.to_vec();
        changed[magic_of(*kind)] ^= 1;
        assert_eq!(medium::id(*kind, &changed), None, "{} without its magic", kind.name());
    }
    !found.is_empty()
}

fn magic_of(kind: MediumKind) -> usize {
    match kind {
        MediumKind::Vfat => 511,
        MediumKind::Ext4 => 0x439,
        MediumKind::Erofs => 0x400,
    }
}
