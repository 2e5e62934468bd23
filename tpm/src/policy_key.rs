//! The public key of a signed policy, as OpenSSL writes it, and as a TPM takes it.

use base64::{Engine, engine::general_purpose::STANDARD};
use iofs_policy::digest::Sha256Digest;

use crate::{
    crypto::{SIZE, sha256},
    der::Der,
    name::Name,
};

/// The largest PEM text that is read, in bytes. That of RSA with 4096 bits has 800.
pub const MAX_PEM: usize = 4096;

/// AlgorithmIdentifier of `rsaEncryption` with its NULL (RFC 8017, appendix A.1).
const RSA: &[u8] = &[0x30, 0x0d, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
/// AlgorithmIdentifier of `id-ecPublicKey` on `secp256r1` (RFC 5480, section 2.1.1).
const P256: &[u8] =
    &[0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
/// The exponent that a TPM may write as 0 (Part 2, section 12.2.3.5).
const DEFAULT_EXPONENT: u32 = 0x1_0001;

/// Why a key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyKeyError {
    /// It is larger than any real one.
    #[error("public key: expected at most {MAX_PEM} bytes, found {0}")]
    TooLarge(usize),
    /// There is no PEM block of a public key.
    #[error("public key: expected PEM from -----BEGIN PUBLIC KEY----- to -----END PUBLIC KEY-----, found none")]
    Pem,
    /// The PEM block holds no base64.
    #[error("public key: expected base64 between its PEM lines, found something else")]
    Base64,
    /// It is no SubjectPublicKeyInfo of a key that TPMs take.
    #[error("public key: expected RSA of 2048, 3072 or 4096 bits or ECDSA on P-256 (SubjectPublicKeyInfo in DER)")]
    Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Rsa { modulus: Vec<u8>, exponent: u32 },
    EccP256 { x: [u8; SIZE], y: [u8; SIZE] },
}

/// A public key that signs policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyKey {
    key: Key,
    fingerprint: Sha256Digest,
}

impl PolicyKey {
    /// Reads PEM: text in front of and behind the key is passed over.
    ///
    /// # Errors
    /// See [`PolicyKeyError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, PolicyKeyError> {
        if pem.len() > MAX_PEM {
            return Err(PolicyKeyError::TooLarge(pem.len()));
        }
        let text = std::str::from_utf8(pem).map_err(|_| PolicyKeyError::Pem)?;
        let (_, body) = text.split_once("-----BEGIN PUBLIC KEY-----").ok_or(PolicyKeyError::Pem)?;
        let (body, _) = body.split_once("-----END PUBLIC KEY-----").ok_or(PolicyKeyError::Pem)?;
        let body: String = body.split_ascii_whitespace().collect();
        Self::from_der(&STANDARD.decode(body).map_err(|_| PolicyKeyError::Base64)?)
    }

    /// Reads a SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7).
    ///
    /// # Errors
    /// See [`PolicyKeyError`].
    pub fn from_der(der: &[u8]) -> Result<Self, PolicyKeyError> {
        let (key, content) = spki(der).ok_or(PolicyKeyError::Kind)?;
        Ok(Self { key, fingerprint: Sha256Digest::from_bytes(sha256(&[content])) })
    }

    /// `pkfp`: SHA-256 of PKCS #1 in DER for RSA, of the uncompressed point for ECDSA, as OpenSSL's `i2d_PublicKey` gives
    /// them.
    pub fn fingerprint(&self) -> Sha256Digest {
        self.fingerprint
    }

    /// The Names that the key can have in a policy: programs write the same public area in more than one way. The first is
    /// what this toolkit enrols, and what systemd 252 and 257 do.
    pub fn names(&self) -> Vec<Name> {
        self.publics().iter().map(|public| Name::of(public)).collect()
    }

    /// TPMT_PUBLIC as systemd gives it to TPM2_LoadExternal: decrypt, sign, userWithAuth; no policy, cipher and scheme.
    pub(crate) fn publics(&self) -> Vec<Vec<u8>> {
        const HEAD: [u8; 12] = [0, 0x0b, 0, 6, 0, 0x40, 0, 0, 0, 0x10, 0, 0x10];
        match &self.key {
            Key::Rsa { modulus, exponent } => {
                // At most 4096 bits.
                let bits = (modulus.len() as u16 * 8).to_be_bytes();
                let area =
                    |exponent: u32| [&[0, 1][..], &HEAD, &bits, &exponent.to_be_bytes(), &sized(modulus)].concat();
                if *exponent == DEFAULT_EXPONENT {
                    vec![area(DEFAULT_EXPONENT), area(0)]
                } else {
                    vec![area(*exponent)]
                }
            }
            Key::EccP256 { x, y } => {
                let area =
                    |x: &[u8], y: &[u8]| [&[0, 0x23][..], &HEAD, &[0, 3, 0, 0x10], &sized(x), &sized(y)].concat();
                let mut areas = vec![area(x, y)];
                // OpenSSL's numbers have no zeros in front.
                let (short_x, short_y) = (significant(x), significant(y));
                if short_x.len() + short_y.len() < 2 * SIZE {
                    areas.push(area(short_x, short_y));
                }
                areas
            }
        }
    }

    /// TPMT_SIGNATURE (Part 2, section 11.3.4) of what OpenSSL signed by SHA-256: `None` where it cannot be this key's.
    pub(crate) fn signature(&self, signature: &[u8]) -> Option<Vec<u8>> {
        const SHA256: [u8; 2] = [0, 0x0b];
        match &self.key {
            Key::Rsa { modulus, .. } if signature.len() == modulus.len() => {
                Some([&[0, 0x14][..], &SHA256, &sized(signature)].concat())
            }
            Key::Rsa { .. } => None,
            Key::EccP256 { .. } => {
                let (r, s) = ecdsa(signature)?;
                Some([&[0, 0x18][..], &SHA256, &sized(&r), &sized(&s)].concat())
            }
        }
    }
}

