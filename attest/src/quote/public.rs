//! TPMT_PUBLIC (section 12.2.4) of attestation keys.

use std::fmt;

use iofs_policy::{
    hex,
    pcr::{PcrBank, PcrDigest},
};
use rsa::BoxedUint;

use super::strong_digest;
use crate::bytes::{FieldError, Reader};

/// Algorithms (section 6.3).
const ALG_RSA: u16 = 0x0001;
const ALG_NULL: u16 = 0x0010;
pub(super) const ALG_RSASSA: u16 = 0x0014;
pub(super) const ALG_RSAPSS: u16 = 0x0016;
pub(super) const ALG_ECDSA: u16 = 0x0018;
const ALG_ECC: u16 = 0x0023;
/// Curves (section 6.4).
const CURVE_P256: u16 = 0x0003;
const CURVE_P384: u16 = 0x0004;

/// Object attributes (section 8.3): a key that never leaves its TPM, that the TPM made itself, and that signs nothing but
/// what the TPM made itself. Without all of these, a signature says nothing about registers.
const REQUIRED: [(u32, &str); 5] = [
    (1 << 1, "fixedTPM"),
    (1 << 4, "fixedParent"),
    (1 << 5, "sensitiveDataOrigin"),
    (1 << 16, "restricted"),
    (1 << 18, "sign"),
];
/// What an attestation key must not be able to do.
const FORBIDDEN: [(u32, &str); 2] = [(1 << 17, "decrypt"), (1 << 19, "x509sign")];

/// TPM's modulus sizes that hold today.
const RSA_BITS: [u16; 3] = [2048, 3072, 4096];
/// What an exponent of 0 stands for (section 12.2.3.5).
const RSA_EXPONENT: u32 = 65537;

/// The name of an object: the algorithm and the digest of its public area (Part 1, section 16).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Vec<u8>);

impl Name {
    /// Computes the name of a public area (TPMT_PUBLIC), of any kind of object.
    ///
    /// # Errors
    /// [`KeyError`] where its `nameAlg` is not SHA-256, SHA-384 or SHA-512. Nothing else is looked at.
    pub fn of_public_area(area: &[u8]) -> Result<Self, KeyError> {
        let mut reader = Reader::new(area);
        reader.u16_be("type")?;
        let id = reader.u16_be("nameAlg")?;
        let digest = strong_digest(id).ok_or(KeyError::Digest { field: "nameAlg", found: id })?;
        let digest = PcrDigest::of(digest, &[area]);
        Ok(Self([&id.to_be_bytes(), digest.as_bytes()].concat()))
    }

    /// Computes the name of a TPM2B_PUBLIC.
    ///
    /// # Errors
    /// As [`Name::of_public_area`]; and where bytes are missing or left over.
    pub fn of_tpm2b(bytes: &[u8]) -> Result<Self, KeyError> {
        Self::of_public_area(public_area(bytes)?)
    }

    /// `nameAlg` and the digest, as in a TPM2B_NAME without its size.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Hexadecimal, as tpm2-tools print it.
impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Name({self})")
    }
}

/// A signature algorithm that a key may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemeAlgorithm {
    /// RSASSA-PKCS1-v1_5 (RFC 8017, section 8.2).
    RsaSsa,
    /// RSASSA-PSS (RFC 8017, section 8.1).
    RsaPss,
    /// ECDSA (FIPS 186-5, section 6).
    EcDsa,
}

impl SchemeAlgorithm {
    pub(super) fn from_id(id: u16) -> Option<Self> {
        match id {
            ALG_RSASSA => Some(Self::RsaSsa),
            ALG_RSAPSS => Some(Self::RsaPss),
            ALG_ECDSA => Some(Self::EcDsa),
            _ => None,
        }
    }
}

/// How a key signs. An attestation key knows one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    /// The algorithm.
    pub algorithm: SchemeAlgorithm,
    /// What hashes the message. It hashes the registers' values, too.
    pub digest: PcrBank,
}

/// `ALGORITHM with DIGEST`
impl fmt::Display for Scheme {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.algorithm {
            SchemeAlgorithm::RsaSsa => "rsassa",
            SchemeAlgorithm::RsaPss => "rsapss",
            SchemeAlgorithm::EcDsa => "ecdsa",
        };
        write!(formatter, "{name} with {}", self.digest)
    }
}

