//! Sealed objects as they are kept outside of the TPM (Part 1, section 23).

use crate::{
    name::{Kind, Public},
    reader::Reader,
    response::ResponseError,
};

/// The largest blob that is read, in bytes. A TPM's sealed data has at most 128 bytes, so that real ones have some hundred.
pub const MAX_BLOB: usize = 4096;

/// A sealed object, wrapped by the storage root key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    private: Vec<u8>,
    public: Public,
    /// TPM2B_ENCRYPTED_SECRET's content: of an object that was made outside of the TPM.
    seed: Option<Vec<u8>>,
}

impl Sealed {
    /// Reads a TPM2B_PRIVATE and the TPM2B_PUBLIC behind it; behind that a TPM2B_ENCRYPTED_SECRET where the object was made
    /// outside of the TPM, for its storage root key. That is how systemd keeps them.
    ///
    /// # Errors
    /// Whatever is not as Part 2 says, and objects of another kind.
    pub fn parse(blob: &[u8]) -> Result<Self, ResponseError> {
        if blob.len() > MAX_BLOB {
            return Err(ResponseError::TooLarge(blob.len()));
        }
        let mut reader = Reader::new(blob);
        let private = reader.sized("TPM2B_PRIVATE")?.to_vec();
        let public = Public::parse(reader.sized("TPM2B_PUBLIC")?)?;
        let seed = if reader.left() == 0 { None } else { Some(reader.sized("TPM2B_ENCRYPTED_SECRET")?.to_vec()) };
        reader.end("sealed object")?;
        if public.kind() != Kind::KeyedHash {
            let field = "type";
            return Err(ResponseError::Value { field, expected: "KEYEDHASH (8): sealed data", found: 0 });
        }
        Ok(Self { private, public, seed })
    }

    /// The same bytes again.
    pub fn to_blob(&self) -> Vec<u8> {
        let parts = [Some(self.private()), Some(self.public.as_bytes()), self.seed()];
        let sized = |part: &[u8]| {
            // Each was read behind a size of 16 bits.
            [&(part.len() as u16).to_be_bytes(), part].concat()
        };
        parts.into_iter().flatten().flat_map(sized).collect()
    }

    /// The public area.
    pub fn public(&self) -> &Public {
        &self.public
    }

    pub(crate) fn private(&self) -> &[u8] {
        &self.private
    }

    pub(crate) fn seed(&self) -> Option<&[u8]> {
        self.seed.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    fn area(kind: u8) -> Vec<u8> {
        sized(&[&[0, kind, 0, 0x0b, 0, 0, 0, 0x12, 0, 32][..], &[7; 32], &[0, 0x10, 0, 32], &[9; 32]].concat())
    }

    #[test]
    fn the_secret_of_an_import_may_follow() {
        let blob = [sized(b"private"), area(8)].concat();
        let sealed = Sealed::parse(&blob).unwrap();
        assert_eq!((sealed.private(), sealed.seed()), (&b"private"[..], None));
        let longer = [&blob[..], &sized(b"seed")].concat();
        assert_eq!(Sealed::parse(&longer).unwrap().seed(), Some(&b"seed"[..]));
        assert_eq!((sealed.to_blob(), Sealed::parse(&longer).unwrap().to_blob()), (blob, longer));
    }

    #[test]
    fn what_is_no_sealed_object_is_refused() {
        let blob = [sized(b"private"), area(8)].concat();
        for size in 0..blob.len() {
            assert!(Sealed::parse(&blob[..size]).is_err(), "{size} bytes");
        }
        let refusal = |bytes: &[u8]| Sealed::parse(bytes).unwrap_err().to_string();
        assert!(refusal(&[&blob[..], &[0]].concat()).starts_with("TPM2B_ENCRYPTED_SECRET: expected"));
        assert_eq!(refusal(&[&blob[..], &[0, 0, 7]].concat()), "sealed object: expected its end, found 1 more bytes");
        assert!(refusal(&[0; MAX_BLOB + 1]).ends_with("found 4097"));
        let rsa =
            [&[0, 1, 0, 0x0b, 0, 0, 0, 0x12, 0, 0, 0, 0x10, 0, 0x10, 8, 0, 0, 0, 0, 0][..], &sized(&[1; 256])].concat();
        assert!(refusal(&[sized(b"private"), sized(&rsa)].concat()).starts_with("type: expected KEYEDHASH"));
    }
}
