//! The end of a slot: where the signed manifest of what it holds is, and the history of the keys that signed it.

use crate::{digest::Sha256Digest, dsse::MAX_ENVELOPE_SIZE, keys::MAX_HISTORY_SIZE};

/// The footer is the last so many bytes of a slot.
pub const FOOTER_SIZE: usize = 4096;
const MAGIC: &[u8; 8] = b"IOFSSLOT";
const VERSION: u32 = 1;
/// What is before the footer's own digest.
const SUMMED: usize = 104;
const END: usize = SUMMED + 32;

/// A part of a slot that the footer leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its first byte, from the slot's start.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u32,
    /// Its digest.
    pub digest: Sha256Digest,
}

/// Where the envelope with the manifest is, and the key history, if there is one. All numbers are little endian, and what
/// follows is zero:
///
/// | bytes | what |
/// | --- | --- |
/// | 0 to 7 | `IOFSSLOT` |
/// | 8 to 11 | version: 1 |
/// | 12 to 15 | length of the envelope in bytes |
/// | 16 to 23 | its first byte, from the slot's start |
/// | 24 to 55 | SHA-256 of the envelope |
/// | 56 to 59 | zero |
/// | 60 to 63 | length of the key history in bytes; without one, this and the next two are zero |
/// | 64 to 71 | its first byte, from the slot's start |
/// | 72 to 103 | SHA-256 of the key history |
/// | 104 to 135 | SHA-256 of bytes 0 to 103 |
///
/// All that counts lies in the first 512 bytes, which disks write at once or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// The envelope.
    pub envelope: Part,
    /// The key history.
    pub history: Option<Part>,
}

/// Why there is no footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// Nothing, or something else, was written here.
    #[error("slot footer: expected {:?}, found something else: the slot is empty", "IOFSSLOT")]
    Empty,
    /// Somebody was interrupted, or changed it.
    #[error("slot footer: its digest is wrong: it is damaged")]
    Damaged,
    /// Another version wrote it.
    #[error("slot footer: version: expected {VERSION}, found {0}")]
    Version(u32),
    /// A part cannot be there.
    #[error("slot footer: {what}: expected 1 to {most} bytes before the footer, found {length} bytes at byte {offset}")]
    Bounds {
        /// The part.
        what: &'static str,
        /// The most bytes that are read of it.
        most: usize,
        /// Its first byte.
        offset: u64,
        /// Its length.
        length: u32,
    },
    /// What is there is not what was written.
    #[error("slot footer: {0}: its digest is wrong: it is damaged")]
    Part(&'static str),
}

/// As errors name the parts, and the most bytes of each.
const ENVELOPE: (&str, usize) = ("manifest", MAX_ENVELOPE_SIZE);
const HISTORY: (&str, usize) = ("key history", MAX_HISTORY_SIZE);

impl Part {
    fn new(offset: u64, bytes: &[u8]) -> Self {
        Self { offset, length: u32::try_from(bytes.len()).unwrap_or(u32::MAX), digest: Sha256Digest::of(bytes) }
    }

    /// Length, offset and digest, in 44 bytes.
    fn encode(&self, bytes: &mut [u8]) {
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.offset.to_le_bytes());
        bytes[12..44].copy_from_slice(self.digest.as_bytes());
    }

    fn decode(bytes: &[u8; 44]) -> Self {
        Self {
            length: u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")),
            offset: u64::from_le_bytes(bytes[4..12].try_into().expect("eight bytes")),
            digest: Sha256Digest::from_bytes(bytes[12..].try_into().expect("32 bytes")),
        }
    }

    fn check(&self, (what, most): (&'static str, usize), size: u64) -> Result<(), FooterError> {
        let Self { offset, length, .. } = *self;
        let room = size.saturating_sub(FOOTER_SIZE as u64);
        let ends = offset.checked_add(length.into()).filter(|end| *end <= room);
        if ends.is_none() || length == 0 || length as usize > most {
            return Err(FooterError::Bounds { what, most, offset, length });
        }
        Ok(())
    }
}

impl Footer {
    /// For an envelope at that offset, and a key history at another one.
    ///
    /// # Errors
    /// [`FooterError::Bounds`]: one of them is longer than any that is read.
    pub fn new(envelope: (u64, &[u8]), history: Option<(u64, &[u8])>) -> Result<Self, FooterError> {
        let part = |(offset, bytes): (u64, &[u8])| Part::new(offset, bytes);
        let footer = Self { envelope: part(envelope), history: history.map(part) };
        footer.check(u64::MAX)?;
        Ok(footer)
    }

    /// The bytes of it.
    pub fn encode(&self) -> [u8; FOOTER_SIZE] {
        let mut bytes = [0; FOOTER_SIZE];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        self.envelope.encode(&mut bytes[12..56]);
        if let Some(history) = &self.history {
            history.encode(&mut bytes[60..SUMMED]);
        }
        let sum = Sha256Digest::of(&bytes[..SUMMED]);
        bytes[SUMMED..END].copy_from_slice(sum.as_bytes());
        bytes
    }

    /// Reads the last [`FOOTER_SIZE`] bytes of a slot of `size` bytes.
    ///
    /// # Errors
    /// [`FooterError`].
    pub fn parse(bytes: &[u8], size: u64) -> Result<Self, FooterError> {
        if bytes.len() != FOOTER_SIZE || !bytes.starts_with(MAGIC) {
            return Err(FooterError::Empty);
        }
        if Sha256Digest::of(&bytes[..SUMMED]).as_bytes() != &bytes[SUMMED..END] || bytes[56..60] != [0; 4] {
            return Err(FooterError::Damaged);
        }
        let version = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        if version != VERSION {
            return Err(FooterError::Version(version));
        }
        let envelope = Part::decode(bytes[12..56].try_into().expect("44 bytes"));
        let history: &[u8; 44] = bytes[60..SUMMED].try_into().expect("44 bytes");
        let history = (history != &[0; 44]).then(|| Part::decode(history));
        let footer = Self { envelope, history };
        footer.check(size)?;
        Ok(footer)
    }

