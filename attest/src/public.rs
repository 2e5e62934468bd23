//! Public areas of TPM objects (TPM 2.0 Library, Part 2, section 12.2): keys as a TPM describes them, and their names.

use iofs_policy::pcr::{PcrBank, PcrDigest};

use crate::fields::{FieldError, Fields};

/// The most bytes of a public area that are parsed: those of RSA-4096 have 600.
pub const MAX_SIZE: usize = 4096;

const ALG_RSA: u16 = 0x0001;
const ALG_ECC: u16 = 0x0023;
const ALG_NULL: u16 = 0x0010;
const ALG_AES: u16 = 0x0006;
const ALG_CFB: u16 = 0x0043;
const ALG_RSASSA: u16 = 0x0014;
const ALG_RSAES: u16 = 0x0015;
const ALG_RSAPSS: u16 = 0x0016;
const ALG_OAEP: u16 = 0x0017;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECDH: u16 = 0x0019;
const ALG_ECDAA: u16 = 0x001a;
const CURVE_P256: u16 = 0x0003;
const CURVE_P384: u16 = 0x0004;
/// What an exponent of zero stands for (Part 2, section 12.2.3.5).
const DEFAULT_EXPONENT: u32 = 65537;

/// What a TPM lets be done with an object (TPMA_OBJECT, Part 2, section 8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes(pub u32);

impl Attributes {
    /// It never leaves its TPM.
    pub const FIXED_TPM: Self = Self(1 << 1);
    /// It never leaves its parent.
    pub const FIXED_PARENT: Self = Self(1 << 4);
    /// The TPM made its secret.
    pub const SENSITIVE_DATA_ORIGIN: Self = Self(1 << 5);
    /// Its password or HMAC authorizes its use.
    pub const USER_WITH_AUTH: Self = Self(1 << 6);
    /// Its policy alone authorizes administration.
    pub const ADMIN_WITH_POLICY: Self = Self(1 << 7);
    /// It signs, or decrypts, only what the TPM itself made.
    pub const RESTRICTED: Self = Self(1 << 16);
    /// It decrypts.
    pub const DECRYPT: Self = Self(1 << 17);
    /// It signs.
    pub const SIGN: Self = Self(1 << 18);

    const NAMES: [(Self, &'static str); 8] = [
        (Self::FIXED_TPM, "fixedTPM"),
        (Self::FIXED_PARENT, "fixedParent"),
        (Self::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (Self::USER_WITH_AUTH, "userWithAuth"),
        (Self::ADMIN_WITH_POLICY, "adminWithPolicy"),
        (Self::RESTRICTED, "restricted"),
        (Self::DECRYPT, "decrypt"),
        (Self::SIGN, "sign"),
    ];

    /// Whether all of these are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The name of the first one of these that is not set.
    pub(crate) fn first_missing(self, wanted: &[Self]) -> Option<&'static str> {
        let missing = wanted.iter().find(|one| !self.has(**one))?;
        Self::NAMES.iter().find(|(one, _)| one == missing).map(|(_, name)| *name)
    }
}

/// A signature or encryption scheme with its hash algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// None is fixed (`TPM_ALG_NULL`).
    Null,
    /// RSASSA-PKCS1-v1_5 (`TPM_ALG_RSASSA`).
    RsaSsa(PcrBank),
    /// RSASSA-PSS (`TPM_ALG_RSAPSS`).
    RsaPss(PcrBank),
    /// ECDSA (`TPM_ALG_ECDSA`).
    EcDsa(PcrBank),
    /// One that this toolkit has no use for, by its number.
    Other(u16),
}

/// A curve (TPM_ECC_CURVE, Part 2, section 6.4).
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
    /// A point of a curve.
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

/// A parsed TPMT_PUBLIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    /// The bytes of the TPMT_PUBLIC, over which its name goes.
    area: Vec<u8>,
    /// The hash algorithm of its name, and of what is derived for it.
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
    #[error("TPM2B_PUBLIC: expected at most {MAX_SIZE} bytes, found {0}")]
    TooLarge(usize),
    /// A field is malformed, or of a kind that this toolkit has no use for.
    #[error("TPMT_PUBLIC: {0}")]
    Field(#[from] FieldError),
}

impl Public {
    /// Parses a TPM2B_PUBLIC: a size, then a TPMT_PUBLIC of exactly that many bytes.
    ///
    /// # Errors
    /// See [`PublicError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, PublicError> {
        if bytes.len() > MAX_SIZE {
            return Err(PublicError::TooLarge(bytes.len()));
        }
        let mut fields = Fields::new(bytes);
        let area = fields.sized("TPM2B_PUBLIC")?;
        fields.end("TPM2B_PUBLIC")?;
        Self::parse_area(area)
    }

    /// Parses a TPMT_PUBLIC.
    ///
    /// # Errors
    /// See [`PublicError`].
    pub fn parse_area(area: &[u8]) -> Result<Self, PublicError> {
        if area.len() > MAX_SIZE {
            return Err(PublicError::TooLarge(area.len()));
        }
        let mut fields = Fields::new(area);
        let kind = fields.u16("type")?;
        let name_algorithm = hash(&mut fields, "nameAlg")?;
        let attributes = Attributes(fields.u32("objectAttributes")?);
        let auth_policy = fields.sized("authPolicy")?.to_vec();
        let (symmetric, scheme, key) = match kind {
            ALG_RSA => rsa(&mut fields)?,
            ALG_ECC => ecc(&mut fields)?,
            other => return Err(value("type", "TPM_ALG_RSA or TPM_ALG_ECC", other).into()),
        };
        fields.end("TPMT_PUBLIC")?;
        Ok(Self { area: area.to_vec(), name_algorithm, attributes, auth_policy, symmetric, scheme, key })
    }

    /// The object's Name: the number of its hash algorithm, and the digest of its public area (Part 1, section 16).
    pub fn name(&self) -> Vec<u8> {
        let digest = PcrDigest::of(self.name_algorithm, &[&self.area]);
        [&self.name_algorithm.algorithm_id().to_be_bytes(), digest.as_bytes()].concat()
    }

    /// The TPM2B_PUBLIC.
    pub fn to_bytes(&self) -> Vec<u8> {
        crate::fields::sized(&self.area)
    }
}

