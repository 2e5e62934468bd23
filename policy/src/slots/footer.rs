//! The end of a slot: where the signed manifest of what it holds is.

use crate::{digest::Sha256Digest, dsse::MAX_ENVELOPE_SIZE};

/// The footer is the last so many bytes of a slot.
pub const FOOTER_SIZE: usize = 4096;
const MAGIC: &[u8; 8] = b"IOFSSLOT";
const VERSION: u32 = 1;
/// What is before the footer's own digest.
const SUMMED: usize = 56;
const END: usize = SUMMED + 32;

/// Where the envelope with the manifest is. All numbers are little endian, and what follows is zero:
///
/// | bytes | what |
/// | --- | --- |
/// | 0 to 7 | `IOFSSLOT` |
/// | 8 to 11 | version: 1 |
/// | 12 to 15 | length of the envelope in bytes |
/// | 16 to 23 | its first byte, from the slot's start |
/// | 24 to 55 | SHA-256 of the envelope |
/// | 56 to 87 | SHA-256 of bytes 0 to 55 |
///
/// All that counts lies in the first 512 bytes, which disks write at once or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// The envelope's first byte.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u32,
    /// Its digest.
    pub digest: Sha256Digest,
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
    /// The envelope cannot be there.
    #[error(
        "slot footer: expected an envelope of 1 to {MAX_ENVELOPE_SIZE} bytes before the footer, found {length} bytes at byte {offset}"
    )]
    Bounds {
        /// Its first byte.
        offset: u64,
        /// Its length.
        length: u32,
    },
    /// What is there is not the envelope.
    #[error("slot footer: the manifest's digest is wrong: it is damaged")]
    Envelope,
}

impl Footer {
    /// For an envelope at that offset.
    ///
    /// # Errors
    /// [`FooterError::Bounds`]: an envelope that is longer than any that is read.
    pub fn new(offset: u64, envelope: &[u8]) -> Result<Self, FooterError> {
        let length = u32::try_from(envelope.len()).unwrap_or(u32::MAX);
        let footer = Self { offset, length, digest: Sha256Digest::of(envelope) };
        footer.check(u64::MAX)?;
        Ok(footer)
    }

    /// The bytes of it.
    pub fn encode(&self) -> [u8; FOOTER_SIZE] {
        let mut bytes = [0; FOOTER_SIZE];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..SUMMED].copy_from_slice(self.digest.as_bytes());
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
        if Sha256Digest::of(&bytes[..SUMMED]).as_bytes() != &bytes[SUMMED..END] {
            return Err(FooterError::Damaged);
        }
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if number(8) != VERSION {
            return Err(FooterError::Version(number(8)));
        }
        let offset = u64::from(number(16)) | u64::from(number(20)) << 32;
        let digest = Sha256Digest::from_bytes(bytes[24..SUMMED].try_into().expect("32 bytes"));
        let footer = Self { offset, length: number(12), digest };
        footer.check(size)?;
        Ok(footer)
    }

    fn check(&self, size: u64) -> Result<(), FooterError> {
        let Self { offset, length, .. } = *self;
        let room = size.saturating_sub(FOOTER_SIZE as u64);
        let ends = offset.checked_add(length.into()).filter(|end| *end <= room);
        if ends.is_none() || length == 0 || length as usize > MAX_ENVELOPE_SIZE {
            return Err(FooterError::Bounds { offset, length });
        }
        Ok(())
    }

    /// Whether these are the envelope's bytes.
    ///
    /// # Errors
    /// [`FooterError::Envelope`].
    pub fn check_envelope(&self, bytes: &[u8]) -> Result<(), FooterError> {
        if Sha256Digest::of(bytes) == self.digest { Ok(()) } else { Err(FooterError::Envelope) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_footer_is_read_as_it_was_written_and_any_change_is_noticed() {
        let footer = Footer::new(8192, b"envelope").unwrap();
        let bytes = footer.encode();
        assert_eq!(Footer::parse(&bytes, 1 << 20), Ok(footer));
        assert_eq!(footer.check_envelope(b"envelope"), Ok(()));
        assert_eq!(footer.check_envelope(b"Envelope"), Err(FooterError::Envelope));
        for at in 0..END {
            let mut changed = bytes;
            changed[at] ^= 1;
            assert!(Footer::parse(&changed, 1 << 20).is_err(), "byte {at}");
        }
        assert_eq!(Footer::parse(&bytes[1..], 1 << 20), Err(FooterError::Empty));
        assert_eq!(Footer::parse(&[0; FOOTER_SIZE], 1 << 20), Err(FooterError::Empty));
    }

    #[test]
    fn an_envelope_outside_its_slot_is_refused() {
        let fits = 8192 + 8 + FOOTER_SIZE as u64;
        let bytes = Footer::new(8192, b"envelope").unwrap().encode();
        assert!(Footer::parse(&bytes, fits).is_ok());
        assert!(matches!(Footer::parse(&bytes, fits - 1), Err(FooterError::Bounds { .. })));
        assert!(Footer::new(0, b"").is_err() && Footer::new(u64::MAX, b"x").is_err());
        assert!(Footer::new(0, &vec![0; MAX_ENVELOPE_SIZE + 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), FOOTER_SIZE), size: u64) {
            prop_assert!(Footer::parse(&bytes, size).is_err());
        }
    }
}
