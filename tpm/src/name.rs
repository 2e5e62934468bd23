//! Public areas of objects and NV indices, and their Names (Part 1, section 16).

use std::{fmt, ops::Range};

use crate::{
    crypto::{Point, SIZE, sha256},
    reader::Reader,
    response::ResponseError,
};

const SHA256: u16 = 0x000b;
const NULL: u16 = 0x0010;

/// A Name by SHA-256: the algorithm's number, and the digest of a public area.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name([u8; 2 + SIZE]);

impl Name {
    pub(crate) fn of(public: &[u8]) -> Self {
        let mut name = [0; 2 + SIZE];
        name[..2].copy_from_slice(&SHA256.to_be_bytes());
        name[2..].copy_from_slice(&sha256(&[public]));
        Self(name)
    }

    /// The Name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// In hexadecimal, as tpm2-tools show it.
impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// What an object is (`TPMI_ALG_PUBLIC`, Part 2, section 12.2.2), and what of it is needed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Rsa,
    /// Sealed data or an HMAC key.
    KeyedHash,
    /// On P-256: its point.
    EccP256(Point),
    /// On another curve.
    Ecc,
}

/// The public area of an object (TPMT_PUBLIC, Part 2, section 12.2.4), whose Name is by SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    bytes: Vec<u8>,
    attributes: u32,
    policy: Range<usize>,
    kind: Kind,
    /// Where the `unique` field starts.
    unique: usize,
}

impl Public {
    /// Reads a TPMT_PUBLIC.
    ///
    /// # Errors
    /// Whatever is not as Part 2 says, other types than RSA, ECC and KEYEDHASH, and Names by other digests than SHA-256.
    pub fn parse(bytes: &[u8]) -> Result<Self, ResponseError> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u16("type")?;
        sha256_only(&mut reader)?;
        let attributes = reader.u32("objectAttributes")?;
        let size = reader.sized("authPolicy")?.len();
        let end = bytes.len() - reader.left();
        let policy = end - size..end;
        let (kind, unique) = parameters(kind, &mut reader)?;
        reader.end("TPMT_PUBLIC")?;
        Ok(Self { bytes: bytes.to_vec(), attributes, policy, kind, unique: bytes.len() - unique })
    }

    /// Reads a TPM2B_PUBLIC: a TPMT_PUBLIC behind its size.
    ///
    /// # Errors
    /// Those of [`Public::parse`]
    pub fn parse_sized(bytes: &[u8]) -> Result<Self, ResponseError> {
        let mut reader = Reader::new(bytes);
        let public = reader.sized("TPM2B_PUBLIC")?;
        reader.end("TPM2B_PUBLIC")?;
        Self::parse(public)
    }

    /// The TPMT_PUBLIC.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `TPMA_OBJECT` (Part 2, section 8.3).
    pub fn attributes(&self) -> u32 {
        self.attributes
    }

    /// The digest of the policy that authorizes the object's use: empty where none does.
    pub fn policy(&self) -> &[u8] {
        &self.bytes[self.policy.clone()]
    }

    /// The object's Name.
    pub fn name(&self) -> Name {
        Name::of(&self.bytes)
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// All of the area in front of `unique`: the template without what a TPM fills in.
    pub(crate) fn template(&self) -> &[u8] {
        &self.bytes[..self.unique]
    }
}

fn sha256_only(reader: &mut Reader<'_>) -> Result<(), ResponseError> {
    match reader.u16("nameAlg")? {
        SHA256 => Ok(()),
        found => Err(value("nameAlg", "TPM_ALG_SHA256 (11)", found)),
    }
}

fn value(field: &'static str, expected: &'static str, found: u16) -> ResponseError {
    ResponseError::Value { field, expected, found: found.into() }
}

/// TPMU_PUBLIC_PARMS and TPMU_PUBLIC_ID (Part 2, sections 12.2.3.7 and 12.2.3.2), and the size of the latter.
fn parameters(kind: u16, reader: &mut Reader<'_>) -> Result<(Kind, usize), ResponseError> {
    match kind {
        0x0001 => rsa(reader),
        0x0008 => keyed_hash(reader),
        0x0023 => ecc(reader),
        found => Err(value("type", "RSA (1), KEYEDHASH (8) or ECC (35)", found)),
    }
}

fn rsa(reader: &mut Reader<'_>) -> Result<(Kind, usize), ResponseError> {
    symmetric(reader)?;
    scheme(reader)?;
    reader.bytes("keyBits and exponent", 2 + 4)?;
    let size = reader.left();
    reader.sized("unique")?;
    Ok((Kind::Rsa, size))
}

/// TPMT_KEYEDHASH_SCHEME (Part 2, section 11.1.23): HMAC has a digest, XOR a digest and a KDF.
fn keyed_hash(reader: &mut Reader<'_>) -> Result<(Kind, usize), ResponseError> {
    match reader.u16("scheme")? {
        NULL => {}
        0x0005 => drop(reader.u16("hashAlg")?),
        0x000a => drop(reader.u32("hashAlg and kdf")?),
        found => return Err(value("scheme", "HMAC (5), XOR (10) or NULL (16)", found)),
    }
    let size = reader.left();
    reader.sized("unique")?;
    Ok((Kind::KeyedHash, size))
}

