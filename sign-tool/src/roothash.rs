//! `roothash.p7s`: the root hash signed for the kernel's own check, by a key that it has in a keyring.
//!
//! The kernel (`DM_VERITY_VERIFY_ROOTHASH_SIG`) takes PKCS #7 in DER, detached and without signed attributes, over the root
//! hash as lower-case hexadecimal text without a newline: what `openssl smime -sign -nocerts -noattr -binary -outform der`
//! writes, byte for byte.

use iofs_policy::verity::RootHash;

use crate::{
    pkcs7::{self, ID_DATA, Parts, Pkcs7Error, Signed},
    report::{ExitStatus, Failure},
    x509::{SigningCertificate, X509Error, X509Signer},
};

/// No signature of one signer is larger, in bytes.
pub const MAX_SIZE: usize = 16 * 1024;

/// Why a file is no signature of a root hash.
#[derive(Debug, thiserror::Error)]
pub enum RootHashSignatureError {
    /// It is malformed.
    #[error(transparent)]
    Pkcs7(#[from] Pkcs7Error),
    /// It is by somebody else, or over something else.
    #[error(transparent)]
    X509(#[from] X509Error),
    /// It is a PKCS #7 signature that the kernel does not take.
    #[error("PKCS #7: expected {expected}, found {found}")]
    Form {
        /// What the kernel takes.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
}

impl From<RootHashSignatureError> for Failure {
    fn from(error: RootHashSignatureError) -> Self {
        match error {
            RootHashSignatureError::X509(error) => error.into(),
            other => Self::new(ExitStatus::BadInput, format!("root hash signature: {other}")),
        }
    }
}

/// What is signed.
pub fn to_sign(root_hash: &RootHash) -> Vec<u8> {
    root_hash.to_string().into_bytes()
}

/// Signs it. The same input gives the same bytes.
///
/// # Errors
/// The system has no random numbers to blind the key with.
pub fn sign(root_hash: &RootHash, signer: &X509Signer) -> Result<Vec<u8>, RootHashSignatureError> {
    let signature = signer.sign(&to_sign(root_hash))?;
    assemble(root_hash, &signature, signer.certificate())
}

/// Puts a signature that was made elsewhere over [`to_sign`] into its file.
///
/// # Errors
/// It does not verify with the certificate's key.
pub fn assemble(
    root_hash: &RootHash,
    signature: &[u8],
    signer: &SigningCertificate,
) -> Result<Vec<u8>, RootHashSignatureError> {
    signer.verify(&to_sign(root_hash), signature)?;
    let parts = Parts { content_type: ID_DATA, content: None, attributes: None, signer, with_certificate: false };
    Ok(pkcs7::write(parts, signature)?)
}

/// Checks a file against a root hash and the certificate that must have signed it.
///
/// # Errors
/// [`RootHashSignatureError`].
pub fn verify(file: &[u8], root_hash: &RootHash, signer: &SigningCertificate) -> Result<(), RootHashSignatureError> {
    let signed = Signed::parse(file)?;
    let form = |expected, found| Err(RootHashSignatureError::Form { expected, found });
    if signed.content().1.is_some() {
        return form("a detached signature", "one with its content");
    }
    if signed.attributes().is_some() {
        return form("no signed attributes", "some");
    }
    if !signed.is_by(signer.certificate()) {
        return Err(X509Error::Signature(signer.name().clone()).into());
    }
    Ok(signer.verify(&to_sign(root_hash), signed.signature())?)
}
