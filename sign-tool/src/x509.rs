//! X.509 certificates and their RSA keys: who signs for Secure Boot and for the kernel's own check of root hashes.
//!
//! ed25519 satisfies neither: firmware knows RSA alone for certain (UEFI, section 32.2.4), and the kernel's keyrings take
//! what is in it.

use std::{fmt, path::Path};

use iofs_policy::digest::Sha256Digest;
use rsa::{
    PrivateKey as RsaPrivateKey, PublicKey as RsaPublicKey,
    pkcs1::DecodeRsaPrivateKey,
    pkcs1v15::{Signature, SigningKey, VerifyingKey},
    pkcs8::DecodePrivateKey,
    sha2::Sha256,
    signature::{SignatureEncoding, Signer as _, Verifier as _},
    traits::PublicKeyParts,
};
use serde::Serialize;
use x509_cert::{
    Certificate,
    der::{Decode, DecodePem, Encode},
    spki::DecodePublicKey,
};
use zeroize::Zeroizing;

use crate::keys::read_secret;

/// The largest signature in bytes: RSA of [`MAX_BITS`].
pub const MAX_SIGNATURE: usize = MAX_BITS / 8;
/// Fewer bits are no security, and firmware refuses them.
const MIN_BITS: usize = 2048;
/// More bits are slow, and firmware refuses them.
const MAX_BITS: usize = 4096;

/// The fingerprint of the certificate in `keys-example`, whose private key everybody has.
const EXAMPLE: &str = "287a5e1626b7bd86ac0e328f3a25fd12cd46c58967e140bdf5b9c5accc7c760c";

/// Why a key or certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum X509Error {
    /// It could not be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{path}: expected {expected}, found {found}")]
    Format {
        /// The file.
        path: String,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The key is another one's.
    #[error("key {key} is not that of certificate {certificate}: their public halves differ")]
    Pair {
        /// The key's file.
        key: String,
        /// The certificate's file.
        certificate: String,
    },
    /// A signature by this key does not verify.
    #[error("the signature does not verify with the key of {0}")]
    Signature(SignerName),
    /// The system's random numbers, which hide the key while it signs.
    #[error("sign: {0}")]
    Sign(String),
}

impl From<X509Error> for crate::report::Failure {
    fn from(error: X509Error) -> Self {
        use crate::report::ExitStatus;
        let status = match &error {
            X509Error::Read { .. } | X509Error::Sign(_) => ExitStatus::System,
            X509Error::Format { .. } => ExitStatus::BadInput,
            X509Error::Pair { .. } => ExitStatus::Usage,
            X509Error::Signature(_) => ExitStatus::NotVerified,
        };
        let failure = Self::new(status, error.to_string());
        match error {
            X509Error::Format { .. } => failure.next(
                "make a pair with: openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj '/CN=NAME/' -keyout NAME.pem \
                 -out NAME.crt",
            ),
            X509Error::Signature(_) => failure.next("sign with RSASSA-PKCS1-v1_5 and SHA-256, with this certificate's key"),
            _ => failure,
        }
    }
}

/// Who a certificate says its owner is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SignerName {
    /// The subject, as RFC 4514 writes it.
    pub subject: String,
    /// SHA-256 of the certificate in DER.
    pub fingerprint: Sha256Digest,
}

impl fmt::Display for SignerName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} (certificate sha256:{})", self.subject, self.fingerprint)
    }
}

/// A certificate with an RSA key of 2048 to 4096 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningCertificate {
    certificate: Certificate,
    key: RsaPublicKey,
    name: SignerName,
}

impl SigningCertificate {
    /// Reads a file in PEM or DER. Of several in PEM the first counts: the owner's comes before those that vouch for it.
    ///
    /// # Errors
    /// [`X509Error`].
    pub fn read(path: &Path) -> Result<Self, X509Error> {
        let bytes = read(path)?;
        let wrong = |found: String| X509Error::Format {
            path: path.display().to_string(),
            expected: "an X.509 certificate (PEM or DER)".to_owned(),
            found,
        };
        let parsed = match std::str::from_utf8(&bytes) {
            Ok(text) if text.contains("-----BEGIN") => Certificate::from_pem(first_pem(text)),
            _ => Certificate::from_der(&bytes),
        };
        let certificate = parsed.map_err(|error| wrong(error.to_string()))?;
        Self::new(certificate).map_err(|found| X509Error::Format {
            path: path.display().to_string(),
            expected: format!("a certificate for RSA of {MIN_BITS} to {MAX_BITS} bits"),
            found,
        })
    }