fn ecc(reader: &mut Reader<'_>) -> Result<(Kind, usize), ResponseError> {
    const NIST_P256: u16 = 0x0003;
    symmetric(reader)?;
    scheme(reader)?;
    let curve = reader.u16("curveID")?;
    if reader.u16("kdf")? != NULL {
        reader.u16("kdf's hashAlg")?;
    }
    let size = reader.left();
    let (x, y) = (reader.sized("unique.x")?, reader.sized("unique.y")?);
    let kind = match (curve, coordinate(x), coordinate(y)) {
        (NIST_P256, Some(x), Some(y)) => Kind::EccP256(Point { x, y }),
        _ => Kind::Ecc,
    };
    Ok((kind, size))
}

/// TPMs of before revision 1.38 leave out leading zeros (Part 1, annex C.8).
fn coordinate(bytes: &[u8]) -> Option<[u8; SIZE]> {
    let mut coordinate = [0; SIZE];
    let start = SIZE.checked_sub(bytes.len())?;
    coordinate[start..].copy_from_slice(bytes);
    Some(coordinate)
}

/// TPMT_SYM_DEF_OBJECT (Part 2, section 11.1.7).
fn symmetric(reader: &mut Reader<'_>) -> Result<(), ResponseError> {
    if reader.u16("symmetric")? != NULL {
        reader.u32("keyBits and mode")?;
    }
    Ok(())
}

/// TPMT_RSA_SCHEME and TPMT_ECC_SCHEME (Part 2, sections 11.2.4.2 and 11.2.5.6): RSAES has no digest, ECDAA a counter too.
fn scheme(reader: &mut Reader<'_>) -> Result<(), ResponseError> {
    match reader.u16("scheme")? {
        NULL | 0x0015 => {}
        0x001a => drop(reader.u32("hashAlg and count")?),
        _ => drop(reader.u16("hashAlg")?),
    }
    Ok(())
}

/// The public area of an NV index (TPMS_NV_PUBLIC, Part 2, section 13.6), whose Name is by SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NvPublic {
    index: u32,
    attributes: u32,
    size: u16,
    name: Name,
}

impl NvPublic {
    /// Reads a TPMS_NV_PUBLIC.
    ///
    /// # Errors
    /// Whatever is not as Part 2 says, and Names by other digests than SHA-256.
    pub fn parse(bytes: &[u8]) -> Result<Self, ResponseError> {
        let mut reader = Reader::new(bytes);
        let index = reader.u32("nvIndex")?;
        sha256_only(&mut reader)?;
        let attributes = reader.u32("attributes")?;
        reader.sized("authPolicy")?;
        let size = reader.u16("dataSize")?;
        reader.end("TPMS_NV_PUBLIC")?;
        Ok(Self { index, attributes, size, name: Name::of(bytes) })
    }

    /// The index: a handle.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// `TPMA_NV` (Part 2, section 13.4).
    pub fn attributes(&self) -> u32 {
        self.attributes
    }

    /// How many bytes it holds.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The index's Name. It changes with its attributes: once, when it is written first.
    pub fn name(&self) -> Name {
        self.name
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The template of a storage root key on P-256, with this point.
    fn srk(x: &[u8], y: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0x23, 0, 0x0b, 0, 3, 4, 0x72, 0, 0, 0, 6, 0, 128, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10];
        for part in [x, y] {
            bytes.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
            bytes.extend(part);
        }
        bytes
    }

    #[test]
    fn a_storage_key_is_read_with_its_point() {
        let bytes = srk(&[1; 32], &[2; 31]);
        let public = Public::parse(&bytes).unwrap();
        let mut y = [2; 32];
        y[0] = 0;
        assert_eq!(public.kind(), Kind::EccP256(Point { x: [1; 32], y }));
        assert_eq!((public.attributes(), public.template()), (0x0003_0472, &bytes[..22]));
        assert_eq!(public.name().as_bytes()[2..], sha256(&[&bytes]));
        assert!(public.name().to_string().starts_with("000b"));
    }

    #[test]
    fn a_sealed_object_is_read() {
        let bytes = [&[0, 8, 0, 0x0b, 0, 0, 0, 0x12, 0, 32][..], &[7; 32], &[0, 0x10, 0, 32], &[9; 32]].concat();
        assert_eq!(Public::parse(&bytes).unwrap().kind(), Kind::KeyedHash);
        let sized = [&[0, u8::try_from(bytes.len()).unwrap()][..], &bytes].concat();
        assert_eq!(Public::parse_sized(&sized), Public::parse(&bytes));
        assert_eq!(Public::parse(&bytes).unwrap().policy(), [7; 32]);
    }

    #[test]
    fn an_area_with_anything_wrong_is_an_error_that_names_it() {
        let whole = srk(&[1; 32], &[2; 32]);
        let with = |at: usize, value: u8| {
            let mut bytes = whole.clone();
            bytes[at] = value;
            Public::parse(&bytes).unwrap_err().to_string()
        };
        assert!(with(1, 0x25).starts_with("type: expected RSA"));
        assert!(with(3, 0x0c).starts_with("nameAlg: expected TPM_ALG_SHA256"));
        assert!(with(23, 33).starts_with("unique.y: expected"));
        let longer = [&whole[..], &[0]].concat();
        assert!(Public::parse(&longer).unwrap_err().to_string().starts_with("TPMT_PUBLIC: expected its end"));
        for size in 0..whole.len() {
            assert!(Public::parse(&whole[..size]).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_at_all_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..96)) {
            let _ = (Public::parse(&bytes), Public::parse_sized(&bytes), NvPublic::parse(&bytes));
            let whole = srk(&[1; 32], &[2; 32]);
            let mixed = [&whole[..whole.len().min(bytes.len())], &bytes].concat();
            if let Ok(public) = Public::parse(&mixed) {
                prop_assert_eq!(public.as_bytes(), &mixed[..]);
            }
        }
    }
}
