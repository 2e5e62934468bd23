//! Signatures for Secure Boot: what firmware checks before it starts a PE image.
//!
//! Microsoft, Windows Authenticode Portable Executable Signature Format; UEFI, section 32.5.3.3. The signature is PKCS #7
//! over signed attributes that name the digest of an `SpcIndirectDataContent`, which names the image's digest. No time is
//! signed: the same input gives the same bytes, and firmware has no clock that it could trust.

use cms::signed_data::SignedAttributes;
use iofs_policy::digest::Sha256Digest;
use x509_cert::{
    attr::{Attribute, AttributeValue},
    der::{
        Any, Decode, Encode, Sequence,
        asn1::{ObjectIdentifier, OctetString, SetOfVec},
    },
    spki::AlgorithmIdentifierOwned,
};

use crate::{
    authenticode::{self, AuthenticodeError},
    pe::{Headers, PeError},
    pkcs7::{self, Parts, Pkcs7Error, Signed},
    report::{ExitStatus, Failure},
    x509::{SigningCertificate, X509Error, X509Signer},
};

/// SPC_INDIRECT_DATA_OBJID and SPC_PE_IMAGE_DATAOBJ.
const INDIRECT_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.4");
const PE_IMAGE_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.15");
/// RFC 5652, sections 11.1 and 11.2.
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
/// `SpcPeImageData`: no flags, and as file the text that the specification demands, `<<<Obsolete>>>` in UTF-16.
const PE_IMAGE: &[u8] = b"\x30\x25\x03\x01\x00\xa0\x20\xa2\x1e\x80\x1c\
    \0<\0<\0<\0O\0b\0s\0o\0l\0e\0t\0e\0>\0>\0>";
/// `WIN_CERTIFICATE`: length, revision 2.0, type PKCS #7. Entries begin on multiples of eight.
const CERTIFICATE_HEADER: usize = 8;
const REVISION_AND_TYPE: [u8; 4] = [0x00, 0x02, 0x02, 0x00];
const ALIGNMENT: usize = 8;

