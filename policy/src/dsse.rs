//! DSSE envelopes: a payload, its type, and ed25519 signatures over both.
//!
//! Source: the Dead Simple Signing Envelope specification, version 1.0.2. The signature covers the pre-authentication
//! encoding of type and payload, so that a payload signed as one type is worth nothing as another.

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{SIGNATURE_LENGTH, Signature};
use serde::{Deserialize, Serialize};

use crate::trust::KeyId;

/// The largest envelope that is parsed, in bytes. A manifest is 2 KiB; parsing precedes verification, so it is bounded.
pub const MAX_ENVELOPE_SIZE: usize = 256 * 1024;

/// The most signatures that an envelope may carry: each costs a verification.
pub const MAX_SIGNATURES: usize = 16;

/// What a payload is. Part of the signed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadType {
    /// A [`crate::manifest::Manifest`].
    Manifest,
    /// A [`crate::release::Release`].
    Release,
}

impl PayloadType {
    /// The media type in the envelope.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Manifest => "application/vnd.iofs.manifest.v1+json",
            Self::Release => "application/vnd.iofs.release.v1+json",
        }
    }
}

/// Why an envelope was refused before any signature was looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is larger than any real one.
    #[error("envelope: expected at most {MAX_ENVELOPE_SIZE} bytes, found {0}")]
    TooLarge(usize),
    /// It is not the JSON of an envelope.
    #[error("envelope: not a DSSE envelope: {0}")]
    Json(String),
    /// It holds another type of payload.
    #[error("envelope: payloadType: expected {expected:?}, found {found:?}")]
    PayloadType {
        /// The type that was asked for.
        expected: &'static str,
        /// The type that the envelope names.
        found: String,
    },
    /// A field is not canonical base64.
    #[error("envelope: {field}: not base64: {reason}")]
    Base64 {
        /// The field's name.
        field: &'static str,
        /// What the decoder found.
        reason: String,
    },
    /// The number of signatures is out of bounds.
    #[error("envelope: signatures: expected 1 to {MAX_SIGNATURES}, found {0}")]
    SignatureCount(usize),
    /// A signature has another length than ed25519's.
    #[error("envelope: signature by key {keyid}: expected {SIGNATURE_LENGTH} bytes, found {found}")]
    SignatureSize {
        /// The key that it claims.
        keyid: KeyId,
        /// Its size in bytes.
        found: usize,
    },
    /// Two signatures claim the same key.
    #[error("envelope: signatures: key {0} appears twice")]
    DuplicateKey(KeyId),
}

/// A parsed envelope. Nothing in it is verified: that is [`crate::trust::TrustedKeys::verify`]'s work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    payload_type: PayloadType,
    payload: Vec<u8>,
    signatures: Vec<EnvelopeSignature>,
}

/// One signature with the key that it claims to be by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvelopeSignature {
    /// The claimed key. A hint: only verification tells.
    pub keyid: KeyId,
    /// The ed25519 signature over the pre-authentication encoding.
    pub signature: Signature,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireEnvelope {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    signatures: Vec<WireSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSignature {
    keyid: KeyId,
    sig: String,
}

/// The bytes that a signature covers: `DSSEv1 SP len(type) SP type SP len(body) SP body`.
pub fn pre_authentication_encoding(payload_type: PayloadType, payload: &[u8]) -> Vec<u8> {
    let media_type = payload_type.media_type();
    let mut encoding = format!("DSSEv1 {} {media_type} {} ", media_type.len(), payload.len()).into_bytes();
    encoding.extend_from_slice(payload);
    encoding
}

impl Envelope {
    /// An envelope around a payload, to be signed.
    pub fn unsigned(payload_type: PayloadType, payload: Vec<u8>) -> Self {
        Self { payload_type, payload, signatures: Vec::new() }
    }

    /// Parses an envelope that must hold the given type of payload.
    ///
    /// # Errors
    /// [`EnvelopeError`] for anything that is not exactly such an envelope, unknown fields included.
    pub fn parse(bytes: &[u8], expected: PayloadType) -> Result<Self, EnvelopeError> {
        let envelope = Self::parse_unsigned(bytes, expected)?;
        if envelope.signatures.is_empty() {
            return Err(EnvelopeError::SignatureCount(0));
        }
        Ok(envelope)
    }

    /// Like [`Envelope::parse`], for an envelope that may still wait for its first signature.
    pub fn parse_unsigned(bytes: &[u8], expected: PayloadType) -> Result<Self, EnvelopeError> {
        if bytes.len() > MAX_ENVELOPE_SIZE {
            return Err(EnvelopeError::TooLarge(bytes.len()));
        }
        let wire: WireEnvelope =
            serde_json::from_slice(bytes).map_err(|error| EnvelopeError::Json(error.to_string()))?;
        if wire.payload_type != expected.media_type() {
            let expected = expected.media_type();
            return Err(EnvelopeError::PayloadType { expected, found: wire.payload_type });
        }
        if wire.signatures.len() > MAX_SIGNATURES {
            return Err(EnvelopeError::SignatureCount(wire.signatures.len()));
        }
        let payload = decode_base64("payload", &wire.payload)?;
        let mut envelope = Self::unsigned(expected, payload);
        for signature in wire.signatures {
            envelope.add(signature.keyid, &decode_base64("sig", &signature.sig)?)?;
        }
        Ok(envelope)
    }

    /// Adds a signature made over [`Envelope::signed_bytes`].
    pub fn add(&mut self, keyid: KeyId, signature: &[u8]) -> Result<(), EnvelopeError> {
        if self.signatures.iter().any(|present| present.keyid == keyid) {
            return Err(EnvelopeError::DuplicateKey(keyid));
        }
        if self.signatures.len() == MAX_SIGNATURES {
            return Err(EnvelopeError::SignatureCount(MAX_SIGNATURES + 1));
        }
        let signature = Signature::from_slice(signature)
            .map_err(|_| EnvelopeError::SignatureSize { keyid, found: signature.len() })?;
        self.signatures.push(EnvelopeSignature { keyid, signature });
        Ok(())
    }

    /// The bytes that signatures cover.
    pub fn signed_bytes(&self) -> Vec<u8> {
        pre_authentication_encoding(self.payload_type, &self.payload)
    }

    /// What the payload is.
    pub fn payload_type(&self) -> PayloadType {
        self.payload_type
    }

    /// The payload. Not verified: fit for showing and for signing, not for acting on.
    pub fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }

    /// The signatures. Not verified.
    pub fn signatures(&self) -> &[EnvelopeSignature] {
        &self.signatures
    }

    /// The envelope as JSON, one line, with a newline at its end.
    pub fn to_json(&self) -> Vec<u8> {
        let wire = WireEnvelope {
            payload_type: self.payload_type.media_type().to_owned(),
            payload: STANDARD.encode(&self.payload),
            signatures: self
                .signatures
                .iter()
                .map(|one| WireSignature { keyid: one.keyid, sig: STANDARD.encode(one.signature.to_bytes()) })
                .collect(),
        };
        let mut json = serde_json::to_vec(&wire).expect("strings and lists always serialise");
        json.push(b'\n');
        json
    }
}

