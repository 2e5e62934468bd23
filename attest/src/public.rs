//! Public areas of TPM objects (TPM 2.0 Library, Part 2, section 12.2): keys as a TPM describes them, and their names.

use iofs_policy::pcr::PcrBank;

use crate::bytes::{FieldError, Reader, sized};

mod attributes;
mod name;
mod scheme;

pub use attributes::Attributes;
pub use name::Name;
pub use scheme::{Scheme, SignatureAlgorithm, SignatureScheme};

/// The most bytes of a public area that are parsed: those of RSA-4096 have 600.
pub const MAX_SIZE: usize = 4096;

/// Algorithms (section 6.3).
const ALG_RSA: u16 = 0x0001;
const ALG_AES: u16 = 0x0006;
const ALG_NULL: u16 = 0x0010;
const ALG_RSAES: u16 = 0x0015;
const ALG_OAEP: u16 = 0x0017;
const ALG_ECDH: u16 = 0x0019;
const ALG_ECDAA: u16 = 0x001a;
const ALG_ECC: u16 = 0x0023;
const ALG_CFB: u16 = 0x0043;
/// Curves (section 6.4).
const CURVE_P256: u16 = 0x0003;
const CURVE_P384: u16 = 0x0004;
/// TPM's modulus sizes that hold today.
const RSA_BITS: [u16; 3] = [2048, 3072, 4096];
/// What an exponent of 0 stands for (section 12.2.3.5).
const RSA_EXPONENT: u32 = 65537;

/// A curve (TPM_ECC_CURVE, section 6.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
}

impl Curve {
    /// The size of a coordinate, in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

/// The public key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// RSA.
    Rsa {
        /// The modulus, big-endian, without zeroes before it.
        modulus: Vec<u8>,
        /// The exponent.
        exponent: u32,
    },
    /// A point, which need not be on its curve.
    Ecc {
        /// The curve.
        curve: Curve,
        /// The point as in SEC 1, section 2.3.3: 4, x, y, where both have the size of the curve's coordinates.
        point: Vec<u8>,
    },
}

/// AES in CFB mode, by which a storage key protects what is below it: the size of the key in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AesCfb(pub u16);

impl AesCfb {
    /// AES' number (TPM_ALG_ID, section 6.3).
    pub(crate) const ID: u16 = ALG_AES;
}

/// A parsed TPMT_PUBLIC of a key. What the key is good for is another question: [`crate::key`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    /// The bytes of the TPMT_PUBLIC, over which its name goes.
    area: Vec<u8>,
    /// The hash algorithm of its name, and of what is derived for it. It is not SHA-1, which has collisions.
    pub name_algorithm: PcrBank,
    /// What it may do.
    pub attributes: Attributes,
    /// The digest of the policy that authorizes its use; may be empty.
    pub auth_policy: Vec<u8>,
    /// How it protects what is below it: storage keys have this.
    pub symmetric: Option<AesCfb>,
    /// What it signs or decrypts by.
    pub scheme: Scheme,
    /// The key.
    pub key: Key,
}

/// Why a public area was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublicError {
    /// It is larger than any real one.
    #[error("publicArea: expected at most {MAX_SIZE} bytes, found {0}")]
    TooLarge(usize),
    /// It ends early or late.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// An algorithm that is too weak, or of a kind that this toolkit has no use for.
    #[error("{field}: expected {expected}, found {found:04x}")]
    Value {
        /// The field's name in the specification.
        field: &'static str,
        /// What may be there.
        expected: &'static str,
        /// The number that is there.
        found: u16,
    },
    /// An RSA key that is too short, or of an odd size.
    #[error("keyBits: expected 2048, 3072 or 4096, found {0}")]
    KeyBits(u16),
    /// An exponent that nobody uses.
    #[error("exponent: expected 0 or 65537, found {0}")]
    Exponent(u32),
    /// The numbers are no public key.
    #[error("unique: {0}")]
    Unique(&'static str),
}

impl Public {
    /// Parses a TPM2B_PUBLIC: a size, then a TPMT_PUBLIC of exactly that many bytes.
    ///
    /// # Errors
    /// See [`PublicError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, PublicError> {
        Self::parse_area(area_of(bytes)?)
    }

    /// Parses a TPMT_PUBLIC.
    ///
    /// # Errors
    /// See [`PublicError`].
    pub fn parse_area(area: &[u8]) -> Result<Self, PublicError> {
        check_size(area)?;
        let mut reader = Reader::new(area);
        let kind = reader.u16_be("type")?;
        let name_algorithm = hash(&mut reader, "nameAlg")?;
        let attributes = Attributes(reader.u32_be("objectAttributes")?);
        let auth_policy = reader.sized("authPolicy")?.to_vec();
        let of_kind = match kind {
            ALG_RSA => rsa,
            ALG_ECC => ecc,
            found => return Err(PublicError::Value { field: "type", expected: "0001 (RSA) or 0023 (ECC)", found }),
        };
        // TPMS_RSA_PARMS and TPMS_ECC_PARMS (sections 12.2.3.5 and 12.2.3.6) begin with the same two.
        let symmetric = symmetric(&mut reader)?;
        let scheme = Scheme::read(&mut reader)?;
        let key = of_kind(&mut reader)?;
        reader.end("unique")?;
        Ok(Self { area: area.to_vec(), name_algorithm, attributes, auth_policy, symmetric, scheme, key })
    }

    /// The object's name.
    pub fn name(&self) -> Name {
        Name::by(self.name_algorithm, &self.area)
    }

    /// The TPM2B_PUBLIC.
    pub fn to_bytes(&self) -> Vec<u8> {
        sized(&self.area)
    }
}

