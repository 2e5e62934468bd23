//! Certificates of endorsement keys (TCG EK Credential Profile for TPM 2.0, section 3; RFC 5280), and the chain from one to a
//! root that the verifier trusts.
//!
//! What libraries for TLS check does not fit here: an endorsement key's certificate has no host name and often no subject,
//! its critical subject alternative name describes a chip, its key decrypts, and it is valid until the year 9999.

use base64::{Engine, engine::general_purpose::STANDARD};
use x509_cert::{
    certificate::{CertificateInner, Raw},
    der::{DateTime, Decode, asn1::ObjectIdentifier},
    ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage},
    time::Time,
};

use crate::public::Key;

mod chain;
mod der;
mod key;

pub use chain::verify_chain;

/// The largest file of certificates that is parsed, in bytes.
pub const MAX_SIZE: usize = 1 << 20;
/// The most certificates in one file.
pub const MAX_COUNT: usize = 256;

/// `tcg-kp-EKCertificate`: what an endorsement key's certificate is for.
const EK_CERTIFICATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.1");

/// The extensions that may be critical: what they say is checked, or says nothing about whose key this is.
const UNDERSTOOD: [ObjectIdentifier; 8] = [
    // Key usage, extended key usage, basic constraints: checked.
    ObjectIdentifier::new_unwrap("2.5.29.15"),
    ObjectIdentifier::new_unwrap("2.5.29.37"),
    ObjectIdentifier::new_unwrap("2.5.29.19"),
    // Subject alternative name (maker, model and version of the TPM), subject directory attributes (its specification).
    ObjectIdentifier::new_unwrap("2.5.29.17"),
    ObjectIdentifier::new_unwrap("2.5.29.9"),
    // Key identifiers, and policies that nobody here asks for.
    ObjectIdentifier::new_unwrap("2.5.29.14"),
    ObjectIdentifier::new_unwrap("2.5.29.35"),
    ObjectIdentifier::new_unwrap("2.5.29.32"),
];

/// Why a certificate, or a chain of them, was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// A file is too large or holds too many.
    #[error("certificates: expected at most {MAX_SIZE} bytes and {MAX_COUNT} certificates, found more")]
    TooLarge,
    /// It is no certificate.
    #[error("certificate: {0}")]
    Malformed(String),
    /// The signature or the key is of a kind that is not checked here.
    #[error("certificate of {subject}: {what}: expected {expected}, found {found}")]
    Algorithm {
        /// Whose certificate.
        subject: String,
        /// Which part.
        what: &'static str,
        /// What is understood.
        expected: &'static str,
        /// The object identifier.
        found: String,
    },
    /// Its time has not come, or is over.
    #[error("certificate of {subject}: expected it to be valid at {at}, found that it is from {from} to {until}")]
    NotValid {
        /// Whose certificate.
        subject: String,
        /// The time that was asked about.
        at: String,
        /// From when.
        from: String,
        /// Until when.
        until: String,
    },
    /// Something in it demands to be understood.
    #[error("certificate of {subject}: expected no critical extension that is unknown here, found {found}")]
    Critical {
        /// Whose certificate.
        subject: String,
        /// The extension.
        found: String,
    },
    /// It may not issue certificates, or not at this distance.
    #[error("certificate of {subject}: expected one that may issue certificates here, found {found}")]
    NotAnIssuer {
        /// Whose certificate.
        subject: String,
        /// Which constraint says otherwise.
        found: &'static str,
    },
    /// It is for something else than an endorsement key.
    #[error("endorsement key's certificate: expected one for an endorsement key, found {0}")]
    Usage(&'static str),
    /// It is for another key.
    #[error("endorsement key's certificate: expected the endorsement key of the request in it, found another key")]
    OtherKey,
    /// Nobody who is trusted issued it.
    #[error(
        "certificate of {subject}: expected its issuer {issuer} among the given roots and intermediates, found none"
    )]
    NoIssuer {
        /// Whose certificate.
        subject: String,
        /// Who it says issued it.
        issuer: String,
    },
    /// It was not signed by whom it says.
    #[error("certificate of {subject}: expected a signature by {issuer}, found one that does not verify with its key")]
    Signature {
        /// Whose certificate.
        subject: String,
        /// Who it says issued it.
        issuer: String,
    },
}