    fn check(&self, size: u64) -> Result<(), FooterError> {
        self.envelope.check(ENVELOPE, size)?;
        self.history.map_or(Ok(()), |history| history.check(HISTORY, size))
    }

    /// Whether these are the envelope's bytes.
    ///
    /// # Errors
    /// [`FooterError::Part`].
    pub fn check_envelope(&self, bytes: &[u8]) -> Result<(), FooterError> {
        if Sha256Digest::of(bytes) == self.envelope.digest { Ok(()) } else { Err(FooterError::Part(ENVELOPE.0)) }
    }

    /// Whether these are the key history's bytes, if there is one.
    ///
    /// # Errors
    /// [`FooterError::Part`].
    pub fn check_history(&self, bytes: &[u8]) -> Result<(), FooterError> {
        let differs = self.history.is_some_and(|history| Sha256Digest::of(bytes) != history.digest);
        if differs { Err(FooterError::Part(HISTORY.0)) } else { Ok(()) }
    }
}

/// What the end of a slot leads to. None of it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotEnd {
    /// The envelope with the manifest.
    pub envelope: Vec<u8>,
    /// The key history, if there is one.
    pub history: Option<Vec<u8>>,
}

impl SlotEnd {
    /// Reads it from a slot of `size` bytes. `read` reads so many bytes from an offset, and `refuse` makes the caller's error of
    /// what is wrong with the footer.
    ///
    /// # Errors
    /// Those of both.
    pub fn read<E>(
        size: u64,
        mut read: impl FnMut(u64, usize) -> Result<Vec<u8>, E>,
        refuse: impl Fn(FooterError) -> E,
    ) -> Result<Self, E> {
        let offset = size.checked_sub(FOOTER_SIZE as u64).ok_or_else(|| refuse(FooterError::Empty))?;
        let footer = Footer::parse(&read(offset, FOOTER_SIZE)?, size).map_err(&refuse)?;
        let envelope = read(footer.envelope.offset, footer.envelope.length as usize)?;
        footer.check_envelope(&envelope).map_err(&refuse)?;
        let history = footer.history.map(|part| read(part.offset, part.length as usize)).transpose()?;
        footer.check_history(history.as_deref().unwrap_or_default()).map_err(&refuse)?;
        Ok(Self { envelope, history })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole() -> Footer {
        Footer::new((8192, b"envelope"), Some((12288, b"history"))).unwrap()
    }

    #[test]
    fn a_footer_is_read_as_it_was_written_and_any_change_is_noticed() {
        for footer in [whole(), Footer::new((8192, b"envelope"), None).unwrap()] {
            let bytes = footer.encode();
            assert_eq!(Footer::parse(&bytes, 1 << 20), Ok(footer));
            for at in 0..END {
                let mut changed = bytes;
                changed[at] ^= 1;
                assert!(Footer::parse(&changed, 1 << 20).is_err(), "byte {at}");
            }
            assert_eq!(Footer::parse(&bytes[1..], 1 << 20), Err(FooterError::Empty));
        }
        assert_eq!(Footer::parse(&[0; FOOTER_SIZE], 1 << 20), Err(FooterError::Empty));
    }

    #[test]
    fn bytes_that_no_footer_has_are_refused_although_its_digest_is_right() {
        for (at, error) in [(56, "its digest is wrong"), (64, "key history: expected 1 to 131072 bytes")] {
            let mut bytes = Footer::new((8192, b"envelope"), None).unwrap().encode();
            bytes[at] = 1;
            let sum = Sha256Digest::of(&bytes[..SUMMED]);
            bytes[SUMMED..END].copy_from_slice(sum.as_bytes());
            let found = Footer::parse(&bytes, 1 << 20).unwrap_err().to_string();
            assert!(found.contains(error), "{found}");
        }
    }

    #[test]
    fn parts_that_are_not_what_was_written_are_refused() {
        let footer = whole();
        assert_eq!(footer.check_envelope(b"envelope"), Ok(()));
        assert_eq!(footer.check_envelope(b"Envelope"), Err(FooterError::Part("manifest")));
        assert_eq!(footer.check_history(b"history"), Ok(()));
        assert_eq!(footer.check_history(b"History"), Err(FooterError::Part("key history")));
    }

    #[test]
    fn an_envelope_or_a_history_outside_its_slot_is_refused() {
        let end = FOOTER_SIZE as u64;
        let alone = Footer::new((8192, b"envelope"), None).unwrap();
        for (footer, fits) in [(alone, 8192 + 8 + end), (whole(), 12288 + 7 + end)] {
            let bytes = footer.encode();
            assert!(Footer::parse(&bytes, fits).is_ok());
            assert!(matches!(Footer::parse(&bytes, fits - 1), Err(FooterError::Bounds { .. })));
        }
        assert!(Footer::new((0, b""), None).is_err() && Footer::new((u64::MAX, b"x"), None).is_err());
        assert!(Footer::new((0, &vec![0; MAX_ENVELOPE_SIZE + 1]), None).is_err());
        assert!(Footer::new((0, b"x"), Some((1, b""))).is_err());
        assert!(Footer::new((0, b"x"), Some((1, &vec![0; MAX_HISTORY_SIZE + 1]))).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), FOOTER_SIZE), size: u64) {
            prop_assert!(Footer::parse(&bytes, size).is_err());
        }
    }
}