fn check_size(bytes: &[u8]) -> Result<(), PublicError> {
    if bytes.len() > MAX_SIZE { Err(PublicError::TooLarge(bytes.len())) } else { Ok(()) }
}

/// The TPMT_PUBLIC in a TPM2B_PUBLIC.
fn area_of(bytes: &[u8]) -> Result<&[u8], PublicError> {
    check_size(bytes)?;
    let mut reader = Reader::new(bytes);
    let area = reader.sized("size")?;
    reader.end("publicArea")?;
    Ok(area)
}

fn hash(reader: &mut Reader<'_>, field: &'static str) -> Result<PcrBank, PublicError> {
    let found = reader.u16_be(field)?;
    strong_digest(found).ok_or(PublicError::Value { field, expected: "SHA-256, SHA-384 or SHA-512", found })
}

/// The digest algorithm of a number in a signature scheme or a name. SHA-1 is no answer: it has collisions.
pub(crate) fn strong_digest(id: u16) -> Option<PcrBank> {
    PcrBank::from_algorithm_id(id).filter(|digest| *digest != PcrBank::Sha1)
}

/// TPMT_SYM_DEF_OBJECT (section 11.1.7).
fn symmetric(reader: &mut Reader<'_>) -> Result<Option<AesCfb>, PublicError> {
    let value = |field, expected, found| Err(PublicError::Value { field, expected, found });
    match reader.u16_be("symmetric")? {
        ALG_NULL => return Ok(None),
        ALG_AES => {}
        found => return value("symmetric", "0006 (TPM_ALG_AES) or 0010 (TPM_ALG_NULL)", found),
    }
    let bits = reader.u16_be("symmetric.keyBits")?;
    match (bits, reader.u16_be("symmetric.mode")?) {
        (128 | 192 | 256, ALG_CFB) => Ok(Some(AesCfb(bits))),
        (_, ALG_CFB) => value("symmetric.keyBits", "0080, 00c0 or 0100", bits),
        (_, mode) => value("symmetric.mode", "0043 (TPM_ALG_CFB)", mode),
    }
}

/// What is left of TPMS_RSA_PARMS, and TPM2B_PUBLIC_KEY_RSA (section 11.2.4.5).
fn rsa(reader: &mut Reader<'_>) -> Result<Key, PublicError> {
    let bits = reader.u16_be("keyBits")?;
    if !RSA_BITS.contains(&bits) {
        return Err(PublicError::KeyBits(bits));
    }
    let exponent = reader.u32_be("exponent")?;
    if exponent != 0 && exponent != RSA_EXPONENT {
        return Err(PublicError::Exponent(exponent));
    }
    let modulus = reader.sized("unique")?;
    let full = modulus.first().is_some_and(|byte| byte & 0x80 != 0);
    let odd = modulus.last().is_some_and(|byte| byte & 1 == 1);
    if full && odd && modulus.len() == usize::from(bits / 8) {
        Ok(Key::Rsa { modulus: modulus.to_vec(), exponent: RSA_EXPONENT })
    } else {
        Err(PublicError::Unique("not an RSA modulus of keyBits"))
    }
}

/// What is left of TPMS_ECC_PARMS, and TPMS_ECC_POINT (section 11.2.5.2).
fn ecc(reader: &mut Reader<'_>) -> Result<Key, PublicError> {
    let value = |field, expected, found| Err(PublicError::Value { field, expected, found });
    let curve = match reader.u16_be("curveID")? {
        CURVE_P256 => Curve::P256,
        CURVE_P384 => Curve::P384,
        found => return value("curveID", "0003 (P-256) or 0004 (P-384)", found),
    };
    let kdf = reader.u16_be("kdf")?;
    if kdf != ALG_NULL {
        return value("kdf", "0010 (TPM_ALG_NULL)", kdf);
    }
    let point = [reader.sized("unique.x")?, reader.sized("unique.y")?].map(|number| padded(number, curve.size()));
    let [Some(x), Some(y)] = point else {
        return Err(PublicError::Unique("a coordinate has another size than the curve's"));
    };
    Ok(Key::Ecc { curve, point: [&[4][..], &x, &y].concat() })
}

/// A number with zeroes before it: some TPMs leave those out.
pub(crate) fn padded(number: &[u8], size: usize) -> Option<Vec<u8>> {
    let zeroes = size.checked_sub(number.len())?;
    Some([&vec![0; zeroes], number].concat())
}

#[cfg(test)]
mod tests;
