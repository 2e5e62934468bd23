//! The documents of an image: JSON with fields that are known, and others that the specification tells to pass over.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned, de::IgnoredAny};

use super::{Digest, OciError};
use crate::archive::compression::Compression;

/// An index, of either family.
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// A manifest.
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
/// The config of an image that can run, and not of some other artifact.
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// Layers, and those that may not be distributed freely; behind each come a separator and the compression.
const LAYERS: [(&str, char); 4] = [
    ("application/vnd.oci.image.layer.v1.tar", '+'),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", '+'),
    ("application/vnd.docker.image.rootfs.diff.tar", '.'),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar", '.'),
];
/// The annotation that names an image in `index.json`.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What a layer's media type says of its compression; `None` for media types that no layer has.
pub(super) fn layer_compression(media_type: &str) -> Option<Compression> {
    let (rest, separator) =
        LAYERS.into_iter().find_map(|(layer, separator)| Some((media_type.strip_prefix(layer)?, separator)))?;
    match rest.strip_prefix(separator) {
        None if rest.is_empty() => Some(Compression::None),
        Some("gzip") => Some(Compression::Gzip),
        Some("zstd") => Some(Compression::Zstd),
        _ => None,
    }
}

/// Names a blob, and says what it is (`descriptor.md`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// What its content hashes to.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// What it is for, where it is a signature, a bill of materials or the like, and no image.
    pub artifact_type: Option<String>,
    /// What it runs on, where it is an image.
    pub platform: Option<Platform>,
    /// Whatever else is known of it.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The image's name in its layout.
    pub fn ref_name(&self) -> Option<&str> {
        self.annotations.get(REF_NAME).map(String::as_str)
    }

    pub(super) fn is_index(&self) -> bool {
        INDEXES.contains(&&*self.media_type)
    }

    pub(super) fn is_manifest(&self) -> bool {
        MANIFESTS.contains(&&*self.media_type)
    }

    pub(super) fn is_config(&self) -> bool {
        CONFIGS.contains(&&*self.media_type)
    }
}

/// What an image runs on, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// The processor.
    pub architecture: String,
    /// The system.
    pub os: String,
    /// Which of the processor's kinds.
    pub variant: Option<String>,
}

/// `index.json`, or an index among the blobs (`image-index.md`).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    schema_version: u64,
    media_type: Option<String>,
    /// Images, further indexes, and things of other kinds.
    pub manifests: Vec<Descriptor>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
}

impl Index {
    /// Reads a document that messages call `name`.
    ///
    /// # Errors
    /// JSON that is not an index, or that could also be read as a manifest.
    pub fn parse(name: &str, json: &[u8]) -> Result<Self, OciError> {
        let found: Self = parse(name, json)?;
        check_head(name, found.schema_version, found.media_type.as_deref(), &INDEXES)?;
        check_absent(name, "layers", found.layers.as_ref())?;
        check_absent(name, "config", found.config.as_ref())?;
        Ok(found)
    }
}

/// An image's config and layers (`manifest.md`).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    schema_version: u64,
    media_type: Option<String>,
    /// How to run the image, and on what.
    pub config: Descriptor,
    /// The lowest first.
    pub layers: Vec<Descriptor>,
    manifests: Option<IgnoredAny>,
}

impl Manifest {
    /// Reads a document that messages call `name`.
    ///
    /// # Errors
    /// JSON that is not a manifest, or that could also be read as an index.
    pub fn parse(name: &str, json: &[u8]) -> Result<Self, OciError> {
        let found: Self = parse(name, json)?;
        check_head(name, found.schema_version, found.media_type.as_deref(), &MANIFESTS)?;
        check_absent(name, "manifests", found.manifests.as_ref())?;
        Ok(found)
    }
}

/// What a config says of the platform (`config.md`).
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// The processor.
    pub architecture: String,
    /// The system.
    pub os: String,
    /// Which of the processor's kinds.
    pub variant: Option<String>,
}

impl Config {
    /// Reads a document that messages call `name`.
    ///
    /// # Errors
    /// JSON that is not a config.
    pub fn parse(name: &str, json: &[u8]) -> Result<Self, OciError> {
        parse(name, json)
    }
}

/// `oci-layout`, the mark of a layout (`image-layout.md`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mark {
    image_layout_version: String,
}

/// Refuses layouts of versions to come.
pub(super) fn check_mark(name: &str, json: &[u8]) -> Result<(), OciError> {
    match parse::<Mark>(name, json)?.image_layout_version {
        version if version == "1.0.0" => Ok(()),
        other => Err(OciError::field(name, "imageLayoutVersion", "1.0.0".into(), &other)),
    }
}

fn parse<T: DeserializeOwned>(name: &str, json: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(json).map_err(|source| OciError::Json { name: name.to_owned(), source })
}

fn check_head(name: &str, version: u64, media_type: Option<&str>, known: &[&str]) -> Result<(), OciError> {
    if version != 2 {
        return Err(OciError::field(name, "schemaVersion", "2".into(), &version.to_string()));
    }
    match media_type {
        Some(other) if !known.contains(&other) => {
            Err(OciError::field(name, "mediaType", format!("one of {}", known.join(", ")), other))
        }
        _ => Ok(()),
    }
}

/// A document that is two things at once means one to this reader and the other to the next (CVE-2021-41190).
fn check_absent(name: &str, field: &'static str, found: Option<&IgnoredAny>) -> Result<(), OciError> {
    match found {
        Some(_) => Err(OciError::field(name, field, "no such field in a document of this kind".into(), "one")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_of_layers_tell_the_compression() {
        for (media_type, expected) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar", Some(Compression::None)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar.gzip", None),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.oci.image.layer.v1.tar+", None),
            ("application/vnd.oci.empty.v1+json", None),
        ] {
            assert_eq!(layer_compression(media_type), expected, "{media_type}");
        }
    }

    #[test]
    fn a_document_that_is_index_and_manifest_at_once_is_neither() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let config = format!(r#"{{"mediaType": "m", "digest": "{digest}", "size": 1}}"#);
        let both = format!(r#"{{"schemaVersion": 2, "manifests": [], "config": {config}, "layers": []}}"#);
        let errors =
            [Index::parse("i", both.as_bytes()).unwrap_err(), Manifest::parse("m", both.as_bytes()).unwrap_err()];
        assert!(errors[0].to_string().contains("i: layers: expected no such field"), "{}", errors[0]);
        assert!(errors[1].to_string().contains("m: manifests: expected no such field"), "{}", errors[1]);
        let foreign =
            br#"{"schemaVersion": 2, "manifests": [], "mediaType": "application/vnd.oci.image.manifest.v1+json"}"#;
        assert!(Index::parse("i", foreign).unwrap_err().to_string().starts_with("i: mediaType: expected one of"));
        let old = br#"{"schemaVersion": 1, "manifests": []}"#;
        assert!(Index::parse("i", old).unwrap_err().to_string().contains("schemaVersion: expected 2, found 1"));
    }
}
