//! PKCS #7 signatures (CMS, RFC 5652) as firmware and kernel want them: one signer, RSA with SHA-256, DER, and nothing that
//! changes from one run to the next.

use cms::{
    cert::{CertificateChoices, IssuerAndSerialNumber},
    content_info::{CmsVersion, ContentInfo},
    signed_data::{
        CertificateSet, DigestAlgorithmIdentifiers, EncapsulatedContentInfo, SignedAttributes, SignedData,
        SignerIdentifier, SignerInfo, SignerInfos,
    },
};
use x509_cert::{
    Certificate,
    der::{
        Any, AnyRef, Decode, Encode,
        asn1::{Null, ObjectIdentifier, OctetString},
    },
    spki::AlgorithmIdentifierOwned,
};

use crate::x509::SigningCertificate;

/// id-data, id-signedData: RFC 5652, sections 4 and 5.1.
pub const ID_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const ID_SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
/// id-sha256: RFC 5754, section 2.2.
const ID_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
/// rsaEncryption: RFC 8017, appendix C. What OpenSSL writes for these signatures.
const ID_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// sha256WithRSAEncryption, which means the same.
const ID_SHA256_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");

/// Why bytes are no such signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Pkcs7Error {
    /// They are not the ASN.1 of one.
    #[error("PKCS #7: {0}")]
    Der(String),
    /// A field holds something else.
    #[error("PKCS #7: {field}: expected {expected}, found {found}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it may hold.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
}

impl From<der::Error> for Pkcs7Error {
    fn from(error: der::Error) -> Self {
        Self::Der(error.to_string())
    }
}

/// The identifier of SHA-256, with the NULL that everybody writes.
pub(crate) fn sha256() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: ID_SHA256, parameters: Some(Any::from(AnyRef::from(Null))) }
}

/// Whether it is one of these, without parameters that would mean more.
fn is_plain(algorithm: &AlgorithmIdentifierOwned, known: &[ObjectIdentifier]) -> bool {
    known.contains(&algorithm.oid)
        && algorithm.parameters.as_ref().is_none_or(|one| *one == Any::from(AnyRef::from(Null)))
}

/// What is signed besides the signature.
pub(crate) struct Parts<'a> {
    /// The type of the content.
    pub(crate) content_type: ObjectIdentifier,
    /// The content, unless it travels apart.
    pub(crate) content: Option<Any>,
    /// What the signature covers in place of the content.
    pub(crate) attributes: Option<SignedAttributes>,
    /// Whose signature it is.
    pub(crate) signer: &'a SigningCertificate,
    /// Whether the certificate travels along.
    pub(crate) with_certificate: bool,
}

/// Writes it.
pub(crate) fn write(parts: Parts<'_>, signature: &[u8]) -> Result<Vec<u8>, Pkcs7Error> {
    let certificate = parts.signer.certificate();
    let tbs = certificate.tbs_certificate();
    let info = SignerInfo {
        version: CmsVersion::V1,
        sid: SignerIdentifier::IssuerAndSerialNumber(IssuerAndSerialNumber {
            issuer: tbs.issuer().clone(),
            serial_number: tbs.serial_number().clone(),
        }),
        digest_alg: sha256(),
        signed_attrs: parts.attributes,
        signature_algorithm: AlgorithmIdentifierOwned { oid: ID_RSA, parameters: sha256().parameters },
        signature: OctetString::new(signature)?,
        unsigned_attrs: None,
    };
    let certificates = match parts.with_certificate {
        true => Some(CertificateSet::try_from(vec![CertificateChoices::Certificate(certificate.clone())])?),
        false => None,
    };
    let signed = SignedData {
        version: CmsVersion::V1,
        digest_algorithms: DigestAlgorithmIdentifiers::try_from(vec![sha256()])?,
        encap_content_info: EncapsulatedContentInfo { econtent_type: parts.content_type, econtent: parts.content },
        certificates,
        crls: None,
        signer_infos: SignerInfos::try_from(vec![info])?,
    };
    let content = Any::encode_from(&signed)?;
    Ok(ContentInfo { content_type: ID_SIGNED_DATA, content }.to_der()?)
}

/// A signature that was read.
pub(crate) struct Signed {
    data: SignedData,
    info: SignerInfo,
}

impl Signed {
    /// Reads one with a single signer and SHA-256.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, Pkcs7Error> {
        let content = ContentInfo::from_der(der)?;
        if content.content_type != ID_SIGNED_DATA {
            let found = content.content_type.to_string();
            return Err(Pkcs7Error::Field { field: "content type", expected: "signed data", found });
        }
        let data: SignedData = content.content.decode_as()?;
        let [info] = data.signer_infos.0.as_slice() else {
            let found = data.signer_infos.0.len().to_string();
            return Err(Pkcs7Error::Field { field: "signers", expected: "one", found });
        };
        let mut digests = data.digest_algorithms.as_slice().iter().chain(std::slice::from_ref(&info.digest_alg));
        if let Some(other) = digests.find(|algorithm| !is_plain(algorithm, &[ID_SHA256])) {
            let found = other.oid.to_string();
            return Err(Pkcs7Error::Field { field: "digest algorithm", expected: "SHA-256", found });
        }
        if !is_plain(&info.signature_algorithm, &[ID_RSA, ID_SHA256_RSA]) {
            let found = info.signature_algorithm.oid.to_string();
            return Err(Pkcs7Error::Field { field: "signature algorithm", expected: "RSA with PKCS #1 v1.5", found });
        }
        if (data.version, info.version) != (CmsVersion::V1, CmsVersion::V1) {
            let found = format!("{:?} and {:?}", data.version, info.version);
            return Err(Pkcs7Error::Field { field: "versions", expected: "1", found });
        }
        let info = info.clone();
        Ok(Self { data, info })
    }

    /// The type of the content, and the content where it is inside.
    pub(crate) fn content(&self) -> (ObjectIdentifier, Option<&Any>) {
        (self.data.encap_content_info.econtent_type, self.data.encap_content_info.econtent.as_ref())
    }

    /// What the signature covers in place of the content.
    pub(crate) fn attributes(&self) -> Option<&SignedAttributes> {
        self.info.signed_attrs.as_ref()
    }

    /// The signature itself.
    pub(crate) fn signature(&self) -> &[u8] {
        self.info.signature.as_bytes()
    }

    /// Whether the signer is this one, by issuer and serial number.
    pub(crate) fn is_by(&self, certificate: &Certificate) -> bool {
        let tbs = certificate.tbs_certificate();
        match &self.info.sid {
            SignerIdentifier::IssuerAndSerialNumber(id) => {
                (&id.issuer, &id.serial_number) == (tbs.issuer(), tbs.serial_number())
            }
            SignerIdentifier::SubjectKeyIdentifier(_) => SignerIdentifier::from(certificate) == self.info.sid,
        }
    }

    /// The signer's certificate, where it travels along.
    pub(crate) fn certificate(&self) -> Option<&Certificate> {
        let all = self.data.certificates.iter().flat_map(|set| set.0.iter());
        all.filter_map(|choice| match choice {
            CertificateChoices::Certificate(certificate) => Some(certificate),
            CertificateChoices::Other(_) => None,
        })
        .find(|certificate| self.is_by(certificate))
    }
}