/// A parsed certificate. Nothing in it is verified.
#[derive(Debug, Clone)]
pub struct Certificate {
    parsed: CertificateInner<Raw>,
    /// The bytes that its signature covers.
    signed: Vec<u8>,
}

impl Certificate {
    /// Parses DER, all of it.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`].
    pub fn from_der(bytes: &[u8]) -> Result<Self, CertificateError> {
        let malformed = |fault: &dyn std::fmt::Display| CertificateError::Malformed(fault.to_string());
        // Raw: serial numbers of real endorsement keys are not always what RFC 5280 demands, and mean nothing here.
        let parsed = CertificateInner::<Raw>::from_der(bytes).map_err(|error| malformed(&error))?;
        if parsed.signature_algorithm() != parsed.tbs_certificate().signature() {
            return Err(malformed(&"expected the same signature algorithm inside and outside"));
        }
        let signed = der::first_of_sequence(bytes).ok_or_else(|| malformed(&"expected a sequence"))?.to_vec();
        Ok(Self { parsed, signed })
    }

    /// Parses a file: DER of one certificate, or PEM of one or more.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn from_file(bytes: &[u8]) -> Result<Vec<Self>, CertificateError> {
        if bytes.len() > MAX_SIZE {
            return Err(CertificateError::TooLarge);
        }
        let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| text.contains(PEM_BEGIN)) else {
            return Ok(vec![Self::from_der(bytes)?]);
        };
        if text.matches(PEM_BEGIN).count() > MAX_COUNT {
            return Err(CertificateError::TooLarge);
        }
        text.split(PEM_BEGIN).skip(1).map(|block| Self::from_der(&pem(block)?)).collect()
    }

    /// Whose certificate it is; a chip often has no name.
    pub fn subject(&self) -> String {
        name(self.parsed.tbs_certificate().subject())
    }

    /// Who issued it, as it says.
    pub fn issuer(&self) -> String {
        name(self.parsed.tbs_certificate().issuer())
    }

    /// Its public key.
    ///
    /// # Errors
    /// [`CertificateError::Algorithm`] for other keys than RSA, and ECC on P-256 or P-384.
    pub fn key(&self) -> Result<Key, CertificateError> {
        key::public_key(&self.subject(), self.parsed.tbs_certificate().subject_public_key_info())
    }

    fn is_issued_by(&self, issuer: &Self) -> bool {
        self.parsed.tbs_certificate().issuer() == issuer.parsed.tbs_certificate().subject()
    }

    fn check_signature(&self, issuer: &Self) -> Result<(), CertificateError> {
        let algorithm = self.parsed.signature_algorithm().oid;
        let signature = self.parsed.signature().as_bytes().unwrap_or_default();
        match key::verify(&issuer.key()?, algorithm, &self.signed, signature) {
            None => Err(CertificateError::Algorithm {
                subject: self.subject(),
                what: "signatureAlgorithm",
                expected: "RSA (PKCS #1 v1.5) or ECDSA, with SHA-256, SHA-384 or SHA-512, that fits the issuer's key",
                found: algorithm.to_string(),
            }),
            Some(true) => Ok(()),
            Some(false) => Err(CertificateError::Signature { subject: self.subject(), issuer: issuer.subject() }),
        }
    }

    /// Time and critical extensions: what every certificate of a chain must keep.
    fn check_common(&self, at: DateTime) -> Result<(), CertificateError> {
        let validity = self.parsed.tbs_certificate().validity();
        let (from, until) = (validity.not_before.to_date_time(), validity.not_after.to_date_time());
        if at < from || at > until {
            let [at, from, until] = [at, from, until].map(|time| time.to_string());
            return Err(CertificateError::NotValid { subject: self.subject(), at, from, until });
        }
        let extensions = self.parsed.tbs_certificate().extensions().map(Vec::as_slice).unwrap_or_default();
        let unknown = extensions.iter().find(|one| one.critical && !UNDERSTOOD.contains(&one.extn_id));
        match unknown {
            Some(one) => Err(CertificateError::Critical { subject: self.subject(), found: one.extn_id.to_string() }),
            None => Ok(()),
        }
    }

    /// Whether it may issue a certificate with this many issuers between that one and the endorsement key's.
    fn check_issuer(&self, below: u8) -> Result<(), CertificateError> {
        let refuse = |found| Err(CertificateError::NotAnIssuer { subject: self.subject(), found });
        match self.extension::<BasicConstraints>()? {
            None => return refuse("no basic constraints"),
            Some(constraints) if !constraints.ca => return refuse("cA false in its basic constraints"),
            Some(constraints) if constraints.path_len_constraint.is_some_and(|most| most < below) => {
                return refuse("a shorter path in its basic constraints");
            }
            Some(_) => {}
        }
        match self.extension::<KeyUsage>()? {
            Some(usage) if !usage.key_cert_sign() => refuse("no keyCertSign in its key usage"),
            _ => Ok(()),
        }
    }

    /// What an endorsement key's certificate says that it is for (TCG EK Credential Profile, sections 3.2.15 and 3.2.16).
    fn check_endorsement(&self) -> Result<(), CertificateError> {
        if self.extension::<BasicConstraints>()?.is_some_and(|constraints| constraints.ca) {
            return Err(CertificateError::Usage("one of a certificate authority"));
        }
        if self.extension::<ExtendedKeyUsage>()?.is_some_and(|usage| !usage.0.contains(&EK_CERTIFICATE)) {
            return Err(CertificateError::Usage("another extended key usage than tcg-kp-EKCertificate"));
        }
        let decrypts = |usage: KeyUsage| usage.key_encipherment() || usage.key_agreement();
        if self.extension::<KeyUsage>()?.is_some_and(|usage| !decrypts(usage)) {
            return Err(CertificateError::Usage("a key usage without keyEncipherment and keyAgreement"));
        }
        Ok(())
    }

    fn extension<'a, T>(&'a self) -> Result<Option<T>, CertificateError>
    where
        T: Decode<'a> + x509_cert::der::oid::AssociatedOid,
        T::Error: std::fmt::Display,
    {
        let found = self.parsed.tbs_certificate().get_extension::<T>();
        let found = found.map_err(|error| CertificateError::Malformed(format!("{}: {error}", self.subject())))?;
        Ok(found.map(|(_, value)| value))
    }
}

