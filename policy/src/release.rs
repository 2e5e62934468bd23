//! The release statement: what one run of `seal` produced, digest by digest.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Sha256Digest, dsse::PayloadType, manifest::ImageIdentity, trust::VerifiedPayload, uki::UkiMeasurements,
    verity::RootHash,
};

/// The signed statement about all artifacts of one release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The image that all this belongs to.
    pub image: ImageIdentity,
    /// SHA-256 of the signed manifest (the payload, not the envelope).
    pub manifest_digest: Sha256Digest,
    /// The root hash of the image.
    pub root_hash: RootHash,
    /// The release of the kernel that was sealed with the image, if any.
    pub kernel_release: Option<String>,
    /// The Authenticode digest of the kernel image, if it is a PE image: what UEFI firmware measures of it.
    pub kernel_authenticode: Option<Sha256Digest>,
    /// What is measured of the unified kernel image, if there is one. Releases without do not mention it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uki: Option<UkiMeasurements>,
    /// The kernel command lines that this release is meant to boot with. Where there are none, a verifier needs its own.
    pub command_lines: Vec<String>,
    /// The files, by name.
    pub artifacts: Vec<Artifact>,
}

/// One file of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// The file's name in the sealed directory: a single component.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest.
    pub sha256: Sha256Digest,
}

/// Why a release statement was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The payload is of another type.
    #[error("release statement: expected a payload of type {expected}, found {found}")]
    PayloadType {
        /// The media type of release statements.
        expected: &'static str,
        /// The payload's media type.
        found: &'static str,
    },
    /// It is not the JSON of a release statement.
    #[error("release statement: {0}")]
    Json(String),
    /// An artifact's name could leave the sealed directory.
    #[error("release statement: artifacts: expected a plain file name, found {0:?}")]
    ArtifactName(String),
    /// An artifact is listed twice.
    #[error("release statement: artifacts: {0:?} is listed twice")]
    Duplicate(String),
}

impl Release {
    /// Reads a payload that was verified.
    pub fn from_payload(payload: &VerifiedPayload) -> Result<Self, ReleaseError> {
        match payload.payload_type() {
            PayloadType::Release => Self::from_json(payload.bytes()),
            other @ PayloadType::Manifest => {
                let (expected, found) = (PayloadType::Release.media_type(), other.media_type());
                Err(ReleaseError::PayloadType { expected, found })
            }
        }
    }

    /// Parses the JSON form, for showing: what relies on a statement uses [`Release::from_payload`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, ReleaseError> {
        let release: Self = serde_json::from_slice(bytes).map_err(|error| ReleaseError::Json(error.to_string()))?;
        for (index, artifact) in release.artifacts.iter().enumerate() {
            let name = &artifact.name;
            if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
                return Err(ReleaseError::ArtifactName(name.clone()));
            }
            if release.artifacts[..index].iter().any(|other| other.name == *name) {
                return Err(ReleaseError::Duplicate(name.clone()));
            }
        }
        Ok(release)
    }

    /// The JSON form whose bytes are signed.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("a release statement always serialises");
        json.push(b'\n');
        json
    }
}