#[derive(Debug, Clone)]
pub(super) enum VerifyingKey {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    Rsa(Box<rsa::RsaPublicKey>),
}

/// The public half of a key that signs only what its TPM made itself.
#[derive(Debug, Clone)]
pub struct AttestationKey {
    name: Name,
    scheme: Scheme,
    pub(super) key: VerifyingKey,
}

/// Why a public area is not that of an attestation key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It ends early or late.
    #[error("attestation key: {0}")]
    Field(#[from] FieldError),
    /// Neither RSA nor ECC.
    #[error("attestation key: type: expected 0001 (RSA) or 0023 (ECC), found {0:04x}")]
    Type(u16),
    /// A digest algorithm that is unknown, or too weak.
    #[error("attestation key: {field}: expected SHA-256, SHA-384 or SHA-512, found {found:04x}")]
    Digest {
        /// The field.
        field: &'static str,
        /// The algorithm's number.
        found: u16,
    },
    /// It lacks an attribute.
    #[error("attestation key: objectAttributes: expected {expected} to be set, found {found:08x}")]
    AttributeMissing {
        /// The attribute.
        expected: &'static str,
        /// All attributes.
        found: u32,
    },
    /// It has an attribute too many.
    #[error("attestation key: objectAttributes: expected {expected} to be clear, found {found:08x}")]
    AttributeSet {
        /// The attribute.
        expected: &'static str,
        /// All attributes.
        found: u32,
    },
    /// A field that must be empty is not.
    #[error("attestation key: {field}: expected 0010 (TPM_ALG_NULL), found {found:04x}")]
    NotNull {
        /// The field.
        field: &'static str,
        /// The algorithm's number.
        found: u16,
    },
    /// A scheme that no attestation key of its type has.
    #[error("attestation key: scheme: expected {expected}, found {found:04x}")]
    Scheme {
        /// The schemes of the type.
        expected: &'static str,
        /// The scheme's number.
        found: u16,
    },
    /// An RSA key that is too short, or of an odd size.
    #[error("attestation key: keyBits: expected 2048, 3072 or 4096, found {0}")]
    KeyBits(u16),
    /// An exponent that nobody uses.
    #[error("attestation key: exponent: expected 0 or 65537, found {0}")]
    Exponent(u32),
    /// Another curve.
    #[error("attestation key: curveID: expected 0003 (P-256) or 0004 (P-384), found {0:04x}")]
    Curve(u16),
    /// The numbers are no public key.
    #[error("attestation key: unique: {0}")]
    Unique(&'static str),
}

impl AttestationKey {
    /// Reads a TPM2B_PUBLIC, all bytes of it.
    ///
    /// # Errors
    /// [`KeyError`], by the first field that is not as an attestation key has it.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        let area = public_area(bytes)?;
        let name = Name::of_public_area(area)?;
        let mut reader = Reader::new(area);
        let kind = reader.u16_be("type")?;
        reader.u16_be("nameAlg")?;
        check_attributes(reader.u32_be("objectAttributes")?)?;
        reader.sized("authPolicy")?;
        null(&mut reader, "symmetric")?;
        let (scheme, key) = match kind {
            ALG_RSA => rsa_key(&mut reader)?,
            ALG_ECC => ecc_key(&mut reader)?,
            other => return Err(KeyError::Type(other)),
        };
        reader.end("unique")?;
        Ok(Self { name, scheme, key })
    }

    /// The key's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// How it signs.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }
}

fn public_area(bytes: &[u8]) -> Result<&[u8], KeyError> {
    let mut reader = Reader::new(bytes);
    let area = reader.sized("size")?;
    reader.end("publicArea")?;
    Ok(area)
}

fn check_attributes(found: u32) -> Result<(), KeyError> {
    if let Some((_, expected)) = REQUIRED.into_iter().find(|(bit, _)| found & bit == 0) {
        return Err(KeyError::AttributeMissing { expected, found });
    }
    if let Some((_, expected)) = FORBIDDEN.into_iter().find(|(bit, _)| found & bit != 0) {
        return Err(KeyError::AttributeSet { expected, found });
    }
    Ok(())
}

fn null(reader: &mut Reader<'_>, field: &'static str) -> Result<(), KeyError> {
    match reader.u16_be(field)? {
        ALG_NULL => Ok(()),
        found => Err(KeyError::NotNull { field, found }),
    }
}