fn decode_base64(field: &'static str, text: &str) -> Result<Vec<u8>, EnvelopeError> {
    STANDARD.decode(text).map_err(|error| EnvelopeError::Base64 { field, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keyid(fill: u8) -> KeyId {
        KeyId::from_bytes([fill; 32])
    }

    #[test]
    fn the_pre_authentication_encoding_has_the_form_of_the_specification() {
        assert_eq!(
            pre_authentication_encoding(PayloadType::Manifest, b"hello world"),
            b"DSSEv1 37 application/vnd.iofs.manifest.v1+json 11 hello world"
        );
    }

    #[test]
    fn an_envelope_of_another_type_is_refused() {
        let mut envelope = Envelope::unsigned(PayloadType::Release, b"{}".to_vec());
        envelope.add(keyid(1), &[7; 64]).unwrap();
        let error = Envelope::parse(&envelope.to_json(), PayloadType::Manifest).unwrap_err();
        assert!(matches!(error, EnvelopeError::PayloadType { .. }), "{error}");
    }

    #[test]
    fn malformed_envelopes_are_refused_by_field() {
        let ok = |signatures: &str| {
            let media_type = PayloadType::Manifest.media_type();
            format!(r#"{{"payloadType":"{media_type}","payload":"e30=","signatures":[{signatures}]}}"#)
        };
        let id = keyid(1);
        for (text, expected) in [
            (ok(""), "envelope: signatures: expected 1 to 16, found 0"),
            (ok(&format!(r#"{{"keyid":"{id}","sig":"AA=="}}"#)), "expected 64 bytes, found 1"),
            (ok(&format!(r#"{{"keyid":"{id}","sig":"%"}}"#)), "envelope: sig: not base64"),
            (ok(r#"{"keyid":"12","sig":""}"#), "not a DSSE envelope"),
            (ok("").replace("signatures", "signature"), "not a DSSE envelope"),
            (ok("").replace("e30=", "e30"), "envelope: payload: not base64"),
            ("[".repeat(100_000), "not a DSSE envelope"),
            (" ".repeat(MAX_ENVELOPE_SIZE + 1), "expected at most 262144 bytes, found 262145"),
        ] {
            let error = Envelope::parse(text.as_bytes(), PayloadType::Manifest).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        }
    }

    #[test]
    fn a_key_cannot_sign_twice() {
        let mut envelope = Envelope::unsigned(PayloadType::Manifest, Vec::new());
        envelope.add(keyid(1), &[7; 64]).unwrap();
        assert_eq!(envelope.add(keyid(1), &[8; 64]), Err(EnvelopeError::DuplicateKey(keyid(1))));
    }

    proptest! {
        #[test]
        fn envelopes_round_trip(payload: Vec<u8>, signature in prop::collection::vec(0..128_u8, 64)) {
            let mut envelope = Envelope::unsigned(PayloadType::Manifest, payload);
            envelope.add(keyid(1), &signature).unwrap();
            prop_assert_eq!(Envelope::parse(&envelope.to_json(), PayloadType::Manifest), Ok(envelope));
        }
    }
}