/// A `TPM2B_*`: everything here has at most 512 bytes.
fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

fn significant(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    &bytes[start..]
}

/// The key, and what the fingerprint is of.
fn spki(der: &[u8]) -> Option<(Key, &[u8])> {
    let mut outer = Der::new(der);
    let mut info = outer.sequence()?;
    outer.end()?;
    let is_rsa = info.exactly(RSA).is_some();
    if !is_rsa {
        info.exactly(P256)?;
    }
    let content = info.bytes()?;
    info.end()?;
    let key = if is_rsa { rsa(content)? } else { point(content)? };
    Some((key, content))
}

/// RSAPublicKey (RFC 8017, appendix A.1.1).
fn rsa(content: &[u8]) -> Option<Key> {
    let mut outer = Der::new(content);
    let mut fields = outer.sequence()?;
    outer.end()?;
    let (modulus, exponent) = (fields.unsigned()?, fields.unsigned()?);
    fields.end()?;
    let mut bytes = [0; 4];
    bytes[4_usize.checked_sub(exponent.len())?..].copy_from_slice(exponent);
    let full = matches!(modulus.len(), 256 | 384 | 512) && modulus.first()? & 0x80 != 0;
    full.then(|| Key::Rsa { modulus: modulus.to_vec(), exponent: u32::from_be_bytes(bytes) })
}

/// An uncompressed point (SEC 1, section 2.3.3). The TPM finds out whether it is on the curve.
fn point(content: &[u8]) -> Option<Key> {
    let (x, y) = content.strip_prefix(&[4])?.split_at_checked(SIZE)?;
    Some(Key::EccP256 { x: x.try_into().ok()?, y: y.try_into().ok()? })
}

/// ECDSA-Sig-Value (RFC 3279, section 2.2.3).
fn ecdsa(signature: &[u8]) -> Option<([u8; SIZE], [u8; SIZE])> {
    let mut outer = Der::new(signature);
    let mut fields = outer.sequence()?;
    outer.end()?;
    let (r, s) = (fields.unsigned()?, fields.unsigned()?);
    fields.end()?;
    Some((padded(r)?, padded(s)?))
}

fn padded(number: &[u8]) -> Option<[u8; SIZE]> {
    let mut bytes = [0; SIZE];
    bytes[SIZE.checked_sub(number.len())?..].copy_from_slice(number);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By `openssl genrsa 2048`; the fingerprint is `pkfp` in what `systemd-measure sign` of systemd 257 wrote by it.
    const RSA_PEM: &[u8] = include_bytes!("../tests/data/debian-13.pem");
    const RSA_FINGERPRINT: &str = "e2a38a604d4cadfc753433e5bd8b7f6dae69e740bc093e400bfa223eb050de15";

    #[test]
    fn a_fingerprint_is_the_one_that_systemd_measure_writes() {
        let key = PolicyKey::from_pem(RSA_PEM).unwrap();
        assert_eq!(key.fingerprint().to_string(), RSA_FINGERPRINT);
        assert_eq!(key.names().len(), 2, "the exponent as 65537 and as 0");
        assert!(key.signature(&[1; 256]).is_some() && key.signature(&[1; 255]).is_none());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let refusal = |pem: &[u8]| PolicyKey::from_pem(pem).unwrap_err();
        assert_eq!(refusal(&[b' '; MAX_PEM + 1]), PolicyKeyError::TooLarge(MAX_PEM + 1));
        assert_eq!(refusal(b"-----BEGIN PUBLIC KEY-----\n"), PolicyKeyError::Pem);
        assert_eq!(refusal(b"-----BEGIN PUBLIC KEY-----\n?\n-----END PUBLIC KEY-----"), PolicyKeyError::Base64);
        assert_eq!(refusal(b"-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----"), PolicyKeyError::Kind);
        assert_eq!(refusal(b"\xff"), PolicyKeyError::Pem);
    }

    #[test]
    fn zeros_in_front_of_a_coordinate_make_a_second_name() {
        let spki = |x: [u8; SIZE]| {
            let point = [&[0, 4][..], &x, &[7; SIZE]].concat();
            [&[0x30, 0x59][..], P256, &[3, 0x42], &point].concat()
        };
        assert_eq!(PolicyKey::from_der(&spki([7; SIZE])).unwrap().names().len(), 1);
        let mut short = [7; SIZE];
        short[0] = 0;
        assert_eq!(PolicyKey::from_der(&spki(short)).unwrap().names().len(), 2);
    }

    #[test]
    fn an_ecdsa_signature_is_two_numbers_of_the_curves_size() {
        let pair = |r: &[u8], s: &[u8]| {
            let number = |bytes: &[u8]| [&[2, u8::try_from(bytes.len()).unwrap()], bytes].concat();
            let body = [number(r), number(s)].concat();
            [&[0x30, u8::try_from(body.len()).unwrap()][..], &body].concat()
        };
        let (r, s) = ecdsa(&pair(&[1, 2], &[3])).unwrap();
        assert_eq!((&r[30..], &s[31..]), (&[1, 2][..], &[3][..]));
        assert!(ecdsa(&pair(&[1; 33], &[3])).is_none());
        assert!(ecdsa(&[&pair(&[1], &[3])[..], &[0]].concat()).is_none());
    }
}