/// TPMT_RSA_SCHEME and TPMT_ECC_SCHEME (sections 11.2.4.2 and 11.2.5.6), of the schemes that hash and nothing else.
fn scheme(reader: &mut Reader<'_>, allowed: &[SchemeAlgorithm], expected: &'static str) -> Result<Scheme, KeyError> {
    let found = reader.u16_be("scheme")?;
    let algorithm = SchemeAlgorithm::from_id(found).filter(|algorithm| allowed.contains(algorithm));
    let algorithm = algorithm.ok_or(KeyError::Scheme { expected, found })?;
    let id = reader.u16_be("scheme.hashAlg")?;
    let digest = strong_digest(id).ok_or(KeyError::Digest { field: "scheme.hashAlg", found: id })?;
    Ok(Scheme { algorithm, digest })
}

fn rsa_key(reader: &mut Reader<'_>) -> Result<(Scheme, VerifyingKey), KeyError> {
    let allowed = [SchemeAlgorithm::RsaSsa, SchemeAlgorithm::RsaPss];
    let scheme = scheme(reader, &allowed, "0014 (RSASSA) or 0016 (RSAPSS)")?;
    let bits = reader.u16_be("keyBits")?;
    if !RSA_BITS.contains(&bits) {
        return Err(KeyError::KeyBits(bits));
    }
    let exponent = reader.u32_be("exponent")?;
    if exponent != 0 && exponent != RSA_EXPONENT {
        return Err(KeyError::Exponent(exponent));
    }
    let modulus = reader.sized("unique")?;
    let whole = modulus.len() == usize::from(bits / 8);
    // Odd, and with its top bit set: the arithmetic below must not meet any other modulus.
    if !whole || modulus.first().is_none_or(|byte| byte & 0x80 == 0) || modulus.last().is_none_or(|byte| byte & 1 == 0)
    {
        return Err(KeyError::Unique("not an RSA modulus of keyBits"));
    }
    let key = rsa::RsaPublicKey::new(BoxedUint::from_be_slice_vartime(modulus), RSA_EXPONENT.into());
    let key = key.map_err(|_| KeyError::Unique("not an RSA modulus"))?;
    Ok((scheme, VerifyingKey::Rsa(Box::new(key))))
}

fn ecc_key(reader: &mut Reader<'_>) -> Result<(Scheme, VerifyingKey), KeyError> {
    let scheme = scheme(reader, &[SchemeAlgorithm::EcDsa], "0018 (ECDSA)")?;
    let curve = reader.u16_be("curveID")?;
    null(reader, "kdf")?;
    let (x, y) = (reader.sized("unique.x")?, reader.sized("unique.y")?);
    let key = match curve {
        CURVE_P256 => p256::ecdsa::VerifyingKey::from_sec1_bytes(&sec1(x, y, 32)?).map(VerifyingKey::P256),
        CURVE_P384 => p384::ecdsa::VerifyingKey::from_sec1_bytes(&sec1(x, y, 48)?).map(VerifyingKey::P384),
        other => return Err(KeyError::Curve(other)),
    };
    Ok((scheme, key.map_err(|_| KeyError::Unique("not a point on the curve"))?))
}

/// An uncompressed point (SEC 1, section 2.3.3).
fn sec1(x: &[u8], y: &[u8], size: usize) -> Result<Vec<u8>, KeyError> {
    let [x, y] = [x, y].map(|coordinate| padded(coordinate, size));
    let (Some(x), Some(y)) = (x, y) else {
        return Err(KeyError::Unique("a coordinate has another size than the curve's"));
    };
    Ok([&[4][..], &x, &y].concat())
}