    /// Takes a certificate whose key is one that firmware knows; else says what it is.
    ///
    /// # Errors
    /// What the key is instead.
    pub fn new(certificate: Certificate) -> Result<Self, String> {
        let tbs = certificate.tbs_certificate();
        let spki = tbs.subject_public_key_info().to_der().map_err(|error| error.to_string())?;
        let key = RsaPublicKey::from_public_key_der(&spki)
            .map_err(|_| format!("a key of algorithm {}", tbs.subject_public_key_info().algorithm.oid))?;
        let bits = key.size() * 8;
        if !(MIN_BITS..=MAX_BITS).contains(&bits) {
            return Err(format!("RSA of {bits} bits"));
        }
        let der = certificate.to_der().map_err(|error| error.to_string())?;
        let name = SignerName { subject: tbs.subject().to_string(), fingerprint: Sha256Digest::of(&der) };
        Ok(Self { certificate, key, name })
    }

    /// Whose it is.
    pub fn name(&self) -> &SignerName {
        &self.name
    }

    /// Whether it is the published example, whose private key everybody has.
    pub fn is_example(&self) -> bool {
        self.name.fingerprint.to_string() == EXAMPLE
    }

    /// The certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The certificate in DER.
    pub fn to_der(&self) -> Vec<u8> {
        self.certificate.to_der().expect("it was encoded before")
    }

    /// Checks a signature over a message: RSASSA-PKCS1-v1_5 with SHA-256.
    ///
    /// # Errors
    /// It does not verify.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), X509Error> {
        let verified = Signature::try_from(signature)
            .and_then(|signature| VerifyingKey::<Sha256>::new(self.key.clone()).verify(message, &signature));
        verified.map_err(|_| X509Error::Signature(self.name.clone()))
    }
}

/// A certificate and its private key, which is wiped from memory when it goes.
pub struct X509Signer {
    certificate: SigningCertificate,
    key: SigningKey<Sha256>,
}

impl fmt::Debug for X509Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "X509Signer({})", self.certificate.name)
    }
}

impl X509Signer {
    /// Reads an unencrypted key (PKCS #8 or PKCS #1, PEM or DER) and its certificate.
    ///
    /// # Errors
    /// [`X509Error`], also where the two are no pair.
    pub fn read(key: &Path, certificate: &Path) -> Result<Self, X509Error> {
        let of_certificate = SigningCertificate::read(certificate)?;
        let private = read_key(key)?;
        if private.to_public_key() != of_certificate.key {
            return Err(X509Error::Pair {
                key: key.display().to_string(),
                certificate: certificate.display().to_string(),
            });
        }
        Ok(Self { certificate: of_certificate, key: SigningKey::new(private) })
    }

    /// The certificate.
    pub fn certificate(&self) -> &SigningCertificate {
        &self.certificate
    }

    /// Signs a message: RSASSA-PKCS1-v1_5 with SHA-256, so that the same message gives the same signature.
    ///
    /// # Errors
    /// The system has no random numbers to blind the key with.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, X509Error> {
        let signature = self.key.try_sign(message).map_err(|error| X509Error::Sign(error.to_string()))?;
        Ok(signature.to_vec())
    }
}

/// The first certificate of a PEM file, without what stands before and behind it; all of it where there is none.
fn first_pem(text: &str) -> &str {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let Some(from_begin) = text.find(BEGIN).map(|begin| &text[begin..]) else { return text };
    from_begin.find(END).map_or(from_begin, |end| &from_begin[..end + END.len()])
}

fn read_key(path: &Path) -> Result<RsaPrivateKey, X509Error> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes).ok().filter(|text| text.contains("-----BEGIN"));
    let key = match text {
        Some(pem) => RsaPrivateKey::from_pkcs8_pem(pem).ok().or_else(|| RsaPrivateKey::from_pkcs1_pem(pem).ok()),
        None => RsaPrivateKey::from_pkcs8_der(&bytes).ok().or_else(|| RsaPrivateKey::from_pkcs1_der(&bytes).ok()),
    };
    let found = match text {
        Some(pem) if pem.contains("ENCRYPTED") => "an encrypted key: decrypt it to a file in memory",
        Some(pem) if pem.contains("PRIVATE KEY") => "another kind of private key",
        Some(_) => "other PEM",
        None => "other bytes",
    };
    key.ok_or_else(|| X509Error::Format {
        path: path.display().to_string(),
        expected: "an unencrypted RSA private key (PKCS #8 or PKCS #1, PEM or DER)".to_owned(),
        found: found.to_owned(),
    })
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, X509Error> {
    read_secret(path).map_err(|source| X509Error::Read { path: path.display().to_string(), source })
}
