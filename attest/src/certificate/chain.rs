//! From an endorsement key's certificate to a root.

use x509_cert::der::DateTime;

use super::{Certificate, CertificateError};
use crate::public::Public;

/// The most issuers in a chain, the root included.
const MAX_ISSUERS: u8 = 6;

/// Verifies that a root vouches for an endorsement key at a time: the certificate is for that key and for an endorsement
/// key, and every certificate up to the root was signed by the next one, is valid, and may issue. Gives the root's subject.
///
/// Revocation is not looked at: there is no network here. Leave out the intermediates that their maker has revoked.
///
/// # Errors
/// See [`CertificateError`].
pub fn verify_chain(
    certificate: &Certificate,
    ek: &Public,
    intermediates: &[Certificate],
    roots: &[Certificate],
    at: DateTime,
) -> Result<String, CertificateError> {
    if certificate.key()? != ek.key {
        return Err(CertificateError::OtherKey);
    }
    certificate.check_common(at)?;
    certificate.check_endorsement()?;
    Search { intermediates, roots, at }.issuer(certificate, 0).map(Certificate::subject)
}

struct Search<'a> {
    intermediates: &'a [Certificate],
    roots: &'a [Certificate],
    at: DateTime,
}

impl<'a> Search<'a> {
    /// The root above a certificate. Of what fails on the ways to it, the first is told.
    fn issuer(&self, certificate: &Certificate, below: u8) -> Result<&'a Certificate, CertificateError> {
        let mut first_error = None;
        let mut note = |error| {
            first_error.get_or_insert(error);
        };
        if below < MAX_ISSUERS {
            for root in self.roots.iter().filter(|root| certificate.is_issued_by(root)) {
                match self.step(certificate, root, below) {
                    Ok(()) => return Ok(root),
                    Err(error) => note(error),
                }
            }
            for between in self.intermediates.iter().filter(|between| certificate.is_issued_by(between)) {
                match self.step(certificate, between, below).and_then(|()| self.issuer(between, below + 1)) {
                    Ok(root) => return Ok(root),
                    Err(error) => note(error),
                }
            }
        }
        let none = || CertificateError::NoIssuer { subject: certificate.subject(), issuer: certificate.issuer() };
        Err(first_error.unwrap_or_else(none))
    }

    fn step(&self, certificate: &Certificate, issuer: &Certificate, below: u8) -> Result<(), CertificateError> {
        certificate.check_signature(issuer)?;
        issuer.check_common(self.at)?;
        issuer.check_issuer(below)
    }
}