/// A number with zeros before it: some TPMs leave those out.
pub(super) fn padded(number: &[u8], size: usize) -> Option<Vec<u8>> {
    let zeros = size.checked_sub(number.len())?;
    Some([&vec![0; zeros], number].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
    }

    /// Type, nameAlg, attributes of an attestation key and no policy; then the parameters and the key itself.
    fn area(kind: u16, rest: &[&[u8]]) -> Vec<u8> {
        let start = [&kind.to_be_bytes()[..], b"\x00\x0b\x00\x05\x00\x72\x00\x00"].concat();
        sized(&[&start[..], &rest.concat()].concat())
    }

    fn rsa(parameters: &[u8], modulus: &[u8]) -> Result<AttestationKey, KeyError> {
        AttestationKey::parse(&area(ALG_RSA, &[parameters, &sized(modulus)]))
    }

    fn ecc(parameters: &[u8], x: &[u8], y: &[u8]) -> Result<AttestationKey, KeyError> {
        AttestationKey::parse(&area(ALG_ECC, &[parameters, &sized(x), &sized(y)]))
    }

    /// The base point of P-256 (FIPS 186-5, SP 800-186 section 3.2.1.3).
    const X: &str = "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296";
    const Y: &str = "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";

    const RSASSA: &[u8] = b"\x00\x10\x00\x14\x00\x0b\x08\x00\0\0\0\0";
    const ECDSA: &[u8] = b"\x00\x10\x00\x18\x00\x0b\x00\x03\x00\x10";

    #[test]
    fn sound_keys_are_read() {
        let (x, y) = (hex::decode(X).unwrap(), hex::decode(Y).unwrap());
        assert_eq!(ecc(ECDSA, &x, &y).unwrap().scheme().to_string(), "ecdsa with sha256");
        assert_eq!(rsa(RSASSA, &[0xff; 256]).unwrap().scheme().to_string(), "rsassa with sha256");
    }

    #[test]
    fn keys_that_must_not_attest_are_named() {
        let (x, y) = (hex::decode(X).unwrap(), hex::decode(Y).unwrap());
        let odd = [0xff; 256];
        let even = [&odd[..255], &[0xfe]].concat();
        let small = [&[0x7f], &odd[..255]].concat();
        for (parsed, expected) in [
            (rsa(b"\x00\x06", &odd), "symmetric: expected 0010 (TPM_ALG_NULL), found 0006"),
            (rsa(b"\x00\x10\x00\x10", &odd), "scheme: expected 0014 (RSASSA) or 0016 (RSAPSS), found 0010"),
            (rsa(b"\x00\x10\x00\x18\x00\x0b", &odd), "scheme: expected 0014 (RSASSA) or 0016 (RSAPSS), found 0018"),
            (
                rsa(b"\x00\x10\x00\x14\x00\x04", &odd),
                "scheme.hashAlg: expected SHA-256, SHA-384 or SHA-512, found 0004",
            ),
            (rsa(b"\x00\x10\x00\x14\x00\x0b\x04\x00", &odd), "keyBits: expected 2048, 3072 or 4096, found 1024"),
            (rsa(b"\x00\x10\x00\x14\x00\x0b\x08\x00\0\0\0\x03", &odd), "exponent: expected 0 or 65537, found 3"),
            (rsa(RSASSA, &odd[..255]), "unique: not an RSA modulus of keyBits"),
            (rsa(RSASSA, &even), "unique: not an RSA modulus of keyBits"),
            (rsa(RSASSA, &small), "unique: not an RSA modulus of keyBits"),
            (ecc(b"\x00\x10\x00\x1a\x00\x0b", &x, &y), "scheme: expected 0018 (ECDSA), found 001a"),
            (
                ecc(b"\x00\x10\x00\x18\x00\x0b\x00\x01\x00\x10", &x, &y),
                "curveID: expected 0003 (P-256) or 0004 (P-384), found 0001",
            ),
            (ecc(b"\x00\x10\x00\x18\x00\x0b\x00\x03\x00\x20", &x, &y), "kdf: expected 0010 (TPM_ALG_NULL), found 0020"),
            (ecc(ECDSA, &y, &x), "unique: not a point on the curve"),
            (ecc(ECDSA, &[0; 33], &y), "unique: a coordinate has another size than the curve's"),
            (ecc(ECDSA, &[], &[]), "unique: not a point on the curve"),
            (AttestationKey::parse(&area(8, &[b"\x00\x10"])), "type: expected 0001 (RSA) or 0023 (ECC), found 0008"),
            (AttestationKey::parse(b"\0\x01\0\0"), "publicArea: expected nothing behind it, found 1 bytes"),
        ] {
            assert_eq!(parsed.unwrap_err().to_string(), format!("attestation key: {expected}"));
        }
    }

    #[test]
    fn names_by_sha1_are_no_names() {
        let error = Name::of_public_area(b"\x00\x01\x00\x04more").unwrap_err().to_string();
        assert_eq!(error, "attestation key: nameAlg: expected SHA-256, SHA-384 or SHA-512, found 0004");
    }
}
