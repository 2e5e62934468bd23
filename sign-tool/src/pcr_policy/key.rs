//! The private key of signed PCR policies, in the files that OpenSSL writes.

use std::{fmt, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use iofs_policy::digest::Sha256Digest;
use iofs_tpm::{policy::PolicyDigest, policy_key::PolicyKey};
use p256::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use rsa::{
    Pkcs1v15Sign, PrivateKey,
    pkcs1::DecodeRsaPrivateKey,
    pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePublicKey, LineEnding},
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::keys::{KeyFileError, describe, read_pem};

const EXPECTED: &str =
    "an unencrypted private key: RSA of 2048, 3072 or 4096 bits, or P-256 (PKCS#8, PKCS#1 or SEC1, PEM)";

/// A private key that signs PCR policies. Its secret is wiped from memory when it goes.
pub struct PolicySigner {
    secret: Secret,
    public: PolicyKey,
    public_pem: String,
}

enum Secret {
    Rsa(Box<PrivateKey>),
    P256(p256::ecdsa::SigningKey),
}

impl fmt::Debug for PolicySigner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PolicySigner({})", self.public.fingerprint())
    }
}

/// The system has no random numbers, which RSA is blinded by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sign by RSA: {0}")]
pub struct SignError(String);

impl PolicySigner {
    /// Reads a PEM file, as `openssl genpkey`, `openssl genrsa` and `openssl ecparam -genkey` write it.
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let pem = read_pem(path)?;
        Self::from_pem(&pem).map_err(|why| KeyFileError::Format {
            path: path.to_owned(),
            expected: EXPECTED,
            found: describe(&pem, &why),
        })
    }

    /// Reads PEM. Blocks of other kinds in front of the key, such as the parameters of a curve, are passed over.
    fn from_pem(pem: &str) -> Result<Self, &'static str> {
        Self::new(secret(pem)?).ok_or("a key that no TPM takes")
    }

    fn new(secret: Secret) -> Option<Self> {
        let public_pem = secret.public_pem()?;
        let public = PolicyKey::from_pem(public_pem.as_bytes()).ok()?;
        Some(Self { secret, public, public_pem })
    }

    /// The public half.
    pub fn public(&self) -> &PolicyKey {
        &self.public
    }

    /// The public half as `openssl pkey -pubout` writes it: what `.pcrpkey` holds, and what `enroll --pcr-policy` takes.
    pub fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// Signs a policy's digest and a `policyRef`, which may be empty: the signature is over SHA-256 of both.
    ///
    /// The same digest gives the same signature: RSASSA-PKCS1-v1_5 (RFC 8017, section 8.2), or ECDSA as in RFC 6979.
    ///
    /// # Errors
    /// See [`SignError`].
    pub fn sign(&self, policy: &PolicyDigest, policy_ref: &[u8]) -> Result<Vec<u8>, SignError> {
        let digest = signed_digest(policy.as_bytes(), policy_ref);
        match &self.secret {
            // Blinded, so that how long it takes says nothing of the key.
            Secret::Rsa(key) => key
                .sign_with_rng(&mut getrandom::SysRng, Pkcs1v15Sign::new::<Sha256>(), &digest)
                .map_err(|error| SignError(error.to_string())),
            Secret::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign_prehash(&digest).expect("32 bytes can be signed");
                Ok(signature.to_der().as_bytes().to_vec())
            }
        }
    }
}

impl Secret {
    fn public_pem(&self) -> Option<String> {
        match self {
            Self::Rsa(key) => key.to_public_key().to_public_key_pem(LineEnding::LF).ok(),
            Self::P256(key) => key.verifying_key().to_public_key_pem(LineEnding::LF).ok(),
        }
    }
}

fn signed_digest(policy: &[u8], policy_ref: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(policy).chain_update(policy_ref).finalize().into()
}

/// Whether a signature over a policy's digest and a `policyRef` verifies with a public key in PEM.
pub(super) fn verifies(pem: &[u8], policy: &Sha256Digest, policy_ref: &[u8], signature: &[u8]) -> bool {
    let digest = signed_digest(policy.as_bytes(), policy_ref);
    let Ok(pem) = std::str::from_utf8(pem) else { return false };
    if let Ok(key) = rsa::PublicKey::from_public_key_pem(pem) {
        return key.verify(Pkcs1v15Sign::new::<Sha256>(), &digest, signature).is_ok();
    }
    let key = p256::ecdsa::VerifyingKey::from_public_key_pem(pem);
    let signature = p256::ecdsa::Signature::from_der(signature);
    key.is_ok_and(|key| signature.is_ok_and(|signature| key.verify_prehash(&digest, &signature).is_ok()))
}

fn secret(pem: &str) -> Result<Secret, &'static str> {
    if let Some(der) = block(pem, "PRIVATE KEY") {
        return pkcs8(&der?);
    }
    if let Some(der) = block(pem, "RSA PRIVATE KEY") {
        let key = PrivateKey::from_pkcs1_der(&der?);
        return key.map(|key| Secret::Rsa(Box::new(key))).map_err(|_| "no sound RSA key");
    }
    if let Some(der) = block(pem, "EC PRIVATE KEY") {
        let key = p256::SecretKey::from_sec1_der(&der?);
        return key.map(|key| Secret::P256(key.into())).map_err(|_| "no key on P-256");
    }
    Err("no such key")
}

fn pkcs8(der: &[u8]) -> Result<Secret, &'static str> {
    if let Ok(key) = PrivateKey::from_pkcs8_der(der) {
        return Ok(Secret::Rsa(Box::new(key)));
    }
    let key = p256::SecretKey::from_pkcs8_der(der);
    key.map(|key| Secret::P256(key.into())).map_err(|_| "neither RSA nor P-256")
}

/// What stands in a PEM block (RFC 7468) of that label, where there is one.
fn block(pem: &str, label: &str) -> Option<Result<Zeroizing<Vec<u8>>, &'static str>> {
    let (_, behind) = pem.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = behind.split_once(&format!("-----END {label}-----"))?;
    // With all its room at once: one that grows leaves copies of the secret behind.
    let mut packed = Zeroizing::new(String::with_capacity(body.len()));
    packed.extend(body.split_ascii_whitespace());
    let mut der = Zeroizing::new(vec![0; packed.len()]);
    Some(match STANDARD.decode_slice(packed.as_bytes(), &mut der) {
        Ok(size) => {
            der.truncate(size);
            Ok(der)
        }
        // The headers of RFC 1421, by which OpenSSL used to encrypt.
        Err(_) if body.contains("ENCRYPTED") => Err("it is encrypted: decrypt it to a file in memory"),
        Err(_) => Err("no base64"),
    })
}