fn value(field: &'static str, expected: &'static str, found: impl Into<u32>) -> FieldError {
    FieldError::Value { field, expected, found: found.into() }
}

fn hash(fields: &mut Fields<'_>, field: &'static str) -> Result<PcrBank, FieldError> {
    let found = fields.u16(field)?;
    PcrBank::from_algorithm_id(found).ok_or(value(field, "SHA-1, SHA-256, SHA-384 or SHA-512", found))
}

type Parameters = (Option<AesCfb>, Scheme, Key);

/// TPMS_RSA_PARMS (Part 2, section 12.2.3.5) and TPM2B_PUBLIC_KEY_RSA (section 11.2.4.5).
fn rsa(fields: &mut Fields<'_>) -> Result<Parameters, FieldError> {
    let symmetric = symmetric(fields)?;
    let scheme = scheme(fields)?;
    let bits = fields.u16("keyBits")?;
    let exponent = match fields.u32("exponent")? {
        0 => DEFAULT_EXPONENT,
        other => other,
    };
    let modulus = fields.sized("unique")?;
    let full = modulus.first().is_some_and(|first| first >> 7 == 1);
    if !full || modulus.len() * 8 != usize::from(bits) || exponent & 1 == 0 || exponent == 1 {
        return Err(value("unique", "an odd exponent, and a modulus as long as keyBits says", bits));
    }
    Ok((symmetric, scheme, Key::Rsa { modulus: modulus.to_vec(), exponent }))
}

/// TPMS_ECC_PARMS (Part 2, section 12.2.3.6) and TPMS_ECC_POINT (section 11.2.5.2).
fn ecc(fields: &mut Fields<'_>) -> Result<Parameters, FieldError> {
    let symmetric = symmetric(fields)?;
    let scheme = scheme(fields)?;
    let curve = match fields.u16("curveID")? {
        CURVE_P256 => Curve::P256,
        CURVE_P384 => Curve::P384,
        other => return Err(value("curveID", "NIST P-256 or P-384", other)),
    };
    let kdf = fields.u16("kdf")?;
    if kdf != ALG_NULL {
        return Err(value("kdf", "TPM_ALG_NULL", kdf));
    }
    let point = [vec![4], coordinate(fields, curve, "x")?, coordinate(fields, curve, "y")?].concat();
    Ok((symmetric, scheme, Key::Ecc { curve, point }))
}

/// TPMs differ in whether they send zeroes at the front.
fn coordinate(fields: &mut Fields<'_>, curve: Curve, field: &'static str) -> Result<Vec<u8>, FieldError> {
    let bytes = fields.sized(field)?;
    let missing = curve.size().checked_sub(bytes.len());
    let missing = missing.ok_or(FieldError::Value {
        field,
        expected: "at most the size of the curve's coordinates",
        found: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
    })?;
    Ok([vec![0; missing], bytes.to_vec()].concat())
}

/// TPMT_SYM_DEF_OBJECT (Part 2, section 11.1.7).
fn symmetric(fields: &mut Fields<'_>) -> Result<Option<AesCfb>, FieldError> {
    match fields.u16("symmetric")? {
        ALG_NULL => return Ok(None),
        ALG_AES => {}
        other => return Err(value("symmetric", "TPM_ALG_AES or TPM_ALG_NULL", other)),
    }
    let bits = fields.u16("symmetric.keyBits")?;
    let mode = fields.u16("symmetric.mode")?;
    match (bits, mode) {
        (128 | 192 | 256, ALG_CFB) => Ok(Some(AesCfb(bits))),
        (_, ALG_CFB) => Err(value("symmetric.keyBits", "128, 192 or 256", bits)),
        _ => Err(value("symmetric.mode", "TPM_ALG_CFB", mode)),
    }
}

/// TPMT_RSA_SCHEME or TPMT_ECC_SCHEME (Part 2, sections 11.2.4.2 and 11.2.5.6).
fn scheme(fields: &mut Fields<'_>) -> Result<Scheme, FieldError> {
    let number = fields.u16("scheme")?;
    Ok(match number {
        ALG_NULL => Scheme::Null,
        ALG_RSASSA => Scheme::RsaSsa(hash(fields, "scheme.hashAlg")?),
        ALG_RSAPSS => Scheme::RsaPss(hash(fields, "scheme.hashAlg")?),
        ALG_ECDSA => Scheme::EcDsa(hash(fields, "scheme.hashAlg")?),
        ALG_RSAES => Scheme::Other(number),
        ALG_OAEP | ALG_ECDH => {
            hash(fields, "scheme.hashAlg")?;
            Scheme::Other(number)
        }
        ALG_ECDAA => {
            hash(fields, "scheme.hashAlg")?;
            fields.u16("scheme.count")?;
            Scheme::Other(number)
        }
        other => return Err(value("scheme", "a scheme of RSA or ECC", other)),
    })
}

#[cfg(test)]
mod tests;
