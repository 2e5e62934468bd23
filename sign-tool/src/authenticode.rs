//! The Authenticode digest of a PE image: what UEFI firmware measures into register 4 when it starts one, and what Secure
//! Boot signatures cover.
//!
//! Microsoft, Windows Authenticode Portable Executable Signature Format, section "Calculating the PE Image Hash"; field
//! offsets from the PE format's specification. Linux kernels have their sections in a row, so that hashing all but the
//! excluded ranges equals hashing section by section; an image for which that does not hold is refused.

use std::ops::Range;

use iofs_policy::{digest::Sha256Digest, uki::BankDigests};
use sha2::{Digest, Sha256};

use crate::pe::{CHECKSUM, COFF_SIZE, PE_OFFSET, number};

/// The entry of the certificate table among the data directories.
const CERTIFICATES: usize = 4;

/// Why an image has no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticodeError {
    /// It is no PE image.
    #[error("expected a PE image, found another file")]
    NotPe,
    /// It ends before what its headers say.
    #[error("PE image: {0}: expected it within the file, found the end")]
    Truncated(&'static str),
    /// Its headers describe something that firmware would hash differently.
    #[error("PE image: {field}: expected {expected}, found {found}")]
    Layout {
        /// The field.
        field: &'static str,
        /// What is supported.
        expected: &'static str,
        /// What is there.
        found: u64,
    },
}

/// Computes the SHA-256 digest.
///
/// # Errors
/// [`AuthenticodeError`].
pub fn digest(image: &[u8]) -> Result<Sha256Digest, AuthenticodeError> {
    let mut hasher = Sha256::new();
    hashed(image)?.into_iter().for_each(|part| hasher.update(part));
    Ok(Sha256Digest::from_bytes(hasher.finalize().into()))
}

/// Computes the digest in each bank, as firmware does for its register.
///
/// # Errors
/// [`AuthenticodeError`].
pub fn bank_digests(image: &[u8]) -> Result<BankDigests, AuthenticodeError> {
    Ok(BankDigests::of(&hashed(image)?))
}

/// The parts of an image that count, in their order.
fn hashed(image: &[u8]) -> Result<[&[u8]; 3], AuthenticodeError> {
    let [first, second, third] = Header::parse(image)?.hashed(image.len());
    let part = |range: Range<usize>| image.get(range).ok_or(AuthenticodeError::Truncated("header"));
    Ok([part(first)?, part(second)?, part(third)?])
}

/// What is left out.
struct Header {
    /// Where the checksum stands.
    checksum: usize,
    /// Where the certificate table's place is named.
    entry: usize,
    /// The certificate table.
    certificates: Range<usize>,
}

impl Header {
    fn parse(image: &[u8]) -> Result<Self, AuthenticodeError> {
        let pe = number(image, PE_OFFSET, 4).filter(|_| image.starts_with(b"MZ")).ok_or(AuthenticodeError::NotPe)?;
        let pe = usize::try_from(pe).map_err(|_| AuthenticodeError::NotPe)?;
        if image.get(pe..pe.saturating_add(4)) != Some(b"PE\0\0") {
            return Err(AuthenticodeError::NotPe);
        }
        let optional = pe + COFF_SIZE;
        let directories = match number(image, optional, 2) {
            Some(0x10b) => optional + 96,
            Some(0x20b) => optional + 112,
            Some(found) => {
                return Err(AuthenticodeError::Layout { field: "magic", expected: "0x10b or 0x20b", found });
            }
            None => return Err(AuthenticodeError::Truncated("optional header")),
        };
        let count = number(image, directories - 4, 4).ok_or(AuthenticodeError::Truncated("optional header"))?;
        if count <= CERTIFICATES as u64 {
            let field = "number of data directories";
            return Err(AuthenticodeError::Layout { field, expected: "at least 5", found: count });
        }
        let entry = directories + 8 * CERTIFICATES;
        let field = |at| number(image, at, 4).ok_or(AuthenticodeError::Truncated("data directories"));
        let certificates = table(field(entry)?, field(entry + 4)?, image.len())?;
        Ok(Self { checksum: optional + CHECKSUM, entry, certificates })
    }

    /// The ranges in their order. Behind the certificates there must be nothing.
    fn hashed(&self, length: usize) -> [Range<usize>; 3] {
        let end = if self.certificates.is_empty() { length } else { self.certificates.start };
        [0..self.checksum, self.checksum + 4..self.entry, self.entry + 8..end]
    }
}

fn table(start: u64, size: u64, length: usize) -> Result<Range<usize>, AuthenticodeError> {
    if size == 0 {
        return Ok(0..0);
    }
    if start.checked_add(size) != u64::try_from(length).ok() {
        let field = "end of the certificate table";
        return Err(AuthenticodeError::Layout { field, expected: "the file's end", found: start.saturating_add(size) });
    }
    // Below `length`, so that it fits.
    Ok(start as usize..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE32+ header with room for 16 data directories, then a body, then certificates.
    fn image(body: &[u8], certificates: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x40 + COFF_SIZE + 112 + 128];
        image[..2].copy_from_slice(b"MZ");
        image[PE_OFFSET] = 0x40;
        image[0x40..0x44].copy_from_slice(b"PE\0\0");
        image[0x58..0x5a].copy_from_slice(&[0x0b, 0x02]);
        image[0x58 + 108] = 16;
        image.extend(body);
        let start = u32::try_from(image.len()).unwrap();
        let entry = 0x58 + 112 + 8 * CERTIFICATES;
        if !certificates.is_empty() {
            image[entry..entry + 4].copy_from_slice(&start.to_le_bytes());
            image[entry + 4..entry + 8].copy_from_slice(&u32::try_from(certificates.len()).unwrap().to_le_bytes());
        }
        image.extend(certificates);
        image
    }

    #[test]
    fn signing_and_checksum_leave_the_digest_as_it_is() {
        let body = [7; 64];
        let unsigned = digest(&image(&body, b"")).unwrap();
        let mut signed = image(&body, b"certificates....");
        signed[0x58 + CHECKSUM] = 9;
        assert_eq!(digest(&signed).unwrap(), unsigned);
        assert_ne!(digest(&image(&[8; 64], b"")).unwrap(), unsigned);
    }

    #[test]
    fn what_firmware_would_hash_differently_is_refused() {
        assert_eq!(digest(b"MZ"), Err(AuthenticodeError::NotPe));
        assert_eq!(digest(&[0; 4096]), Err(AuthenticodeError::NotPe));
        let mut behind = image(&[7; 64], b"certificates....");
        behind.push(0);
        assert!(matches!(
            digest(&behind),
            Err(AuthenticodeError::Layout { field: "end of the certificate table", .. })
        ));
        let whole = image(&[7; 64], b"certificates....");
        for end in 0..whole.len() {
            assert!(digest(&whole[..end]).is_err(), "{end}");
        }
    }
}