const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const PEM_END: &str = "-----END CERTIFICATE-----";

/// The bytes of a block, from behind its first line.
fn pem(block: &str) -> Result<Vec<u8>, CertificateError> {
    let malformed = |fault: String| CertificateError::Malformed(format!("PEM: {fault}"));
    let (body, _) = block.split_once(PEM_END).ok_or_else(|| malformed(format!("expected {PEM_END}")))?;
    let body: String = body.split_whitespace().collect();
    STANDARD.decode(body).map_err(|error| malformed(error.to_string()))
}

fn name(name: &x509_cert::name::Name) -> String {
    let text = name.to_string();
    if text.is_empty() { "a TPM without a name".to_owned() } else { text }
}

/// A time as seconds since 1970, as certificates have it.
///
/// # Errors
/// [`CertificateError::Malformed`] after the year 9999.
pub fn time(seconds: u64) -> Result<DateTime, CertificateError> {
    let duration = std::time::Duration::from_secs(seconds);
    DateTime::from_unix_duration(duration).map_err(|error| CertificateError::Malformed(format!("time: {error}")))
}

/// A time as `2026-11-22T05:31:44Z`.
///
/// # Errors
/// [`CertificateError::Malformed`] for anything else.
pub fn parse_time(text: &str) -> Result<DateTime, CertificateError> {
    let time = text.parse::<Time>().map(|time| time.to_date_time());
    time.map_err(|error| CertificateError::Malformed(format!("time {text:?}: expected YYYY-MM-DDTHH:MM:SSZ: {error}")))
}

#[cfg(test)]
mod tests;