/// Why an image cannot be signed, or its signature not be read.
#[derive(Debug, thiserror::Error)]
pub enum SecureBootError {
    /// It is no PE image.
    #[error(transparent)]
    Pe(#[from] PeError),
    /// Firmware could not hash it.
    #[error(transparent)]
    Authenticode(#[from] AuthenticodeError),
    /// The signature is malformed.
    #[error(transparent)]
    Pkcs7(#[from] Pkcs7Error),
    /// The key, the certificate, or what they signed.
    #[error(transparent)]
    X509(#[from] X509Error),
    /// The certificate table is malformed.
    #[error("certificate table: {field}: expected {expected}, found {found}")]
    Table {
        /// The field.
        field: &'static str,
        /// What it may hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The image is not the one that was signed.
    #[error("the image: expected the one that was signed, Authenticode sha256:{signed}, found sha256:{found}")]
    Digest {
        /// The digest in the signature.
        signed: Sha256Digest,
        /// The image's.
        found: Sha256Digest,
    },
}

impl From<SecureBootError> for Failure {
    fn from(error: SecureBootError) -> Self {
        match error {
            SecureBootError::X509(error) => error.into(),
            SecureBootError::Digest { .. } => Self::new(ExitStatus::NotVerified, error.to_string())
                .next("the image was changed after it was signed: take the original"),
            other => Self::new(ExitStatus::BadInput, other.to_string()),
        }
    }
}

impl From<der::Error> for SecureBootError {
    fn from(error: der::Error) -> Self {
        Pkcs7Error::from(error).into()
    }
}

/// The content that is signed, without its outermost tag.
#[derive(Debug, Clone, PartialEq, Eq, Sequence)]
struct IndirectData {
    data: AttributeAndValue,
    message_digest: DigestInfo,
}

#[derive(Debug, Clone, PartialEq, Eq, Sequence)]
struct AttributeAndValue {
    kind: ObjectIdentifier,
    value: Any,
}

#[derive(Debug, Clone, PartialEq, Eq, Sequence)]
struct DigestInfo {
    algorithm: AlgorithmIdentifierOwned,
    digest: OctetString,
}

impl IndirectData {
    fn of(digest: Sha256Digest) -> Result<Self, der::Error> {
        Ok(Self {
            data: AttributeAndValue { kind: PE_IMAGE_DATA, value: Any::from_der(PE_IMAGE)? },
            message_digest: DigestInfo {
                algorithm: pkcs7::sha256(),
                digest: OctetString::new(digest.as_bytes().as_slice())?,
            },
        })
    }
}

/// An image that is to be signed, with what its signature has to cover.
struct Unsigned {
    image: Vec<u8>,
    indirect: Any,
    attributes: SignedAttributes,
}

impl Unsigned {
    /// Fills an image up to where its signature begins. One that has a signature is refused: two would need each other's
    /// order.
    fn new(image: &[u8]) -> Result<Self, SecureBootError> {
        if !Headers::parse(image)?.certificates.is_empty() {
            return Err(table("signatures", "none yet", "one"));
        }
        let mut image = image.to_vec();
        image.resize(image.len().next_multiple_of(ALIGNMENT), 0);
        let indirect = Any::encode_from(&IndirectData::of(authenticode::digest(&image)?)?)?;
        let attributes = attributes(&indirect)?;
        Ok(Self { image, indirect, attributes })
    }

    fn to_sign(&self) -> Result<Vec<u8>, SecureBootError> {
        Ok(self.attributes.to_der()?)
    }

    fn attach(self, signature: &[u8], signer: &SigningCertificate) -> Result<Vec<u8>, SecureBootError> {
        signer.verify(&self.to_sign()?, signature)?;
        let Self { mut image, indirect, attributes } = self;
        let (content_type, content) = (INDIRECT_DATA, Some(indirect));
        let parts = Parts { content_type, content, attributes: Some(attributes), signer, with_certificate: true };
        let pkcs7 = pkcs7::write(parts, signature)?;
        let headers = Headers::parse(&image)?;
        let start = u32::try_from(image.len()).map_err(|_| too_large())?;
        let length = u32::try_from(CERTIFICATE_HEADER + pkcs7.len()).map_err(|_| too_large())?;
        image.extend(length.to_le_bytes());
        image.extend(REVISION_AND_TYPE);
        image.extend(pkcs7);
        image.resize(image.len().next_multiple_of(ALIGNMENT), 0);
        headers.set_certificates(&mut image, start);
        Ok(image)
    }
}

/// The signed attributes for a content: its type and its digest, which leaves out the outermost tag and length.
fn attributes(content: &Any) -> Result<SignedAttributes, SecureBootError> {
    let digest = Sha256Digest::of(content.value());
    let attribute = |oid, value: AttributeValue| -> Result<Attribute, der::Error> {
        Ok(Attribute { oid, values: SetOfVec::try_from(vec![value])? })
    };
    Ok(SetOfVec::try_from(vec![
        attribute(CONTENT_TYPE, Any::encode_from(&INDIRECT_DATA)?)?,
        attribute(MESSAGE_DIGEST, Any::encode_from(&OctetString::new(digest.as_bytes().as_slice())?)?)?,
    ])?)
}

/// The bytes that a signature over an image covers: its signed attributes, in DER. They depend on the image's digest
/// alone. Sign them by RSASSA-PKCS1-v1_5 with SHA-256.
///
/// # Errors
/// [`SecureBootError`].
pub fn to_sign(image: &[u8]) -> Result<Vec<u8>, SecureBootError> {
    Unsigned::new(image)?.to_sign()
}

/// Signs an image that has no signature yet. The same input gives the same bytes.
///
/// # Errors
/// [`SecureBootError`].
pub fn sign(image: &[u8], signer: &X509Signer) -> Result<Vec<u8>, SecureBootError> {
    let unsigned = Unsigned::new(image)?;
    let signature = signer.sign(&unsigned.to_sign()?)?;
    unsigned.attach(&signature, signer.certificate())
}

/// Puts a signature into the image that was made elsewhere over [`to_sign`].
///
/// # Errors
/// It does not verify with the certificate's key, or the image is signed already.
pub fn attach(image: &[u8], signature: &[u8], signer: &SigningCertificate) -> Result<Vec<u8>, SecureBootError> {
    Unsigned::new(image)?.attach(signature, signer)
}

fn too_large() -> SecureBootError {
    table("size of the image", "less than 4 GiB", "more")
}

fn table(field: &'static str, expected: impl Into<String>, found: impl Into<String>) -> SecureBootError {
    SecureBootError::Table { field, expected: expected.into(), found: found.into() }
}

/// Checks all signatures of an image, each against the certificate inside it. Whether anybody trusts these is another
/// question.
///
/// # Errors
/// One is malformed, or does not verify.
pub fn signers(image: &[u8]) -> Result<Vec<SigningCertificate>, SecureBootError> {
    let headers = Headers::parse(image)?;
    if headers.certificates.is_empty() {
        return Ok(Vec::new());
    }
    let digest = authenticode::digest(image)?;
    let mut rest = &image[headers.certificates];
    let mut signers = Vec::new();
    while !rest.is_empty() {
        let (pkcs7, behind) = entry(rest)?;
        signers.push(check(pkcs7, digest)?);
        rest = behind;
    }
    Ok(signers)
}

/// The PKCS #7 of the first entry of a certificate table, and what lies behind it.
fn entry(table_bytes: &[u8]) -> Result<(&[u8], &[u8]), SecureBootError> {
    let length = table_bytes.first_chunk::<4>().map_or(0, |length| u32::from_le_bytes(*length) as usize);
    if !(CERTIFICATE_HEADER..=table_bytes.len()).contains(&length) {
        let expected = format!("{CERTIFICATE_HEADER} to {}", table_bytes.len());
        return Err(table("dwLength", expected, length.to_string()));
    }
    if table_bytes[4..8] != REVISION_AND_TYPE {
        let found = table_bytes[4..8].escape_ascii().to_string();
        return Err(table("wRevision and wCertificateType", "2.0 and PKCS #7", found));
    }
    let end = length.next_multiple_of(ALIGNMENT).min(table_bytes.len());
    Ok((&table_bytes[CERTIFICATE_HEADER..length], &table_bytes[end..]))
}

/// Zeros behind the DER are padding that some signers count in.
fn check(pkcs7: &[u8], digest: Sha256Digest) -> Result<SigningCertificate, SecureBootError> {
    let signed = Signed::parse(without_padding(pkcs7))?;
    let (content_type, content) = signed.content();
    let content = content.filter(|_| content_type == INDIRECT_DATA);
    let content = content.ok_or_else(|| table("content", "SpcIndirectDataContent", content_type.to_string()))?;
    let indirect: IndirectData = content.decode_as()?;
    let found = indirect.message_digest.digest.as_bytes();
    let named = <[u8; 32]>::try_from(found).map(Sha256Digest::from_bytes);
    let named = named.map_err(|_| table("digest", "32 bytes", found.len().to_string()))?;
    let certificate = signed.certificate().ok_or_else(|| table("certificates", "the signer's", "none of it"))?;
    let signer = SigningCertificate::new(certificate.clone())
        .map_err(|found| table("the signer's certificate", "RSA of 2048 to 4096 bits", found))?;
    let attributes = signed.attributes().ok_or_else(|| table("signed attributes", "some", "none"))?;
    let expected = self::attributes(content)?;
    if !expected.iter().all(|one| attributes.iter().any(|other| other == one)) {
        return Err(table("signed attributes", "the content's type and digest", "others"));
    }
    signer.verify(&attributes.to_der()?, signed.signature())?;
    if named != digest {
        return Err(SecureBootError::Digest { signed: named, found: digest });
    }
    Ok(signer)
}

/// A DER value knows its length.
fn without_padding(bytes: &[u8]) -> &[u8] {
    use x509_cert::der::{Header, Reader, SliceReader};
    let length = SliceReader::new(bytes).ok().and_then(|mut reader| {
        let header = Header::decode(&mut reader).ok()?;
        let offset = usize::try_from(reader.position()).ok()?;
        offset.checked_add(usize::try_from(header.length()).ok()?)
    });
    length.and_then(|length| bytes.get(..length)).unwrap_or(bytes)
}
